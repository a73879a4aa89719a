// Package cluster is one upstream: balancer, health, pools, retry budget and
// breakers behind one handle that survives every change of configuration.
//
// Owns: [Cluster], [Manager] (clusters by name, carried over between
// snapshots), attempts and retries on safe conditions, name resolution of DNS
// clusters, the TLS configuration of each cluster's connections.
// Does not know: routes, listeners, filters.
//
// Entry points: [NewManager], [Manager.Update], [Manager.Get],
// [Cluster.RoundTrip], [Cluster.Connect].
//
// Invariants: a request that may have been processed is sent again only where
// its method is idempotent or a policy says so; a cluster with TLS never speaks
// plaintext, and an endpoint whose SPIFFE id is not one of the expected is
// refused; an address that stays in the set keeps its pool, load counter and
// health through every update; a removed cluster or address gets no new work
// and what is open on it ends by itself; no limit is in force that was not
// configured, and one that was is never exceeded.
//
// Read cluster_test.go first.
package cluster
