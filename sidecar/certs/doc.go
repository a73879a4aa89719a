// Package certs is TLS with the certificates that static configuration names:
// those of a gateway, or of servers outside of the mesh, which are known by DNS
// names and by URIs that need not be SPIFFE ids.
//
// Owns: [Server] and [Client] configurations, what a peer's certificate must
// be, the name by which policies know a peer ([Principal]).
// Does not know: files, the mesh's own identities (package mtls), listeners.
// Entry point: [Server], [Client].
//
// Invariants: certificates and roots are asked for at each handshake, so that
// new ones need no new configuration; a peer of a resumed session is verified
// like a new one; without roots nobody is verified, and a peer that was not
// verified has no principal. There is no 0-RTT.
//
// Test to read first: TestPeers.
package certs
