// Package l7 is the HTTP engine: it takes the connections of one filter chain
// and carries each request through filters and route to a cluster and the
// response back.
//
// Owns: [Engine]; the life of an exchange; the one normalised path; what is
// believed of a request's sender; the time-outs of a stream; the answers that
// the mesh makes itself.
// Does not know: framing (h1, h2), how a route or a permission is decided
// (xds/decide), how an endpoint is chosen (cluster).
//
// Invariants: a request sees one route configuration, loaded once; what is
// decided on is what is forwarded; what the mesh answers carries a code of
// telemetry's table, in proxy-status (RFC 9209) and in the record; every
// request is recorded once; a panic ends its own request only.
//
// Read engine_test.go first.
package l7
