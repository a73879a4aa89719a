package generate

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func trustDomain(s string) (spiffeid.TrustDomain, error) { return spiffeid.TrustDomainFromString(s) }

// upstreamCluster is a service as its callers see it. The peer of every
// connection must be the service itself.
func upstreamCluster(m *mesh.Snapshot, name discovery.ServiceName, o options, grpc bool) *resource.Cluster {
	p := m.Protocol(name)
	base := ClusterName(m, name)
	c := &resource.Cluster{
		Name: base + o.suffix(), Discovery: resource.DiscoveryEDS,
		ConnectTimeout: o.ConnectTimeout,
		// LB is the zero value: least request of two random choices.
		Metadata: metadata(name, p, entryName(p.Entry)),
		Breakers: o.breakers(),
		TLS: &resource.UpstreamTLS{SNI: base, TLSParams: resource.TLSParams{
			Certificate: resource.CertSource{SDS: resource.SecretIdentity},
			Trust:       resource.CertSource{SDS: resource.SecretTrust},
			PeerSANs:    []resource.StringMatch{{Kind: resource.StringExact, Value: SPIFFEID(m, name)}},
		}},
	}
	if c.Name != base {
		c.EDSName = base
	}
	switch {
	case p.HTTP():
		c.Protocol = resource.ProtocolAuto
		c.TLS.ALPN = httpALPN()
	case o.Detected:
		// The application may speak but one version: what the caller chose is
		// what arrives.
		c.Protocol = resource.ProtocolDownstream
		c.TLS.ALPN = httpALPN()
	}
	if grpc {
		// grpc-go takes certificates from the providers of its bootstrap and
		// knows least request only where an experiment is switched on.
		c.LB = resource.LBPolicy{RoundRobin: &resource.RoundRobin{}}
		c.Protocol = resource.ProtocolHTTP2
		c.TLS.Certificate = resource.CertSource{Provider: providerInstance}
		c.TLS.Trust = resource.CertSource{Provider: providerInstance}
		c.TLS.ALPN = nil
	}
	return c
}

func (o options) breakers() *resource.Breakers {
	b := resource.Breakers{
		MaxConnections:     positive(o.MaxConnections),
		MaxPendingRequests: positive(o.MaxPendingRequests),
		MaxRequests:        positive(o.MaxConcurrentRequests),
	}
	if b == (resource.Breakers{}) {
		return nil
	}
	return &b
}

func positive(n int) *uint32 {
	if n <= 0 {
		return nil
	}
	v := uint32(n)
	return &v
}

// upstreamRoute sends every request of an upstream to its cluster. gRPC calls
// carry their own deadline and streams may live long, so that they have no
// time-out here; other requests have the default one.
func upstreamRoute(m *mesh.Snapshot, name discovery.ServiceName, cluster string) *resource.RouteConfig {
	p := m.Protocol(name)
	f := &resource.Forward{Cluster: cluster}
	if p.Name == mesh.ProtocolGRPC {
		f.Timeout = new(time.Duration)
	}
	return &resource.RouteConfig{
		Name: cluster,
		VirtualHosts: []resource.VirtualHost{{
			Name: name.Name, Domains: []string{"*"},
			Routes: []resource.Route{{Name: "default", Match: resource.RouteMatch{Path: "/"}, Forward: f}},
		}},
		Metadata: metadata(name, p, entryName(p.Entry)),
	}
}

// localCluster is the application behind a workload. Everything that it says is
// in its name: workloads whose applications are reached alike share it.
type localCluster struct {
	address        resource.Address
	protocol       string // tcp, http, http2, detected
	connectTimeout time.Duration
	maxConnections int
}

// detectedHTTP is the word of a localCluster that takes HTTP in the version in
// which it arrives.
const detectedHTTP = "detected"

// detected is the application where a connection turned out to be HTTP.
func (l localCluster) detected() localCluster {
	l.protocol = detectedHTTP
	return l
}

// localApps are the clusters of the workload's application: two where nobody
// declares what it speaks.
func localApps(m *mesh.Snapshot, w *mesh.Workload) []localCluster {
	l, ok := localApp(m, w)
	switch {
	case !ok:
		return nil
	case !m.Protocol(w.Service).Declared():
		return []localCluster{l, l.detected()}
	}
	return []localCluster{l}
}

// localApp finds the workload's application; false where the registration says
// neither port nor socket, and for connect-native instances, which have no
// sidecar.
func localApp(m *mesh.Snapshot, w *mesh.Workload) (localCluster, bool) {
	p := w.Instance.Proxy
	if p == nil {
		return localCluster{}, false
	}
	l := localCluster{protocol: m.Protocol(w.Service).Name}
	if l.protocol == mesh.ProtocolGRPC {
		l.protocol = mesh.ProtocolHTTP2
	}
	l.address = resource.Address{Path: p.LocalServiceSocket}
	if p.LocalServiceSocket == "" {
		host := cmp.Or(p.LocalServiceAddress, "127.0.0.1")
		if host == "localhost" {
			host = "127.0.0.1"
		}
		l.address = resource.Address{Host: host, Port: port(cmp.Or(p.LocalServicePort, servicePort(m, w)))}
		if l.address.Port == 0 {
			return l, false
		}
	}
	d, _ := m.ServiceDefaults(w.Service)
	if d == nil {
		d = &discovery.ServiceDefaults{}
	}
	l.connectTimeout = cmp.Or(millis(ownConfig(w, "local_connect_timeout_ms")), d.LocalConnectTimeout,
		millis(defaultsConfig(m, w, "local_connect_timeout_ms")))
	l.maxConnections = cmp.Or(integer(ownConfig(w, "max_inbound_connections")), d.MaxInboundConnections,
		integer(defaultsConfig(m, w, "max_inbound_connections")))
	return l, true
}

// servicePort is the port of the instance that the proxy stands for, where the
// registration leaves it out.
func servicePort(m *mesh.Snapshot, w *mesh.Workload) int {
	if i := destination(m, w.Service, w.Instance); i != nil {
		return i.Port
	}
	return 0
}

// ServicePort is the port on which the service of a workload says that it is; 0
// where it does not.
func ServicePort(m *mesh.Snapshot, w *mesh.Workload) uint16 {
	if w.Instance.Proxy == nil {
		return port(w.Instance.Port)
	}
	return port(servicePort(m, w))
}

// destination is the instance that a proxy stands for; nil where it is not
// registered.
func destination(m *mesh.Snapshot, name discovery.ServiceName, proxy *discovery.Instance) *discovery.Instance {
	svc, ok := m.Service(name)
	if !ok || proxy.Proxy == nil || proxy.Proxy.DestinationServiceID == "" {
		return nil
	}
	for _, i := range svc.Instances {
		if i.ID == proxy.Proxy.DestinationServiceID && i.Node == proxy.Node {
			return i
		}
	}
	return nil
}

func (l localCluster) name() string {
	where := l.address.Path
	if where == "" {
		where = net.JoinHostPort(l.address.Host, strconv.Itoa(int(l.address.Port)))
	}
	return "local_app|" + where + "|" + l.protocol +
		options{ConnectTimeout: l.connectTimeout, MaxConnections: l.maxConnections}.suffix()
}

func (l localCluster) cluster() *resource.Cluster {
	c := &resource.Cluster{
		Name: l.name(), Discovery: resource.DiscoveryStatic,
		ConnectTimeout: l.connectTimeout,
		LB:             resource.LBPolicy{RoundRobin: &resource.RoundRobin{}},
		Breakers:       options{MaxConnections: l.maxConnections}.breakers(),
		Metadata:       resource.Metadata{resource.MetaProtocol: l.protocol},
		Endpoints: &resource.Endpoints{Cluster: l.name(), Localities: []resource.Locality{{
			Endpoints: []resource.Endpoint{{Address: l.address}},
		}}},
	}
	if _, err := netip.ParseAddr(l.address.Host); err != nil && l.address.Path == "" {
		c.Discovery = resource.DiscoveryStrictDNS
	}
	switch l.protocol {
	case mesh.ProtocolHTTP:
		c.Protocol = resource.ProtocolHTTP1
	case mesh.ProtocolHTTP2:
		c.Protocol = resource.ProtocolHTTP2
	case detectedHTTP:
		c.Protocol = resource.ProtocolDownstream
	}
	return c
}
