// Package l4 is the engine for opaque bytes: a connection of a listener, a
// connection to a cluster, and what each side sends to the other.
//
// Owns: [Engine], half-close and reset both ways, the idle time-out, the record
// of a connection. Does not know: HTTP, TLS, where clusters come from.
//
// Entry point: [New]; an Engine is a [listener.Handler].
//
// Invariants: what one side sends arrives unchanged and in order; the end of
// one direction leaves the other open; an RST is passed on as an RST; buffers
// are held only while bytes are in them ([netio.Copy]), and a reader that has
// stopped costs less than 64 kB; a connection has no idle time-out
// unless it was configured (a database connection may be silent for days) and
// is not ended by draining before the drain's deadline.
//
// Read l4_test.go first.
package l4
