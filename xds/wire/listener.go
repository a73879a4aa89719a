package wire

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Names under which Envoy knows the filters.
const (
	filterHCM           = "envoy.filters.network.http_connection_manager"
	filterTCP           = "envoy.filters.network.tcp_proxy"
	filterInspector     = "envoy.filters.listener.tls_inspector"
	filterHTTPInspector = "envoy.filters.listener.http_inspector"
	filterOriginalDst   = "envoy.filters.listener.original_dst"
)

var directions = [...]corev3.TrafficDirection{
	resource.DirectionUnspecified: corev3.TrafficDirection_UNSPECIFIED,
	resource.Inbound:              corev3.TrafficDirection_INBOUND, resource.Outbound: corev3.TrafficDirection_OUTBOUND,
}

func (e *encoder) listener(l *resource.Listener) *listenerv3.Listener {
	out := &listenerv3.Listener{
		Name: l.Name, Address: e.address(l.Address), TrafficDirection: directions[l.Direction], Metadata: e.metadata(l.Metadata),
		FilterChains: each(l.Chains, e.chain),
	}
	if l.Default != nil {
		out.DefaultFilterChain = e.chain(l.Default)
	}
	if l.API != nil {
		out.ApiListener = &listenerv3.ApiListener{ApiListener: e.pack(e.manager(l.API))}
	}
	if l.DNS != nil {
		e.dnsListener(l, out)
		return out
	}
	// The order is Envoy's: first where it went, then what it is.
	if l.UseOriginalDst {
		out.ListenerFilters = append(out.ListenerFilters, e.listenerFilter(filterOriginalDst, &originalv3.OriginalDst{}))
	}
	if slices.ContainsFunc(l.Chains, asksTLS) {
		out.ListenerFilters = append(out.ListenerFilters, e.listenerFilter(filterInspector, &inspectorv3.TlsInspector{}))
	}
	if slices.ContainsFunc(l.Chains, asksHTTP) {
		out.ListenerFilters = append(out.ListenerFilters, e.listenerFilter(filterHTTPInspector, &httpinspectorv3.HttpInspector{}))
	}
	return out
}

// asksTLS says whether a chain asks for what a ClientHello holds, or for whether
// there is one.
func asksTLS(c resource.FilterChain) bool {
	return len(c.Match.ServerNames) > 0 || c.Match.TransportProtocol != "" || len(c.Match.ApplicationProtocols) > 0 && !asksHTTP(c)
}

// asksHTTP says whether a chain asks for what plaintext turns out to be.
func asksHTTP(c resource.FilterChain) bool {
	return c.TLS == nil && slices.ContainsFunc(c.Match.ApplicationProtocols, func(p string) bool {
		return p == "http/1.0" || p == "http/1.1" || p == "h2c"
	})
}

func (e *encoder) listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: e.pack(m)}}
}

func (d *decoder) listener(m *listenerv3.Listener) *resource.Listener {
	out := &resource.Listener{Name: m.GetName(), Metadata: d.metadata("metadata", m.GetMetadata()), UseOriginalDst: m.GetUseOriginalDst().GetValue()}
	switch m.GetTrafficDirection() {
	case corev3.TrafficDirection_INBOUND:
		out.Direction = resource.Inbound
	case corev3.TrafficDirection_OUTBOUND:
		out.Direction = resource.Outbound
	}
	if isUDP(m.GetAddress()) {
		d.dnsListener(m, out)
		return out
	}
	out.Address = d.address("address", m.GetAddress())
	if len(m.GetAdditionalAddresses()) > 0 {
		d.warn("additional_addresses", "only a listener of UDP has more than one address; the others are not listened on")
	}
	for i, f := range m.GetListenerFilters() {
		at := index("listener_filters", i)
		a := f.GetTypedConfig()
		switch {
		case a.MessageIs((*originalv3.OriginalDst)(nil)):
			out.UseOriginalDst = true
		case a.MessageIs((*inspectorv3.TlsInspector)(nil)), a.MessageIs((*httpinspectorv3.HttpInspector)(nil)):
			// parrel looks at the first bytes wherever a chain asks for them.
		default:
			d.failf(at, "the listener filter %q (%s) is not known", f.GetName(), a.GetTypeUrl())
		}
	}
	for i, c := range m.GetFilterChains() {
		out.Chains = append(out.Chains, d.chain(index("filter_chains", i), fmt.Sprintf("chain-%d", i), c))
	}
	if c := m.GetDefaultFilterChain(); c != nil {
		def := d.chain("default_filter_chain", "default", c)
		out.Default = &def
	}
	if a := m.GetApiListener().GetApiListener(); a != nil {
		h := &hcmv3.HttpConnectionManager{}
		if d.unpack("api_listener.api_listener", a, h) {
			out.API = d.manager("api_listener.api_listener", h)
		}
		out.Address = resource.Address{} // nobody listens there
	}
	return out
}

func (e *encoder) chain(c *resource.FilterChain) *listenerv3.FilterChain {
	out := &listenerv3.FilterChain{
		Name: c.Name, FilterChainMatch: e.chainMatch(&c.Match), TransportSocket: e.downstreamTLS(c.TLS),
		TransportSocketConnectTimeout: duration(c.HandshakeTimeout),
	}
	put := func(name string, m proto.Message) {
		out.Filters = append(out.Filters, &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: e.pack(m)}})
	}
	for i := range c.Network {
		put(c.Network[i].Name, e.networkRBAC(c.Network[i].RBAC))
	}
	switch {
	case c.TCP != nil:
		put(filterTCP, e.tcp(c.TCP))
	case c.HTTP != nil:
		put(filterHCM, e.manager(c.HTTP))
	}
	return out
}

// chain decodes a filter chain; name is for those that have none.
func (d *decoder) chain(at, name string, m *listenerv3.FilterChain) resource.FilterChain {
	out := resource.FilterChain{
		Name: m.GetName(), TLS: d.downstreamTLS(at+".transport_socket", m.GetTransportSocket()),
		HandshakeTimeout: d.someDuration(at+".transport_socket_connect_timeout", m.GetTransportSocketConnectTimeout()),
		Match:            d.chainMatch(at+".filter_chain_match", m.GetFilterChainMatch()),
	}
	if out.Name == "" {
		out.Name = name
	}
	for i, f := range m.GetFilters() {
		field := index(at+".filters", i)
		if out.TCP != nil || out.HTTP != nil {
			d.failf(field, "the filter %q stands behind the terminal one", f.GetName())
			break
		}
		d.networkFilter(field, f, &out)
	}
	return out
}

func (d *decoder) networkFilter(field string, f *listenerv3.Filter, out *resource.FilterChain) {
	a := f.GetTypedConfig()
	at := field + ".typed_config"
	switch {
	case a.MessageIs((*netrbacv3.RBAC)(nil)):
		m := &netrbacv3.RBAC{}
		if d.unpack(at, a, m) {
			out.Network = append(out.Network, resource.NetworkFilter{Name: f.GetName(), RBAC: d.networkRBAC(at, m)})
		}
	case a.MessageIs((*tcpv3.TcpProxy)(nil)):
		m := &tcpv3.TcpProxy{}
		if d.unpack(at, a, m) {
			out.TCP = d.tcp(at, m)
		}
	case a.MessageIs((*hcmv3.HttpConnectionManager)(nil)):
		m := &hcmv3.HttpConnectionManager{}
		if d.unpack(at, a, m) {
			out.HTTP = d.manager(at, m)
		}
	default:
		d.failf(field, "the network filter %q (%s) is not known", f.GetName(), a.GetTypeUrl())
	}
}

func (e *encoder) chainMatch(m *resource.ChainMatch) *listenerv3.FilterChainMatch {
	out := &listenerv3.FilterChainMatch{
		PrefixRanges: e.cidrs(m.DestinationPrefixes), ServerNames: m.ServerNames, TransportProtocol: m.TransportProtocol,
		ApplicationProtocols: m.ApplicationProtocols, SourcePrefixRanges: e.cidrs(m.SourcePrefixes),
		DestinationPort: u32(uint32(m.DestinationPort)),
	}
	if proto.Size(out) == 0 {
		return nil
	}
	return out
}

func (d *decoder) chainMatch(at string, m *listenerv3.FilterChainMatch) resource.ChainMatch {
	out := resource.ChainMatch{
		DestinationPort:      d.port(at+".destination_port", m.GetDestinationPort().GetValue()),
		DestinationPrefixes:  d.cidrs(at+".prefix_ranges", m.GetPrefixRanges()),
		TransportProtocol:    m.GetTransportProtocol(),
		ApplicationProtocols: m.GetApplicationProtocols(),
		SourcePrefixes:       d.cidrs(at+".source_prefix_ranges", m.GetSourcePrefixRanges()),
	}
	for _, s := range m.GetServerNames() {
		out.ServerNames = append(out.ServerNames, strings.ToLower(s))
	}
	if !d.honours(m) { // unlike a route, a chain cannot be left out: another would take its connections
		d.fail(at, "a part of the match is not honoured; the chain would take too much")
	}
	return out
}

func (e *encoder) tcp(t *resource.TCPProxy) *tcpv3.TcpProxy {
	// Zero is said: Envoy would end idle connections after an hour.
	out := &tcpv3.TcpProxy{StatPrefix: encodePrefix(t.StatPrefix), IdleTimeout: durationp(&t.IdleTimeout), MaxConnectAttempts: u32(t.MaxConnectAttempts),
		AccessLog: each(t.AccessLog, e.accessLog)}
	if len(t.Weighted) == 0 {
		out.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: t.Cluster}
		return out
	}
	w := &tcpv3.TcpProxy_WeightedCluster{}
	for _, c := range t.Weighted {
		w.Clusters = append(w.Clusters, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: c.Name, Weight: c.Weight})
	}
	out.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: w}
	return out
}

func (d *decoder) tcp(at string, m *tcpv3.TcpProxy) *resource.TCPProxy {
	out := &resource.TCPProxy{
		StatPrefix: decodePrefix(m.GetStatPrefix()), Cluster: m.GetCluster(),
		IdleTimeout: d.duration(at+".idle_timeout", m.GetIdleTimeout()), MaxConnectAttempts: m.GetMaxConnectAttempts().GetValue(),
	}
	for i, l := range m.GetAccessLog() {
		d.accessLog(index(at+".access_log", i), l, &out.AccessLog)
	}
	for _, c := range m.GetWeightedClusters().GetClusters() {
		out.Weighted = append(out.Weighted, resource.WeightedCluster{Name: c.GetName(), Weight: c.GetWeight()})
	}
	return out
}
