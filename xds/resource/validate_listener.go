package resource

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

var _ Resource = (*Listener)(nil)

// Validate says whether parrel can execute the listener.
func (l *Listener) Validate() error {
	c := &check{}
	c.name("name", l.Name)
	if l.Direction > Outbound {
		c.failf("traffic_direction", "unknown value %d", l.Direction)
	}
	c.metadata("metadata", l.Metadata)
	if l.API != nil {
		if len(l.Chains) > 0 || l.Default != nil || l.Address != (Address{}) || l.DNS != nil || len(l.Additional) > 0 {
			c.failf("api_listener", "an API listener has neither address nor filter chains")
		}
		c.manager("api_listener.api_listener", l.API)
		return c.err()
	}
	if l.DNS != nil {
		c.dns(l)
		return c.err()
	}
	c.address("address", l.Address, false)
	if len(l.Additional) > 0 {
		c.failf("additional_addresses", "only a DNS listener has more than one; write a listener for each")
	}
	if len(l.Chains) == 0 && l.Default == nil {
		c.failf("filter_chains", "there is none and no default_filter_chain; every connection would be closed")
	}
	names, matches := map[string]bool{}, map[string]int{}
	for i := range l.Chains {
		at := fmt.Sprintf("filter_chains[%d]", i)
		c.chain(at, &l.Chains[i], names)
		key := l.Chains[i].Match.key()
		if j, same := matches[key]; same {
			c.failf(at+".filter_chain_match", "is the same as that of filter_chains[%d]; this chain would never be taken", j)
		} else {
			matches[key] = i
		}
	}
	if l.Default != nil {
		if !reflect.DeepEqual(l.Default.Match, ChainMatch{}) {
			c.failf("default_filter_chain.filter_chain_match", "the default chain has no match")
		}
		c.chain("default_filter_chain", l.Default, names)
	}
	return c.err()
}

// key is the match as text: two matches are the same where their keys are. There
// may be thousands of chains.
func (m *ChainMatch) key() string {
	b := binary.BigEndian.AppendUint16(nil, m.DestinationPort)
	list := func(n int, at func(i int) string) {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		for i := range n {
			s := at(i)
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
		}
	}
	prefixes := func(ps []netip.Prefix) {
		list(len(ps), func(i int) string { p, _ := ps[i].MarshalBinary(); return string(p) })
	}
	strs := func(ss ...string) { list(len(ss), func(i int) string { return ss[i] }) }
	prefixes(m.DestinationPrefixes)
	strs(m.ServerNames...)
	strs(m.TransportProtocol)
	strs(m.ApplicationProtocols...)
	prefixes(m.SourcePrefixes)
	return string(b)
}

func (c *check) chain(at string, f *FilterChain, names map[string]bool) {
	c.name(at+".name", f.Name)
	if f.Name != "" && names[f.Name] {
		c.failf(at+".name", "%q is the name of two chains", f.Name)
	}
	names[f.Name] = true
	m := at + ".filter_chain_match"
	c.prefixes(m+".prefix_ranges", f.Match.DestinationPrefixes)
	c.prefixes(m+".source_prefix_ranges", f.Match.SourcePrefixes)
	for i, s := range f.Match.ServerNames {
		field := fmt.Sprintf("%s.server_names[%d]", m, i)
		c.name(field, s)
		if s != strings.ToLower(s) {
			c.failf(field, "%q is not in lower case", s)
		}
		if rest := strings.TrimPrefix(s, "*."); strings.Contains(rest, "*") || rest == "" {
			c.failf(field, "%q: a wildcard is only allowed as *.suffix", s)
		}
	}
	for i, p := range f.Match.ApplicationProtocols {
		c.name(fmt.Sprintf("%s.application_protocols[%d]", m, i), p)
	}
	switch f.Match.TransportProtocol {
	case "", "tls", "raw_buffer":
	default:
		c.failf(m+".transport_protocol", "%q is neither tls nor raw_buffer", f.Match.TransportProtocol)
	}
	c.duration(at+".transport_socket_connect_timeout", f.HandshakeTimeout)
	if f.TLS != nil {
		t := at + ".transport_socket.typed_config"
		c.tls(t, &f.TLS.TLSParams)
		if !set(f.TLS.Certificate) {
			c.failf(t+".common_tls_context", "a server needs a certificate")
		}
		if f.TLS.AcceptUntrusted {
			c.failf(t+".common_tls_context.validation_context.trust_chain_verification", "ACCEPT_UNTRUSTED is for servers that are dialled; leave the validation context out where client certificates do not matter")
		}
		if f.TLS.RequireClientCert && !set(f.TLS.Trust) {
			c.failf(t+".require_client_certificate", "client certificates are required and there is nothing to check them by")
		}
	}
	for i := range f.Network {
		n := &f.Network[i]
		field := fmt.Sprintf("%s.filters[%d]", at, i)
		c.name(field+".name", n.Name)
		c.one(field+".typed_config", map[string]bool{"rbac": n.RBAC != nil})
		if n.RBAC != nil {
			c.rbac(field+".typed_config", n.RBAC)
		}
	}
	last := fmt.Sprintf("%s.filters[%d]", at, len(f.Network))
	c.one(last, map[string]bool{"tcp_proxy": f.TCP != nil, "http_connection_manager": f.HTTP != nil})
	if f.TCP != nil {
		c.tcp(last+".typed_config", f.TCP)
	}
	if f.HTTP != nil {
		c.manager(last+".typed_config", f.HTTP)
	}
}

func (c *check) tcp(at string, t *TCPProxy) {
	c.text(at+".stat_prefix", t.StatPrefix)
	c.one(at, map[string]bool{"cluster": t.Cluster != "", "weighted_clusters": len(t.Weighted) > 0})
	c.text(at+".cluster", t.Cluster)
	if len(t.Weighted) > 0 {
		c.weights(at+".weighted_clusters", t.Weighted)
		for i := range t.Weighted {
			if t.Weighted[i].Weight == 0 {
				c.failf(fmt.Sprintf("%s.weighted_clusters.clusters[%d].weight", at, i), "must be at least 1; leave the cluster out")
			}
			if !isZero(t.Weighted[i].RequestHeaders) || !isZero(t.Weighted[i].ResponseHeaders) {
				c.failf(fmt.Sprintf("%s.weighted_clusters.clusters[%d]", at, i), "opaque TCP has no headers to change")
			}
		}
	}
	c.duration(at+".idle_timeout", t.IdleTimeout)
	for i := range t.AccessLog {
		c.accessLog(fmt.Sprintf("%s.access_log[%d]", at, i), &t.AccessLog[i])
	}
}

func isZero(m HeaderMutations) bool { return len(m.Remove)+len(m.Set)+len(m.Add) == 0 }

func (c *check) manager(at string, m *HTTPManager) {
	c.text(at+".stat_prefix", m.StatPrefix)
	c.text(at+".server_name", m.ServerName)
	if m.Codec > CodecHTTP2 {
		c.failf(at+".codec_type", "unknown value %d", m.Codec)
	}
	if m.XFCC > AppendForwardXFCC {
		c.failf(at+".forward_client_cert_details", "unknown value %d", m.XFCC)
	}
	c.one(at, map[string]bool{"rds": m.RouteName != "", "route_config": m.Route != nil})
	c.text(at+".rds.route_config_name", m.RouteName)
	if m.Route != nil {
		c.routes(at+".route_config.", m.Route)
	}
	names := map[string]bool{}
	for i := range m.Filters {
		f := &m.Filters[i]
		field := fmt.Sprintf("%s.http_filters[%d]", at, i)
		c.name(field+".name", f.Name)
		if names[f.Name] {
			c.failf(field+".name", "%q is the name of two filters", f.Name)
		}
		names[f.Name] = true
		c.one(field+".typed_config", map[string]bool{"rbac": f.RBAC != nil, "router": f.Router != nil})
		if f.RBAC != nil {
			c.rbac(field+".typed_config", f.RBAC)
		}
		if last := i == len(m.Filters)-1; (f.Router != nil) != last {
			c.failf(field, "the router is the last filter, and only the last")
		}
	}
	if len(m.Filters) == 0 {
		c.failf(at+".http_filters", "there is none; the router is needed at the end")
	}
	for i, u := range m.Upgrades {
		field := fmt.Sprintf("%s.upgrade_configs[%d].upgrade_type", at, i)
		c.name(field, u)
		if u != strings.ToLower(u) || slices.Contains(m.Upgrades[:i], u) {
			c.failf(field, "%q is not in lower case, or stands there twice", u)
		}
	}
	c.duration(at+".request_timeout", m.RequestTimeout)
	c.duration(at+".request_headers_timeout", m.RequestHeadersTimeout)
	c.duration(at+".stream_idle_timeout", m.StreamIdleTimeout)
	c.duration(at+".common_http_protocol_options.idle_timeout", m.IdleTimeout)
	c.duration(at+".common_http_protocol_options.max_connection_duration", m.MaxConnection)
	if m.MaxStreams > 1<<31-1 {
		c.failf(at+".http2_protocol_options.max_concurrent_streams", "%d is more than HTTP/2 has streams", m.MaxStreams)
	}
	if m.MaxHeaders > 10000 {
		c.failf(at+".common_http_protocol_options.max_headers_count", "%d is more than 10000", m.MaxHeaders)
	}
	if m.Underscores > DropUnderscores {
		c.failf(at+".common_http_protocol_options.headers_with_underscores_action", "unknown value %d", m.Underscores)
	}
	if m.EscapedSlashes > RejectEscapedSlashes {
		c.failf(at+".path_with_escaped_slashes_action", "unknown value %d", m.EscapedSlashes)
	}
	if m.MaxRequestHeadersKB > 8192 {
		c.failf(at+".max_request_headers_kb", "%d is more than 8192", m.MaxRequestHeadersKB)
	}
	for i := range m.AccessLog {
		c.accessLog(fmt.Sprintf("%s.access_log[%d]", at, i), &m.AccessLog[i])
	}
}

func (c *check) accessLog(at string, a *AccessLog) {
	c.name(at+".typed_config.path", a.Path)
	c.text(at+".typed_config.log_format", a.Text)
	if len(a.JSON) > 0 && a.Text != "" {
		c.failf(at+".typed_config.log_format", "is both JSON and text; choose one")
	}
	for k, v := range a.JSON {
		c.text(at+".typed_config.log_format.json_format", k)
		c.text(at+".typed_config.log_format.json_format", v)
	}
	if a.MinStatus > 599 {
		c.failf(at+".filter.status_code_filter.comparison.value.default_value", "%d is no HTTP status", a.MinStatus)
	}
	if a.Filter != nil {
		c.logFilter(at+".filter", a.Filter, 0)
	}
}

func (c *check) logFilter(at string, f *LogFilter, depth int) {
	if depth > 16 {
		c.failf(at, "is nested deeper than 16")
		return
	}
	c.one(at, map[string]bool{"status_code_filter": f.Status != nil, "duration_filter": f.Duration != nil,
		"response_flag_filter": f.AnyFlag || len(f.Flags) > 0, "and_filter": len(f.And) > 0, "or_filter": len(f.Or) > 0})
	for _, x := range []*Comparison{f.Status, f.Duration} {
		if x != nil && x.Op > CompareNE {
			c.failf(at+".comparison.op", "unknown value %d", x.Op)
		}
	}
	if len(f.And) == 1 || len(f.Or) == 1 {
		c.failf(at, "and_filter and or_filter have two filters or more; write the one by itself")
	}
	for _, flag := range f.Flags {
		c.name(at+".response_flag_filter.flags", flag)
	}
	for i := range f.And {
		c.logFilter(fmt.Sprintf("%s.and_filter.filters[%d]", at, i), &f.And[i], depth+1)
	}
	for i := range f.Or {
		c.logFilter(fmt.Sprintf("%s.or_filter.filters[%d]", at, i), &f.Or[i], depth+1)
	}
}
