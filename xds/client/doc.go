// Package client is the ADS client: delta, or state of the world for servers
// that have only that. It acknowledges or refuses resource by resource, keeps
// the last good set on disk, and resumes with the versions it holds.
//
// Owns: the stream, ACK and NACK, subscriptions, back-off, retained versions,
// the last good set on disk. Does not know: what resources mean.
//
// Entry points: [New], [Client.Run], [Client.Subscribe]; [NewFileStore].
// Read first: client_test.go.
//
// # Invariants
//
//   - Nothing that was accepted is ever taken away by a failure: not by a bad
//     resource, a lost stream, a server that is silent, or a restart. Only the
//     server's word (a removal, an absence) or Subscribe ends a resource.
//   - A bad resource is refused alone. The NACK's error_detail names type, name,
//     field and reason in its message, and carries one google.rpc.ErrorInfo per
//     refused resource; all others of the response are in use.
//   - Handler.Apply gets updates one at a time, in order, from Run's goroutine:
//     first what was on disk, in make-before-break order, then the server's. It
//     has returned before the response is acknowledged.
//   - On disk is what was accepted, never a private key. The file is checksummed
//     and replaced as a whole; a damaged, foreign or too old one is not used, the
//     generation before it is, and the error says so.
//
// State of the world does not say that a route, an endpoint set or a secret is
// gone: they end when Subscribe no longer names them. On a new stream, clusters
// that are absent go only after listeners and routes were answered for.
package client
