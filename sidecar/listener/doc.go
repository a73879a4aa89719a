// Package listener accepts connections: original destination, sniffing of TLS,
// the filter chain (by decide.Chains), the TLS handshake with the peer's
// identity, the network filters (by decide.RBAC), then the engine.
//
// Owns: [Set] (the open sockets, changed without closing those that stay),
// [Conn], re-authorisation of what is open, drain.
// Does not know: routing, HTTP.
// Entry point: [NewSet], then [Set.Update] with each snapshot and [Set.Run].
//
// Invariants: a connection is decided by one configuration, loaded once at
// accept; the engine sees no byte of a connection that is not authorised; what
// is refused is refused with a code, in the log and in telemetry; after every
// Update and Recheck of the live index no connection is open that the present
// configuration would not allow. The path of a connection takes no
// configuration lock; a connection that its handler left idle ([Parker]) has no
// goroutine and is ended, drained and authorised again like any other.
//
// Test to read first: TestDenyEndsOpenConnection.
package listener
