package server

import "google.golang.org/grpc"

// Server is the xDS server.
type Server struct{ cfg Config }

// New makes a Server.
func New(c Config) *Server { return &Server{cfg: c} }

// Register adds the aggregated discovery service.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Changed reports what changed. It never blocks on a stream.
func (s *Server) Changed(c Change) {}

// Status lists the open streams.
func (s *Server) Status() []StreamStatus { return nil }

// Connected lists the workloads with at least one stream.
func (s *Server) Connected() []Workload { return nil }

// Metrics returns the counters.
func (s *Server) Metrics() Metrics { return Metrics{} }

// OnConnect sets what is called when a workload came (true) or went (false).
func (s *Server) OnConnect(f func(Workload, bool)) {}

// ServerOptions are the gRPC options that the server's limits rely on.
func ServerOptions() []grpc.ServerOption { return nil }

// Close ends all streams and waits for them.
func (s *Server) Close() {}
