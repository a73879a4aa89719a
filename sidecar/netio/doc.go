// Package netio is the sidecar's network: the only place below sidecar where
// sockets are made. [OS] gives the kernel's; [Memory] gives a network inside the
// process that blocks durably under testing/synctest, with latency, partitions
// and resets under the test's control.
//
// Owns: Net, Conn, Listener and their two implementations, the pooled buffers,
// [Copy], TLS connections ([ServerTLS], [ClientTLS]), the watch over idle ones
// ([Idler]).
// Does not know: protocols, identities, configuration.
//
// Invariants: what the conformance test holds true of one implementation it
// holds true of the other; a connection whose peer is dead fails within 30 s,
// whether it is idle (keep-alive) or data waits for it (a watch on the kernel's
// TCP_INFO); one whose reader pauses and whose host answers does not; a
// connection on which nothing is under way holds no buffer, whoever waits for it.
//
// A second back end, such as an event loop, would implement Net, Listener and
// Conn, and beside them readTaken (a buffer is taken when there are bytes) and
// writeBuffers (a gathering write); Idler.Park would be its own registration.
//
// Read conformance_test.go first.
package netio
