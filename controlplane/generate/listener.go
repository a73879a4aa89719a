package generate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// PublicListener is the name of the listener that peers dial.
const PublicListener = "public_listener"

// Names of filters in Envoy's words.
const (
	networkRBAC = "envoy.filters.network.rbac"
	httpRBAC    = "envoy.filters.http.rbac"
	httpRouter  = "envoy.filters.http.router"
)

// HTTPALPN is what both sides of a call between sidecars offer.
func httpALPN() []string { return []string{"h2", "http/1.1"} }

// OutboundListener names the listener of an upstream: NAME:ADDRESS:PORT, or
// NAME:PATH for a Unix socket.
func OutboundListener(u mesh.Upstream) string {
	if u.LocalBindSocketPath != "" {
		return u.Service.Name + ":" + u.LocalBindSocketPath
	}
	return u.Service.Name + ":" + bindAddress(u) + ":" + strconv.Itoa(u.LocalBindPort)
}

func bindAddress(u mesh.Upstream) string { return cmp.Or(u.LocalBindAddress, "127.0.0.1") }

func listenerNames(m *mesh.Snapshot, w *mesh.Workload) []string {
	var names []string
	t, transparent := m.Transparent(w)
	if _, ok := localApp(m, w); ok {
		names = append(names, PublicListener)
		if transparent {
			names = append(names, InboundCapture)
		}
	}
	seen := map[string]bool{}
	explicit(m, w, func(u upstream) bool {
		if n := OutboundListener(u.Upstream); u.Bound() && !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
		return true
	})
	if transparent {
		names = append(names, OutboundCapture(t), dnsListenerName(w.Service))
	}
	return names
}

func listener(m *mesh.Snapshot, w *mesh.Workload, name string) (*resource.Listener, bool) {
	if name == PublicListener {
		return publicListener(m, w)
	}
	if t, transparent := m.Transparent(w); transparent {
		switch name {
		case InboundCapture:
			return inboundCapture(m, w)
		case OutboundCapture(t):
			return outboundCapture(m, w, t), true
		}
	}
	var l *resource.Listener
	explicit(m, w, func(u upstream) bool {
		if u.Bound() && OutboundListener(u.Upstream) == name {
			l = outboundListener(m, w, u)
		}
		return l == nil
	})
	return l, l != nil
}

// outboundListener serves the application's calls to one upstream.
func outboundListener(m *mesh.Snapshot, w *mesh.Workload, u upstream) *resource.Listener {
	p := m.Protocol(u.Service)
	l := &resource.Listener{
		Name:      OutboundListener(u.Upstream),
		Direction: resource.Outbound,
		Metadata:  metadata(u.Service, p, registration(w)),
	}
	if u.LocalBindSocketPath != "" {
		l.Address.Path = u.LocalBindSocketPath
	} else {
		l.Address = resource.Address{Host: listenHost(bindAddress(u.Upstream), "127.0.0.1"), Port: uint16(u.LocalBindPort)}
	}
	l.Chains = []resource.FilterChain{upstreamChain(m, l.Name, u, p.HTTP())}
	return l
}

// upstreamChain leads to an upstream, by request or by connection.
func upstreamChain(m *mesh.Snapshot, name string, u upstream, http bool) resource.FilterChain {
	chain := resource.FilterChain{Name: name}
	stat := "upstream." + u.Service.Name
	if http {
		chain.HTTP = &resource.HTTPManager{
			StatPrefix: stat,
			RouteName:  u.clusterName(),
			Filters:    []resource.HTTPFilter{{Name: httpRouter, Router: &resource.Router{}}},
			Upgrades:   []string{"websocket"},
			RawPaths:   requestsOf(m, u.Service).relaxed(),
		}
	} else {
		chain.TCP = &resource.TCPProxy{StatPrefix: stat, Cluster: u.clusterName()}
	}
	return chain
}

// publicListener takes the mesh's calls to the workload's application. L4
// intentions stand at the connection, before any protocol: that is where an
// open connection is authorised again when they change.
func publicListener(m *mesh.Snapshot, w *mesh.Workload) (*resource.Listener, bool) {
	app, ok := localApp(m, w)
	if !ok {
		return nil, false
	}
	p := m.Protocol(w.Service)
	l := &resource.Listener{
		Name: PublicListener, Direction: resource.Inbound,
		Address:  publicAddress(w, m),
		Metadata: metadata(w.Service, p, registration(w)),
	}
	l.Metadata[resource.MetaWorkload] = instanceID(w.Instance)
	l.Chains = meshChains(m, w, app, PublicListener)
	return l, true
}

// meshChains take connections of the mesh. Where nobody declares what the
// application speaks there are two: the caller's sidecar, which has seen what its
// application said, offers ALPN for HTTP and none for anything else.
func meshChains(m *mesh.Snapshot, w *mesh.Workload, app localCluster, name string) []resource.FilterChain {
	p := m.Protocol(w.Service)
	if p.Declared() {
		return []resource.FilterChain{meshChain(m, w, app, name, p.HTTP())}
	}
	http := meshChain(m, w, app.detected(), name+detectedSuffix, true)
	http.Match.ApplicationProtocols = httpALPN()
	return []resource.FilterChain{meshChain(m, w, app, name, false), http}
}

func meshChain(m *mesh.Snapshot, w *mesh.Workload, app localCluster, name string, http bool) resource.FilterChain {
	chain := resource.FilterChain{
		Name: name,
		TLS: &resource.DownstreamTLS{
			RequireClientCert: true,
			TLSParams: resource.TLSParams{
				Certificate: resource.CertSource{SDS: resource.SecretIdentity},
				Trust:       resource.CertSource{SDS: resource.SecretTrust},
			},
		},
	}
	// Intentions are enforced where the caller can be told: an HTTP request is
	// answered with 403 and its reason, a TCP connection can only be closed.
	// Either way connections that are open are authorised again at each change.
	rules := intentions(m, w.Service)
	if http {
		chain.TLS.ALPN = httpALPN()
		chain.HTTP = inboundManager(m, w, app)
		chain.HTTP.XFCC = resource.SanitizeSetXFCC
		chain.HTTP.Filters = slices.Insert(chain.HTTP.Filters, 0, resource.HTTPFilter{Name: httpRBAC, RBAC: rules})
	} else {
		chain.Network = []resource.NetworkFilter{{Name: networkRBAC, RBAC: rules}}
		chain.TCP = &resource.TCPProxy{StatPrefix: PublicListener, Cluster: app.name()}
	}
	return chain
}

// inboundManager gives requests to the application, whoever sent them; what they
// claim of their sender is taken away.
func inboundManager(m *mesh.Snapshot, w *mesh.Workload, app localCluster) *resource.HTTPManager {
	h := &resource.HTTPManager{
		StatPrefix: PublicListener,
		Route:      inboundRoute(m, w, app),
		Filters:    []resource.HTTPFilter{{Name: httpRouter, Router: &resource.Router{}}},
		Upgrades:   []string{"websocket"},
	}
	requestsOf(m, w.Service).apply(h)
	return h
}

// publicAddress is where the registration says that the proxy is, unless
// bind_address and bind_port of proxy.config say where it listens.
func publicAddress(w *mesh.Workload, m *mesh.Snapshot) resource.Address {
	host, _ := proxyConfig(m, w, "bind_address").(string)
	return resource.Address{
		Host: listenHost(cmp.Or(host, w.Instance.Address), "0.0.0.0"),
		Port: cmp.Or(port(integer(proxyConfig(m, w, "bind_port"))), port(w.Instance.Port)),
	}
}

// listenHost is an address to listen on. A name says where others find us and
// not which of our own addresses to use: the fallback is taken, which for
// upstreams is loopback, since whoever reaches that listener speaks as the
// workload.
func listenHost(host, fallback string) string {
	if host == "localhost" {
		return "127.0.0.1"
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fallback
	}
	return host
}

// inboundRoute sends everything to the application. The time-out of a call is
// the caller's business; here there is none unless the user set one.
func inboundRoute(m *mesh.Snapshot, w *mesh.Workload, app localCluster) *resource.RouteConfig {
	timeout := requestTimeout(m, w)
	return &resource.RouteConfig{
		Name: PublicListener,
		VirtualHosts: []resource.VirtualHost{{
			Name: PublicListener, Domains: []string{"*"},
			Routes: []resource.Route{{
				Name:    "default",
				Match:   resource.RouteMatch{Path: "/"},
				Forward: &resource.Forward{Cluster: app.name(), Timeout: &timeout},
			}},
		}},
	}
}

func requestTimeout(m *mesh.Snapshot, w *mesh.Workload) time.Duration {
	var fromDefaults time.Duration
	if d, _ := m.ServiceDefaults(w.Service); d != nil {
		fromDefaults = d.LocalRequestTimeout
	}
	return cmp.Or(millis(ownConfig(w, "local_request_timeout_ms")), fromDefaults,
		millis(defaultsConfig(m, w, "local_request_timeout_ms")))
}

// registration names the registration that caused a resource.
func registration(w *mesh.Workload) string {
	s := "registration " + w.NodeID
	if o := w.Instance.Origin.Place; o != "" {
		s += " (" + o + ")"
	}
	return s
}

func entryName(e *discovery.ConfigEntry) string {
	if e == nil {
		return ""
	}
	return mesh.EntryName(e.Key)
}
