package l7

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// upstream is a cluster whose application is a function.
type upstream func(ctx context.Context, req *stream.Request) (*stream.Response, error)

func (u upstream) RoundTrip(ctx context.Context, req *stream.Request, _ cluster.Options) (*stream.Response, *cluster.Attempt, error) {
	resp, err := u(ctx, req)
	return resp, &cluster.Attempt{Host: "10.0.0.9:80", Tries: 1}, err
}

// records keeps what was recorded.
type records struct {
	mu  sync.Mutex
	got []telemetry.Record
}

func (r *records) Request(rec *telemetry.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, rec.Clone())
}
func (r *records) ConnOpened(*telemetry.Record) {}
func (r *records) ConnClosed(*telemetry.Record) {}

func (r *records) last(t *testing.T) telemetry.Record {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) == 0 {
		t.Fatal("nothing was recorded")
	}
	return r.got[len(r.got)-1]
}

// rig is an engine on a memory network with one application behind it. It must
// be made inside a synctest bubble.
type rig struct {
	t      *testing.T
	net    *netio.Memory
	host   *netio.Host
	ln     netio.Listener
	rec    *records
	drain  *stream.Scope
	peer   string
	sni    string // of connections without a peer
	engine *Engine
	cancel context.CancelFunc
	wg     sync.WaitGroup
	connMu sync.Mutex
	conns  []*listener.Conn
}

func routes(t *testing.T, rs ...resource.Route) *decide.Routes {
	t.Helper()
	r, err := decide.CompileRoutes(&resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{
		{Name: "all", Domains: []string{"*"}, Routes: rs}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func toApp() resource.Route {
	return resource.Route{Name: "app", Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: "app.default.dc1"}}
}

func newRig(t *testing.T, app upstream, edit func(*Config)) *rig {
	t.Helper()
	g := &rig{t: t, net: netio.NewMemory(), rec: &records{}, drain: new(stream.Scope)}
	g.host = g.net.Host("h", "10.0.0.1")
	rt := routes(t, toApp())
	c := Config{
		Manager: &resource.HTTPManager{Filters: []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}, Upgrades: []string{"websocket"}},
		Routes:  func() *decide.Routes { return rt },
		Clusters: func(name string) (Cluster, bool) {
			return app, name == "app.default.dc1"
		},
		Source: Service{Name: "web"},
	}
	if edit != nil {
		edit(&c)
	}
	var n uint64
	var mu sync.Mutex
	e, err := New(c, Deps{Recorder: g.rec, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Rand: func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		n++
		return n * 0x9e3779b97f4a7c15
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.engine = e
	ctx, cancel := context.WithCancel(t.Context())
	g.cancel = cancel
	if g.ln, err = g.host.Listen(ctx, "tcp", "10.0.0.1:80"); err != nil {
		t.Fatal(err)
	}
	g.wg.Go(func() {
		for {
			conn, err := g.ln.AcceptConn()
			if err != nil {
				return
			}
			g.connMu.Lock()
			drain := g.drain
			g.connMu.Unlock()
			lc := &listener.Conn{Conn: conn, Listener: "l", Chain: "c", Version: "v1", Inbound: c.Inbound,
				Source:      netip.MustParseAddrPort(conn.RemoteAddr().String()),
				Destination: netip.MustParseAddrPort("10.0.0.1:80"),
				Draining:    drain}
			if g.peer != "" {
				lc.Peer, lc.TLS = spiffeid.RequireFromString(g.peer), true
			}
			if g.sni != "" {
				lc.ServerName, lc.TLS = g.sni, true
			}
			g.connMu.Lock()
			g.conns = append(g.conns, lc)
			g.connMu.Unlock()
			g.wg.Go(func() { e.Serve(ctx, lc) })
		}
	})
	t.Cleanup(g.close)
	return g
}

func (g *rig) close() {
	_ = g.ln.Close()
	g.cancel()
	g.wg.Wait()
}

func (g *rig) dial() net.Conn {
	g.t.Helper()
	c, err := g.host.Dial(g.t.Context(), "tcp", "10.0.0.1:80")
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// h1 is net/http's own client.
func (g *rig) h1() *http.Client {
	tr := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 10 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return g.host.Dial(ctx, "tcp", "10.0.0.1:80")
		}}
	g.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// h2 is x/net/http2's client with prior knowledge.
func (g *rig) h2() *http.Client {
	tr := &http2.Transport{AllowHTTP: true, DisableCompression: true,
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tlsConfig) (net.Conn, error) {
			return g.host.Dial(ctx, "tcp", "10.0.0.1:80")
		}}
	g.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// both runs the test with both clients, each in its bubble.
func both(t *testing.T, f func(t *testing.T, client func(*rig) *http.Client)) {
	t.Helper()
	for name, c := range map[string]func(*rig) *http.Client{"http1": (*rig).h1, "http2": (*rig).h2} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, c) }) })
	}
}

// parts is a body that a test feeds.
type parts struct {
	ctx      context.Context
	c        chan string
	err      error // after c is closed; nil: io.EOF
	trailers stream.Header
	rest     string
	once     sync.Once
	closed   chan struct{}
}

func newParts(ctx context.Context, ps ...string) *parts {
	p := &parts{ctx: ctx, c: make(chan string, 64), closed: make(chan struct{})}
	for _, s := range ps {
		p.c <- s
	}
	return p
}

func (b *parts) Read(p []byte) (int, error) {
	if b.rest == "" {
		select {
		case s, ok := <-b.c:
			if !ok {
				if b.err != nil {
					return 0, b.err
				}
				return 0, io.EOF
			}
			b.rest = s
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		case <-b.closed:
			return 0, errors.New("closed")
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
func (b *parts) Trailers() stream.Header { return b.trailers }
func (b *parts) Close() error            { b.once.Do(func() { close(b.closed) }); return nil }

func ok(body string) *stream.Response {
	return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: int64(len(body))}, Body: newText(body)}
}
