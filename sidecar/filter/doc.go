// Package filter is the contract of HTTP filters.
//
// A filter sees an exchange twice: Request on the way in, in the order of the
// configuration, and Response on the way out, in reverse order. It may change
// the head, wrap the body (a filter that wants the bytes replaces req.Body by
// one that reads through the old; one that does not costs nothing), pause by
// blocking until ctx ends, answer by returning a response, or end the exchange
// by returning an error that is an [*Abort].
//
// Owns: the contract. Does not know: engines, clusters, other filters.
//
// Test to read first: TestOrder.
package filter
