// Package main is fieldgen: it writes discovery/fields_gen.go, every field that
// Consul's config entries and service registrations have, walked out of the
// structs of consul/api.
//
// Owns: the notation of the paths. Does not know: which fields parrel honours.
//
// The list is the grammar by which discovery.DecodeConfigEntry finds unknown
// fields, and what `parrel analyze` compares the honoured fields with, so that
// a field which a newer consul/api brings cannot go unnoticed.
//
// Entry point: Source. Run it by `go generate ./discovery/consul`; TestUpToDate
// fails while the file is out of date.
package main
