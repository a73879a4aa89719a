// Package nethttp carries exchanges between net/http's server interfaces and
// sidecar/stream. sidecar/h1 and sidecar/h2 share it for as long as they stand
// on net/http and x/net/http2.
//
// Owns: the conversion of heads, bodies, trailers and upgrades.
// Does not know: connections, routing, filters.
//
// Invariants: net/http adds nothing that the peer did not send but Date (RFC
// 9110, section 6.6.1, asks that of whoever forwards a response without one);
// nobody reads a request's body after its exchange; an HTTP/1.1 connection
// whose request was not read to its end before the response began is never
// used again.
package nethttp
