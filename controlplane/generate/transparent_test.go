package generate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestPermissiveChains: a service that lets callers outside of the mesh in, and
// whose protocol nobody declares, takes whatever they speak, and the mesh's own
// connections as the mesh's.
func TestPermissiveChains(t *testing.T) {
	d, err := meshtest.Read(`
default: deny
services:
- {name: db, port: 5432, connect: {sidecar_service: {port: 20000, proxy: {mode: transparent}}}}
entries:
- {kind: service-defaults, name: db, mutual_tls_mode: permissive}
- {kind: mesh, allow_enabling_permissive_mutual_tls: true}
`)
	if err != nil {
		t.Fatal(err)
	}
	m := build(d)
	r, _, ok := Resource(m, View{Workload: m.Workloads()[0]}, resource.TypeListener, InboundCapture)
	if !ok {
		t.Fatal("no listener for captured inbound connections")
	}
	l := r.(*resource.Listener)
	chains := decide.CompileListener(l)
	own := "db.default.dc1.internal.parrel.test"
	for _, c := range []struct {
		what string
		conn decide.Connection
		want string
	}{
		{"a client that says nothing", decide.Connection{TransportProtocol: "raw_buffer"}, "permissive|plaintext"},
		{"HTTP/1.1", decide.Connection{TransportProtocol: "raw_buffer", ALPN: []string{"http/1.1"}}, "permissive|http"},
		{"HTTP/2", decide.Connection{TransportProtocol: "raw_buffer", ALPN: []string{"h2c"}}, "permissive|http"},
		{"the application's own TLS", decide.Connection{TransportProtocol: "tls", ServerName: "db.example.com", ALPN: []string{"h2", "http/1.1"}}, "permissive"},
		{"the mesh's opaque bytes", decide.Connection{TransportProtocol: "tls", ServerName: own}, "inbound"},
		{"the mesh's HTTP", decide.Connection{TransportProtocol: "tls", ServerName: own, ALPN: []string{"h2", "http/1.1"}}, "inbound|http"},
	} {
		c.conn.Destination = netip.MustParseAddrPort("10.0.0.1:5432")
		fc, ok := chains.Match(c.conn, nil)
		if !ok || fc.Name != c.want {
			t.Errorf("%s takes %+v, not %s", c.what, fc, c.want)
		}
	}
	if fc, ok := chains.Match(decide.Connection{Destination: netip.MustParseAddrPort("10.0.0.1:22"), TransportProtocol: "raw_buffer"}, nil); ok {
		t.Errorf("another port takes %s", fc.Name)
	}
}

// TestDestinations: what leaves a mesh that lets nothing out is what intentions
// allow, by address and port, or by name; who is told of a change of them is who
// is concerned.
func TestDestinations(t *testing.T) {
	const catalogue = `
default: deny
services:
- {name: web, port: 80, connect: {sidecar_service: {port: 20000, proxy: {mode: transparent}}}}
- {name: api, port: 81, connect: {sidecar_service: {port: 20001, proxy: {mode: transparent}}}}
- {name: plain, port: 82, connect: {sidecar_service: {port: 20002}}}
entries:
- {kind: mesh, transparent_proxy: {mesh_destinations_only: true}}
- {kind: service-defaults, name: db, destination: {addresses: [192.0.2.7], port: 5432}}
- {kind: service-defaults, name: pay, destination: {addresses: [Pay.Example], port: 443}}
- {kind: service-intentions, name: db, sources: [{name: web, action: allow}]}
- {kind: service-intentions, name: pay, sources: [{name: web, action: allow}]}
`
	b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	m, _ := b.Apply(meshtest.MustRead(catalogue))
	reach := func(m *mesh.Snapshot, from, to, sni string) string {
		w, _ := m.Workload(from + "-sidecar-proxy")
		r, _, ok := Resource(m, View{Workload: w}, resource.TypeListener, "outbound_listener:127.0.0.1:15001")
		if !ok {
			t.Fatal("no capture listener")
		}
		conn := decide.Connection{Destination: netip.MustParseAddrPort(to), TransportProtocol: "raw_buffer"}
		if sni != "" {
			conn.TransportProtocol, conn.ServerName = "tls", sni
		}
		fc, ok := decide.CompileListener(r.(*resource.Listener)).Match(conn, nil)
		if !ok {
			return "no chain"
		}
		rbac, err := decide.CompileRBAC(fc.Network[0].RBAC)
		if err != nil {
			t.Fatal(err)
		}
		if v := rbac.Authorise(nil, &decide.Facts{Destination: conn.Destination, ServerName: sni}, nil); !v.Allowed {
			return "denied"
		}
		if c, _, ok := Resource(m, View{Workload: w}, resource.TypeCluster, fc.TCP.Cluster); !ok || c.Validate() != nil {
			t.Fatalf("no cluster %s", fc.TCP.Cluster)
		}
		return fc.TCP.Cluster
	}
	for _, c := range []struct{ from, to, sni, want string }{
		{"web", "192.0.2.7:5432", "", "original-destination"},
		{"web", "192.0.2.7:5433", "", "denied"},
		{"web", "192.0.2.8:5432", "", "no chain"},
		{"web", "198.51.100.1:443", "pay.example", "destination|pay.example:443"},
		{"web", "198.51.100.1:444", "pay.example", "denied"},
		{"web", "198.51.100.1:443", "evil.example", "no chain"},
		{"web", "198.51.100.1:443", "", "no chain"},
		{"api", "192.0.2.7:5432", "", "no chain"},
		{"api", "198.51.100.1:443", "pay.example", "no chain"},
	} {
		if got := reach(m, c.from, c.to, c.sni); got != c.want {
			t.Errorf("%s to %s %q: %s, want %s", c.from, c.to, c.sni, got, c.want)
		}
	}
	// From here on api may, and only api's sidecar hears of it.
	next, ch := b.Apply(discovery.Delta{Entries: meshtest.MustRead(`
entries: [{kind: service-intentions, name: db, sources: [{name: web, action: allow}, {name: api, action: allow}]}]`).Entries})
	_, workloads, all := Affected(m, next, ch)
	if all || !slices.Equal(workloads, []string{"api-sidecar-proxy", "n1/api-sidecar-proxy"}) {
		t.Errorf("an intention of a destination touches %v, all %v", workloads, all)
	}
	if got := reach(next, "api", "192.0.2.7:5432", ""); got != "original-destination" {
		t.Errorf("api then reaches %s", got)
	}
	last, ch := b.Apply(discovery.Delta{Entries: meshtest.MustRead(`
entries: [{kind: service-defaults, name: db, destination: {addresses: [192.0.2.8], port: 5432}}]`).Entries})
	_, workloads, all = Affected(next, last, ch)
	if all || len(workloads) != 4 || slices.Contains(workloads, "plain-sidecar-proxy") {
		t.Errorf("a destination's address touches %v, all %v", workloads, all)
	}
	if got := reach(last, "api", "192.0.2.7:5432", ""); got != "no chain" {
		t.Errorf("the address that it had is reached as %s", got)
	}
}

// TestAffectedTransparent: a change touches the transparent workloads whom it
// concerns, and no others.
func TestAffectedTransparent(t *testing.T) {
	b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	// Where in its file a registration stands is part of it.
	read := func(text string) discovery.Delta {
		d := meshtest.MustRead(text)
		for _, s := range d.Services {
			for _, i := range slices.Concat(s.Instances, s.Proxies) {
				i.Origin = discovery.Origin{}
			}
		}
		return d
	}
	m, _ := b.Apply(read(`
default: deny
services:
- {name: web, port: 80, connect: {sidecar_service: {port: 20000, proxy: {mode: transparent}}}}
- {name: api, port: 81, connect: {sidecar_service: {port: 20001, proxy: {mode: transparent}}}}
- {name: db, port: 82, connect: {sidecar_service: {port: 20002}}}
entries:
- {kind: service-intentions, name: api, sources: [{name: web, action: allow}]}
- {kind: service-intentions, name: db, sources: [{name: api, action: allow}]}
`))
	service := func(text string) discovery.Delta {
		return discovery.Delta{Services: read("services: [" + text + "]").Services}
	}
	entry := func(text string) discovery.Delta {
		return discovery.Delta{Entries: meshtest.MustRead("entries: [" + text + "]").Entries}
	}
	for _, c := range []struct {
		what  string
		delta discovery.Delta
		want  []string
	}{
		{"an instance's health", service("{name: db, port: 82, health: critical, connect: {sidecar_service: {port: 20002}}}"), nil},
		{"an instance more", service("{name: api, port: 81, connect: {sidecar_service: {port: 20001, proxy: {mode: transparent}}}}, {name: api, id: api-2, node: n2, port: 81, connect: {sidecar_service: {port: 20001, proxy: {mode: transparent}}}}"),
			[]string{"api-2-sidecar-proxy", "n2/api-2-sidecar-proxy"}},
		{"one fewer", service("{name: api, port: 81, connect: {sidecar_service: {port: 20001, proxy: {mode: transparent}}}}"), []string{"api-2-sidecar-proxy", "n2/api-2-sidecar-proxy"}},
		{"a service that nobody may call", service("{name: new, port: 83, connect: {sidecar_service: {port: 20003}}}"), []string{"n1/new-sidecar-proxy", "new-sidecar-proxy"}},
		{"whom web may call from now on", entry("{kind: service-intentions, name: new, sources: [{name: web, action: allow}]}"),
			[]string{"n1/new-sidecar-proxy", "n1/web-sidecar-proxy", "new-sidecar-proxy", "web-sidecar-proxy"}},
		{"the same of somebody else", entry("{kind: service-intentions, name: new, sources: [{name: web, action: allow}, {name: db, action: allow}]}"),
			[]string{"n1/new-sidecar-proxy", "new-sidecar-proxy"}},
		{"its protocol", entry("{kind: service-defaults, name: new, protocol: http}"),
			[]string{"n1/new-sidecar-proxy", "n1/web-sidecar-proxy", "new-sidecar-proxy", "web-sidecar-proxy"}},
		{"its virtual address", service("{name: new, port: 83, connect: {sidecar_service: {port: 20003, tagged_addresses: {consul-virtual: {address: 240.0.0.1}}}}}"),
			[]string{"n1/new-sidecar-proxy", "n1/web-sidecar-proxy", "new-sidecar-proxy", "web-sidecar-proxy"}},
		{"what the mesh lets out", entry("{kind: mesh, transparent_proxy: {mesh_destinations_only: true}}"),
			[]string{"api-sidecar-proxy", "n1/api-sidecar-proxy", "n1/web-sidecar-proxy", "web-sidecar-proxy"}},
	} {
		next, ch := b.Apply(c.delta)
		_, got, all := Affected(m, next, ch)
		if all || !slices.Equal(got, c.want) {
			t.Errorf("%s touches %v (all %v), want %v", c.what, got, all, c.want)
		}
		m = next
	}
}
