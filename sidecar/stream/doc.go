// Package stream is the border between the HTTP engines and everything that
// looks at a request: a request and a response as head, body and trailers,
// whichever version of HTTP carries them.
//
// Owns: the message types and the rules of header names.
// Does not know: sockets, framing, routing, filters.
//
// Invariants: header names are lower case; connection-specific fields
// (connection, keep-alive, transfer-encoding, te other than trailers, upgrade,
// proxy-connection) never cross this border: an engine takes them off and puts
// its own on; one goroutine at a time reads a Body.
//
// Read stream_test.go first.
package stream
