// Package rbac is the HTTP filter that lets through what decide.Authorise
// allows (envoy.filters.http.rbac).
//
// Owns: carrying the verdict out, and what is recorded of it.
// Does not know: how rules are matched, where they come from.
//
// Invariants: a rule set that does not compile lets nothing be built, so that
// nothing runs unprotected; the shadow verdict is recorded and never enforced;
// the client is told that it was denied, never by which rule.
//
// Test to read first: TestVerdicts.
package rbac
