package wire

import (
	"net/netip"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/data/dns/v3"
	dnsfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

const (
	filterDNS     = "envoy.filters.udp.dns_filter"
	resolverCares = "envoy.network.dns_resolver.cares"
)

// isUDP says whether a listener is one of UDP.
func isUDP(a *corev3.Address) bool {
	return a.GetSocketAddress().GetProtocol() == corev3.SocketAddress_UDP
}

func (e *encoder) udpAddress(a resource.Address) *corev3.Address {
	out := e.address(a)
	if s := out.GetSocketAddress(); s != nil {
		s.Protocol = corev3.SocketAddress_UDP
	}
	return out
}

// udpAddress decodes an address whose protocol says UDP, or nothing.
func (d *decoder) udpAddress(field string, a *corev3.Address) resource.Address {
	s := a.GetSocketAddress()
	if s == nil {
		d.fail(field, "is no socket address")
		return resource.Address{}
	}
	return resource.Address{Host: s.GetAddress(), Port: d.port(field+".socket_address.port_value", s.GetPortValue())}
}

// dnsListener writes the parts of a listener that answers DNS.
func (e *encoder) dnsListener(l *resource.Listener, out *listenerv3.Listener) {
	out.Address = e.udpAddress(l.Address)
	for _, a := range l.Additional {
		out.AdditionalAddresses = append(out.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: e.udpAddress(a)})
	}
	out.ListenerFilters = []*listenerv3.ListenerFilter{e.listenerFilter(filterDNS, e.dnsFilter(l.DNS))}
}

func (e *encoder) dnsFilter(f *resource.DNSFilter) *dnsfilterv3.DnsFilterConfig {
	table := &dnsv3.DnsTable{}
	for i := range f.Domains {
		table.VirtualDomains = append(table.VirtualDomains, e.dnsDomain(&f.Domains[i]))
	}
	for _, s := range f.KnownSuffixes {
		table.KnownSuffixes = append(table.KnownSuffixes, //nolint:staticcheck // Envoy finds zones by itself; this is what says them
			&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "." + s}})
	}
	// Without a client_config Envoy forwards nothing.
	client := &dnsfilterv3.DnsFilterConfig_ClientContextConfig{ResolverTimeout: duration(f.Timeout), MaxPendingLookups: resource.DNSPending}
	if f.MaxPending != 0 {
		client.MaxPendingLookups = f.MaxPending
	}
	if len(f.Resolvers) > 0 {
		cares := &caresv3.CaresDnsResolverConfig{}
		for _, a := range f.Resolvers {
			cares.Resolvers = append(cares.Resolvers, e.udpAddress(a))
		}
		client.TypedDnsResolverConfig = &corev3.TypedExtensionConfig{Name: resolverCares, TypedConfig: e.pack(cares)}
	}
	return &dnsfilterv3.DnsFilterConfig{
		StatPrefix: encodePrefix(f.StatPrefix), ClientConfig: client, CaseInsensitive: true,
		ServerConfig: &dnsfilterv3.DnsFilterConfig_ServerContextConfig{
			ConfigSource: &dnsfilterv3.DnsFilterConfig_ServerContextConfig_InlineDnsTable{InlineDnsTable: table}},
	}
}

func (e *encoder) dnsDomain(x *resource.DNSDomain) *dnsv3.DnsTable_DnsVirtualDomain {
	list := &dnsv3.DnsTable_AddressList{}
	for _, a := range x.Addrs {
		list.Address = append(list.Address, a.String())
	}
	return &dnsv3.DnsTable_DnsVirtualDomain{Name: x.Name, AnswerTtl: duration(x.TTL),
		Endpoint: &dnsv3.DnsTable_DnsEndpoint{EndpointConfig: &dnsv3.DnsTable_DnsEndpoint_AddressList{AddressList: list}}}
}

// dnsListener reads a listener of UDP, of which DNS is the only kind.
func (d *decoder) dnsListener(m *listenerv3.Listener, out *resource.Listener) {
	out.Address = d.udpAddress("address", m.GetAddress())
	for i, a := range m.GetAdditionalAddresses() {
		field := index("additional_addresses", i) + ".address"
		if !isUDP(a.GetAddress()) {
			d.fail(field, "is not UDP as the listener's first address is")
			continue
		}
		out.Additional = append(out.Additional, d.udpAddress(field, a.GetAddress()))
	}
	if len(m.GetFilterChains()) > 0 || m.GetDefaultFilterChain() != nil || m.GetApiListener() != nil {
		d.fail("filter_chains", "a listener of UDP has none here; parrel serves DNS by the listener filter "+filterDNS)
	}
	for i, f := range m.GetListenerFilters() {
		at := index("listener_filters", i)
		a := f.GetTypedConfig()
		switch {
		case !a.MessageIs((*dnsfilterv3.DnsFilterConfig)(nil)):
			d.failf(at, "the filter %q (%s) is not known on a listener of UDP", f.GetName(), a.GetTypeUrl())
		case out.DNS != nil:
			d.fail(at, "is a second DNS filter; one listener has one")
		default:
			out.DNS = d.dnsFilter(at+".typed_config", a)
		}
	}
	if out.DNS == nil && len(d.errs) == 0 {
		d.fail("address.socket_address.protocol", "UDP is only served with the listener filter "+filterDNS)
	}
}

func (d *decoder) dnsFilter(at string, a *anypb.Any) *resource.DNSFilter {
	m := &dnsfilterv3.DnsFilterConfig{}
	if !d.unpack(at, a, m) {
		return nil
	}
	out := &resource.DNSFilter{StatPrefix: decodePrefix(m.GetStatPrefix())}
	if m.GetServerConfig().GetExternalDnsTable() != nil {
		d.fail(at+".server_config.external_dns_table", "a file of names is not read; write them as inline_dns_table")
	}
	table := at + ".server_config.inline_dns_table"
	for i, x := range m.GetServerConfig().GetInlineDnsTable().GetVirtualDomains() {
		field := index(table+".virtual_domains", i)
		list := x.GetEndpoint().GetAddressList()
		if list == nil {
			d.warn(field+".endpoint", "only an address_list is answered; queries for this name are forwarded")
			continue
		}
		domain := resource.DNSDomain{Name: strings.ToLower(strings.TrimSuffix(x.GetName(), ".")), TTL: d.duration(field+".answer_ttl", x.GetAnswerTtl())}
		for j, s := range list.GetAddress() {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				d.failf(index(field+".endpoint.address_list.address", j), "%q is no IP address", s)
				continue
			}
			domain.Addrs = append(domain.Addrs, ip.Unmap())
		}
		out.Domains = append(out.Domains, domain)
	}
	for i, s := range m.GetServerConfig().GetInlineDnsTable().GetKnownSuffixes() { //nolint:staticcheck // see dnsFilter of the encoder
		p, ok := s.GetMatchPattern().(*matcherv3.StringMatcher_Suffix)
		if !ok {
			d.warn(index(table+".known_suffixes", i), "only a suffix names a zone; unknown names that match are forwarded")
			continue
		}
		out.KnownSuffixes = append(out.KnownSuffixes, strings.ToLower(strings.Trim(p.Suffix, ".")))
	}
	c, client := m.GetClientConfig(), at+".client_config"
	if c == nil {
		d.warn(client, "is not given; names that are not in the table are forwarded to the host's resolvers all the same")
	}
	out.Timeout, out.MaxPending = d.duration(client+".resolver_timeout", c.GetResolverTimeout()), c.GetMaxPendingLookups()
	if t := c.GetTypedDnsResolverConfig(); t != nil {
		cares := &caresv3.CaresDnsResolverConfig{}
		field := client + ".typed_dns_resolver_config.typed_config"
		if !t.GetTypedConfig().MessageIs(cares) {
			d.warnf(field, "%s names no resolvers that parrel knows; the host's are asked", t.GetTypedConfig().GetTypeUrl())
		} else if d.unpack(field, t.GetTypedConfig(), cares) {
			out.Resolvers = d.resolvers(field+".resolvers", cares.GetResolvers())
		}
	} else {
		out.Resolvers = d.resolvers(client+".dns_resolution_config.resolvers", c.GetDnsResolutionConfig().GetResolvers()) //nolint:staticcheck // the form before typed_dns_resolver_config
	}
	return out
}

func (d *decoder) resolvers(field string, as []*corev3.Address) []resource.Address {
	var out []resource.Address
	for i, a := range as {
		out = append(out, d.udpAddress(index(field, i), a))
	}
	return out
}
