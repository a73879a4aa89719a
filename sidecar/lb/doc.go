// Package lb picks an endpoint for a request.
//
// Owns: [Policy] and its implementations (one file each), [Endpoint] (the
// handle whose counters survive rebuilds), the choice of priority.
// Does not know: sockets, xDS, why an endpoint may be used or not.
//
// Entry point: [New], then Policy.Build at each change of the set.
//
// Invariants: a [Picker] is immutable but for atomics and takes no lock; a pick
// allocates nothing; randomness is injected; an endpoint handle belongs to one
// address and is shared by all pickers of its cluster, so that a rebuild loses
// no load counter.
//
// Read lb_test.go first.
package lb
