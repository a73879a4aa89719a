package l4

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Cluster is an upstream; *cluster.Cluster is one.
type Cluster interface {
	Connect(ctx context.Context, o cluster.Options) (netio.Conn, *cluster.Attempt, error)
}

// Config configures one engine: one TCP proxy of one filter chain. Read-only.
type Config struct {
	Proxy *resource.TCPProxy
	// Clusters finds an upstream by name.
	Clusters func(name string) (Cluster, bool)
	// Source and Destination are the services at both ends, as far as the
	// configuration knows them; on the inbound side the source comes from the
	// peer's SPIFFE id.
	Source, Destination string
}

// Deps are what an engine uses. Zero fields take the process's own.
type Deps struct {
	Recorder  telemetry.Recorder // metrics; nil: none
	AccessLog telemetry.Recorder // nil: none
	Log       *slog.Logger
	Now       func() time.Time
	Rand      func() uint64 // safe for concurrent use
	Wheel     *wheel.Wheel  // for idle time-outs
}

// Engine serves the connections of one TCP proxy. Safe for concurrent use.
type Engine struct {
	c Config
	d Deps
}

var _ listener.Handler = (*Engine)(nil)

// New makes an engine. Its error names what of the proxy cannot be run.
func New(c Config, d Deps) (*Engine, error) {
	var sum uint64
	for _, w := range c.Proxy.Weighted {
		sum += uint64(w.Weight)
	}
	if (c.Proxy.Cluster == "") == (sum == 0) {
		return nil, errors.New("l4: tcp_proxy: exactly one of cluster and weighted_clusters (with a weight above 0) must be given")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	if d.Wheel == nil {
		d.Wheel = wheel.New()
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{c, d}, nil
}

// target draws the cluster.
func (e *Engine) target() string {
	if e.c.Proxy.Cluster != "" {
		return e.c.Proxy.Cluster
	}
	var sum uint64
	for _, w := range e.c.Proxy.Weighted {
		sum += uint64(w.Weight)
	}
	at := e.d.Rand() % sum
	for _, w := range e.c.Proxy.Weighted {
		if at < uint64(w.Weight) {
			return w.Name
		}
		at -= uint64(w.Weight)
	}
	return ""
}

// Serve implements [listener.Handler].
func (e *Engine) Serve(ctx context.Context, c *listener.Conn) {
	var r *telemetry.Record
	var up netio.Conn
	var err error
	o, begun := c.Opening.(*opening)
	if begun {
		<-o.connected
		r, up, err = o.r, o.up, o.err
	} else {
		r = e.record(c)
		up, err = e.connect(ctx, c.Inbound, c.Redirected, r)
	}
	e.opened(r)
	if err != nil {
		_ = c.Reset() // there is no other word for it below HTTP
		e.closed(c, r)
		return
	}
	p := &pipe{down: c.Conn, up: up}
	if d := e.c.Proxy.IdleTimeout; d > 0 {
		p.watchIdle(e.d.Wheel, d)
	}
	stop := context.AfterFunc(ctx, func() { p.abort(telemetry.DrainTimeout, "the drain's deadline passed") })
	if begun {
		p.first = o.heard
	}
	p.run()
	stop()
	r.BytesIn, r.BytesOut = p.in, p.out
	r.Code, r.Detail = p.outcome()
	e.closed(c, r)
}

// connect reaches an upstream and says in r which, or why none.
func (e *Engine) connect(ctx context.Context, inbound, redirected bool, r *telemetry.Record) (netio.Conn, error) {
	r.Cluster = e.target()
	cl, ok := e.c.Clusters(r.Cluster)
	if !ok {
		r.Code, r.Detail = telemetry.NoCluster, "cluster "+r.Cluster+" is not in the configuration"
		return nil, errors.New(r.Detail)
	}
	var o cluster.Options
	if redirected {
		o.Destination = r.DownstreamLocal
	}
	up, a, err := cl.Connect(ctx, o)
	r.UpstreamHost, r.UpstreamInstance, r.Attempts = a.Host, a.Instance, a.Tries
	if !inbound {
		r.DestinationPrincipal, r.TLS = a.Peer, a.TLS
	}
	if err != nil {
		r.Code, r.Detail = telemetry.UpstreamConnectFailure, err.Error()
		var ce *cluster.Error
		if errors.As(err, &ce) {
			r.Code, r.Detail = ce.Code, ce.Detail
		}
		if errors.Is(context.Cause(ctx), errAbandoned) {
			return nil, err
		}
		e.d.Log.Warn("l4: no connection to the upstream", "listener", r.Listener, "chain", r.Chain,
			"cluster", r.Cluster, "source", r.DownstreamRemote.String(), "code", r.Code.String(), "err", r.Detail)
	}
	return up, err
}

func (e *Engine) record(c *listener.Conn) *telemetry.Record {
	r := &telemetry.Record{
		Start: e.d.Now(), Inbound: c.Inbound, Listener: c.Listener, Chain: c.Chain, Version: c.Version,
		DownstreamRemote: c.Source, DownstreamLocal: c.Destination,
		SourceService: e.c.Source, DestinationService: e.c.Destination,
		Protocol: "tcp", GRPCStatus: -1, TLS: c.TLS,
	}
	if r.SourcePrincipal = c.PeerName(); !c.Peer.IsZero() {
		if s, err := mtls.ParseServiceID(c.Peer); err == nil && r.SourceService == "" {
			r.SourceService = s.Name
		}
	}
	return r
}

func (e *Engine) opened(r *telemetry.Record) {
	for _, rec := range []telemetry.Recorder{e.d.Recorder, e.d.AccessLog} {
		if rec != nil {
			rec.ConnOpened(r)
		}
	}
}

func (e *Engine) closed(c *listener.Conn, r *telemetry.Record) {
	r.Duration = e.d.Now().Sub(r.Start)
	if code, why := c.Ended(); code != telemetry.OK {
		r.Code, r.Detail = code, why
	}
	for _, rec := range []telemetry.Recorder{e.d.Recorder, e.d.AccessLog} {
		if rec != nil {
			rec.ConnClosed(r)
		}
	}
}

// pipe is two connections whose bytes go to each other.
type pipe struct {
	down, up netio.Conn
	first    <-chan struct{} // closed when up may be read; nil: at once
	in, out  int64           // bytes from and to the client; read after run

	idle  time.Duration // 0: no time-out
	timer wheel.Timer   // goes off when no byte has passed for idle

	mu     sync.Mutex
	code   telemetry.Code // guarded by mu
	detail string         // guarded by mu
	ended  bool           // guarded by mu: why is known
}

// run moves bytes until both directions ended, and closes both connections.
func (p *pipe) run() {
	var wg sync.WaitGroup
	wg.Go(func() { p.in = p.direction(p.up, p.down, true) })
	if p.first != nil {
		<-p.first
	}
	p.out = p.direction(p.down, p.up, false)
	wg.Wait()
	p.timer.Remove()
	_ = p.up.Close()
	_ = p.down.Close()
}

// direction copies src to dst until src ends, then ends dst's half. A failure
// of either resets both: the bytes under way cannot be delivered whole.
func (p *pipe) direction(dst, src netio.Conn, fromClient bool) int64 {
	var told netio.Progress
	if p.idle > 0 {
		told = p
	}
	n, err := netio.CopyTold(dst, src, told)
	if err == nil {
		if err = dst.CloseWrite(); err == nil || errors.Is(err, net.ErrClosed) || !alive(err) {
			return n
		}
	}
	code := telemetry.UpstreamConnectionTermination
	if reading(err) == fromClient {
		code = telemetry.DownstreamReset
	}
	p.abort(code, err.Error())
	return n
}

// alive says whether an error of CloseWrite means more than that the peer is
// gone already, which the other direction finds out by itself.
func alive(err error) bool {
	var op *net.OpError
	return !errors.As(err, &op) && !errors.Is(err, io.ErrClosedPipe)
}

// reading says whether a copy failed on its source.
func reading(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "read" || op.Op == "wait")
}

// abort resets both connections; the first reason stays.
func (p *pipe) abort(code telemetry.Code, detail string) {
	p.mu.Lock()
	if !p.ended {
		p.ended, p.code, p.detail = true, code, detail
	}
	p.mu.Unlock()
	_ = p.down.Reset()
	_ = p.up.Reset()
}

func (p *pipe) outcome() (telemetry.Code, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code, p.detail
}

// watchIdle ends the pipe after d without a byte in either direction.
func (p *pipe) watchIdle(w *wheel.Wheel, d time.Duration) {
	p.idle = d
	p.timer.Init(w, func() {
		p.abort(telemetry.StreamIdleTimeout, "no byte in either direction for "+d.String())
	})
	p.timer.Set(d)
}

// Passed implements [netio.Progress].
func (p *pipe) Passed() { p.timer.Set(p.idle) }
