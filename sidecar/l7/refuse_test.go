package l7

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// What cannot be read, or read in one way only, never reaches the application
// and is answered, recorded and coded; the connection's leftover is no request.
func TestMalformed(t *testing.T) {
	for name, tt := range map[string]struct {
		send   string
		status int
	}{
		"no host":           {"GET / HTTP/1.1\r\n\r\n", 400},
		"two hosts":         {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		"CL and TE":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: nonsense\r\n\r\nabc", 501},
		"two lengths":       {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
		"signed length":     {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400},
		"space before":      {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
		"NUL":               {"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400},
		"garbage":           {"\x16\x03\x01\x00\x00garbage\r\n\r\n", 400},
		"large head":        {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", 431},
		"encoded slash":     {"GET /a%2f..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"above the root":    {"GET /../../x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		"user information":  {"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400},
		"CONNECT":           {"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501},
		"unknown expection": {"GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417},
	} {
		code := telemetry.DownstreamProtocolError
		if tt.status == 431 {
			code = telemetry.RequestHeaderTooLarge
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reached := false
				g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
					reached = true
					return echo(ctx, req)
				}, nil)
				c := g.dial()
				defer func() { _ = c.Close() }()
				go func() { _, _ = io.WriteString(c, tt.send) }()
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || !strings.Contains(resp.Header.Get("Proxy-Status"), `details="`+code.String()+`"`) {
					t.Errorf("%d %v %q", resp.StatusCode, resp.Header, b)
				}
				_ = c.Close()
				time.Sleep(5 * time.Second)
				if r := g.rec.last(t); r.Code != code || r.Status != tt.status || r.Detail == "" {
					t.Errorf("%+v", r)
				}
				if reached {
					t.Error("the application got it")
				}
			})
		})
	}
}

// A head that does not come ends the connection; nobody waits for ever.
func TestSlowHead(t *testing.T) {
	for _, first := range []string{"G", "GET / HTTP/1.1\r\nHost", "PRI * HT", "P"} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, echo, nil)
			c := g.dial()
			_, _ = io.WriteString(c, first)
			began := time.Now()
			_, _ = io.ReadAll(c)
			if d := time.Since(began); d > 3*DefaultHeaderTimeout {
				t.Errorf("%q: the connection stayed for %v", first, d)
			}
			_ = c.Close()
		})
	}
}

func TestHopByHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got stream.Header
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			got = req.Head.Header.Clone()
			r := ok("x")
			r.Head.Header = stream.Header{{Name: "connection", Value: "close"}, {Name: "keep-alive", Value: "x"}, {Name: "x-kept", Value: "1"}}
			return r, nil
		}, nil)
		resp, _ := get(t, g.h1(), "GET", "/", nil, func(r *http.Request) {
			r.Header = http.Header{"Connection": {"X-Gone, Authorization, x-forwarded-for"}, "X-Gone": {"1"}, "Authorization": {"kept"},
				"Te": {"trailers, deflate"}, "Keep-Alive": {"5"}, "Proxy-Connection": {"x"}, "X-Forwarded-For": {"kept"}}
		})
		for _, n := range []string{"connection", "x-gone", "keep-alive", "proxy-connection"} {
			if _, ok := got.Lookup(n); ok {
				t.Errorf("%s went on", n)
			}
		}
		if got.Get("authorization") != "kept" || got.Get("x-forwarded-for") != "kept" || got.Get("te") != "trailers" {
			t.Errorf("%v", got)
		}
		if resp.Header.Get("X-Kept") != "1" || resp.Header.Get("Keep-Alive") != "" || resp.Close {
			t.Errorf("response: %v close=%v", resp.Header, resp.Close)
		}
	})
}

func TestRoutesAndMutations(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var got stream.RequestHead
		app := func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			got = req.Head
			got.Header, got.Path, got.Authority = got.Header.Clone(), strings.Clone(got.Path), strings.Clone(got.Authority)
			r := ok("x")
			r.Head.Header = stream.Header{{Name: "server", Value: "app"}, {Name: "x-secret", Value: "1"}}
			return r, nil
		}
		g := newRig(t, app, func(c *Config) {
			fw := toApp()
			fw.Match.Path = "/old/"
			fw.Forward.PrefixRewrite, fw.Forward.HostRewrite = "/new/", "internal"
			fw.RequestHeaders = resource.HeaderMutations{Remove: []string{"x-drop"}, Set: []resource.Header{{Name: "x-set", Value: "2"}}, Add: []resource.Header{{Name: "x-add", Value: "3"}}}
			fw.ResponseHeaders = resource.HeaderMutations{Remove: []string{"x-secret"}, Add: []resource.Header{{Name: "x-route", Value: "old"}}}
			gone := toApp()
			gone.Match.Path, gone.Forward.Cluster = "/gone", "nowhere"
			rt := routes(t, fw, gone,
				resource.Route{Name: "r", Match: resource.RouteMatch{Path: "/r"}, Redirect: &resource.Redirect{Path: "/there", Code: 308}},
				resource.Route{Name: "d", Match: resource.RouteMatch{Path: "/d"}, Direct: &resource.DirectResponse{Status: 418, Body: "teapot"}})
			c.Routes = func() *decide.Routes { return rt }
		})
		c := client(g)
		resp, _ := get(t, c, "GET", "/old/x?q", nil, func(r *http.Request) { r.Header = http.Header{"X-Drop": {"1"}, "X-Set": {"1", "1"}, "X-Add": {"1"}} })
		if got.Path != "/new/x?q" || got.Authority != "internal" || got.Header.Get("x-envoy-original-path") != "/old/x?q" {
			t.Errorf("head: %+v", got)
		}
		set, _ := got.Header.Values("x-set")
		add, _ := got.Header.Values("x-add")
		if _, ok := got.Header.Lookup("x-drop"); ok || set != "2" || add != "1,3" {
			t.Errorf("mutations: %v", got.Header)
		}
		if resp.Header.Get("X-Route") != "old" || resp.Header.Get("X-Secret") != "" || resp.Header.Get("Server") != "app" {
			t.Errorf("response: %v", resp.Header)
		}
		for path, want := range map[string]int{"/r": 308, "/d": 418, "/gone": 503, "/none": 404} {
			if resp, _ := get(t, c, "GET", path, nil); resp.StatusCode != want {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
		}
		synctest.Wait()
	})
}

// Errors of a cluster keep their code; the client learns no detail.
func TestClusterError(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(context.Context, *stream.Request) (*stream.Response, error) {
			return nil, &cluster.Error{Code: telemetry.NoHealthyUpstream, Detail: "secret 10.0.0.7"}
		}, nil)
		resp, body := get(t, client(g), "GET", "/", nil)
		if resp.StatusCode != 503 || resp.Header.Get("Proxy-Status") != `parrel; error=destination_unavailable; details="no_healthy_upstream"` || strings.Contains(body, "secret") {
			t.Errorf("%d %v %q", resp.StatusCode, resp.Header, body)
		}
		synctest.Wait()
		if r := g.rec.last(t); r.Code != telemetry.NoHealthyUpstream || r.Detail != "secret 10.0.0.7" || r.UpstreamHost != "10.0.0.9:80" {
			t.Errorf("%+v", r)
		}
	})
}

func TestRBAC(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		const web = "spiffe://td/ns/default/dc/dc1/svc/web"
		allow := func(path string) *resource.RBACRules {
			return &resource.RBACRules{Policies: []resource.RBACPolicy{{Name: "p",
				Permissions: []resource.Permission{{Path: &resource.StringMatch{Kind: resource.StringPrefix, Value: path}}},
				Principals:  []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{Name: &resource.StringMatch{Value: web}}}}}}}
		}
		g := newRig(t, echo, func(c *Config) {
			c.Inbound = true
			c.Manager.Filters = []resource.HTTPFilter{
				{Name: "rbac", RBAC: &resource.RBAC{Rules: allow("/ok"), Shadow: allow("/nothing")}},
				{Name: "router", Router: &resource.Router{}}}
		})
		g.peer = web
		c := client(g)
		if resp, _ := get(t, c, "GET", "/ok", nil); resp.StatusCode != 200 {
			t.Errorf("allowed: %d", resp.StatusCode)
		}
		synctest.Wait()
		if r := g.rec.last(t); !r.ShadowDenied || !r.TLS || r.SourceService != "web" || r.SourcePrincipal != web {
			t.Errorf("%+v", r)
		}
		// Another spelling gets round nothing.
		for _, p := range []string{"/admin", "/ok/../admin", "/ok/%2e%2e/admin", "//admin"} {
			resp, _ := get(t, c, "GET", p, nil)
			if resp.StatusCode != 403 || !strings.Contains(resp.Header.Get("Proxy-Status"), "rbac_denied") {
				t.Errorf("%s: %d %v", p, resp.StatusCode, resp.Header)
			}
		}
	})
}

func TestBuildRefuses(t *testing.T) {
	for name, fs := range map[string][]resource.HTTPFilter{
		"http_filters is empty":              nil,
		"is the last but not the router":     {{Name: "rbac", RBAC: &resource.RBAC{}}},
		"is a router before the end":         {{Name: "router", Router: &resource.Router{}}, {Name: "router", Router: &resource.Router{}}},
		"is of a kind that this sidecar":     {{Name: "strange"}, {Name: "router", Router: &resource.Router{}}},
		"l7: Config without Manager, Routes": {},
	} {
		c := Config{Manager: &resource.HTTPManager{Filters: fs}, Routes: func() *decide.Routes { return nil }, Clusters: func(string) (Cluster, bool) { return nil, false }}
		if strings.HasPrefix(name, "l7:") {
			c.Routes = nil
		}
		if _, err := New(c, Deps{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHash(t *testing.T) {
	s := &exchange{x: &connection{}, e: &Engine{d: Deps{Rand: func() uint64 { return 7 }}}, req: &stream.Request{Head: stream.RequestHead{
		Path: "/?u=1&v=2", Header: stream.Header{{Name: "x-user", Value: "a"}, {Name: "cookie", Value: "s=1; t=2"}}}}}
	ttl := time.Minute
	h := func(ps ...resource.HashPolicy) uint64 { v, _ := s.hash(ps); return v }
	if _, ok := s.hash([]resource.HashPolicy{{Header: "x-none"}, {Cookie: "none"}, {Query: "none"}}); ok {
		t.Error("nothing was hashed to something")
	}
	one, two := h(resource.HashPolicy{Header: "x-user"}), h(resource.HashPolicy{Query: "v"})
	if one == 0 || one == two || h(resource.HashPolicy{Header: "x-user", Terminal: true}, resource.HashPolicy{Query: "v"}) != one ||
		h(resource.HashPolicy{Header: "x-user"}, resource.HashPolicy{Query: "v"}) == one || h(resource.HashPolicy{Cookie: "t"}) != two {
		t.Error("hash policies are combined wrongly")
	}
	if h(resource.HashPolicy{Cookie: "id", CookieTTL: &ttl, CookiePath: "/"}) == 0 || s.cookie != "id=7; Max-Age=60; Path=/; HttpOnly" {
		t.Errorf("cookie %q", s.cookie)
	}
}

// What a request says of its host must agree with itself and with the TLS
// connection that it came on; case, port and a trailing dot make no difference.
func TestHostsAgree(t *testing.T) {
	for _, tt := range []struct {
		sni, peer, target, host string
		want                    int
	}{
		{"", "", "/", "App", 200},
		{"", "", "http://app/", "app", 200},
		{"", "", "http://APP.:80/x", "app:80", 200},
		{"", "", "http://other/", "app", 400},
		{"", "", "http://app:81/", "app", 400},
		{"app.example", "", "/", "app.example", 200},
		{"App.Example.", "", "/", "APP.example.:8443", 200},
		{"app.example", "", "/", "other.example", 421},
		{"app.example", "", "/", "app.example.evil", 421},
		{"*.example", "", "/", "app.example", 421},
		{"web.default.dc1.internal", "spiffe://td/ns/default/dc/dc1/svc/web", "/", "whatever", 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, echo, func(c *Config) { c.Inbound = tt.peer != "" })
			g.sni, g.peer = tt.sni, tt.peer
			c := g.dial()
			defer func() { _ = c.Close() }()
			_, _ = io.WriteString(c, "GET "+tt.target+" HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != tt.want {
				t.Errorf("%+v: %d", tt, resp.StatusCode)
			}
			if tt.want == 421 && !strings.Contains(resp.Header.Get("Proxy-Status"), "misdirected_request") {
				t.Errorf("%+v: %v", tt, resp.Header)
			}
		})
	}
}
