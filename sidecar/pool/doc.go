// Package pool keeps the connections to one endpoint.
//
// Owns: [Pool]: HTTP/1.1 keep-alive, HTTP/2 with prior knowledge or by ALPN,
// dedicated HTTP/1.1 connections for upgrades, raw connections for opaque bytes;
// the typed reasons why an endpoint could not be reached ([Error]).
// Does not know: which endpoint to take, retries, routes, where identities come
// from (it is given a *tls.Config).
//
// Invariants: nothing is added to a request that its sender did not put there,
// but framing; a pool with TLS never speaks plaintext; a drained pool takes no
// request and closes each connection when its last stream ended.
//
// Framing is net/http's for now, behind stream's types.
//
// Read pool_test.go first.
package pool
