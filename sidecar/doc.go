// Package sidecar runs workloads' sidecars in one process: identity, the xDS
// stream, warming, compilation, listeners, engines, clusters, admin.
//
// Owns: the wiring, the order of starting and ending, readiness, the
// registration of a proxy where nobody registered it ([Registrar]).
// Does not know: the control plane, Consul, how any part works inside.
// Entry point: [New], then [Sidecar.Run].
//
// Invariants: workloads share nothing but the process, its log, its metrics and
// its admin API: each has its own identity, stream, snapshot, listeners, pools
// and session tickets. A new snapshot is in force in this order: clusters that
// are new or changed, then the snapshot's pointer, then listeners, then open
// connections are asked again, and only after a while clusters that are gone.
// Everything that New made has ended when Run returns.
//
// Test to read first: TestServesAndFollowsChanges.
package sidecar
