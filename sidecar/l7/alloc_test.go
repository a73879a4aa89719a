//go:build !race

package l7

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// The race detector makes sync.Pool forget at random: what allocates is told
// without it.

// lent is a body that lends its bytes, as a codec's does.
type lent struct {
	text []byte
	left bool
	end  int // times that it was closed
}

func (l *lent) Next() ([]byte, error) {
	if l.left {
		l.left = false
		return l.text, io.EOF
	}
	return nil, io.EOF
}
func (l *lent) Ready() bool              { return true }
func (l *lent) Read([]byte) (int, error) { panic("it lends") }
func (l *lent) Trailers() stream.Header  { return nil }
func (l *lent) Close() error             { l.end++; return nil }

// still is a cluster that has the same response for everybody.
type still struct {
	resp stream.Response
	body lent
	at   cluster.Attempt
	n    int
	// path is what the last request asked for, kept as a codec would: by bytes.
	path []byte
}

func (s *still) RoundTrip(_ context.Context, req *stream.Request, _ cluster.Options) (*stream.Response, *cluster.Attempt, error) {
	s.n++
	s.path = append(s.path[:0], req.Head.Path...)
	s.body.left = true
	s.resp.Body = &s.body
	s.resp.Head.Header = s.resp.Head.Header[:2]
	return &s.resp, &s.at, nil
}

// sink is a codec's side of one connection: a request whose strings are lent from
// a buffer, and a responder that counts.
type sink struct {
	buf  []byte
	life *stream.Scope
	req  stream.Request

	heads, finished, flushed, bytes int
	status                          int
}

func (w *sink) Informational(*stream.ResponseHead) error { return nil }
func (w *sink) Head(h *stream.ResponseHead, end bool) error {
	w.heads++
	w.status = h.Status
	return nil
}
func (w *sink) Write(p []byte) (int, error) { w.bytes += len(p); return len(p), nil }
func (w *sink) Flush() error                { w.flushed++; return nil }
func (w *sink) Finish(stream.Header) error  { w.finished++; return nil }
func (w *sink) Abort()                      { panic("aborted") }
func (w *sink) Interrupt()                  { panic("interrupted") }
func (w *sink) Accept(*stream.ResponseHead) (stream.Tunnel, error) {
	panic("no upgrade")
}

// borrow gives a string of the codec's buffer.
func (w *sink) borrow(s string) string {
	n := len(w.buf)
	w.buf = append(w.buf, s...)
	return unsafe.String(&w.buf[n], len(s))
}

// ask is what a codec does with one request of a connection.
func (w *sink) ask(h stream.Handler, method, path string) {
	w.buf = w.buf[:0]
	w.life = w.life.Renew()
	rh := &w.req.Head
	rh.Method, rh.Authority, rh.Path = w.borrow(method), w.borrow("api.example:8080"), w.borrow(path)
	rh.Protocol, rh.ContentLength = stream.HTTP1, 0
	rh.Header = append(rh.Header[:0],
		stream.Field{Name: "user-agent", Value: w.borrow("bench/1.0")},
		stream.Field{Name: "accept", Value: w.borrow("*/*")},
		stream.Field{Name: "x-trace", Value: w.borrow("abc")})
	w.req.Body, w.req.Informational = nil, nil
	h.Exchange(w.life, &w.req, w)
	w.life.Cancel(nil)
	stream.Poisoned(w.buf)
}

// bench is an engine with all that a user has on: routing, authorisation,
// metrics, an access log that its filter keeps quiet.
func bench(t testing.TB) (*connection, *sink, *still, *telemetry.Metrics, *bytes.Buffer) {
	t.Helper()
	const web = "spiffe://td/ns/default/dc/dc1/svc/web"
	routes, err := decide.CompileRoutes(&resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{
		Name: "api", Domains: []string{"api.example"}, Routes: []resource.Route{
			{Name: "v2", Match: resource.RouteMatch{Path: "/v2/"}, Forward: &resource.Forward{Cluster: "api2"}},
			{Name: "all", Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: "api"}},
		}}}})
	if err != nil {
		t.Fatal(err)
	}
	rbac := &resource.RBAC{Rules: &resource.RBACRules{Policies: []resource.RBACPolicy{{Name: "web",
		Permissions: []resource.Permission{{Path: &resource.StringMatch{Kind: resource.StringPrefix, Value: "/"}}},
		Principals:  []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{Name: &resource.StringMatch{Value: web}}}}}}}}
	up := &still{at: cluster.Attempt{Host: "10.0.0.9:80", Tries: 1}}
	up.body.text = make([]byte, 100)
	up.resp.Head = stream.ResponseHead{Status: 200, ContentLength: 100, Header: stream.Header{{Name: "content-length", Value: "100"}, {Name: "content-type", Value: "text/plain"}}}
	metrics := telemetry.NewMetrics(telemetry.MetricsConfig{})
	log := new(bytes.Buffer)
	access, err := telemetry.NewLogs(telemetry.LogsConfig{Stdout: log}).Compile([]resource.AccessLog{{Path: "/dev/stdout", MinStatus: 500}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{
		Manager: &resource.HTTPManager{Filters: []resource.HTTPFilter{{Name: "rbac", RBAC: rbac}, {Name: "router", Router: &resource.Router{}}}},
		Routes:  func() *decide.Routes { return routes }, Inbound: true, Destination: Service{Name: "api"},
		Clusters: func(name string) (Cluster, bool) { return up, name == "api" },
	}, Deps{Recorder: metrics, AccessLog: access})
	if err != nil {
		t.Fatal(err)
	}
	c := &listener.Conn{Peer: spiffeid.RequireFromString(web), TLS: true, Listener: "inbound", Chain: "mtls", Version: "v1", Inbound: true,
		Source: netip.MustParseAddrPort("10.0.0.1:5000"), Destination: netip.MustParseAddrPort("10.0.0.2:8080")}
	return newConnection(e, c), &sink{buf: make([]byte, 0, 1024)}, up, metrics, log
}

// A request allocates nothing on its way through accept, authorisation, routing,
// metrics and the log's filter.
func TestExchangeAllocatesNothing(t *testing.T) {
	x, w, up, _, log := bench(t)
	n := testing.AllocsPerRun(1000, func() { w.ask(x, "GET", "/users/42?full=1") })
	if n != 0 {
		t.Errorf("an exchange allocates %v times", n)
	}
	if w.status != 200 || w.bytes != up.n*100 || w.finished != up.n || w.flushed != 0 || up.body.end != up.n || string(up.path) != "/users/42?full=1" || log.Len() != 0 {
		t.Errorf("status %d, %d bytes, %d finished, %d flushed of %d; closed %d; path %q; log %q", w.status, w.bytes, w.finished, w.flushed, up.n, up.body.end, up.path, log)
	}
}

// The target is 1.0 µs.
func BenchmarkExchange(b *testing.B) {
	x, w, _, _, _ := bench(b)
	stream.Poison = false
	defer func() { stream.Poison = true }()
	b.ReportAllocs()
	for b.Loop() {
		w.ask(x, "GET", "/users/42?full=1")
	}
}
