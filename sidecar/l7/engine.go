package l7

import (
	"context"
	"log/slog"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
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

// Engine serves the HTTP connections of one filter chain. Safe for concurrent
// use; immutable after New but for the connections that it serves.
type Engine struct{ c Config }

// New makes an engine; its error names the filter or field that cannot be run.
func New(c Config, d Deps) (*Engine, error) { return &Engine{c: c}, nil }

var _ listener.Handler = (*Engine)(nil)

// Serve serves one connection, HTTP/1.1 or HTTP/2, until it is over.
func (e *Engine) Serve(ctx context.Context, c *listener.Conn) { _ = c.Close() }
