// Package interop runs other people's conformance suites against sidecars with
// static configuration: h2spec against one, and gRPC's own interop client and
// server, unmodified, through one sidecar and through a pair that speaks mutual
// TLS.
//
// The suites are tools of test/tools/interop, built by `make interop`; the tests
// find them in bin/.
//
// Read first: TestH2Spec.
package interop
