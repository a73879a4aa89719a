// Package pool keeps the connections to one endpoint.
//
// Owns: [Pool]: idle HTTP/1.1 connections, the last used first; few long-lived
// HTTP/2 connections that requests share, with prior knowledge or by ALPN;
// HTTP/1.1 connections of their own for upgrades, where the endpoint takes none
// on HTTP/2; raw connections for opaque bytes; which request may be sent again
// because of its connection alone; how long the endpoint keeps idle connections;
// the typed reasons why an endpoint could not be reached ([Error]).
// Does not know: which endpoint to take, retries, routes, where identities come
// from (it is given a *tls.Config).
//
// Invariants: nothing is added to a request that its sender did not put there,
// but framing; a pool with TLS never speaks plaintext; a drained pool takes no
// request and closes each connection when its last stream ended; an idle
// connection costs neither goroutine nor buffer nor timer of its own; a
// connection that was to carry other bytes than HTTP is used for nothing else;
// no request is carried out twice whose method is not idempotent. Close waits
// for every goroutine.
//
// Read scripted_test.go first.
package pool
