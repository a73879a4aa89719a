// Package vip gives every service of the mesh a virtual address.
//
// Owns: [Assigner], the ranges, the hash, what becomes of collisions. Does not
// know: snapshots, resources, who asks.
//
// Where the catalogue names an address (Consul's tagged address
// "consul-virtual"), that one is it. Every other service gets one of its own:
//
//	candidate k of a name = 244.0.0.0 + (SHA-256(name "\x00" k) mod 2^26)
//
// and takes the first of its candidates that nobody before it has, in this
// order: first the addresses that the catalogue names, then the services in the
// order of their names. name is "PEER/PARTITION/NAMESPACE/DATACENTER/NAME", k a
// decimal number from 0. The first and the last address of the range are never
// candidates.
//
// Invariants: the result depends on the set of services alone, not on the order
// in which they came, so that every control plane, restarted or not, gives the
// same addresses for the same set, with nothing stored and nothing agreed. What
// that costs: of two services whose first candidates are the same (1 chance in
// 130 that there is such a pair among 1,000 services), the later by name gives
// way, and takes the address of its own when the other one is gone.
//
// Read first: TestAssigner.
package vip
