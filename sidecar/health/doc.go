// Package health says which endpoints of a cluster may be used, and why.
//
// Owns: [Tracker]: the catalogue's status of each address merged with what the
// sidecar itself saw of it (passive ejection after connect failures).
// Does not know: how endpoints are picked, sockets, configuration's source.
//
// Invariants: an address that the catalogue calls unhealthy or draining is not
// used, whatever was seen, unless the cluster's panic threshold says so; passive
// ejection never takes the last usable address nor more than MaxShare of them;
// what was seen of an address survives every change of configuration; nothing
// waits in the background: time is given at each call.
//
// Read health_test.go first.
package health
