// Package compile turns a complete set of configuration into what a sidecar
// executes, carrying over from the snapshot before whatever did not change.
//
// Owns: [Snapshot], [Compile], [Check]. Does not know: wire formats, files,
// streams, sockets; engines are made by the functions in [Deps].
// Entry point: [Compile].
//
// Invariants: a Snapshot is immutable. An engine is rebuilt only when what it
// is made of changed: routes and trust are looked up in the snapshot in force
// at each request and each handshake, so that a change of theirs rebuilds
// nothing. A resource that cannot be executed is refused by itself, with an
// error that names it, and its last good version stays.
//
// Test to read first: TestCarryOver.
package compile
