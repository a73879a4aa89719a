// Package mesh makes of catalogue and policy one indexed, immutable snapshot,
// and says of each change what it touches.
//
// Owns: Snapshot, Builder, what depends on what. Does not know: protos, I/O.
//
// The surface (signatures are fixed):
//
//	func NewBuilder(Config) *Builder // Config{TrustDomain, Datacenter, DefaultIntention}
//	func (b *Builder) Apply(d discovery.Delta) (*Snapshot, Change)
//	type Snapshot struct { Version uint64; … } // services, entries, intentions by destination, workloads by node id
//	func (s *Snapshot) Workload(nodeID string) (*Workload, bool)
//	type Change struct { All bool; Endpoints, Services []discovery.ServiceName; Workloads []string; … }
package mesh
