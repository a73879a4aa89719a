// Package resourcetest generates valid resources for tests.
//
// Owns: rapid generators for every type of xds/resource. What they draw passes
// Validate and is normalised. Does not know: protos.
package resourcetest

import (
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Resource draws a valid, normalised resource of any type.
func Resource() *rapid.Generator[resource.Resource] {
	return rapid.Custom(func(t *rapid.T) resource.Resource {
		switch rapid.IntRange(0, 4).Draw(t, "type") {
		case 0:
			return Listener().Draw(t, "listener")
		case 1:
			return RouteConfig().Draw(t, "routes")
		case 2:
			return Cluster().Draw(t, "cluster")
		case 3:
			return Endpoints().Draw(t, "endpoints")
		}
		return Secret().Draw(t, "secret")
	})
}

// normalised turns a drawing function into a generator of normalised values.
func normalised[R resource.Resource](draw func(*rapid.T) R) *rapid.Generator[R] {
	return rapid.Custom(func(t *rapid.T) R { return resource.Normalise(draw(t)) })
}

// Listener draws a valid, normalised listener.
func Listener() *rapid.Generator[*resource.Listener] { return normalised(listener) }

// RouteConfig draws a valid, normalised route configuration.
func RouteConfig() *rapid.Generator[*resource.RouteConfig] {
	return normalised(func(t *rapid.T) *resource.RouteConfig { return routes(t) })
}

// Cluster draws a valid, normalised cluster.
func Cluster() *rapid.Generator[*resource.Cluster] { return normalised(cluster) }

// Endpoints draws valid, normalised endpoints.
func Endpoints() *rapid.Generator[*resource.Endpoints] {
	return normalised(func(t *rapid.T) *resource.Endpoints { return endpoints(t, name(t)) })
}

// Secret draws a valid, normalised secret.
func Secret() *rapid.Generator[*resource.Secret] { return normalised(secret) }

// RBAC draws valid rules, as a network or an HTTP filter has them.
func RBAC() *rapid.Generator[*resource.RBAC] {
	return rapid.Custom(func(t *rapid.T) *resource.RBAC {
		l := &resource.Listener{Chains: []resource.FilterChain{{Network: []resource.NetworkFilter{{RBAC: rbac(t)}}}}}
		return resource.Normalise(l).Chains[0].Network[0].RBAC
	})
}

func yes(t *rapid.T) bool { return rapid.Bool().Draw(t, "yes") }

// seldom is true once in four: what a test of a whole needs a little of.
func seldom(t *rapid.T) bool { return rapid.IntRange(0, 3).Draw(t, "seldom") == 3 }

func name(t *rapid.T) string { return rapid.StringMatching(`[a-z][a-z0-9./_-]{0,8}`).Draw(t, "name") }

// text may be empty and holds what is awkward in other syntaxes.
func text(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "a", "x y", "é", `\1`, "$1", "%REQ(x)%", "a,b", "*", "-", "parrel", `"`}).Draw(t, "text")
}

func pick[T any](t *rapid.T, of ...T) T { return rapid.SampledFrom(of).Draw(t, "pick") }

func list[T any](t *rapid.T, low, high int, draw func(*rapid.T) T) []T {
	n := rapid.IntRange(low, high).Draw(t, "n")
	var out []T
	for range n {
		out = append(out, draw(t))
	}
	return out
}

func duration(t *rapid.T) time.Duration {
	return pick(t, 0, time.Nanosecond, 25*time.Millisecond, time.Second, 90*time.Minute+7)
}

func maybe[T any](t *rapid.T, draw func(*rapid.T) T) *T {
	if !yes(t) {
		return nil
	}
	v := draw(t)
	return &v
}

func u32(t *rapid.T) uint32 { return rapid.Uint32().Draw(t, "u32") }

func port(t *rapid.T) uint16 { return rapid.Uint16().Draw(t, "port") }

func metadata(t *rapid.T) resource.Metadata {
	out := resource.Metadata{}
	for range rapid.IntRange(0, 2).Draw(t, "metadata") {
		out[name(t)] = text(t)
	}
	return out
}

func prefix(t *rapid.T) netip.Prefix {
	return netip.MustParsePrefix(pick(t, "10.0.0.0/8", "0.0.0.0/0", "192.168.7.9/32", "::/0", "2001:db8::/32", "fe80::1/128", "127.0.0.0/31", "10.1.0.0/16"))
}

func address(t *rapid.T) resource.Address {
	if seldom(t) {
		return resource.Address{Path: "/run/" + name(t)}
	}
	return resource.Address{Host: pick(t, "127.0.0.1", "10.1.2.3", "::1", "2001:db8::7"), Port: max(port(t), 1)}
}

func stringMatch(t *rapid.T) resource.StringMatch {
	kind := pick(t, resource.StringExact, resource.StringPrefix, resource.StringSuffix, resource.StringContains, resource.StringRegex)
	if kind == resource.StringRegex {
		return resource.StringMatch{Kind: kind, Value: pick(t, "a.*", "(x|y)+", `\d{1,3}`, "^a$", `\Qa`)}
	}
	return resource.StringMatch{Kind: kind, Value: pick(t, "a", "/v1", "web.example", "é"), IgnoreCase: yes(t)}
}

func headerName(t *rapid.T) string {
	return pick(t, ":method", ":path", ":authority", "host", "x-a", "x-b", "content-type", "cookie")
}

func headerMatch(t *rapid.T) resource.HeaderMatch {
	m := resource.HeaderMatch{Name: headerName(t), Invert: yes(t), MissingAsEmpty: seldom(t)}
	switch rapid.IntRange(0, 2).Draw(t, "form") {
	case 0:
		m.Present = true
	case 1:
		s := stringMatch(t)
		m.String = &s
	default:
		m.IsRange, m.RangeStart = true, int64(rapid.IntRange(-10, 10).Draw(t, "start"))
		m.RangeEnd = m.RangeStart + int64(rapid.IntRange(1, 20).Draw(t, "len"))
	}
	return m
}

func mutations(t *rapid.T) resource.HeaderMutations {
	if !seldom(t) {
		return resource.HeaderMutations{}
	}
	h := func(t *rapid.T) resource.Header {
		return resource.Header{Name: pick(t, "x-a", "x-b", "server"), Value: text(t)}
	}
	return resource.HeaderMutations{Remove: list(t, 0, 2, func(t *rapid.T) string { return pick(t, "x-c", "x-d") }), Set: list(t, 0, 2, h), Add: list(t, 0, 2, h)}
}

func weighted(t *rapid.T, headers bool) []resource.WeightedCluster {
	out := list(t, 1, 3, func(t *rapid.T) resource.WeightedCluster {
		w := resource.WeightedCluster{Name: name(t), Weight: uint32(rapid.IntRange(0, 100).Draw(t, "weight"))}
		if !headers {
			w.Weight++ // TCP knows no share of zero
		} else {
			w.RequestHeaders, w.ResponseHeaders = mutations(t), mutations(t)
		}
		return w
	})
	out[0].Weight++
	return out
}

func tlsParams(t *rapid.T, trust bool) resource.TLSParams {
	p := resource.TLSParams{MinVersion: pick(t, "", "1.2", "1.3"), ALPN: list(t, 0, 2, func(t *rapid.T) string { return pick(t, "h2", "http/1.1") })}
	if p.MinVersion == "1.2" && yes(t) {
		p.MaxVersion = "1.2"
	}
	provider := yes(t)
	source := func(files resource.CertFiles) resource.CertSource {
		switch {
		case provider:
			return resource.CertSource{Provider: "default"}
		case yes(t):
			return resource.CertSource{SDS: name(t)}
		}
		return resource.CertSource{Files: &files}
	}
	p.Certificate = source(resource.CertFiles{Cert: "/etc/cert.pem", Key: "/etc/key.pem"})
	if trust {
		p.Trust = source(resource.CertFiles{CA: "/etc/ca.pem"})
		p.PeerSANs = list(t, 0, 2, stringMatch)
	}
	return p
}

func endpoints(t *rapid.T, cluster string) *resource.Endpoints {
	out := &resource.Endpoints{Cluster: cluster}
	for i := range rapid.IntRange(0, 3).Draw(t, "localities") {
		out.Localities = append(out.Localities, resource.Locality{
			Region: text(t), Zone: fmt.Sprint("zone-", i), SubZone: text(t),
			Priority: uint32(rapid.IntRange(0, 3).Draw(t, "priority")), Weight: uint32(rapid.IntRange(0, 100).Draw(t, "weight")),
			Endpoints: list(t, 0, 3, func(t *rapid.T) resource.Endpoint {
				return resource.Endpoint{
					Address: address(t), Weight: uint32(rapid.IntRange(0, 100).Draw(t, "weight")), Metadata: metadata(t),
					Health: pick(t, resource.HealthUnknown, resource.Healthy, resource.Unhealthy, resource.Draining, resource.Degraded),
				}
			}),
		})
	}
	return out
}

func cluster(t *rapid.T) *resource.Cluster {
	c := &resource.Cluster{
		Name: name(t), ConnectTimeout: duration(t), IdleTimeout: duration(t), Metadata: metadata(t),
		Discovery:      pick(t, resource.DiscoveryEDS, resource.DiscoveryStatic, resource.DiscoveryStrictDNS, resource.DiscoveryLogicalDNS, resource.DiscoveryOriginalDst),
		Protocol:       pick(t, resource.ProtocolTCP, resource.ProtocolHTTP1, resource.ProtocolHTTP2, resource.ProtocolAuto, resource.ProtocolDownstream),
		PanicThreshold: pick(t, 0, 0.5, 50, 100.0),
	}
	switch c.Discovery {
	case resource.DiscoveryEDS:
		c.EDSName = pick(t, "", c.Name, "other")
	case resource.DiscoveryOriginalDst:
	default:
		c.Endpoints = endpoints(t, c.Name)
	}
	if c.Discovery != resource.DiscoveryOriginalDst {
		switch rapid.IntRange(0, 3).Draw(t, "lb") {
		case 0:
			c.LB.RoundRobin = &resource.RoundRobin{}
		case 1:
			c.LB.LeastRequest = &resource.LeastRequest{ChoiceCount: pick[uint32](t, 0, 2, 5)}
		case 2:
			c.LB.Random = &resource.Random{}
		}
	}
	if yes(t) {
		c.TLS = &resource.UpstreamTLS{TLSParams: tlsParams(t, true), SNI: pick(t, "", "web.default.dc1.internal")}
	}
	if yes(t) {
		c.Breakers = &resource.Breakers{MaxConnections: maybe(t, u32), MaxPendingRequests: maybe(t, u32), MaxRequests: maybe(t, u32), MaxRetries: maybe(t, u32)}
	}
	if yes(t) {
		c.Keepalive = &resource.TCPKeepalive{Probes: u32(t), Time: u32(t), Interval: u32(t)}
	}
	return c
}

func secret(t *rapid.T) *resource.Secret {
	s := &resource.Secret{Name: name(t)}
	pem := func(t *rapid.T) []byte { return rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "pem") }
	switch {
	case yes(t):
		s.ChainPEM, s.KeyPEM = pem(t), pem(t)
	case yes(t):
		s.TrustPEM = []resource.TrustBundle{{RootsPEM: pem(t)}}
	default:
		for i := range rapid.IntRange(1, 3).Draw(t, "domains") {
			s.TrustPEM = append(s.TrustPEM, resource.TrustBundle{TrustDomain: fmt.Sprintf("%d.example", i), RootsPEM: pem(t)})
		}
	}
	return s
}

// domains gives every virtual host some of its own; the last may take the rest.
func domains(t *rapid.T, i int, last bool) []string {
	out := []string{fmt.Sprintf("h%d.example", i)}
	for _, more := range []string{fmt.Sprintf("*.h%d.example", i), fmt.Sprintf("h%d.*", i), fmt.Sprintf("H%d.Upper.Example:8080", i)} {
		if yes(t) {
			out = append(out, more)
		}
	}
	if last && yes(t) {
		out = append(out, "*")
	}
	return out
}

func routes(t *rapid.T) *resource.RouteConfig {
	out := &resource.RouteConfig{Name: name(t), Metadata: metadata(t)}
	n := rapid.IntRange(0, 3).Draw(t, "hosts")
	for i := range n {
		out.VirtualHosts = append(out.VirtualHosts, resource.VirtualHost{
			Name: fmt.Sprintf("host-%d", i), Domains: domains(t, i, i == n-1), Routes: list(t, 0, 5, route),
			RequestHeaders: mutations(t), ResponseHeaders: mutations(t),
		})
	}
	return out
}

func route(t *rapid.T) resource.Route {
	r := resource.Route{Name: text(t), Match: match(t), RequestHeaders: mutations(t), ResponseHeaders: mutations(t), Metadata: metadata(t)}
	switch rapid.IntRange(0, 6).Draw(t, "action") {
	case 0:
		r.Direct = &resource.DirectResponse{Status: pick[uint32](t, 200, 404, 503), Body: text(t)}
	case 1:
		r.NonForwarding = true
	case 2:
		r.Redirect = &resource.Redirect{
			Scheme: pick(t, "", "http", "https"), Host: pick(t, "", "other.example"), Port: pick[uint32](t, 0, 80, 8443),
			Code: pick[uint32](t, 0, 301, 302, 303, 307, 308), StripQuery: yes(t),
		}
		switch rapid.IntRange(0, 2).Draw(t, "path") {
		case 0:
			r.Redirect.Path = pick(t, "/new", "/new?x=1")
		case 1:
			r.Redirect.PrefixRewrite = "/moved"
		}
	default:
		r.Forward = forward(t)
	}
	return r
}

func match(t *rapid.T) resource.RouteMatch {
	m := resource.RouteMatch{
		PathKind: pick(t, resource.PathPrefix, resource.PathExact, resource.PathRegex, resource.PathSeparatedPrefix),
		GRPC:     seldom(t),
	}
	switch m.PathKind {
	case resource.PathRegex:
		m.Path = pick(t, "/a.*", "/(a|b)/c", "/v[0-9]+")
	case resource.PathPrefix:
		m.Path, m.IgnoreCase = pick(t, "", "/", "/a", "/a/", "/a/b", "/B"), seldom(t)
	default:
		m.Path, m.IgnoreCase = pick(t, "/a", "/a/b", "/b", "/B/c"), seldom(t)
	}
	if seldom(t) {
		m.Headers = list(t, 0, 2, headerMatch)
	}
	if seldom(t) {
		m.Query = list(t, 0, 2, func(t *rapid.T) resource.QueryMatch {
			q := resource.QueryMatch{Name: pick(t, "q", "r")}
			if yes(t) {
				s := stringMatch(t)
				q.String = &s
			} else {
				q.Present = true
			}
			return q
		})
	}
	if seldom(t) {
		f := uint32(rapid.IntRange(0, 1_000_000).Draw(t, "fraction"))
		m.Fraction = &f
	}
	return m
}

func forward(t *rapid.T) *resource.Forward {
	f := &resource.Forward{Timeout: maybe(t, duration), IdleTimeout: maybe(t, duration)}
	if yes(t) {
		f.Cluster = name(t)
	} else {
		f.Weighted = weighted(t, true)
	}
	switch rapid.IntRange(0, 3).Draw(t, "rewrite") {
	case 0:
		f.PrefixRewrite = pick(t, "/", "/x", "/x/")
	case 1:
		f.RegexRewrite = &resource.RegexRewrite{Regex: "^/(.*)$", Substitution: text(t)}
	}
	switch rapid.IntRange(0, 3).Draw(t, "host") {
	case 0:
		f.HostRewrite = "upstream.example"
	case 1:
		f.AutoHostRewrite = true
	}
	f.Hash = list(t, 0, 2, hash)
	if yes(t) {
		f.Retry = retry(t)
	}
	return f
}

func hash(t *rapid.T) resource.HashPolicy {
	h := resource.HashPolicy{Terminal: yes(t)}
	switch rapid.IntRange(0, 3).Draw(t, "hash") {
	case 0:
		h.Header = "x-user"
	case 1:
		h.Cookie, h.CookiePath, h.CookieTTL = "sticky", pick(t, "", "/"), maybe(t, duration)
	case 2:
		h.SourceIP = true
	default:
		h.Query = "user"
	}
	return h
}

func retry(t *rapid.T) *resource.Retry {
	r := &resource.Retry{
		On:         list(t, 0, 3, func(t *rapid.T) string { return pick(t, "5xx", "connect-failure", "reset", "unavailable") }),
		NumRetries: uint32(rapid.IntRange(0, 5).Draw(t, "retries")), PerTryTimeout: duration(t), BackoffBase: duration(t),
		StatusCodes: list(t, 0, 2, func(t *rapid.T) uint32 { return pick[uint32](t, 409, 502, 503) }),
	}
	if r.BackoffBase > 0 && yes(t) {
		r.BackoffMax = r.BackoffBase * 10
	}
	return r
}

func listener(t *rapid.T) *resource.Listener {
	l := &resource.Listener{Name: name(t), Direction: pick(t, resource.DirectionUnspecified, resource.Inbound, resource.Outbound), Metadata: metadata(t)}
	if seldom(t) {
		l.API = manager(t)
		return l
	}
	if seldom(t) {
		dns(t, l)
		return l
	}
	l.Address, l.UseOriginalDst = address(t), yes(t)
	for i := range rapid.IntRange(0, 3).Draw(t, "chains") {
		c := chain(t, fmt.Sprintf("chain-%d", i))
		c.Match = ChainMatch(t)
		c.Match.DestinationPort = uint16(i + 1) // no two matches are the same
		l.Chains = append(l.Chains, c)
	}
	if len(l.Chains) == 0 || yes(t) {
		c := chain(t, "rest")
		l.Default = &c
	}
	return l
}

// ChainMatch draws a valid match.
func ChainMatch(t *rapid.T) resource.ChainMatch {
	return resource.ChainMatch{
		DestinationPort:     pick[uint16](t, 0, 80, 443),
		DestinationPrefixes: list(t, 0, 2, prefix), SourcePrefixes: list(t, 0, 2, prefix),
		ServerNames: list(t, 0, 2, func(t *rapid.T) string {
			return pick(t, "web.example", "*.example", "*.api.example", "api.example")
		}),
		TransportProtocol:    pick(t, "", "tls", "raw_buffer"),
		ApplicationProtocols: list(t, 0, 2, func(t *rapid.T) string { return pick(t, "h2", "h2c", "http/1.1") }),
	}
}

func chain(t *rapid.T, chainName string) resource.FilterChain {
	c := resource.FilterChain{Name: chainName, HandshakeTimeout: duration(t)}
	if yes(t) {
		trust := yes(t)
		c.TLS = &resource.DownstreamTLS{TLSParams: tlsParams(t, trust), RequireClientCert: trust && yes(t)}
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "filters") {
		c.Network = append(c.Network, resource.NetworkFilter{Name: fmt.Sprintf("rbac-%d", i), RBAC: rbac(t)})
	}
	if yes(t) {
		c.HTTP = manager(t)
		return c
	}
	c.TCP = &resource.TCPProxy{StatPrefix: pick(t, "", "tcp"), IdleTimeout: duration(t), MaxConnectAttempts: uint32(rapid.IntRange(0, 5).Draw(t, "attempts")),
		AccessLog: list(t, 0, 1, accessLog)}
	if yes(t) {
		c.TCP.Cluster = name(t)
	} else {
		c.TCP.Weighted = weighted(t, false)
	}
	return c
}

func manager(t *rapid.T) *resource.HTTPManager {
	m := &resource.HTTPManager{
		StatPrefix: pick(t, "", "http"), Codec: pick(t, resource.CodecAuto, resource.CodecHTTP1, resource.CodecHTTP2),
		XFCC:             pick(t, resource.SanitizeXFCC, resource.SanitizeSetXFCC, resource.AppendForwardXFCC),
		UseRemoteAddress: yes(t), ServerName: pick(t, "", "edge"), RequestTimeout: duration(t), RequestHeadersTimeout: duration(t),
		StreamIdleTimeout: duration(t), IdleTimeout: duration(t), MaxRequestHeadersKB: uint32(rapid.IntRange(0, 8192).Draw(t, "kb")),
		AccessLog:  list(t, 0, 2, accessLog),
		MaxHeaders: pick[uint32](t, 0, 50), MaxStreams: pick[uint32](t, 0, 1, 100), MaxConnection: duration(t),
		RawPaths: yes(t),
		EscapedSlashes: pick(t, resource.DefaultEscapedSlashes, resource.KeepEscapedSlashes,
			resource.RedirectEscapedSlashes, resource.ForwardEscapedSlashes, resource.RejectEscapedSlashes),
		MergeSlashes: yes(t),
		Underscores:  pick(t, resource.AllowUnderscores, resource.RejectUnderscores, resource.DropUnderscores),
	}
	if yes(t) {
		m.Upgrades = []string{"websocket"}
	}
	if yes(t) {
		m.RouteName = name(t)
	} else {
		m.Route = routes(t)
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "filters") {
		m.Filters = append(m.Filters, resource.HTTPFilter{Name: fmt.Sprintf("rbac-%d", i), RBAC: rbac(t)})
	}
	m.Filters = append(m.Filters, resource.HTTPFilter{Name: "envoy.filters.http.router", Router: &resource.Router{}})
	return m
}

func accessLog(t *rapid.T) resource.AccessLog {
	a := resource.AccessLog{Path: pick(t, "/dev/stdout", "/dev/stderr", "/var/log/access"), MinStatus: pick[uint32](t, 0, 400, 500)}
	if a.MinStatus == 0 && yes(t) {
		a.Filter = logFilter(t, 2)
	}
	switch rapid.IntRange(0, 2).Draw(t, "format") {
	case 0:
		a.Text = "%START_TIME% %RESPONSE_CODE%"
	case 1:
		a.JSON = map[string]string{"code": "%RESPONSE_CODE%", "path": "%REQ(:PATH)%"}
	}
	return a
}

func logFilter(t *rapid.T, depth int) *resource.LogFilter {
	compare := func(ops ...resource.CompareOp) *resource.Comparison {
		return &resource.Comparison{Op: pick(t, ops...), Value: u32(t)}
	}
	some := func(t *rapid.T) resource.LogFilter { return *logFilter(t, depth-1) }
	kind := rapid.IntRange(0, 5).Draw(t, "kind")
	switch {
	case kind == 0 && depth > 0:
		return &resource.LogFilter{And: list(t, 2, 3, some)}
	case kind == 1 && depth > 0:
		return &resource.LogFilter{Or: list(t, 2, 3, some)}
	case kind == 2:
		return &resource.LogFilter{Duration: compare(resource.CompareEQ, resource.CompareGE, resource.CompareLE, resource.CompareNE)}
	case kind == 3:
		return &resource.LogFilter{AnyFlag: true}
	case kind == 4:
		return &resource.LogFilter{Flags: []string{"UH", "UF"}}
	}
	return &resource.LogFilter{Status: compare(resource.CompareEQ, resource.CompareLE, resource.CompareNE)} // at least is MinStatus
}

func rbac(t *rapid.T) *resource.RBAC {
	rules := func(t *rapid.T) resource.RBACRules {
		r := resource.RBACRules{Action: pick(t, resource.RBACAllow, resource.RBACDeny, resource.RBACLog)}
		for i := range rapid.IntRange(0, 2).Draw(t, "policies") {
			r.Policies = append(r.Policies, resource.RBACPolicy{
				Name:        fmt.Sprintf("policy-%d", i),
				Permissions: list(t, 1, 2, func(t *rapid.T) resource.Permission { return permission(t, 2) }),
				Principals:  list(t, 1, 2, func(t *rapid.T) resource.Principal { return principal(t, 2) }),
			})
		}
		return r
	}
	return &resource.RBAC{StatPrefix: pick(t, "", "authz"), Rules: maybe(t, rules), Shadow: maybe(t, rules)}
}

func permission(t *rapid.T, depth int) resource.Permission {
	high := 9
	if depth == 0 {
		high = 6
	}
	deeper := func(t *rapid.T) resource.Permission { return permission(t, depth-1) }
	var p resource.Permission
	switch rapid.IntRange(0, high).Draw(t, "permission") {
	case 0:
		p.Any = true
	case 1:
		h := headerMatch(t)
		p.Header = &h
	case 2:
		s := stringMatch(t)
		p.Path = &s
	case 3:
		n := port(t)
		p.DestinationPort = &n
	case 4:
		n := uint32(port(t))
		p.DestinationPortRange = &resource.PortRange{Start: n, End: n + 1}
	case 5:
		p.DestinationIP = prefix(t).String()
	case 6:
		s := stringMatch(t)
		p.ServerName = &s
	case 7:
		p.And = list(t, 1, 2, deeper)
	case 8:
		p.Or = list(t, 1, 2, deeper)
	default:
		sub := deeper(t)
		p.Not = &sub
	}
	return p
}

func principal(t *rapid.T, depth int) resource.Principal {
	high := 7
	if depth == 0 {
		high = 4
	}
	deeper := func(t *rapid.T) resource.Principal { return principal(t, depth-1) }
	var p resource.Principal
	switch rapid.IntRange(0, high).Draw(t, "principal") {
	case 0:
		p.Any = true
	case 1:
		p.Authenticated = &resource.AuthenticatedPrincipal{Name: maybe(t, stringMatch)}
	case 2:
		p.SourceIP = prefix(t).String()
	case 3:
		h := headerMatch(t)
		p.Header = &h
	case 4:
		s := stringMatch(t)
		p.Path = &s
	case 5:
		p.And = list(t, 1, 2, deeper)
	case 6:
		p.Or = list(t, 1, 2, deeper)
	default:
		sub := deeper(t)
		p.Not = &sub
	}
	return p
}
