package generate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// cache is what a server holds: shared resources once a dialect, names and
// private resources for each workload.
type cache struct {
	shared  map[string]resource.Resource
	private map[string]resource.Resource
	names   map[string][]string
}

// grpcAsks is what proxyless clients of the test ask for.
func grpcAsks(m *mesh.Snapshot) map[resource.Type][]string {
	asks := map[resource.Type][]string{resource.TypeListener: {grpcServerPrefix + "127.0.0.1:5000"}}
	for _, s := range world() {
		asks[resource.TypeListener] = append(asks[resource.TypeListener], s)
		for _, t := range []resource.Type{resource.TypeRoute, resource.TypeCluster, resource.TypeEndpoints} {
			asks[t] = append(asks[t], ClusterName(m, m.Local(s)))
		}
	}
	return asks
}

func world() []string { return []string{"a", "b", "c", "d"} }

// workload generates all that one workload sees.
func (c *cache) workload(m *mesh.Snapshot, w *mesh.Workload, fresh func(shared bool, k Key) bool) {
	for _, v := range []View{{Workload: w}, {Workload: w, GRPC: true}} {
		asks := grpcAsks(m)
		for _, t := range resource.Types() {
			names := asks[t]
			if !v.GRPC {
				names = Names(m, v, t)
				c.names[w.NodeID+t.Short()] = names
			}
			for _, n := range names {
				sk, pk := fmt.Sprint(v.GRPC, t.Short(), n), fmt.Sprint(v.GRPC, w.NodeID, t.Short(), n)
				_, private, _ := Resource(m, v, t, n)
				if private {
					if r, _, ok := Resource(m, v, t, n); ok {
						if err := r.Validate(); err != nil {
							panic(fmt.Sprintf("%s %s is not valid: %v", w.NodeID, n, err))
						}
						c.private[pk] = r
					}
					continue
				}
				if _, have := c.shared[sk]; have && !fresh(true, Key{t, n}) {
					continue
				}
				r, _, ok := Resource(m, v, t, n)
				if !ok {
					delete(c.shared, sk)
					continue
				}
				c.shared[sk] = r
			}
		}
	}
}

func newCache() *cache {
	return &cache{map[string]resource.Resource{}, map[string]resource.Resource{}, map[string][]string{}}
}

// TestIncremental applies random deltas. After each, a cache that regenerates
// only what Affected names holds the same as one that was made anew.
func TestIncremental(t *testing.T) {
	captured := 0
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
		kept := newCache()
		for step := range 40 {
			old := b.Current()
			m, ch := b.Apply(randomDelta(r))
			shared, workloads, all := Affected(old, m, ch)
			fresh, touched := map[Key]bool{}, map[string]bool{}
			for _, k := range shared {
				fresh[k] = true
			}
			for _, w := range workloads {
				touched[w] = true
			}
			if all {
				kept = newCache()
			}
			want := newCache()
			for _, w := range m.Workloads() {
				if tp, transparent := m.Transparent(w); transparent && len(m.Callable(w.Service)) > 0 {
					captured++
					if !resource.Equal(outboundCapture(m, w, tp), makeCapture(m, w, tp)) {
						t.Fatalf("seed %d step %d: %s got another workload's listener", seed, step, w.Key())
					}
				}
				want.workload(m, w, func(bool, Key) bool { return true })
				// Shared resources that were named are made again for all who hold
				// them; a workload's own only where it was named.
				if all || touched[w.NodeID] {
					deleteOf(kept.private, w.NodeID)
					kept.workload(m, w, func(_ bool, k Key) bool { return all || fresh[k] })
					continue
				}
				kept.sharedOnly(m, w, fresh)
			}
			kept.compare(t, want, fmt.Sprintf("seed %d step %d, change %+v", seed, step, ch))
			if t.Failed() {
				return
			}
		}
	}
	if captured < 300 {
		t.Errorf("only %d transparent workloads had somebody to call: the deltas are too plain", captured)
	}
}

func deleteOf(m map[string]resource.Resource, node string) {
	for _, grpc := range []bool{true, false} {
		for _, t := range resource.Types() {
			prefix := fmt.Sprint(grpc, node, t.Short())
			for k := range m {
				if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
					delete(m, k)
				}
			}
		}
	}
}

// sharedOnly makes again what a change named of what a workload holds.
func (c *cache) sharedOnly(m *mesh.Snapshot, w *mesh.Workload, fresh map[Key]bool) {
	for _, v := range []View{{Workload: w}, {Workload: w, GRPC: true}} {
		for k := range fresh {
			name := fmt.Sprint(v.GRPC, k.Type.Short(), k.Name)
			r, private, ok := Resource(m, v, k.Type, k.Name)
			if private {
				continue
			}
			if ok {
				c.shared[name] = r
			} else if v.GRPC {
				delete(c.shared, name)
			}
		}
	}
}

// compare requires kept to hold everything of want, equal.
func (c *cache) compare(t *testing.T, want *cache, when string) {
	for k, r := range want.shared {
		if got, ok := c.shared[k]; !ok || !resource.Equal(got, r) {
			t.Errorf("%s: shared %s is stale: %+v, want %+v", when, k, got, r)
		}
	}
	for k, r := range want.private {
		if got, ok := c.private[k]; !ok || !resource.Equal(got, r) {
			t.Errorf("%s: private %s is stale", when, k)
		}
	}
	// What nobody holds any more is forgotten, as a server forgets it.
	for k := range c.shared {
		if _, ok := want.shared[k]; !ok {
			if strings.HasPrefix(k, "true") && len(want.names) > 0 { // proxyless clients hold all names all the time
				t.Errorf("%s: shared %s is kept and does not exist", when, k)
			}
			delete(c.shared, k)
		}
	}
	for k, n := range want.names {
		if fmt.Sprint(c.names[k]) != fmt.Sprint(n) {
			t.Errorf("%s: names of %s are %v, want %v", when, k, c.names[k], n)
		}
	}
}

// randomDelta changes one or two things of a small world.
func randomDelta(r *rand.Rand) discovery.Delta {
	d := discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{}, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
	for range 1 + r.IntN(2) {
		switch r.IntN(13) {
		case 0, 1, 2, 3, 4, 5:
			s := randomService(r)
			d.Services[s.Name] = s
			if r.IntN(5) == 0 {
				d.Services[s.Name] = nil
			}
		case 6, 7:
			entry(&d, mesh.KindServiceDefaults, pick(r, world()...), r.IntN(4) == 0, &discovery.ServiceDefaults{
				Protocol:         pick(r, "tcp", "http", "grpc", ""),
				UpstreamDefaults: &discovery.UpstreamConfig{MaxConnections: r.IntN(3)},
				Mode:             pick(r, "", "", discovery.ModeDirect, discovery.ModeTransparent),
				TransparentProxy: discovery.TransparentProxy{OutboundListenerPort: pick(r, 0, 16001), DialedDirectly: r.IntN(2) == 0},
				MutualTLSMode:    pick(r, "", discovery.MutualTLSPermissive),
				Destination: pick(r, nil, nil, &discovery.Destination{Addresses: []string{"outside.example", "10.0.0.1"}, Port: 443},
					&discovery.Destination{Addresses: []string{"outside.example", "10.0.0.7", "240.0.0.9"}, Port: pick(r, 443, 80)}),
			})
		case 8, 9:
			entry(&d, mesh.KindServiceIntentions, pick(r, append(world(), "*")...), r.IntN(4) == 0, &discovery.ServiceIntentions{
				Sources: []discovery.SourceIntention{{Name: pick(r, append(world(), "*")...), Action: pick(r, discovery.Allow, discovery.Deny)}},
			})
		case 10:
			entry(&d, mesh.KindProxyDefaults, "global", r.IntN(2) == 0, &discovery.ProxyDefaults{
				Config: map[string]any{"protocol": pick(r, "tcp", "http", "")}, Mode: pick(r, "", discovery.ModeTransparent),
				MutualTLSMode: pick(r, "", discovery.MutualTLSPermissive),
			})
		case 12:
			entry(&d, mesh.KindMesh, "mesh", r.IntN(3) == 0, &discovery.Mesh{RequestNormalization: &discovery.RequestNormalization{
				MergeSlashes: r.IntN(2) == 0, PathWithEscapedSlashesAction: pick(r, "", "KEEP_UNCHANGED"),
			}, MeshDestinationsOnly: r.IntN(2) == 0, AllowEnablingPermissiveMutualTLS: r.IntN(2) == 0})
		case 11:
			d.Roots = &discovery.TrustRoots{TrustDomain: meshtest.TrustDomain, RootsPEM: []string{fmt.Sprint(r.IntN(3))}}
			d.DefaultIntention = pick(r, discovery.Allow, discovery.Deny)
		}
	}
	return d
}

func entry(d *discovery.Delta, kind, name string, gone bool, body any) {
	key := discovery.EntryKey{Kind: kind, Partition: "default", Namespace: "default", Name: name}
	d.Entries[key] = &discovery.ConfigEntry{Key: key, Body: body}
	if gone {
		d.Entries[key] = nil
	}
}

func randomService(r *rand.Rand) *discovery.Service {
	name := discovery.ServiceName{Partition: "default", Namespace: "default", Datacenter: meshtest.Datacenter, Name: pick(r, world()...)}
	s := &discovery.Service{Name: name}
	for i := range r.IntN(3) {
		id := fmt.Sprint(name.Name, i)
		s.Instances = append(s.Instances, &discovery.Instance{Service: name, ID: id, Node: "n1", Address: "10.0.0.1", Port: 8000 + r.IntN(2)})
		p := &discovery.Instance{
			Service: name, ID: id + "-sidecar-proxy", Node: "n1", Kind: discovery.KindConnectProxy,
			Address: pick(r, "10.0.0.1", "10.0.0.2"), Port: 21000 + i, Health: discovery.Health(r.IntN(4)),
			Proxy: &discovery.Proxy{
				DestinationService: name.Name, DestinationServiceID: id, LocalServicePort: pick(r, 0, 8000),
				Mode:             pick(r, "", discovery.ModeTransparent, discovery.ModeTransparent),
				TransparentProxy: discovery.TransparentProxy{DialedDirectly: r.IntN(3) == 0},
			},
		}
		switch r.IntN(6) {
		case 0:
			p.Tagged = map[string]string{discovery.TagConsulVirtual: pick(r, "240.0.0.1", "240.0.0.2")}
		case 1:
			p.Tagged = map[string]string{discovery.TagVirtual: pick(r, "10.96.0.1", "10.96.0.2")}
		}
		for j := range r.IntN(3) {
			p.Proxy.Upstreams = append(p.Proxy.Upstreams, discovery.Upstream{DestinationName: pick(r, world()...), LocalBindPort: pick(r, 0, 9000+j)})
		}
		s.Proxies = append(s.Proxies, p)
	}
	return s
}
