// Package h2 serves HTTP/2 connections (RFC 9113) as streams of head, body and
// trailers. It stands on golang.org/x/net/http2's server.
//
// Owns: the life of a server-side HTTP/2 connection: settings, limits, GOAWAY.
// Does not know: routing, filters.
//
// Entry point: [Server.Serve]. Invariant: Serve returns when the connection and
// every exchange on it are over.
//
// Read server_test.go first.
package h2
