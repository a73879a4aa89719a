package server

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// Dialect is the kind of client at the other end of a stream: resources may
// look different to each.
type Dialect uint8

// The dialects.
const (
	Parrel Dialect = iota
	Envoy
	GRPC
)

func (d Dialect) String() string {
	return [...]string{"parrel", "envoy", "grpc"}[d%3]
}

// dialectOf reads node.user_agent_name; who does not say is taken for Envoy.
func dialectOf(userAgent string) Dialect {
	switch ua := strings.ToLower(userAgent); {
	case strings.HasPrefix(ua, "parrel"):
		return Parrel
	case strings.HasPrefix(ua, "grpc"):
		return GRPC
	}
	return Envoy
}

// Workload is whom a stream serves.
type Workload struct {
	NodeID   string
	ID       spiffeid.ID
	Dialect  Dialect
	Metadata map[string]string
}

// Authoriser decides whether a peer may speak as a node.
type Authoriser interface {
	// Authorise is called once a stream, with the SPIFFE id that the peer's
	// certificate proved. An error ends the stream with PERMISSION_DENIED and
	// the error's text. It may block for a short time and must heed ctx.
	Authorise(ctx context.Context, peer spiffeid.ID, nodeID string, dialect Dialect) (Workload, error)
}

// Provider answers from the present mesh. Safe for concurrent use; it must not
// block and must not call the Server.
type Provider interface {
	// Names is what a wildcard subscription of the workload gets. A shared
	// resource in it is served to the workload without asking Resource again.
	Names(w Workload, t resource.Type) []string
	// Resource makes one resource. private: it belongs to this workload alone
	// (listeners, secrets); others are shared by all of the dialect. ok is false
	// where it does not exist or the workload may not see it.
	Resource(w Workload, t resource.Type, name string) (r resource.Resource, private, ok bool)
}

// Key names a shared resource.
type Key struct {
	Type resource.Type
	Name string
}

// Change says what may be different since the last one. The Provider must
// already answer from the new mesh when it is reported.
type Change struct {
	All       bool     // everything may have changed
	Shared    []Key    // these shared resources changed, for all who hold them
	Workloads []string // for these node ids names and private resources may have changed
}

// Limits bound what one stream may cost. Zero fields take the defaults.
type Limits struct {
	AckTimeout     time.Duration // a response not answered within it ends the stream; 30 s
	FirstRequest   time.Duration // a stream that says nothing within it is ended; 10 s
	ResponseBytes  int           // a delta response is split above it; 1 MiB
	Names          int           // resource names that a stream may subscribe to; 50,000
	StreamsPerNode int           // concurrent streams of one node id; 16
}

// Config is what a Server needs.
type Config struct {
	Authoriser Authoriser
	Provider   Provider
	Origin     string           // this control plane's name, told to clients as control_plane.identifier
	Log        *slog.Logger     // nil: none
	Now        func() time.Time // nil: time.Now
	Limits     Limits
	// Peer extracts the proven SPIFFE id of a stream's peer; nil: from the
	// connection's TLS state (PeerFromTLS). An error ends the stream with
	// PERMISSION_DENIED.
	Peer func(ctx context.Context) (spiffeid.ID, error)
	// Encode serialises a resource; nil: wire.Encode.
	Encode func(resource.Resource) (*anypb.Any, error)
}

// StreamStatus is the record of one open stream.
type StreamStatus struct {
	Stream    int64
	Workload  Workload
	Remote    string // the peer's address
	UserAgent string
	SotW      bool
	Since     time.Time
	Types     []TypeStatus // in make-before-break order; types that were asked for only
}

// TypeStatus is what a stream wants and has of one type. Wanted and Acked are
// digests of names and versions: equal means in sync.
type TypeStatus struct {
	Type      resource.Type
	Wanted    string
	Acked     string
	Age       time.Duration // how long Acked has been behind Wanted; 0: in sync
	AckedAt   time.Time     // of the last ACK or NACK; zero: none yet
	Resources int           // that exist, of those subscribed to
	BytesSent uint64
	NACKs     uint64
	LastNACK  *NACK     // nil: never refused
	Refused   []Refused // refused and still wanted
}

// NACK is one refusal by a client.
type NACK struct {
	Text      string
	At        time.Time
	Resources []Refused // empty where the client did not say which
}

// Refused is one refused version of a resource.
type Refused struct{ Name, Version, Reason string }

// Metrics are counters since the start, for the control plane to export.
type Metrics struct {
	Streams       int64 // open now
	StreamsOpened uint64
	StreamsDenied uint64            // refused by authentication or authorisation
	StreamsClosed map[string]uint64 // by reason: client, slow, silent, denied, limit, expired, shutdown
	Responses     map[string]uint64 // by type (LDS, …)
	Bytes         map[string]uint64 // by type
	ACKs, NACKs   map[string]uint64 // by type
	Generated     uint64            // resources made by the Provider
	Shared        int               // shared resources held
	Private       int               // private resources held
}

func (l Limits) withDefaults() Limits {
	if l.AckTimeout <= 0 {
		l.AckTimeout = 30 * time.Second
	}
	if l.FirstRequest <= 0 {
		l.FirstRequest = 10 * time.Second
	}
	if l.ResponseBytes <= 0 {
		l.ResponseBytes = 1 << 20
	}
	if l.Names <= 0 {
		l.Names = 50_000
	}
	if l.StreamsPerNode <= 0 {
		l.StreamsPerNode = 16
	}
	return l
}

// Server is the xDS server. Safe for concurrent use.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	cfg Config // read-only after New

	changing sync.Mutex // one Changed at a time; never held together with a wait on a stream
	wg       sync.WaitGroup
	memo     memo

	mu        sync.Mutex // guards all below, and what streams and entries say is guarded by it
	closed    bool
	lastID    int64
	epoch     uint64 // number of changes so far
	streams   map[int64]*stream
	nodes     map[string]map[int64]*stream // by node id
	shared    map[entryKey]*entry
	private   map[entryKey]*entry
	missing   map[Key]map[*hold]struct{} // subscribed to, but not there for that workload
	onConnect func(Workload, bool)
	m         Metrics
}

// New makes a Server. Config.Authoriser and Config.Provider must be set.
func New(c Config) *Server {
	c.Limits = c.Limits.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Peer == nil {
		c.Peer = PeerFromTLS
	}
	if c.Encode == nil {
		c.Encode = wire.Encode
	}
	return &Server{
		cfg:     c,
		streams: map[int64]*stream{},
		nodes:   map[string]map[int64]*stream{},
		shared:  map[entryKey]*entry{},
		private: map[entryKey]*entry{},
		missing: map[Key]map[*hold]struct{}{},
		m: Metrics{
			StreamsClosed: map[string]uint64{},
			Responses:     map[string]uint64{},
			Bytes:         map[string]uint64{},
			ACKs:          map[string]uint64{},
			NACKs:         map[string]uint64{},
		},
	}
}

// Register adds the aggregated discovery service, delta and state of the world.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// ServerOptions are the gRPC options that the server's limits rely on: a dead
// connection is noticed within 40 s, a client may ping every 10 s, a request is
// at most 4 MiB.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(4 << 20),
		grpc.MaxConcurrentStreams(100),
		// Fixed windows: an estimate of the bandwidth costs a ping for each ACK.
		grpc.StaticStreamWindowSize(256 << 10),
		grpc.StaticConnWindowSize(1 << 20),
	}
}

// OnConnect sets what is called when a workload came (true: its first stream
// was authorised) or went (false: its last one ended). Called without locks,
// from the stream's goroutine; it must not block. Set it before serving.
func (s *Server) OnConnect(f func(Workload, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onConnect = f
}

// Close ends all streams with UNAVAILABLE and waits until they are gone. The
// gRPC server stays up and refuses new ones.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	open := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		open = append(open, st)
	}
	s.mu.Unlock()
	for _, st := range open {
		st.fail("shutdown", status.Error(codes.Unavailable, "xds/server: the control plane is going down; connect to another, or again"))
	}
	s.wg.Wait()
}
