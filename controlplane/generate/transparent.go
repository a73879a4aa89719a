package generate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/controlplane/vip"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Names of what captured traffic goes through.
const (
	// InboundCapture takes what the network sends to the application's own port.
	InboundCapture = "inbound_listener:0.0.0.0:15006"
	// OriginalDestination is the cluster of what leaves the mesh: where the
	// application wanted to go, as it is.
	OriginalDestination = "original-destination"
	// NotCallable is the chain, and the rule that denies there, of virtual
	// addresses that are nobody's whom the workload may call.
	NotCallable = "virtual-address-not-callable"
	// directPrefix goes before the name of a service that is reached at its
	// instances' own addresses.
	directPrefix = "passthrough~"
)

const inboundCapturePort = 15006

// OutboundCapture names the listener of a workload's captured connections.
func OutboundCapture(t discovery.TransparentProxy) string {
	return "outbound_listener:127.0.0.1:" + strconv.Itoa(t.OutboundListenerPort)
}

// plaintextHTTP is what an inspector of plaintext says of HTTP.
func plaintextHTTP() []string { return []string{"http/1.0", "http/1.1", "h2c"} }

// outboundCapture takes every connection that the application opens, and tells
// by its original destination what it is for:
//
//	a virtual address of a service that it may call    that service
//	an instance's own address, where it is dialled directly    that instance, as the service
//	any other virtual address    nothing: denied
//	a destination outside, with MeshDestinationsOnly    there, where intentions allow it
//	everything else    where it was going, unless the mesh has MeshDestinationsOnly
//
// Nothing in it is the workload's own, so that workloads which may call the same
// have the same bytes.
func outboundCapture(m *mesh.Snapshot, w *mesh.Workload, t discovery.TransparentProxy) *resource.Listener {
	key := captureKey{port: t.OutboundListenerPort, partition: w.Service.Partition}
	callable := m.Callable(w.Service)
	if len(callable) == 0 || !alike(m, w) {
		return makeCapture(m, w, t)
	}
	key.callable, key.n = &callable[0], len(callable)
	return m.Memo(key, func() any { return makeCapture(m, w, t) }).(*resource.Listener)
}

// captureKey is all that the capture listener of a workload depends on, beside
// the mesh, where it has no options of its own. Sources that may call the same
// share the list of it.
type captureKey struct {
	callable  *discovery.ServiceName
	n, port   int
	partition string
}

// alike says whether what a workload names as its upstreams makes no difference
// to what it reaches at virtual addresses.
func alike(m *mesh.Snapshot, w *mesh.Workload) bool {
	if len(outside(m, w)) > 0 {
		return false
	}
	if d, _ := m.ServiceDefaults(w.Service); d != nil && (d.UpstreamDefaults != nil || len(d.UpstreamOverrides) > 0) {
		return false
	}
	same := true
	explicit(m, w, func(u upstream) bool {
		same = !u.captured || u.options == options{} && m.Calls(w.Service, u.Service)
		return same
	})
	return same
}

func makeCapture(m *mesh.Snapshot, w *mesh.Workload, t discovery.TransparentProxy) *resource.Listener {
	l := &resource.Listener{
		Name: OutboundCapture(t), Direction: resource.Outbound, UseOriginalDst: true,
		Address: resource.Address{Host: "127.0.0.1", Port: port(t.OutboundListenerPort)},
	}
	var direct []upstream
	reached := map[discovery.ServiceName]bool{}
	taken := map[netip.Addr]bool{}
	var to []upstream
	upstreams(m, w, func(u upstream) bool {
		if v, ok := m.Virtual(u.Service); ok && !reached[u.Service] {
			reached[u.Service], taken[v.Addr] = true, true
			to = append(to, u)
		}
		return true
	})
	slices.SortFunc(to, func(a, b upstream) int { return a.Service.Compare(b.Service) })
	for _, u := range to {
		l.Chains = append(l.Chains, captureChains(m, u, taken)...)
		if dialledDirectly(m, u.Service) {
			direct = append(direct, u)
		}
	}
	l.Chains = append(l.Chains, directChains(m, direct, taken)...)
	l.Chains = append(l.Chains, outsideChains(m, w, taken)...)
	l.Chains = append(l.Chains, notCallableChains()...)
	if !m.MeshDestinationsOnly(w.Service.Partition) {
		l.Default = &resource.FilterChain{
			Name: OriginalDestination,
			TCP:  &resource.TCPProxy{StatPrefix: OriginalDestination, Cluster: OriginalDestination},
		}
	}
	return l
}

// notCallableChains end connections to virtual addresses that lead nowhere: a
// request is answered with 403 and its reason, what is no request is reset.
func notCallableChains() []resource.FilterChain {
	match := resource.ChainMatch{DestinationPrefixes: []netip.Prefix{vip.Range(), vip.Range6()}}
	closed := resource.FilterChain{
		Name: NotCallable, Match: match,
		Network: []resource.NetworkFilter{{Name: networkRBAC, RBAC: &resource.RBAC{StatPrefix: "virtual_addresses", Rules: notCallable()}}},
		TCP:     &resource.TCPProxy{StatPrefix: OriginalDestination, Cluster: OriginalDestination},
	}
	answered := resource.FilterChain{Name: NotCallable + detectedSuffix, Match: match, HTTP: &resource.HTTPManager{
		StatPrefix: "virtual_addresses",
		Filters: []resource.HTTPFilter{
			{Name: httpRBAC, RBAC: &resource.RBAC{StatPrefix: "virtual_addresses", Rules: notCallable()}},
			{Name: httpRouter, Router: &resource.Router{}},
		},
		Route: &resource.RouteConfig{Name: NotCallable, VirtualHosts: []resource.VirtualHost{{
			Name: NotCallable, Domains: []string{"*"},
			Routes: []resource.Route{{Match: resource.RouteMatch{PathKind: resource.PathPrefix, Path: "/"}, Direct: &resource.DirectResponse{Status: 403}}},
		}}},
	}}
	answered.Match.ApplicationProtocols = plaintextHTTP()
	return []resource.FilterChain{closed, answered}
}

// LeadsNowhere says that a chain is one of those that end connections to virtual
// addresses which are nobody's whom the workload may call.
func LeadsNowhere(chain string) bool {
	return chain == NotCallable || chain == NotCallable+detectedSuffix
}

// notCallable denies everybody, and has a name for it.
func notCallable() *resource.RBACRules {
	return &resource.RBACRules{Action: resource.RBACDeny, Policies: []resource.RBACPolicy{{
		Name: NotCallable, Permissions: []resource.Permission{{Any: true}}, Principals: []resource.Principal{{Any: true}},
	}}}
}

// captureChains are what leads from the virtual addresses of a service to it:
// one chain, or two where nobody declares what it speaks. taken are addresses
// that are given to a service already.
func captureChains(m *mesh.Snapshot, u upstream, taken map[netip.Addr]bool) []resource.FilterChain {
	v, _ := m.Virtual(u.Service)
	match := resource.ChainMatch{DestinationPrefixes: hosts(v.Addr)}
	for _, a := range v.More {
		if !taken[a] {
			taken[a] = true
			match.DestinationPrefixes = append(match.DestinationPrefixes, hosts(a)...)
		}
	}
	p := m.Protocol(u.Service)
	chain := upstreamChain(m, u.clusterName(), u, p.HTTP())
	chain.Match = match
	if p.Declared() {
		return []resource.FilterChain{chain}
	}
	u = u.asDetected()
	http := upstreamChain(m, u.clusterName(), u, true)
	http.Match = match
	http.Match.ApplicationProtocols = plaintextHTTP()
	return []resource.FilterChain{chain, http}
}

// hosts matches an address; a virtual one in both of its forms.
func hosts(a netip.Addr) []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	if vip.Range().Contains(a) {
		out = append(out, netip.PrefixFrom(vip.Twin(a), 128))
	}
	return out
}

// dialledDirectly says whether some instance of a service wants to be reached at
// its own address too.
func dialledDirectly(m *mesh.Snapshot, name discovery.ServiceName) bool {
	return slices.ContainsFunc(m.WorkloadsOf(name), func(w *mesh.Workload) bool {
		t, transparent := m.Transparent(w)
		return transparent && t.DialedDirectly
	})
}

// directChains lead to instances at their own addresses, with the identity that
// is expected there. An address that two services share says nothing of which
// one is meant, and has none.
func directChains(m *mesh.Snapshot, to []upstream, taken map[netip.Addr]bool) []resource.FilterChain {
	of := make([][]netip.Addr, len(to))
	shared := map[netip.Addr]int{}
	for i, u := range to {
		of[i] = directAddrs(m, u.Service)
		for _, a := range of[i] {
			shared[a]++
		}
	}
	var out []resource.FilterChain
	for i, u := range to {
		var match []netip.Prefix
		for _, a := range of[i] {
			if shared[a] == 1 && !taken[a] {
				taken[a] = true
				match = append(match, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		if len(match) == 0 {
			continue
		}
		name := directPrefix + ClusterName(m, u.Service)
		out = append(out, resource.FilterChain{
			Name: name, Match: resource.ChainMatch{DestinationPrefixes: match},
			TCP: &resource.TCPProxy{StatPrefix: "upstream." + u.Service.Name, Cluster: name},
		})
	}
	return out
}

// directAddrs are the addresses of the instances of a service that are dialled
// directly, sorted.
func directAddrs(m *mesh.Snapshot, name discovery.ServiceName) []netip.Addr {
	var out []netip.Addr
	for _, w := range m.WorkloadsOf(name) {
		if t, transparent := m.Transparent(w); !transparent || !t.DialedDirectly {
			continue
		}
		text := w.Instance.Address
		if i := destination(m, name, w.Instance); i != nil {
			text = i.Address
		}
		if a, err := netip.ParseAddr(text); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// directCluster dials where the application wanted to go, and requires the
// service's identity there.
func directCluster(m *mesh.Snapshot, name discovery.ServiceName) *resource.Cluster {
	p := m.Protocol(name)
	tls := upstreamCluster(m, name, options{}, false).TLS
	tls.ALPN = nil
	return &resource.Cluster{
		Name: directPrefix + ClusterName(m, name), Discovery: resource.DiscoveryOriginalDst,
		TLS: tls, Metadata: metadata(name, p, entryName(p.Entry)),
	}
}

func originalDestination() *resource.Cluster {
	return &resource.Cluster{Name: OriginalDestination, Discovery: resource.DiscoveryOriginalDst}
}

// inboundCapture takes connections to the application's own port: those of the
// mesh as the public listener takes them, and plaintext where the service has
// MutualTLSMode "permissive" and the mesh entry allows it. It is for the service's
// port only: what goes to others is refused.
func inboundCapture(m *mesh.Snapshot, w *mesh.Workload) (*resource.Listener, bool) {
	l, ok := publicListener(m, w)
	if !ok {
		return nil, false
	}
	l.Name, l.UseOriginalDst = InboundCapture, true
	l.Address = resource.Address{Host: "0.0.0.0", Port: inboundCapturePort}
	at := port(servicePort(m, w))
	permissive, allowed := m.MutualTLS(w.Service)
	for i := range l.Chains {
		c := &l.Chains[i]
		c.Name = "inbound" + strings.TrimPrefix(c.Name, PublicListener)
		c.Match.DestinationPort = at
		if permissive && allowed {
			// The application may speak TLS itself: what is the mesh's says so.
			c.Match.ServerNames = []string{strings.ToLower(ClusterName(m, w.Service))}
		}
	}
	if permissive && allowed {
		l.Chains = append(l.Chains, permissiveChains(m, w, at)...)
	}
	return l, true
}

// permissiveChains let callers outside of the mesh in. They are nobody: no
// intention speaks of them, and what they claim in x-forwarded-client-cert is
// taken away, as far as it is seen to be HTTP.
func permissiveChains(m *mesh.Snapshot, w *mesh.Workload, at uint16) []resource.FilterChain {
	app, _ := localApp(m, w)
	opaque := resource.FilterChain{
		Name: "permissive", Match: resource.ChainMatch{DestinationPort: at},
		TCP: &resource.TCPProxy{StatPrefix: "permissive", Cluster: app.name()},
	}
	p := m.Protocol(w.Service)
	if p.Declared() && !p.HTTP() {
		return []resource.FilterChain{opaque}
	}
	requests := resource.FilterChain{
		Name: "permissive" + detectedSuffix, Match: resource.ChainMatch{DestinationPort: at, TransportProtocol: "raw_buffer"},
	}
	if p.Declared() {
		requests.HTTP = inboundManager(m, w, app)
		return []resource.FilterChain{opaque, requests}
	}
	// The transport decides before the application protocol does: what is neither
	// TLS nor HTTP needs a chain of its own beside that for HTTP.
	plain := opaque
	plain.Name, plain.Match.TransportProtocol = "permissive|plaintext", "raw_buffer"
	requests.Match.ApplicationProtocols = plaintextHTTP()
	requests.HTTP = inboundManager(m, w, app.detected())
	return []resource.FilterChain{opaque, plain, requests}
}
