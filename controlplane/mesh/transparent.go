package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/parrel-mesh/parrel/discovery"
)

// DefaultOutboundPort is where a transparent proxy takes captured connections
// when nobody says otherwise: Consul's number.
const DefaultOutboundPort = 15001

// Virtual is the virtual addresses of one service.
type Virtual struct {
	// Addr is what the service's names resolve to.
	Addr netip.Addr
	// More are others that lead to it: what a platform gave it, and the rest
	// where the catalogue names several. Sorted.
	More []netip.Addr
}

// Virtual returns the virtual addresses of a service: of each that has a proxy or
// a connect-native instance.
func (s *Snapshot) Virtual(name discovery.ServiceName) (Virtual, bool) {
	return s.virtual.get(name)
}

// Transparent says whether a workload's traffic is captured, and how: field by
// field the registration, else the service-defaults of its service, else
// proxy-defaults, as Consul merges them.
func (s *Snapshot) Transparent(w *Workload) (discovery.TransparentProxy, bool) {
	p := w.Instance.Proxy
	if p == nil || w.Instance.Kind != discovery.KindConnectProxy {
		return discovery.TransparentProxy{}, false
	}
	d, _ := s.ServiceDefaults(w.Service)
	if d == nil {
		d = &discovery.ServiceDefaults{}
	}
	g, _ := s.ProxyDefaults(w.Service.Partition)
	if g == nil {
		g = &discovery.ProxyDefaults{}
	}
	t := discovery.TransparentProxy{
		OutboundListenerPort: cmp.Or(p.TransparentProxy.OutboundListenerPort,
			d.TransparentProxy.OutboundListenerPort, g.TransparentProxy.OutboundListenerPort, DefaultOutboundPort),
		DialedDirectly: p.TransparentProxy.DialedDirectly || d.TransparentProxy.DialedDirectly || g.TransparentProxy.DialedDirectly,
	}
	return t, cmp.Or(p.Mode, d.Mode, g.Mode) == discovery.ModeTransparent
}

// MutualTLS says whether plaintext is taken where a service's instances are
// captured: permissive is what the service-defaults, else the proxy-defaults,
// ask for; allowed says whether the mesh entry lets them.
func (s *Snapshot) MutualTLS(name discovery.ServiceName) (permissive, allowed bool) {
	var word string
	if d, _ := s.ServiceDefaults(name); d != nil {
		word = d.MutualTLSMode
	}
	if g, _ := s.ProxyDefaults(name.Partition); g != nil {
		word = cmp.Or(word, g.MutualTLSMode)
	}
	m := s.meshEntry(name.Partition)
	return word == discovery.MutualTLSPermissive, m != nil && m.AllowEnablingPermissiveMutualTLS
}

// MeshDestinationsOnly says whether the partition's transparent proxies let
// nothing out of the mesh.
func (s *Snapshot) MeshDestinationsOnly(partition string) bool {
	m := s.meshEntry(partition)
	return m != nil && m.MeshDestinationsOnly
}

func (s *Snapshot) meshEntry(partition string) *discovery.Mesh {
	e, ok := s.entries.get(discovery.EntryKey{
		Kind: KindMesh, Partition: partition, Namespace: discovery.DefaultNamespace, Name: "mesh",
	})
	if !ok {
		return nil
	}
	d, _ := e.Body.(*discovery.Mesh)
	return d
}

// Outside is a destination outside of the mesh.
type Outside struct {
	Service discovery.ServiceName // the name that intentions know it by
	*discovery.Destination
}

// Destinations returns the destinations outside of the mesh that intentions let
// src reach, sorted by name.
func (s *Snapshot) Destinations(src discovery.ServiceName) []Outside {
	var out []Outside
	for key, d := range s.outside.all() {
		name := discovery.ServiceName{Partition: key.Partition, Namespace: key.Namespace, Datacenter: s.Datacenter, Name: key.Name}
		if key.Partition == src.Partition && s.MayCall(src, name) {
			out = append(out, Outside{name, d})
		}
	}
	slices.SortFunc(out, func(a, b Outside) int { return a.Service.Compare(b.Service) })
	return out
}

// MayCall says what the intentions of a destination, and else the default, say
// of a source. A source of which permissions decide may call: its requests are
// judged one by one where they arrive.
func (s *Snapshot) MayCall(src, dst discovery.ServiceName) bool {
	best, allowed := 0, s.Default == discovery.Allow
	for _, key := range intentionKeys(dst) {
		e, ok := s.entries.get(key)
		if !ok {
			continue
		}
		body, _ := e.Body.(*discovery.ServiceIntentions)
		if body == nil {
			continue
		}
		for i := range body.Sources {
			b := &body.Sources[i]
			if b.Peer != "" || !speaksOf(b, e.Key, src) {
				continue
			}
			if p := precedence(cmp.Or(b.Namespace, discovery.DefaultNamespace), b.Name, e.Key); p > best {
				best, allowed = p, b.Action == discovery.Allow || len(b.Permissions) > 0
			}
		}
	}
	return allowed
}

func speaksOf(b *discovery.SourceIntention, key discovery.EntryKey, src discovery.ServiceName) bool {
	ns := cmp.Or(b.Namespace, discovery.DefaultNamespace)
	return (b.Name == src.Name || b.Name == wildcard || ns == wildcard) && (ns == src.Namespace || ns == wildcard) &&
		cmp.Or(b.Partition, key.Partition, discovery.DefaultPartition) == src.Partition
}

// Callable returns the services that a transparent proxy of src reaches without
// naming them as upstreams: those of its datacenter and partition that are part
// of the mesh and that intentions let it call. Sorted; sources that may call the
// same share one slice, and so do snapshots between which nothing of that
// changed. Read-only.
func (s *Snapshot) Callable(src discovery.ServiceName) []discovery.ServiceName {
	c := s.callable
	if c == nil || src.Peer != "" || src.Datacenter != s.Datacenter {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if got, ok := c.of[src]; ok {
		return got
	}
	if c.of == nil {
		c.of, c.same = map[discovery.ServiceName][]discovery.ServiceName{}, map[string][]discovery.ServiceName{}
		for name, svc := range s.services.all() {
			if len(svc.Proxies) > 0 && name.Peer == "" && name.Datacenter == s.Datacenter {
				c.connect = append(c.connect, name)
			}
		}
		slices.SortFunc(c.connect, discovery.ServiceName.Compare)
	}
	bits := make([]byte, (len(c.connect)+7)/8)
	n := 0
	for i, dst := range c.connect {
		if dst.Partition == src.Partition && s.MayCall(src, dst) {
			bits[i/8] |= 1 << (i % 8)
			n++
		}
	}
	got, ok := c.same[string(bits)]
	if !ok {
		got = make([]discovery.ServiceName, 0, n)
		for i, dst := range c.connect {
			if bits[i/8]&(1<<(i%8)) != 0 {
				got = append(got, dst)
			}
		}
		c.same[string(bits)] = got
	}
	c.of[src] = got
	return got
}

// Calls says whether dst is in Callable(src).
func (s *Snapshot) Calls(src, dst discovery.ServiceName) bool {
	svc, ok := s.services.get(dst)
	return ok && len(svc.Proxies) > 0 && dst.Peer == "" && dst.Datacenter == s.Datacenter && src.Peer == "" &&
		src.Datacenter == s.Datacenter && src.Partition == dst.Partition && s.MayCall(src, dst)
}

// callables remembers what Callable found. Snapshots between which no service
// came or went and no intention changed share it.
type callables struct {
	mu      sync.Mutex
	connect []discovery.ServiceName                           // guarded by mu: all services of the mesh
	of      map[discovery.ServiceName][]discovery.ServiceName // guarded by mu
	same    map[string][]discovery.ServiceName                // guarded by mu: by which of connect are in it
}
