// Package admin is the sidecar's administration API, in Envoy's paths and
// shapes: https://www.envoyproxy.io/docs/envoy/latest/operations/admin.
//
// Owns: the HTTP interface, who may use it, what is redacted.
// Does not know: how a workload is run; it reads plain data through [Deps].
// Entry point: [Handler].
//
// Invariants: it listens on loopback or a Unix socket only ([CheckAddress]); a
// request whose Host is not this machine's own, or that a web page of another
// origin made, is refused (DNS rebinding, CSRF); what changes something needs
// POST; private keys never leave.
//
// Several workloads of one process: ?workload=ID selects one; without it every
// answer covers all.
//
// Test to read first: TestPages.
package admin
