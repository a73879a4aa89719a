// Package netio is the sidecar's network: the only place below sidecar where
// sockets are made. [OS] gives the kernel's; [Memory] gives a network inside the
// process that blocks durably under testing/synctest, with latency, partitions
// and resets under the test's control.
//
// Owns: Net, Conn, Listener and their two implementations, [Copy], [TLS].
// Does not know: protocols, identities, configuration.
//
// Invariants: what the conformance test holds true of one implementation it
// holds true of the other; a connection whose peer is dead fails within 30 s,
// whether it is idle (keep-alive) or data waits for it (a watch on the kernel's
// TCP_INFO); one whose reader pauses and whose host answers does not.
//
// Read conformance_test.go first.
package netio
