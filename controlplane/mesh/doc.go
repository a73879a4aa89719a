// Package mesh makes of catalogue and policy one indexed, immutable snapshot,
// and says of each change what it touches.
//
// Owns: [Snapshot], [Builder], the effective protocol of a service, the
// intentions of a destination in Consul's order, what depends on what. Does
// not know: protos, xDS, I/O, time.
//
// Entry point: [Builder.Apply] takes one delivery of a discovery.Source and
// returns the next Snapshot and its [Change].
//
// Invariants: a Snapshot never changes; two snapshots share every part that
// did not change (the indices are hash tables in shards, of which an edit
// copies only those that it touches), so that a changed endpoint costs the
// same in a mesh of ten and of ten thousand services; a Change names at least
// what is different, and a delivery that repeats what is known is an empty
// Change.
//
// Read first: TestApply.
package mesh
