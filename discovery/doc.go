// Package discovery is the catalogue as parrel sees it: services, their
// instances with health and weight, and the config entries that users wrote,
// all in Consul's words and with Consul's semantics.
//
// Owns: the catalogue types, the decoding of config entries from Consul's own
// JSON form, the combination of checks into one health, and [Source], the one
// interface through which a catalogue reaches the control plane.
//
// Does not know: xDS, the mesh snapshot, sidecars, Consul's client library.
//
// Invariants: every value handed to a [Sink] is immutable from then on; a key
// names peer, partition, namespace, datacenter and service, so that equal
// names never meet. A new catalogue is a folder below this one and one line in
// the list of sources of cmd/parrel.
//
// Read first: TestDecode, TestGuard.
package discovery
