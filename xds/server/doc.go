// Package server serves xDS v3 (delta and state of the world, aggregated) with
// go-control-plane's stream server over a cache of our own: a resource that
// many workloads share exists and is serialised once, a change costs work in
// proportion to its subscribers, and a version that a stream has just refused
// is not sent to it again.
//
// Owns: the cache, subscriptions, per-workload views, stream authentication,
// the record of what each stream wants, has acknowledged and has refused.
// Does not know: catalogue, policy, how a resource is made.
//
// The surface (signatures are fixed; the rest is the owner's):
//
//	type Dialect uint8 // Parrel, Envoy, GRPC: from node.user_agent_name
//	type Workload struct { NodeID string; ID spiffeid.ID; Dialect Dialect; Metadata map[string]string }
//	// Authoriser: may this peer speak as this node? An error ends the stream with PERMISSION_DENIED and its text.
//	type Authoriser interface { Authorise(ctx context.Context, peer spiffeid.ID, nodeID string, dialect Dialect) (Workload, error) }
//	// Provider answers from the present mesh. private: the resource belongs to
//	// this workload alone (listeners, secrets); others are shared per dialect.
//	type Provider interface {
//		Names(w Workload, t resource.Type) []string // what a wildcard subscription gets
//		Resource(w Workload, t resource.Type, name string) (r resource.Resource, private bool, ok bool)
//	}
//	type Key struct { Type resource.Type; Name string }
//	type Change struct {
//		All       bool     // everything may have changed
//		Shared    []Key    // these shared resources changed, for all who hold them
//		Workloads []string // for these node ids names and private resources may have changed
//	}
//	func New(Config) *Server            // Config{Authoriser, Provider, Log, Now, Limits}
//	func (s *Server) Register(grpc.ServiceRegistrar)
//	func (s *Server) Changed(Change)    // never blocks on a stream
//	func (s *Server) Status() []StreamStatus
//	func (s *Server) Connected() []Workload
//	func (s *Server) OnConnect(func(Workload, bool)) // for the wiring: a workload came or went
package server
