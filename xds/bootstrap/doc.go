// Package bootstrap reads an Envoy v3 bootstrap: the static configuration of a
// sidecar without a control plane, in YAML or JSON.
//
// Owns: the file's outline (node, admin, static_resources,
// overload_manager), places of errors in
// it, references between its resources. Does not know: Envoy's protos, which
// xds/wire reads; files that the configuration names; what a sidecar does with it.
// Entry point: [Parse].
//
// Invariants: what is returned is complete: every cluster and secret that is
// referred to is there, no name stands twice, and nothing waits for a control
// plane. Whatever is wrong is said at once, each with line, path and remedy.
//
// Test to read first: TestBadInput.
package bootstrap
