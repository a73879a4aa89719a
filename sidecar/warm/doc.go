// Package warm makes complete, consistent sets of configuration of the stream
// of updates that an xDS client delivers, and says what to subscribe to.
//
// Owns: [Set], [Warmer], what a resource refers to, how long to wait for it.
// Does not know: wire formats, files, streams, how a set is executed.
// Entry point: [New], then [Warmer.Apply] from the client and [Warmer.Run].
//
// Invariants: a published set is never a half: a listener is in it only with
// its routes, clusters, endpoints and secrets, a route configuration only with
// its clusters, a cluster only with its endpoints; until a new version has all
// of that, the version before stays. What is taken away stays for as long as
// something of the set still refers to it. Only the newest set is published.
//
// Test to read first: TestNeverAHalfSet.
package warm
