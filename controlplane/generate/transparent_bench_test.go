package generate

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// plain is a mesh of n services of one transparent instance each, in which all
// may call all.
func plain(n int, protocol string) discovery.Delta {
	d := discovery.Delta{
		Full: true, DefaultIntention: discovery.Allow, Services: map[discovery.ServiceName]*discovery.Service{},
		Entries: map[discovery.EntryKey]*discovery.ConfigEntry{},
		Roots:   &discovery.TrustRoots{TrustDomain: meshtest.TrustDomain, RootsPEM: []string{"ROOT"}},
	}
	body := &discovery.ProxyDefaults{Mode: discovery.ModeTransparent}
	if protocol != "" {
		body.Config = map[string]any{"protocol": protocol}
	}
	entry(&d, mesh.KindProxyDefaults, "global", false, body)
	for i := range n {
		s := one(fmt.Sprintf("service-%04d", i), i)
		d.Services[s.Name] = s
	}
	return d
}

func one(name string, i int) *discovery.Service {
	n := discovery.ServiceName{Partition: "default", Namespace: "default", Datacenter: meshtest.Datacenter, Name: name}
	return &discovery.Service{
		Name:      n,
		Instances: []*discovery.Instance{{Service: n, ID: name, Node: "n1", Address: "10.0.0.1", Port: 8080}},
		Proxies: []*discovery.Instance{{
			Service: n, ID: name + "-sidecar-proxy", Node: "n1", Kind: discovery.KindConnectProxy, Address: "10.0.0.1", Port: 20000 + i,
			Proxy: &discovery.Proxy{DestinationService: name, DestinationServiceID: name, LocalServicePort: 8080},
		}},
	}
}

// carried is what one workload is sent, in bytes, by type.
func carried(tb testing.TB, m *mesh.Snapshot, w *mesh.Workload) map[resource.Type]int {
	out := map[resource.Type]int{}
	v := View{Workload: w}
	for _, t := range resource.Types() {
		for _, n := range Names(m, v, t) {
			r, _, ok := Resource(m, v, t, n)
			if !ok {
				tb.Fatalf("%s %s is in Names and has no resource", t.Short(), n)
			}
			a, err := wire.Encode(r)
			if err != nil {
				tb.Fatal(err)
			}
			out[t] += proto.Size(a)
		}
	}
	return out
}

// TestThousandServices bounds what a transparent workload is sent in a mesh in
// which it may call a thousand services, by declared protocol: docs/consul.md
// has the numbers.
func TestThousandServices(t *testing.T) {
	const n = 1000
	for _, c := range []struct {
		protocol string
		most     int // bytes a service
	}{{"tcp", 1600}, {"http", 2300}, {"", 3300}} {
		m := build(plain(n, c.protocol))
		w, _ := m.Workload("service-0007-sidecar-proxy")
		got, sum := carried(t, m, w), 0
		for _, typ := range resource.Types() {
			sum += got[typ]
			t.Logf("protocol %q: %s %d bytes", c.protocol, typ.Short(), got[typ])
		}
		t.Logf("protocol %q: %d bytes a service", c.protocol, sum/n)
		if sum > c.most*n {
			t.Errorf("protocol %q: %d bytes a service, more than %d", c.protocol, sum/n, c.most)
		}
	}
}

// BenchmarkTransparent: what it costs to make all that one workload is sent, in a
// mesh of a thousand services.
func BenchmarkTransparent(b *testing.B) {
	m := build(plain(1000, ""))
	w, _ := m.Workload("service-0007-sidecar-proxy")
	b.ReportAllocs()
	for b.Loop() {
		carried(b, m, w)
	}
}

// BenchmarkTransparentArrival: what a service more costs the control plane in a
// mesh of a thousand, before anything is made: mesh and Affected.
func BenchmarkTransparentArrival(b *testing.B) {
	bu := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	bu.Apply(plain(1000, ""))
	s := one("new", 2000)
	there := false
	b.ReportAllocs()
	for b.Loop() {
		d := discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{s.Name: s}}
		if there {
			d.Services[s.Name] = nil
		}
		there = !there
		old := bu.Current()
		m, ch := bu.Apply(d)
		if _, workloads, _ := Affected(old, m, ch); len(workloads) < 2000 {
			b.Fatal(len(workloads))
		}
	}
}
