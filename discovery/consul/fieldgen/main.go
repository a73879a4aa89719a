// Command fieldgen writes discovery/fields_gen.go: every field that Consul's
// config entries and service registrations have, walked out of the structs of
// consul/api. The list is the grammar by which [discovery.DecodeConfigEntry]
// finds unknown fields, and what `parrel analyze` compares the honoured fields
// with, so that a field which a newer consul/api brings cannot go unnoticed.
//
// Run it by `go generate ./discovery/consul`; a test fails while the file is
// out of date.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "fieldgen: say where to write: fieldgen ../fields_gen.go")
		os.Exit(2)
	}
	src, err := Source()
	if err == nil {
		err = os.WriteFile(os.Args[1], src, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fieldgen:", err)
		os.Exit(1)
	}
}
