// Package h1 speaks HTTP/1.1 (RFC 9112), as a server and as a client, in terms
// of sidecar/stream: heads, bodies that lend their bytes, trailers.
//
// Owns: the wire: heads scanned once and in place, framing, chunks, 100
// (Continue), upgrades; the life of a connection on both sides: keep-alive,
// pipelining, time-outs, draining, lingering. Does not know: routing, filters,
// pools, TLS.
//
// Entry points: [Server.NewConn] and [ServerConn.Serve]; [NewClientConn] and [ClientConn.Do].
//
// Invariants: a message that two recipients could read differently is refused,
// and nothing that is legal is; what belongs to one connection alone never
// crosses to the other side; a connection whose message boundaries are in doubt
// is never used again; no buffer is held between two messages, and nothing is
// allocated and no timer made for one request; one goroutine at a time reads a
// connection.
//
// Read rfc_test.go first.
package h1
