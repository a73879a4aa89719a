package wire

import (
	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// httpOptions is the key of typed_extension_protocol_options.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

var discoveries = [...]clusterv3.Cluster_DiscoveryType{
	resource.DiscoveryEDS: clusterv3.Cluster_EDS, resource.DiscoveryStatic: clusterv3.Cluster_STATIC,
	resource.DiscoveryStrictDNS: clusterv3.Cluster_STRICT_DNS, resource.DiscoveryLogicalDNS: clusterv3.Cluster_LOGICAL_DNS,
	resource.DiscoveryOriginalDst: clusterv3.Cluster_ORIGINAL_DST,
}

func (e *encoder) cluster(c *resource.Cluster) *clusterv3.Cluster {
	out := &clusterv3.Cluster{
		Name:                 c.Name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discoveries[c.Discovery]},
		ConnectTimeout:       duration(c.ConnectTimeout),
		TransportSocket:      e.upstreamTLS(c.TLS),
		Metadata:             e.metadata(c.Metadata),
		// Always said: Envoy's default is 50, parrel's is 0.
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: c.PanicThreshold}},
	}
	if c.Discovery == resource.DiscoveryEDS {
		out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: c.EDSName}
	}
	if c.Endpoints != nil {
		out.LoadAssignment = e.endpoints(c.Endpoints)
	}
	e.lb(c, out)
	e.upstreamProtocol(c, out)
	if b := c.Breakers; b != nil {
		out.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: u32p(b.MaxConnections), MaxPendingRequests: u32p(b.MaxPendingRequests),
			MaxRequests: u32p(b.MaxRequests), MaxRetries: u32p(b.MaxRetries),
		}}}
	}
	if k := c.Keepalive; k != nil {
		out.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: u32(k.Probes), KeepaliveTime: u32(k.Time), KeepaliveInterval: u32(k.Interval)}}
	}
	return out
}

// upstreamProtocol says what the endpoints speak. Without a protocol the idle
// time-out has no place but the deprecated one.
func (e *encoder) upstreamProtocol(c *resource.Cluster, out *clusterv3.Cluster) {
	var common *corev3.HttpProtocolOptions
	if c.IdleTimeout != 0 {
		common = &corev3.HttpProtocolOptions{IdleTimeout: duration(c.IdleTimeout)}
	}
	opts := &upstreamv3.HttpProtocolOptions{CommonHttpProtocolOptions: common}
	explicit := func(x *upstreamv3.HttpProtocolOptions_ExplicitHttpConfig) {
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: x}
	}
	h1, h2 := &corev3.Http1ProtocolOptions{}, &corev3.Http2ProtocolOptions{}
	switch c.Protocol {
	case resource.ProtocolTCP:
		out.CommonHttpProtocolOptions = common //nolint:staticcheck // see above
		return
	case resource.ProtocolHTTP1:
		explicit(&upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: h1}})
	case resource.ProtocolHTTP2:
		explicit(&upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2}})
	case resource.ProtocolAuto:
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_AutoConfig{AutoConfig: &upstreamv3.HttpProtocolOptions_AutoHttpConfig{HttpProtocolOptions: h1, Http2ProtocolOptions: h2}}
	case resource.ProtocolDownstream:
		opts.UpstreamProtocolOptions = &upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &upstreamv3.HttpProtocolOptions_UseDownstreamHttpConfig{HttpProtocolOptions: h1, Http2ProtocolOptions: h2}}
	}
	out.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: e.pack(opts)}
}

func (d *decoder) cluster(m *clusterv3.Cluster) *resource.Cluster {
	out := &resource.Cluster{
		Name:           m.GetName(),
		ConnectTimeout: d.duration("connect_timeout", m.GetConnectTimeout()),
		TLS:            d.upstreamTLS("transport_socket", m.GetTransportSocket()),
		Metadata:       d.metadata("metadata", m.GetMetadata()),
		PanicThreshold: m.GetCommonLbConfig().GetHealthyPanicThreshold().GetValue(),
		LB:             d.lb(m),
	}
	if len(m.GetTransportSocketMatches()) > 0 {
		d.fail("transport_socket_matches", "is not done; endpoints that need TLS would be dialled without it")
	}
	d.discovery(m, out)
	d.upstreamProtocol(m, out)
	d.breakers(m.GetCircuitBreakers(), out)
	if k := m.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		out.Keepalive = &resource.TCPKeepalive{Probes: k.GetKeepaliveProbes().GetValue(), Time: k.GetKeepaliveTime().GetValue(), Interval: k.GetKeepaliveInterval().GetValue()}
	}
	return out
}

func (d *decoder) discovery(m *clusterv3.Cluster, out *resource.Cluster) {
	if t := m.GetClusterType(); t != nil {
		d.failf("cluster_type", "%q is not known", t.GetName())
		return
	}
	known := false
	for k, t := range discoveries {
		if t == m.GetType() {
			out.Discovery, known = resource.DiscoveryKind(k), true
		}
	}
	if !known {
		d.failf("type", "unknown value %d", m.GetType())
	}
	if out.Discovery == resource.DiscoveryEDS {
		out.EDSName = m.GetEdsClusterConfig().GetServiceName()
		d.fromADS("eds_cluster_config.eds_config", m.GetEdsClusterConfig().GetEdsConfig())
		if m.GetLoadAssignment() != nil {
			d.warn("load_assignment", "the endpoints of an EDS cluster come by EDS")
		}
		return
	}
	if a := m.GetLoadAssignment(); a != nil {
		out.Endpoints = d.endpoints("load_assignment.", a)
	}
}

func (d *decoder) upstreamProtocol(m *clusterv3.Cluster, out *resource.Cluster) {
	//nolint:staticcheck // deprecated, still sent by many
	if c := m.GetCommonHttpProtocolOptions(); c != nil {
		out.IdleTimeout = d.someDuration("common_http_protocol_options.idle_timeout", c.GetIdleTimeout())
	}
	//nolint:staticcheck // deprecated, still sent by many
	if o := m.GetHttp2ProtocolOptions(); o != nil {
		out.Protocol = resource.ProtocolHTTP2
		d.downstreamOnly("http2_protocol_options", nil, o)
	}
	d.downstreamOnly("common_http_protocol_options", m.GetCommonHttpProtocolOptions(), nil) //nolint:staticcheck // see above
	for k, a := range m.GetTypedExtensionProtocolOptions() {
		at := "typed_extension_protocol_options[" + k + "]"
		opts := &upstreamv3.HttpProtocolOptions{}
		if k != httpOptions || !a.MessageIs(opts) {
			d.warn(at, "is not known")
			continue
		}
		if !d.unpack(at, a, opts) {
			continue
		}
		if t := opts.GetCommonHttpProtocolOptions().GetIdleTimeout(); t != nil {
			out.IdleTimeout = d.someDuration(at+".common_http_protocol_options.idle_timeout", t)
		}
		d.downstreamOnly(at+".common_http_protocol_options", opts.GetCommonHttpProtocolOptions(), nil)
		switch x := opts.GetUpstreamProtocolOptions().(type) {
		case *upstreamv3.HttpProtocolOptions_AutoConfig:
			out.Protocol = resource.ProtocolAuto
			d.downstreamOnly(at+".auto_config.http2_protocol_options", nil, x.AutoConfig.GetHttp2ProtocolOptions())
		case *upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
			out.Protocol = resource.ProtocolDownstream
			d.downstreamOnly(at+".use_downstream_protocol_config.http2_protocol_options", nil, x.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions())
		case *upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_:
			switch x.ExplicitHttpConfig.GetProtocolConfig().(type) {
			case *upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions:
				out.Protocol = resource.ProtocolHTTP1
			case *upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions:
				out.Protocol = resource.ProtocolHTTP2
				d.downstreamOnly(at+".explicit_http_config.http2_protocol_options", nil, x.ExplicitHttpConfig.GetHttp2ProtocolOptions())
			default:
				d.fail(at+".explicit_http_config", "is neither HTTP/1 nor HTTP/2")
			}
		default:
			d.fail(at+".upstream_protocol_options", "must be set")
		}
	}
}

// downstreamOnly reports limits that are kept of clients and not of endpoints.
func (d *decoder) downstreamOnly(at string, c *corev3.HttpProtocolOptions, h2 *corev3.Http2ProtocolOptions) {
	for field, set := range map[string]bool{
		"max_headers_count": c.GetMaxHeadersCount() != nil, "max_connection_duration": c.GetMaxConnectionDuration() != nil,
		"headers_with_underscores_action": c.GetHeadersWithUnderscoresAction() != corev3.HttpProtocolOptions_ALLOW,
		"max_concurrent_streams":          h2.GetMaxConcurrentStreams() != nil,
	} {
		if set {
			d.warn(at+"."+field, "is kept of clients only; endpoints have parrel's own limits")
		}
	}
}

func (d *decoder) breakers(m *clusterv3.CircuitBreakers, out *resource.Cluster) {
	for i, t := range m.GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT || out.Breakers != nil {
			d.warn(index("circuit_breakers.thresholds", i), "only the first thresholds of priority DEFAULT count")
			continue
		}
		out.Breakers = &resource.Breakers{
			MaxConnections: decodeU32p(t.GetMaxConnections()), MaxPendingRequests: decodeU32p(t.GetMaxPendingRequests()),
			MaxRequests: decodeU32p(t.GetMaxRequests()), MaxRetries: decodeU32p(t.GetMaxRetries()),
		}
	}
}
