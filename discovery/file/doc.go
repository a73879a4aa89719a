// Package file is a catalogue made of a directory of Consul's own service
// definitions and config entries, in HCL and JSON.
//
// Owns: reading and watching the directory, telling of bad files by file, line,
// reason and remedy while the last good version of each stays in force, and
// running the definitions' checks as Consul's agent would.
//
// Does not know: xDS, the mesh snapshot, Consul's client library.
//
// Entry point: [New], then [Source.Run].
//
// A file is what `consul services register` and `consul config write` take, or
// an agent's configuration with `service`, `services` and `config_entries`;
// several of these may stand in one file. The grammar is HCL 1, as Consul's.
// Files whose name begins with a dot or ends in neither .hcl nor .json are
// left alone, as are directories below.
//
// Invariants: one goroutine owns all state; a file that cannot be read or
// understood never takes anything away; a deleted file does, within the limits
// of [discovery.Guard], whose confirmation here is reading the directory again.
//
// Read TestSource first.
package file
