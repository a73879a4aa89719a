package resource_test

import (
	"net/netip"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

type broken struct {
	field string
	r     resource.Resource
}

func goodListener() *resource.Listener {
	return &resource.Listener{Name: "l", Address: resource.Address{Host: "127.0.0.1", Port: 80}, Chains: []resource.FilterChain{
		{Name: "tcp", TCP: &resource.TCPProxy{Cluster: "c"}},
		{Name: "http", Match: resource.ChainMatch{DestinationPort: 8080}, HTTP: &resource.HTTPManager{RouteName: "r",
			Filters: []resource.HTTPFilter{{Name: "rbac", RBAC: &resource.RBAC{}}, {Name: "router", Router: &resource.Router{}}}}},
	}}
}

func goodRoutes() *resource.RouteConfig {
	return &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"a", "*.b"}, Routes: []resource.Route{
		{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: "c"}},
	}}}}
}

func goodCluster() *resource.Cluster {
	return &resource.Cluster{Name: "c", TLS: &resource.UpstreamTLS{TLSParams: resource.TLSParams{Trust: resource.CertSource{SDS: "ROOTCA"}}}}
}

func listenerWith(f func(*resource.Listener)) resource.Resource {
	l := goodListener()
	f(l)
	return l
}

func routeWith(f func(*resource.Route)) resource.Resource {
	r := goodRoutes()
	f(&r.VirtualHosts[0].Routes[0])
	return r
}

func clusterWith(f func(*resource.Cluster)) resource.Resource {
	c := goodCluster()
	f(c)
	return c
}

func rbacWith(p resource.Permission, q resource.Principal) resource.Resource {
	return listenerWith(func(l *resource.Listener) {
		l.Chains[1].HTTP.Filters[0].RBAC.Rules = &resource.RBACRules{Policies: []resource.RBACPolicy{
			{Name: "p", Permissions: []resource.Permission{p}, Principals: []resource.Principal{q}}}}
	})
}

func endpointsWith(ls ...resource.Locality) resource.Resource {
	return &resource.Endpoints{Cluster: "c", Localities: ls}
}

func goodDNS() *resource.Listener {
	return &resource.Listener{Name: "dns", Address: resource.Address{Host: "127.0.0.1", Port: 15053}, DNS: &resource.DNSFilter{
		Domains:       []resource.DNSDomain{{Name: "web.mesh", Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.1")}}},
		KnownSuffixes: []string{"mesh"}}}
}

func invalidDNS() []broken {
	with := func(f func(*resource.Listener)) resource.Resource {
		l := goodDNS()
		f(l)
		return l
	}
	at := "listener_filters[0].typed_config."
	table := at + "server_config.inline_dns_table."
	client := at + "client_config."
	name := func(s string) func(*resource.Listener) {
		return func(l *resource.Listener) { l.DNS.Domains[0].Name = s }
	}
	long := strings.Repeat("a.", 127)
	return []broken{
		{"address", with(func(l *resource.Listener) { l.Address.Host = "0.0.0.0" })},
		{"address", with(func(l *resource.Listener) { l.Address.Host = "10.0.0.1" })},
		{"address", with(func(l *resource.Listener) { l.Address.Port = 0 })},
		{"address", with(func(l *resource.Listener) { l.Address = resource.Address{Path: "/run/dns"} })},
		{"additional_addresses[0].address", with(func(l *resource.Listener) { l.Additional = []resource.Address{{Host: "::", Port: 53}} })},
		{"additional_addresses", listenerWith(func(l *resource.Listener) { l.Additional = []resource.Address{{Host: "::1", Port: 53}} })},
		{"api_listener", listenerWith(func(l *resource.Listener) {
			l.API, l.Chains, l.Address, l.DNS = l.Chains[1].HTTP, nil, resource.Address{}, &resource.DNSFilter{}
		})},
		{"filter_chains", with(func(l *resource.Listener) { l.Chains = goodListener().Chains })},
		{table + "virtual_domains[0].name", with(name(""))},
		{table + "virtual_domains[0].name", with(name("web.mesh."))},
		{table + "virtual_domains[0].name", with(name("Web.mesh"))},
		{table + "virtual_domains[0].name", with(name("a.*.mesh"))},
		{table + "virtual_domains[0].name", with(name("*"))},
		{table + "virtual_domains[0].name", with(name(strings.Repeat("a", 64)))},
		{table + "virtual_domains[0].name", with(name(long + "a"))},
		{table + "virtual_domains[1].name", with(func(l *resource.Listener) { l.DNS.Domains = append(l.DNS.Domains, l.DNS.Domains[0]) })},
		{table + "virtual_domains[0].endpoint.address_list", with(func(l *resource.Listener) { l.DNS.Domains[0].Addrs = nil })},
		{table + "virtual_domains[0].endpoint.address_list.address[1]", with(func(l *resource.Listener) {
			l.DNS.Domains[0].Addrs = append(l.DNS.Domains[0].Addrs, l.DNS.Domains[0].Addrs[0])
		})},
		{table + "virtual_domains[0].endpoint.address_list.address[0]", with(func(l *resource.Listener) { l.DNS.Domains[0].Addrs[0] = netip.Addr{} })},
		{table + "virtual_domains[0].answer_ttl", with(func(l *resource.Listener) { l.DNS.Domains[0].TTL = time.Second })},
		{table + "known_suffixes[0]", with(func(l *resource.Listener) { l.DNS.KnownSuffixes[0] = "*.mesh" })},
		{table + "known_suffixes[1]", with(func(l *resource.Listener) { l.DNS.KnownSuffixes = []string{"mesh", "mesh"} })},
		{client + "typed_dns_resolver_config.typed_config.resolvers[0]", with(func(l *resource.Listener) { l.DNS.Resolvers = []resource.Address{l.Address} })},
		{client + "typed_dns_resolver_config.typed_config.resolvers[0]", with(func(l *resource.Listener) { l.DNS.Resolvers = []resource.Address{{Host: "10.0.0.1"}} })},
		{client + "resolver_timeout", with(func(l *resource.Listener) { l.DNS.Timeout = time.Millisecond })},
	}
}

func invalid() []broken {
	out := append(append(invalidListeners(), invalidDNS()...), invalidRoutes()...)
	return append(append(out, invalidClusters()...), invalidRules()...)
}

func invalidListeners() []broken {
	hcm := "filter_chains[1].filters[0].typed_config"
	return []broken{
		{"name", listenerWith(func(l *resource.Listener) { l.Name = "" })},
		{"address.socket_address.address", listenerWith(func(l *resource.Listener) { l.Address.Host = "localhost" })},
		{"address.pipe.path", listenerWith(func(l *resource.Listener) { l.Address.Path = "/x" })},
		{"filter_chains", listenerWith(func(l *resource.Listener) { l.Chains = nil })},
		{"filter_chains[1].name", listenerWith(func(l *resource.Listener) { l.Chains[1].Name = "tcp" })},
		{"filter_chains[1].filter_chain_match", listenerWith(func(l *resource.Listener) { l.Chains[1].Match = resource.ChainMatch{} })},
		{"filter_chains[0].filter_chain_match.prefix_ranges[0]", listenerWith(func(l *resource.Listener) {
			l.Chains[0].Match.DestinationPrefixes = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}
		})},
		{"filter_chains[0].filter_chain_match.server_names[0]", listenerWith(func(l *resource.Listener) { l.Chains[0].Match.ServerNames = []string{"a.*"} })},
		{"filter_chains[0].filter_chain_match.transport_protocol", listenerWith(func(l *resource.Listener) { l.Chains[0].Match.TransportProtocol = "quic" })},
		{"filter_chains[0].filters[0]", listenerWith(func(l *resource.Listener) { l.Chains[0].HTTP = l.Chains[1].HTTP })},
		{"filter_chains[0].filters[0].typed_config", listenerWith(func(l *resource.Listener) { l.Chains[0].TCP.Cluster = "" })},
		{"filter_chains[0].filters[0].typed_config.weighted_clusters", listenerWith(func(l *resource.Listener) {
			l.Chains[0].TCP = &resource.TCPProxy{Weighted: []resource.WeightedCluster{{Name: "a"}}}
		})},
		{"filter_chains[0].filters[0].typed_config.idle_timeout", listenerWith(func(l *resource.Listener) { l.Chains[0].TCP.IdleTimeout = -1 })},
		{"filter_chains[0].transport_socket.typed_config.common_tls_context", listenerWith(func(l *resource.Listener) { l.Chains[0].TLS = &resource.DownstreamTLS{} })},
		{"filter_chains[0].transport_socket.typed_config.require_client_certificate", listenerWith(func(l *resource.Listener) {
			l.Chains[0].TLS = &resource.DownstreamTLS{RequireClientCert: true, TLSParams: resource.TLSParams{Certificate: resource.CertSource{SDS: "default"}}}
		})},
		{"default_filter_chain.filter_chain_match", listenerWith(func(l *resource.Listener) {
			l.Default = &resource.FilterChain{Name: "d", Match: resource.ChainMatch{DestinationPort: 1}, TCP: &resource.TCPProxy{Cluster: "c"}}
		})},
		{hcm, listenerWith(func(l *resource.Listener) { l.Chains[1].HTTP.RouteName = "" })},
		{hcm + ".http_filters", listenerWith(func(l *resource.Listener) { l.Chains[1].HTTP.Filters = nil })},
		{hcm + ".http_filters[1]", listenerWith(func(l *resource.Listener) {
			l.Chains[1].HTTP.Filters[1] = resource.HTTPFilter{Name: "x", RBAC: &resource.RBAC{}}
		})},
		{hcm + ".http_filters[0].typed_config", listenerWith(func(l *resource.Listener) { l.Chains[1].HTTP.Filters[0].RBAC = nil })},
		{hcm + ".access_log[0].typed_config.log_format", listenerWith(func(l *resource.Listener) {
			l.Chains[1].HTTP.AccessLog = []resource.AccessLog{{Path: "/dev/stdout", Text: "x", JSON: map[string]string{"a": "b"}}}
		})},
		{"api_listener", listenerWith(func(l *resource.Listener) { l.API = l.Chains[1].HTTP })},
	}
}

func invalidRoutes() []broken {
	at := "virtual_hosts[0].routes[0]"
	neg := -time.Second
	over := uint32(1_000_001)
	return []broken{
		{"virtual_hosts[0].domains", &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v"}}}},
		{"virtual_hosts[0].domains[0]", &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"a*b"}}}}},
		{"virtual_hosts[1].domains[0]", &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"a"}}, {Name: "w", Domains: []string{"A"}}}}},
		{"virtual_hosts[1].name", &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"a"}}, {Name: "v", Domains: []string{"b"}}}}},
		{at, routeWith(func(r *resource.Route) { r.Forward = nil })},
		{at, routeWith(func(r *resource.Route) { r.Direct = &resource.DirectResponse{Status: 200} })},
		{at + ".match.safe_regex.regex", routeWith(func(r *resource.Route) { r.Match = resource.RouteMatch{PathKind: resource.PathRegex, Path: "(?=x)"} })},
		{at + ".match.path_separated_prefix", routeWith(func(r *resource.Route) {
			r.Match = resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/a/"}
		})},
		{at + ".match.path", routeWith(func(r *resource.Route) { r.Match = resource.RouteMatch{PathKind: resource.PathExact} })},
		{at + ".match.headers[0].name", routeWith(func(r *resource.Route) { r.Match.Headers = []resource.HeaderMatch{{Name: "X-A", Present: true}} })},
		{at + ".match.headers[0]", routeWith(func(r *resource.Route) { r.Match.Headers = []resource.HeaderMatch{{Name: "x-a"}} })},
		{at + ".match.headers[0].range_match", routeWith(func(r *resource.Route) {
			r.Match.Headers = []resource.HeaderMatch{{Name: "x-a", IsRange: true, RangeStart: 2, RangeEnd: 2}}
		})},
		{at + ".match.headers[0].string_match", routeWith(func(r *resource.Route) {
			r.Match.Headers = []resource.HeaderMatch{{Name: "x-a", String: &resource.StringMatch{Kind: resource.StringPrefix}}}
		})},
		{at + ".match.query_parameters[0]", routeWith(func(r *resource.Route) { r.Match.Query = []resource.QueryMatch{{Name: "q"}} })},
		{at + ".match.runtime_fraction", routeWith(func(r *resource.Route) { r.Match.Fraction = &over })},
		{at + ".route", routeWith(func(r *resource.Route) { r.Forward.Weighted = []resource.WeightedCluster{{Name: "a", Weight: 1}} })},
		{at + ".route.weighted_clusters", routeWith(func(r *resource.Route) {
			r.Forward = &resource.Forward{Weighted: []resource.WeightedCluster{{Name: "a"}}}
		})},
		{at + ".route.timeout", routeWith(func(r *resource.Route) { r.Forward.Timeout = &neg })},
		{at + ".route.regex_rewrite", routeWith(func(r *resource.Route) {
			r.Forward.PrefixRewrite, r.Forward.RegexRewrite = "/", &resource.RegexRewrite{Regex: "a"}
		})},
		{at + ".route.hash_policy[0]", routeWith(func(r *resource.Route) { r.Forward.Hash = []resource.HashPolicy{{}} })},
		{at + ".route.retry_policy.retry_back_off.max_interval", routeWith(func(r *resource.Route) { r.Forward.Retry = &resource.Retry{BackoffMax: 1} })},
		{at + ".redirect.response_code", routeWith(func(r *resource.Route) { r.Forward, r.Redirect = nil, &resource.Redirect{Code: 200} })},
		{at + ".redirect", routeWith(func(r *resource.Route) { r.Forward, r.Redirect = nil, &resource.Redirect{Host: "a\r\nx: y"} })},
		{at + ".direct_response.status", routeWith(func(r *resource.Route) { r.Forward, r.Direct = nil, &resource.DirectResponse{Status: 99} })},
		{at + ".request_headers_to_add[0].header.value", routeWith(func(r *resource.Route) { r.RequestHeaders.Set = []resource.Header{{Name: "x-a", Value: "a\nb"}} })},
		{at + ".name", routeWith(func(r *resource.Route) { r.Name = "\xff" })},
	}
}

func invalidClusters() []broken {
	ep := resource.Endpoint{Address: resource.Address{Host: "10.0.0.1", Port: 80}}
	return []broken{
		{"name", clusterWith(func(c *resource.Cluster) { c.Name = "" })},
		{"connect_timeout", clusterWith(func(c *resource.Cluster) { c.ConnectTimeout = -1 })},
		{"load_assignment", clusterWith(func(c *resource.Cluster) { c.Discovery = resource.DiscoveryStatic })},
		{"load_assignment", clusterWith(func(c *resource.Cluster) { c.Endpoints = &resource.Endpoints{} })},
		{"eds_cluster_config.service_name", clusterWith(func(c *resource.Cluster) { c.Discovery, c.EDSName = resource.DiscoveryOriginalDst, "x" })},
		{"load_balancing_policy", clusterWith(func(c *resource.Cluster) {
			c.LB = resource.LBPolicy{Random: &resource.Random{}, RoundRobin: &resource.RoundRobin{}}
		})},
		{"load_balancing_policy.least_request.choice_count", clusterWith(func(c *resource.Cluster) { c.LB.LeastRequest = &resource.LeastRequest{ChoiceCount: 1} })},
		{"common_lb_config.healthy_panic_threshold", clusterWith(func(c *resource.Cluster) { c.PanicThreshold = 101 })},
		{"transport_socket.typed_config.common_tls_context.validation_context", clusterWith(func(c *resource.Cluster) { c.TLS.Trust = resource.CertSource{} })},
		{"transport_socket.typed_config.common_tls_context.validation_context", clusterWith(func(c *resource.Cluster) { c.TLS.Trust.Provider = "x" })},
		{"transport_socket.typed_config.common_tls_context.tls_params.tls_minimum_protocol_version", clusterWith(func(c *resource.Cluster) { c.TLS.MinVersion = "1.0" })},
		{"transport_socket.typed_config.sni", clusterWith(func(c *resource.Cluster) { c.TLS.SNI = strings.Repeat("x", 256) })},
		{"endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value", endpointsWith(resource.Locality{Endpoints: []resource.Endpoint{{Address: resource.Address{Host: "10.0.0.1"}}}})},
		{"endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address", endpointsWith(resource.Locality{Endpoints: []resource.Endpoint{{Address: resource.Address{Host: "a.b", Port: 1}}}})},
		{"endpoints[1].locality", endpointsWith(resource.Locality{Endpoints: []resource.Endpoint{ep}}, resource.Locality{Endpoints: []resource.Endpoint{ep}})},
		{"cluster_name", &resource.Endpoints{}},
		{"tls_certificate.private_key", &resource.Secret{Name: "s", ChainPEM: []byte("x")}},
		{"validation_context.custom_validator_config.typed_config.trust_domains[0].name", &resource.Secret{Name: "s", TrustPEM: []resource.TrustBundle{{RootsPEM: []byte("x")}, {TrustDomain: "a", RootsPEM: []byte("x")}}}},
	}
}

func invalidRules() []broken {
	p, q := resource.Permission{Any: true}, resource.Principal{Any: true}
	at := `filter_chains[1].filters[0].typed_config.http_filters[0].typed_config.rules.policies["p"]`
	deep := resource.Permission{Any: true}
	for range 70 {
		sub := deep
		deep = resource.Permission{Not: &sub}
	}
	return []broken{
		{at + ".permissions[0]", rbacWith(resource.Permission{}, q)},
		{at + ".permissions[0]", rbacWith(resource.Permission{Any: true, Path: &resource.StringMatch{}}, q)},
		{at + ".permissions[0].destination_ip", rbacWith(resource.Permission{DestinationIP: "10.0.0.1/8"}, q)},
		{at + ".permissions[0].destination_port_range", rbacWith(resource.Permission{DestinationPortRange: &resource.PortRange{Start: 5, End: 5}}, q)},
		{at + ".permissions[0].url_path.path.safe_regex.regex", rbacWith(resource.Permission{Path: &resource.StringMatch{Kind: resource.StringRegex, Value: "("}}, q)},
		{at + ".permissions[0]" + strings.Repeat(".not_rule", 65), rbacWith(deep, q)},
		{at + ".principals[0]", rbacWith(p, resource.Principal{})},
		{at + ".principals[0].direct_remote_ip", rbacWith(p, resource.Principal{SourceIP: "x"})},
		{at + ".principals[0].and_ids.ids[0]", rbacWith(p, resource.Principal{And: []resource.Principal{{}}})},
	}
}
