// Package dns is the mesh's DNS server on loopback, where redirection sends what
// a host's applications ask: a transparent forwarder first, own answers second.
//
// Owns: the sockets of DNS listeners (UDP and TCP on each address), the table of
// the mesh's names and the answers made of it, forwarding to the configured
// resolvers, /etc/resolv.conf.
// Does not know: where names come from, redirection, other listeners.
// Entry point: [NewSet], then [Set.Update] with the DNS listeners of each
// workload and [Set.Run].
//
// Invariants: it listens on loopback only. A query that is not for a name of the
// mesh goes to a configured resolver byte for byte, from a socket of its own with
// a port of its own; only what comes from that resolver's address to that socket,
// with the query's id and question, comes back, byte for byte. An exception is
// made for names of the mesh with one of the host's search domains behind them,
// of which the resolver says that they do not exist: see [Set]. A client has its
// answer, or SERVFAIL, after twice the time-out of a resolver (4 s). Everything
// that waits is counted and bounded.
//
// Tests to read first: TestForwardsUntouched, TestOwnNames.
package dns
