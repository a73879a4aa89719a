package mesh

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func builder() *Builder {
	return NewBuilder(Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
}

// words prints a change, short.
func words(c Change) string {
	var out []string
	add := func(what string, list any) {
		if v := reflect.ValueOf(list); v.Len() > 0 {
			out = append(out, fmt.Sprintf("%s=%v", what, list))
		}
	}
	if c.All {
		out = append(out, "all")
	}
	add("endpoints", c.Endpoints)
	add("services", c.Services)
	add("intentions", c.Intentions)
	add("connect", c.Connect)
	add("virtual", c.Virtual)
	add("transparent", c.Transparent)
	add("requests", c.Requests)
	add("workloads", c.Workloads)
	if c.Roots {
		out = append(out, "roots")
	}
	if c.Source {
		out = append(out, "source")
	}
	if len(out) == 0 && len(c.Entries) > 0 {
		out = append(out, "entries")
	}
	return strings.Join(out, " ")
}

// meshEntry is a delivery of one config entry alone.
func meshEntry(text string) discovery.Delta {
	d := meshtest.MustRead("entries: [" + text + "]")
	return discovery.Delta{Entries: d.Entries}
}

// one is a delivery of one service alone, with this sidecar; "" is none.
func one(name, sidecar string) discovery.Delta {
	connect := ""
	if sidecar != "" {
		connect = ", connect: {sidecar_service: " + sidecar + "}"
	}
	d := meshtest.MustRead("services: [{name: " + name + ", port: 8082" + connect + "}]")
	return discovery.Delta{Services: d.Services}
}

// TestApply: each kind of delivery names what it touches and nothing else.
func TestApply(t *testing.T) {
	b := builder()
	shop := func(change ...string) discovery.Delta {
		return meshtest.MustRead(strings.NewReplacer(change...).Replace(meshtest.Shop))
	}
	s, ch := b.Apply(shop())
	if s.Version != 1 || len(ch.Services) != 4 || len(ch.Workloads) != 5 || !ch.All || !ch.Roots {
		t.Fatalf("version %d, change %s", s.Version, words(ch))
	}
	steps := []struct {
		what  string
		delta discovery.Delta
		want  string
	}{
		{"the same again, full", shop(), ""},
		{"health of an instance", shop("health: critical", "health: passing"), "endpoints=[users@dc1]"},
		{"and back", shop(), "endpoints=[users@dc1]"},
		{"an address", shop("name: orders, port: 8082", "name: orders, port: 8092"), "endpoints=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"and back", shop(), "endpoints=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"an upstream more", shop("local_bind_port: 9001}", "local_bind_port: 9001}, {destination_name: users, local_bind_port: 9009}"), "endpoints=[web@dc1] workloads=[n1/web-sidecar-proxy]"},
		{"and back", shop(), "endpoints=[web@dc1] workloads=[n1/web-sidecar-proxy]"},
		{"an intention", shop("name: api, action: allow", "name: api, action: deny"), "intentions=[orders@dc1]"},
		{"a protocol", shop("users, protocol: grpc", "users, protocol: http2", "name: api, action: allow", "name: api, action: deny"), "services=[users@dc1]"},
		{"proxy-defaults", shop("protocol: http}", "protocol: tcp}", "users, protocol: grpc", "users, protocol: http2", "name: api, action: allow", "name: api, action: deny"), "all"},
		{"the default", discovery.Delta{DefaultIntention: discovery.Allow}, "all"},
		{"an unknown default denies", discovery.Delta{DefaultIntention: "perhaps"}, "all"},
		{"roots", discovery.Delta{Roots: &discovery.TrustRoots{RootsPEM: []string{"NEW"}}}, "roots"},
		{"a mesh entry", meshEntry(`{kind: mesh, http: {incoming: {request_normalization: {merge_slashes: true}}}}`), "requests=[default]"},
		{"another part of it", meshEntry(`{kind: mesh, http: {sanitize_x_forwarded_client_cert: true, incoming: {request_normalization: {merge_slashes: true}}}}`), "entries"},
		{"the block alone", meshEntry(`{kind: mesh, http: {incoming: {request_normalization: {}}}}`), "requests=[default]"},
		{"without the block", meshEntry(`{kind: mesh}`), "requests=[default]"},
		{"of transparent proxies", meshEntry(`{kind: mesh, transparent_proxy: {mesh_destinations_only: true}}`), "transparent=[default]"},
		{"and of plaintext", meshEntry(`{kind: mesh, transparent_proxy: {mesh_destinations_only: true}, allow_enabling_permissive_mutual_tls: true}`), "transparent=[default]"},
		{"without either", meshEntry(`{kind: mesh}`), "transparent=[default]"},
		{"a virtual address", one("orders", "{tagged_addresses: {consul-virtual: {address: 240.0.0.9}}}"), "endpoints=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"one more", one("orders", "{tagged_addresses: {consul-virtual: {address: 240.0.0.9}, virtual: {address: 10.96.0.9}}}"), "endpoints=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"another of another kind", one("orders", "{tagged_addresses: {consul-virtual: {address: 240.0.0.9}, virtual: {address: 10.96.0.9}, lan: {address: 10.0.0.1}}}"), "endpoints=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"none", one("orders", "{}"), "endpoints=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"its last proxy goes", one("orders", ""), "endpoints=[orders@dc1] connect=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"and returns", one("orders", "{}"), "endpoints=[orders@dc1] connect=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"the source", discovery.Delta{Status: &discovery.Status{Stale: true}}, "source"},
		{"a service goes", discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{s.Local("orders"): nil}}, "endpoints=[orders@dc1] services=[orders@dc1] connect=[orders@dc1] virtual=[orders@dc1] workloads=[n1/orders-sidecar-proxy]"},
		{"it is gone already", discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{s.Local("orders"): nil}}, ""},
		{"nothing at all", discovery.Delta{}, ""},
	}
	for _, c := range steps {
		before := b.Current()
		next, ch := b.Apply(c.delta)
		if got := words(ch); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
		if c.want == "" && next != before {
			t.Errorf("%s: a new snapshot without a change", c.what)
		}
		if c.want != "" && next.Version != before.Version+1 {
			t.Errorf("%s: version %d after %d", c.what, next.Version, before.Version)
		}
	}
}

// TestLookup: ids of proxies, of native instances, and ids that two nodes use.
func TestLookup(t *testing.T) {
	b := builder()
	m, _ := b.Apply(meshtest.MustRead(`
services:
- {name: web, node: n1, port: 80, connect: {sidecar_service: {}}}
- {name: web, node: n2, port: 80, connect: {sidecar_service: {}}}
- {name: api, node: n1, port: 81, connect: {native: true}}
- {name: plain, node: n1, port: 82}
`))
	for id, want := range map[string]error{
		"api": nil, "n1/api": nil, "n1/web-sidecar-proxy": nil, "n2/web-sidecar-proxy": nil,
		"web-sidecar-proxy": ErrAmbiguous, "plain": ErrUnknown, "web": ErrUnknown, "": ErrUnknown, "n3/api": ErrUnknown,
	} {
		if _, err := m.Lookup(id); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", id, err, want)
		}
	}
	if _, err := m.Lookup("web-sidecar-proxy"); err == nil || !strings.Contains(err.Error(), "n1/web-sidecar-proxy, n2/web-sidecar-proxy") {
		t.Errorf("an ambiguous id does not say which there are: %v", err)
	}
	m, _ = b.Apply(discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{m.Local("web"): {Name: m.Local("web")}}})
	if n := m.Stats().Workloads; n != 1 {
		t.Errorf("%d workloads are left", n)
	}
}

// TestIndices: after any random deltas the indices say what the services say,
// and an earlier snapshot still says what it said.
func TestIndices(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := builder()
	type memory struct {
		s    *Snapshot
		said string
	}
	var past []memory
	for range 300 {
		name := b.Current().Local(fmt.Sprint("s", r.IntN(8)))
		svc := &discovery.Service{Name: name}
		for i := range r.IntN(3) {
			svc.Proxies = append(svc.Proxies, &discovery.Instance{
				Service: name, ID: fmt.Sprint("p", r.IntN(6)), Node: fmt.Sprint("n", i), Kind: discovery.KindConnectProxy,
				Proxy: &discovery.Proxy{DestinationService: name.Name, Upstreams: []discovery.Upstream{{DestinationName: fmt.Sprint("s", r.IntN(8)), LocalBindPort: 1}}},
			})
		}
		if r.IntN(4) == 0 {
			svc = nil
		}
		m, _ := b.Apply(discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{name: svc}})
		if got, want := indices(m), rebuilt(m); got != want {
			t.Fatalf("indices say\n%s\nand the services say\n%s", got, want)
		}
		past = append(past, memory{m, indices(m)})
	}
	for _, p := range past {
		if got := indices(p.s); got != p.said {
			t.Fatalf("version %d changed after the fact", p.s.Version)
		}
	}
}

func indices(m *Snapshot) string {
	var b strings.Builder
	for _, w := range m.Workloads() {
		fmt.Fprintln(&b, w.Key(), w.Service)
	}
	for i := range 8 {
		fmt.Fprintln(&b, i, m.Dependants(m.Local(fmt.Sprint("s", i))))
	}
	return b.String()
}

// rebuilt computes the same from the services alone, in one go.
func rebuilt(m *Snapshot) string {
	d := discovery.Delta{Full: true, Services: map[discovery.ServiceName]*discovery.Service{}}
	for n, s := range m.Services() {
		d.Services[n] = s
	}
	fresh, _ := builder().Apply(d)
	return indices(fresh)
}

// TestHistory is bounded.
func TestHistory(t *testing.T) {
	b := NewBuilder(Config{History: 3})
	for i := range 10 {
		b.Apply(discovery.Delta{Roots: &discovery.TrustRoots{RootsPEM: []string{fmt.Sprint(i)}}})
	}
	h := b.History()
	if len(h) != 3 || h[2].Snapshot != b.Current() || h[0].Snapshot.Version != 8 {
		t.Errorf("history holds %d versions, from %d", len(h), h[0].Snapshot.Version)
	}
}

// BenchmarkEndpointChange flips the health of one instance in meshes of two
// sizes: the cost must not follow the size.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			mb := builder()
			d := discovery.Delta{Full: true, Services: map[discovery.ServiceName]*discovery.Service{}}
			for i := range n {
				name := mb.Current().Local(fmt.Sprint("s", i))
				d.Services[name] = flip(name, i, 0)
			}
			mb.Apply(d)
			name := mb.Current().Local("s5")
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				mb.Apply(discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{name: flip(name, 5, discovery.Health(1+i%2))}})
			}
		})
	}
}

func flip(name discovery.ServiceName, i int, h discovery.Health) *discovery.Service {
	return &discovery.Service{Name: name, Proxies: []*discovery.Instance{{
		Service: name, ID: fmt.Sprint("p", i), Node: "n", Kind: discovery.KindConnectProxy, Health: h,
		Proxy: &discovery.Proxy{DestinationService: name.Name, Upstreams: []discovery.Upstream{{DestinationName: "s1", LocalBindPort: 1}}},
	}}}
}
