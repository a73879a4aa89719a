package l7

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
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
	// Filters gives the filters in force, under the same terms; nil: those of
	// Manager. A request keeps those that it began with.
	Filters func() *filter.Chain
	// Clusters finds an upstream by name.
	Clusters func(name string) (Cluster, bool)
	Inbound  bool
	// Strangers connect here, although the listener is not inbound: what they say
	// of who asked is believed only with a verified certificate.
	Strangers bool
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
	Wheel     *wheel.Wheel  // time-outs; the process's one. nil: the engine's own
	// Overload refuses requests while memory is short; nil: it never is.
	Overload *overload.Manager
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
	c    Config
	d    Deps
	name string // in server and proxy-status
	rec  telemetry.Recorder

	record telemetry.Record // template of every request's
	// Limits of the connection manager, defaults filled in.
	streamIdle, idle, headerTimeout time.Duration
	maxHeader                       int // bytes
	paths                           decide.PathRules

	clocks    bool      // Deps gave a clock of its own
	exchanges sync.Pool // of *exchange
}

// New makes an engine; its error names the filter or field that cannot be run.
func New(c Config, d Deps) (*Engine, error) {
	if c.Manager == nil || c.Routes == nil || c.Clusters == nil {
		return nil, errors.New("l7: Config without Manager, Routes or Clusters")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	clocks := d.Now != nil
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Wheel == nil {
		d.Wheel = wheel.New()
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	if c.Filters == nil {
		chain, err := Filters(c.Manager, filter.Deps{Log: d.Log})
		if err != nil {
			return nil, err
		}
		c.Filters = func() *filter.Chain { return chain }
	}
	e := &Engine{c: c, d: d, name: c.Manager.ServerName, rec: telemetry.Multi(d.Recorder, d.AccessLog),
		streamIdle: or(c.Manager.StreamIdleTimeout, DefaultStreamIdle), idle: or(c.Manager.IdleTimeout, DefaultIdle),
		headerTimeout: or(c.Manager.RequestHeadersTimeout, DefaultHeaderTimeout),
		maxHeader:     int(or(c.Manager.MaxRequestHeadersKB, DefaultMaxHeaderKB)) << 10, clocks: clocks,
		paths: decide.PathRules{Raw: c.Manager.RawPaths, EscapedSlashes: c.Manager.EscapedSlashes, MergeSlashes: c.Manager.MergeSlashes}}
	if e.name == "" {
		e.name = "parrel"
	}
	e.record = e.template()
	e.exchanges.New = func() any { return newExchange(e) }
	return e, nil
}

// now reads the clock, once where it is the process's own: wall time, and the
// wheel's.
func (e *Engine) now() (time.Time, int64) {
	now := e.d.Now()
	if e.clocks {
		return now, e.d.Wheel.Now()
	}
	return now, e.d.Wheel.At(now)
}

var (
	_ listener.Handler = (*Engine)(nil)
	_ Cluster          = (*cluster.Cluster)(nil)
)

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// connection is the engine's view of one downstream connection: the handler of
// its codec. Read-only after newConnection.
type connection struct {
	e       *Engine
	c       *listener.Conn
	peer    string  // SPIFFE id, "" without mTLS
	src     Service // inbound: the peer
	trusted bool    // what it says of who asked is believed: our own application, or a peer of the mesh

	keepXFCC bool   // what the client sent of x-forwarded-client-cert stays
	xfcc     string // element to be added to it, "" where none is
	addr     string // to be added to x-forwarded-for, "" where it is not
	// sni is the host that TLS was opened for, in the spelling of authorities,
	// where this side ended it for clients outside the mesh; "" elsewhere: between
	// sidecars it names the service, which is not what clients call it.
	sni string
}

func newConnection(e *Engine, c *listener.Conn) *connection {
	x := &connection{e: e, c: c}
	x.know()
	return x
}

var _ stream.Handler = (*connection)(nil)

// allows says whether the connection manager takes this upgrade.
func (e *Engine) allows(upgrade string) bool { return slices.Contains(e.c.Manager.Upgrades, upgrade) }
