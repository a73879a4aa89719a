// Package h2 carries exchanges on HTTP/2 connections (RFC 9113), on both sides,
// with framing and header compression (RFC 7541) of its own.
//
// Owns: frames, HPACK, streams and their flow control, both ends of a
// connection's life (settings, drain by two GOAWAYs, liveness by PING) and the
// budget of what a peer may make us do for nothing.
// Does not know: routing, filters, dialling, TLS.
//
// Entry points: [Server.Serve]; [NewClientConn], [ClientConn.Run] and
// [ClientConn.Do].
//
// A connection has one reader, which takes all frames that a read brought, one
// writer, which writes whatever was queued since its last write, and workers:
// one per exchange on a server, one per request body that is not ready on a
// client. Everything that they share is guarded by the connection's mu.
//
// Invariants: Serve and Run return when every goroutine of the connection has
// ended; a connection holds no buffer while nothing is there to be read or
// written; bytes held for a stream are at most the window that was given for it,
// bytes queued are bounded; no string of a head outlives its exchange, except
// copied; a header block is always decoded, whatever becomes of its stream; a
// stream's memory is used again only when nobody has it in hand.
//
// Read pair_test.go first.
package h2
