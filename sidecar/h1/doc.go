// Package h1 serves HTTP/1.1 connections (RFC 9112) as streams of head, body
// and trailers. It stands on net/http's server.
//
// Owns: the life of a server-side HTTP/1.1 connection: keep-alive, time-outs,
// draining, lingering. Does not know: routing, filters.
//
// Entry point: [Server.Serve]. Invariants: Serve returns when the connection
// and every goroutine that works on it are over; an answer that net/http makes
// for a request that it cannot read is replaced by the handler's (Refused).
//
// Read server_test.go first.
package h1
