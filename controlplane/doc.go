// Package controlplane wires a catalogue to the streams of the sidecars: source
// → mesh → resources → xDS, with identities beside it, and drains.
//
// Owns: the life cycle, the order in which a change becomes visible, who may
// open a stream. Does not know: algorithms; those are in the packages below it.
//
// Entry point: [New] and [ControlPlane.Run]. Listeners are handed in.
//
// Invariants: a snapshot is visible to the Provider before the server hears of
// the change; the first change of a service goes out at once, further ones at
// most once per Config.Coalesce; a workload whose registration goes away while
// its stream is open keeps the configuration that it had, since a catalogue
// that forgets must not take down what works; everything that Run starts has
// ended when it returns.
//
// Read first: TestControlPlane.
package controlplane
