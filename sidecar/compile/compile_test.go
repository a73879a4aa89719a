package compile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/filter/rbac"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an engine that knows what it was made of.
type fake struct {
	http *HTTP
	tcp  *TCP
}

func (*fake) Serve(context.Context, *listener.Conn) {}

// world holds a snapshot in force and counts the engines made.
type world struct {
	t       testing.TB
	current *Snapshot
	made    int
	pki     *testpki.PKI
}

func (w *world) deps() Deps {
	return Deps{
		HTTP: func(h HTTP) (listener.Handler, error) {
			if h.Manager.StatPrefix == "bad" {
				return nil, errors.New("http_filters[0]: no such filter")
			}
			w.made++
			return &fake{http: &h}, nil
		},
		TCP:     func(x TCP) (listener.Handler, error) { w.made++; return &fake{tcp: &x}, nil },
		Current: func() *Snapshot { return w.current },
		Filters: func(m *resource.HTTPManager) (*filter.Chain, error) {
			return filter.Build([]filter.Entry{rbac.Entry()}, m.Filters, filter.Deps{})
		},
	}
}

func (w *world) compile(set *warm.Set) []error {
	w.t.Helper()
	s, errs := Compile(set, w.current, w.deps())
	w.current = s
	return errs
}

func (w *world) ok(set *warm.Set) {
	w.t.Helper()
	for _, err := range w.compile(set) {
		w.t.Errorf("Compile: %v", err)
	}
}

func set(rs ...resource.Resource) *warm.Set {
	s := &warm.Set{Version: "v", Listeners: map[string]*resource.Listener{}, Routes: map[string]*resource.RouteConfig{},
		Clusters: map[string]*resource.Cluster{}, Endpoints: map[string]*resource.Endpoints{}, Secrets: map[string]*resource.Secret{}}
	for _, r := range rs {
		switch r := r.(type) {
		case *resource.Listener:
			s.Listeners[r.Name] = r
		case *resource.RouteConfig:
			s.Routes[r.Name] = r
		case *resource.Cluster:
			s.Clusters[r.Name] = r
		case *resource.Endpoints:
			s.Endpoints[r.Cluster] = r
		case *resource.Secret:
			s.Secrets[r.Name] = r
		}
	}
	return s
}

func rules(service string) *resource.RBAC {
	return &resource.RBAC{Rules: &resource.RBACRules{Action: resource.RBACAllow, Policies: []resource.RBACPolicy{{Name: "p",
		Permissions: []resource.Permission{{Any: true}},
		Principals: []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{
			Name: &resource.StringMatch{Kind: resource.StringSuffix, Value: "/svc/" + service}}}}}}}}
}

func inbound(allowed string, change ...func(*resource.Listener)) *resource.Listener {
	l := &resource.Listener{Name: "in", Direction: resource.Inbound, Address: resource.Address{Host: "127.0.0.1", Port: 1},
		Chains: []resource.FilterChain{{Name: "in",
			TLS: &resource.DownstreamTLS{RequireClientCert: true, TLSParams: resource.TLSParams{
				Certificate: resource.CertSource{SDS: resource.SecretIdentity}, Trust: resource.CertSource{SDS: resource.SecretTrust}}},
			Network: []resource.NetworkFilter{{Name: "rbac", RBAC: rules(allowed)}},
			HTTP:    &resource.HTTPManager{StatPrefix: "in", RouteName: "r", Filters: []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}},
		}}}
	for _, f := range change {
		f(l)
	}
	return l
}

func routes(clusters ...string) *resource.RouteConfig {
	rc := &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"*"}}}}
	for _, c := range clusters {
		rc.VirtualHosts[0].Routes = append(rc.VirtualHosts[0].Routes, resource.Route{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: c}})
	}
	return rc
}

func (w *world) chain() *listener.Chain { return w.current.Listeners[0].Chains["in"] }

func TestCarryOver(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	secret := testpki.Trust(w.pki)
	w.ok(set(inbound("web"), routes("a"), secret))
	first := *w.chain()
	engine := first.Handler.(*fake)
	routesNow := engine.http.Routes

	t.Log("another route: the engine sees it, and nothing is rebuilt")
	before := routesNow()
	w.ok(set(inbound("web"), routes("b"), secret))
	if w.chain().Handler != engine || w.made != 1 || w.chain().Equal != first.Equal {
		t.Error("a change of routes rebuilt the engine")
	}
	if after := routesNow(); after == before || after == nil {
		t.Error("the engine does not see the new routes")
	}

	t.Log("another intention: the same engine, other rules")
	w.ok(set(inbound("orders"), routes("b"), secret))
	if w.chain().Handler != engine || w.chain().Equal != first.Equal {
		t.Error("a change of the network rules rebuilt the engine, or ends connections")
	}
	allowed := func(service string) bool {
		return w.chain().Authorise[0].Authorise(nil, &decide.Facts{PeerID: w.pki.ID(service).String()}, nil).Allowed
	}
	if allowed("web") || !allowed("orders") {
		t.Error("the new rules are not in force")
	}

	t.Log("another root: the chain sees it")
	if got, _ := first.Trust().Get(w.pki.TD); len(got.X509Authorities()) != 1 {
		t.Error("no roots at first")
	}
	other := testpki.New(t, "other.test")
	w.ok(set(inbound("orders"), routes("b"), testpki.Trust(w.pki, other)))
	if _, ok := first.Trust().Get(other.TD); !ok || w.made != 1 {
		t.Error("the chain does not see new roots")
	}

	t.Log("another codec: another engine")
	w.ok(set(inbound("orders", func(l *resource.Listener) { l.Chains[0].HTTP.Codec = resource.CodecHTTP1 }), routes("b"), secret))
	if w.chain().Handler == engine || w.chain().Equal == first.Equal || w.made != 2 {
		t.Error("a change of the connection manager was carried over")
	}
}

// TestReplacedEngineKeepsItsRoutes: an engine that was replaced, because its
// listener now takes its routes by another name or is gone, routes what its
// connections still ask by the last routes that it had.
func TestReplacedEngineKeepsItsRoutes(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	w.ok(set(testpki.Trust(w.pki), inbound("web"), routes("a")))
	first := w.current.Listeners[0].Chains["in"].Handler.(*fake)
	w.ok(set(testpki.Trust(w.pki), inbound("web"), routes("a", "b")))
	newest := w.current.Routes("r")
	other := routes("c")
	other.Name = "r2"
	w.ok(set(testpki.Trust(w.pki), inbound("web", func(l *resource.Listener) { l.Chains[0].HTTP.RouteName = "r2" }), other))
	if got := first.http.Routes(); got == nil || got != newest {
		t.Errorf("the replaced engine has routes %p, want its last, %p", got, newest)
	}
	second := w.current.Listeners[0].Chains["in"].Handler.(*fake)
	last := second.http.Routes()
	w.ok(set(testpki.Trust(w.pki)))
	if got := second.http.Routes(); got == nil || got != last {
		t.Errorf("the engine of a removed listener has routes %p, want its last, %p", got, last)
	}
}

func TestInlineRoutesChangeWithoutANewEngine(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	inline := func(cluster string) *resource.Listener {
		return inbound("web", func(l *resource.Listener) {
			l.Chains[0].HTTP.RouteName, l.Chains[0].HTTP.Route = "", routes(cluster)
		})
	}
	secret := testpki.Trust(w.pki)
	w.ok(set(inline("a"), secret))
	engine := w.chain().Handler.(*fake)
	one := engine.http.Routes()
	w.ok(set(inline("a"), secret))
	if engine.http.Routes() != one {
		t.Error("equal routes were compiled again")
	}
	w.ok(set(inline("b"), secret))
	if two := engine.http.Routes(); two == one || two == nil || w.made != 1 {
		t.Errorf("routes %p, before %p, %d engines", two, one, w.made)
	}
}

// TestFiltersChangeWithoutANewEngine: an edit of an HTTP service's intentions
// reaches its engine at the next request; the engine, and with it every
// connection, stays. A replaced engine keeps the filters that it had last.
func TestFiltersChangeWithoutANewEngine(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	with := func(service, codec string) *resource.Listener {
		return inbound("web", func(l *resource.Listener) {
			l.Chains[0].HTTP.StatPrefix = codec
			l.Chains[0].HTTP.Filters = append([]resource.HTTPFilter{{Name: "rbac", RBAC: rules(service)}}, l.Chains[0].HTTP.Filters...)
		})
	}
	allowed := func(e *fake, service string) bool {
		x := &filter.Exchange{Facts: &decide.Facts{PeerID: w.pki.ID(service).String()}, Record: &telemetry.Record{}}
		var run filter.Run
		e.http.Filters().Start(&run)
		_, err := run.Request(t.Context(), x, &stream.Request{})
		return err == nil
	}
	secret := testpki.Trust(w.pki)
	w.ok(set(with("web", "in"), routes("a"), secret))
	first := *w.chain()
	engine := first.Handler.(*fake)
	one := engine.http.Filters()
	if !allowed(engine, "web") || allowed(engine, "orders") {
		t.Error("the first rules are not in force")
	}
	w.ok(set(with("web", "in"), routes("b"), secret))
	if engine.http.Filters() != one {
		t.Error("equal filters were built again")
	}
	w.ok(set(with("orders", "in"), routes("b"), secret))
	if w.chain().Handler != engine || w.made != 1 || w.chain().Equal != first.Equal {
		t.Error("an edit of the rules rebuilt the engine, or ends its connections")
	}
	if allowed(engine, "web") || !allowed(engine, "orders") {
		t.Error("the new rules are not in force")
	}
	if n := len(w.chain().Reauthorise); n != 1 {
		t.Errorf("%d rule sets end the connections of who is no longer allowed, want 1", n)
	}
	t.Log("another engine for the chain: the old one's connections drain, under its last rules")
	w.ok(set(with("web", "other"), routes("b"), secret))
	if w.chain().Handler == engine || !allowed(w.chain().Handler.(*fake), "web") {
		t.Error("no new engine, or not by the new rules")
	}
	if allowed(engine, "web") || !allowed(engine, "orders") {
		t.Error("the replaced engine lost its rules")
	}
	w.ok(set(secret))
	if allowed(engine, "web") || engine.http.Filters() == nil {
		t.Error("the removed engine lost its rules")
	}
}

// TestNothingChangedCostsOneLoad: what an engine asks at each request.
func TestNothingChangedCostsOneLoad(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	w.ok(set(inbound("web"), routes("a"), testpki.Trust(w.pki)))
	e := w.chain().Handler.(*fake)
	if n := testing.AllocsPerRun(100, func() { e.http.Routes(); e.http.Filters() }); n != 0 {
		t.Errorf("a look-up allocates %v times", n)
	}
}

func TestTCPConnectionsOutliveOtherTargets(t *testing.T) {
	w := &world{t: t}
	out := func(cluster string) *resource.Listener {
		return &resource.Listener{Name: "out", Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: 1},
			Chains: []resource.FilterChain{{Name: "in", TCP: &resource.TCPProxy{Cluster: cluster}}}}
	}
	w.ok(set(out("a")))
	first := w.chain()
	w.ok(set(out("b")))
	if w.chain().Equal != first.Equal || w.chain().Handler == first.Handler {
		t.Error("want another engine for new connections, and the old connections left alone")
	}
}

func TestRulesOfTheConnectionAlone(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "mesh.test")}
	withHTTP := func(r *resource.RBAC) *resource.Listener {
		return inbound("web", func(l *resource.Listener) {
			l.Chains[0].HTTP.Filters = append([]resource.HTTPFilter{{Name: "rbac", RBAC: r}}, l.Chains[0].HTTP.Filters...)
		})
	}
	w.ok(set(withHTTP(rules("web")), routes("a"), testpki.Trust(w.pki)))
	if n := len(w.chain().Reauthorise); n != 1 {
		t.Errorf("%d rule sets that end connections, want 1", n)
	}
	byPath := rules("web")
	byPath.Rules.Policies[0].Permissions = []resource.Permission{{And: []resource.Permission{{Not: &resource.Permission{
		Path: &resource.StringMatch{Kind: resource.StringPrefix, Value: "/admin"}}}}}}
	w.ok(set(withHTTP(byPath), routes("a"), testpki.Trust(w.pki)))
	if n := len(w.chain().Reauthorise); n != 0 {
		t.Errorf("rules that look at a path were judged without one")
	}
}

// TestRejectOne: each bad resource is refused by its name, keeps its version
// before where there is one, and nothing else suffers. Check says the same.
func TestRejectOne(t *testing.T) {
	pki := testpki.New(t, "mesh.test")
	good := func() *warm.Set { return set(inbound("web"), routes("a"), testpki.Trust(pki)) }
	for _, tt := range []struct {
		name string
		bad  resource.Resource
		want string
	}{
		{"engine", inbound("web", func(l *resource.Listener) { l.Chains[0].HTTP.StatPrefix = "bad" }), "LDS in refused, the version before stays in force: filter_chains[0]: http_filters[0]: no such filter"},
		{"two chains of one name", inbound("web", func(l *resource.Listener) { l.Chains = append(l.Chains, l.Chains[0]) }), `filter_chains[1]: a second filter chain is named "in"`},
		{"no terminal filter", inbound("web", func(l *resource.Listener) { l.Chains[0].HTTP = nil }), "filter_chains[0]: filters: no terminal filter"},
		{"certificate from a file", inbound("web", func(l *resource.Listener) {
			l.Chains[0].TLS.Certificate = resource.CertSource{Files: &resource.CertFiles{}}
		}), "presents its own identity only"},
		{"no trust", inbound("web", func(l *resource.Listener) { l.Chains[0].TLS.Trust = resource.CertSource{} }), "no validation context"},
		{"peer regex", inbound("web", func(l *resource.Listener) {
			l.Chains[0].TLS.PeerSANs = []resource.StringMatch{{Kind: resource.StringRegex, Value: "("}}
		}), "match_typed_subject_alt_names[0]: safe_regex"},
		{"network filter", inbound("web", func(l *resource.Listener) { l.Chains[0].Network = []resource.NetworkFilter{{Name: "x"}} }), `filters[0]: "x" is no network filter`},
		{"route regex", &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"*"},
			Routes: []resource.Route{{Match: resource.RouteMatch{PathKind: resource.PathRegex, Path: "("}, Forward: &resource.Forward{Cluster: "a"}}}}}}, "RDS r refused, the version before stays in force"},
		{"root", &resource.Secret{Name: resource.SecretTrust, TrustPEM: []resource.TrustBundle{{TrustDomain: "mesh.test", RootsPEM: []byte("nonsense")}}}, "SDS ROOTCA refused, the version before stays in force: trust_domains[0].trust_bundle: no certificate in it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{t: t, pki: pki}
			w.ok(good())
			before := *w.current
			next := good()
			switch r := tt.bad.(type) {
			case *resource.Listener:
				next.Listeners["in"] = r
			case *resource.RouteConfig:
				next.Routes["r"] = r
			case *resource.Secret:
				next.Secrets[resource.SecretTrust] = r
			}
			errs := w.compile(next)
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) {
				t.Fatalf("errors %v, want one with %q", errs, tt.want)
			}
			if len(w.current.Listeners) != 1 || w.chain().Handler != before.Listeners[0].Chains["in"].Handler {
				t.Error("the listener's last good version is not in force")
			}
			if w.current.Routes("r") == nil || w.current.Trust(resource.SecretTrust).Len() != 1 {
				t.Error("the last good routes or roots are not in force")
			}
			if err := Check(tt.bad, w.deps()); err == nil {
				t.Error("Check accepts it")
			}

			fresh := &world{t: t, pki: pki}
			if errs := fresh.compile(next); len(errs) != 1 || !strings.Contains(errs[0].Error(), "left out") {
				t.Errorf("without a version before: %v", errs)
			}
		})
	}
	w := &world{t: t, pki: pki}
	for _, r := range []resource.Resource{inbound("web"), routes("a"), testpki.Trust(pki), &resource.Cluster{Name: "c"}, &resource.Endpoints{Cluster: "c"}} {
		if err := Check(r, w.deps()); err != nil {
			t.Errorf("Check refuses a good %s: %v", r.ResourceType().Short(), err)
		}
	}
}

func TestNamedTrustThatIsNotThereTrustsNobody(t *testing.T) {
	w := &world{t: t}
	c := &resource.Cluster{Name: "c", TLS: &resource.UpstreamTLS{TLSParams: resource.TLSParams{Trust: resource.CertSource{SDS: resource.SecretTrust}}}}
	w.ok(set(c, inbound("web")))
	if u := w.current.Upstreams[0]; u.Trust == nil || u.Trust.Len() != 0 {
		t.Errorf("the cluster trusts %v", u.Trust)
	}
	if s := w.chain().Trust(); s == nil || s.Len() != 0 {
		t.Errorf("the listener trusts %v", s)
	}
}

// many is a mesh of n clusters with e endpoints each, and one listener a
// cluster.
func many(n, e int) *warm.Set {
	s := set()
	for i := range n {
		name := fmt.Sprintf("service-%04d", i)
		s.Clusters[name] = &resource.Cluster{Name: name}
		s.Endpoints[name] = &resource.Endpoints{Cluster: name, Localities: []resource.Locality{{}}}
		for j := range e {
			s.Endpoints[name].Localities[0].Endpoints = append(s.Endpoints[name].Localities[0].Endpoints,
				resource.Endpoint{Address: resource.Address{Host: fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j), Port: 80}})
		}
		rc := routes(name)
		rc.Name = name
		s.Routes[name] = rc
		s.Listeners[name] = &resource.Listener{Name: name, Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: uint16(10000 + i)},
			Chains: []resource.FilterChain{{Name: name, HTTP: &resource.HTTPManager{RouteName: name, Filters: []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}}}}}
	}
	return s
}

func oneEndpointChanged(s *warm.Set, i int) *warm.Set {
	next := *s
	next.Endpoints = make(map[string]*resource.Endpoints, len(s.Endpoints))
	for k, v := range s.Endpoints {
		next.Endpoints[k] = v
	}
	next.Endpoints["service-0500"] = &resource.Endpoints{Cluster: "service-0500", Localities: []resource.Locality{{Endpoints: []resource.Endpoint{
		{Address: resource.Address{Host: "10.255.0.1", Port: uint16(i)}}}}}}
	return &next
}

func TestOneChangeRebuildsNothingElse(t *testing.T) {
	w := &world{t: t}
	s := many(600, 10)
	w.ok(s)
	made, before := w.made, w.current
	w.ok(oneEndpointChanged(s, 1))
	if w.made != made {
		t.Errorf("%d engines were rebuilt", w.made-made)
	}
	for i := range before.Upstreams {
		same := before.Upstreams[i] == w.current.Upstreams[i]
		if changed := before.Upstreams[i].Cluster.Name == "service-0500"; same == changed {
			t.Errorf("%s: carried over %t", before.Upstreams[i].Cluster.Name, same)
		}
	}
}

func BenchmarkOneEndpointOf10000(b *testing.B) {
	w := &world{t: b}
	s := many(1000, 10)
	w.ok(s)
	sets := [2]*warm.Set{oneEndpointChanged(s, 1), oneEndpointChanged(s, 2)}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w.ok(sets[i%2])
		i++
	}
	if d := b.Elapsed() / time.Duration(b.N); d > 100*time.Millisecond {
		b.Logf("a change of one endpoint takes %s", d)
	}
}
