package l7

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/h1"
	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Cluster is an upstream; *cluster.Cluster is one.
type Cluster interface {
	RoundTrip(ctx context.Context, req *stream.Request, o cluster.Options) (*stream.Response, *cluster.Attempt, error)
}

// Config configures one engine: one HTTP connection manager of one filter chain.
type Config struct {
	Manager *resource.HTTPManager
	// Routes gives the routes in force, nil while there are none. It is called
	// once per request and must not block: an atomic load.
	Routes func() *decide.Routes
	// Clusters finds an upstream by name.
	Clusters func(name string) (Cluster, bool)
	Inbound  bool
	// Source and Destination are the services at both ends as far as the
	// configuration knows them: outbound Source is this workload's service,
	// inbound Destination is; the other side comes from the peer's SPIFFE id or
	// the cluster's name.
	Source, Destination Service
}

// Service is one end of a request, for records. Empty fields are unknown.
type Service struct {
	Name, Namespace, Datacenter, Version string
	Principal                            string // SPIFFE id
}

// Deps are what an engine uses. Zero fields take the process's own.
type Deps struct {
	Recorder  telemetry.Recorder // metrics; nil: none
	AccessLog telemetry.Recorder // nil: none
	Log       *slog.Logger
	Now       func() time.Time
	Rand      func() uint64 // safe for concurrent use
}

// Defaults of a connection manager's limits.
const (
	DefaultRouteTimeout  = 15 * time.Second // Envoy's RouteAction.timeout
	DefaultStreamIdle    = 5 * time.Minute
	DefaultIdle          = time.Hour
	DefaultHeaderTimeout = 10 * time.Second
	DefaultMaxHeaderKB   = 60
)

// Engine serves the HTTP connections of one filter chain. Safe for concurrent
// use; immutable after New.
type Engine struct {
	c     Config
	d     Deps
	chain *filter.Chain
	name  string // in server and proxy-status
	rec   telemetry.Recorder
}

// New makes an engine; its error names the filter or field that cannot be run.
func New(c Config, d Deps) (*Engine, error) {
	if c.Manager == nil || c.Routes == nil || c.Clusters == nil {
		return nil, errors.New("l7: Config without Manager, Routes or Clusters")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	chain, err := filter.Build(filters(), c.Manager.Filters, filter.Deps{Log: d.Log})
	if err != nil {
		return nil, fmt.Errorf("l7: %w", err)
	}
	e := &Engine{c: c, d: d, chain: chain, name: c.Manager.ServerName, rec: telemetry.Multi(d.Recorder, d.AccessLog)}
	if e.name == "" {
		e.name = "parrel"
	}
	return e, nil
}

var (
	_ listener.Handler = (*Engine)(nil)
	_ Cluster          = (*cluster.Cluster)(nil)
)

// Serve serves one connection, HTTP/1.1 or HTTP/2, until it is over.
func (e *Engine) Serve(ctx context.Context, c *listener.Conn) {
	defer func() { _ = c.Close() }()
	var draining <-chan struct{}
	if c.Draining != nil {
		draining = c.Draining()
	}
	h := &connection{e: e, c: c, trusted: !e.c.Inbound || !c.Peer.IsZero()}
	if !c.Peer.IsZero() {
		h.peer = c.Peer.String()
	}
	m := e.c.Manager
	idle, maxHeader := or(m.IdleTimeout, DefaultIdle), int(or(m.MaxRequestHeadersKB, DefaultMaxHeaderKB))<<10
	conn, isH2, err := e.codec(ctx, c, draining, idle)
	if err != nil {
		return // nothing was asked on it
	}
	if isH2 {
		s := h2.Server{Handler: h, IdleTimeout: idle, MaxHeader: maxHeader, Log: e.d.Log}
		s.Serve(ctx, conn, draining)
		return
	}
	s := h1.Server{Handler: h, IdleTimeout: idle, MaxHeader: maxHeader, Log: e.d.Log,
		HeaderTimeout: or(m.RequestHeadersTimeout, DefaultHeaderTimeout)}
	s.Serve(ctx, conn, draining)
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// connection is the engine's view of one downstream connection: the handler of
// its codec.
type connection struct {
	e       *Engine
	c       *listener.Conn
	peer    string // SPIFFE id, "" without mTLS
	trusted bool   // what it says of who asked is believed: our own application, or a peer of the mesh
}

var _ stream.Handler = (*connection)(nil)

// allows says whether the connection manager takes this upgrade.
func (e *Engine) allows(upgrade string) bool { return slices.Contains(e.c.Manager.Upgrades, upgrade) }
