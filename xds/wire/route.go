package wire

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func (e *encoder) routeConfig(r *resource.RouteConfig) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                     r.Name,
		Metadata:                 e.metadata(r.Metadata),
		IgnorePortInHostMatching: true, // what decide does
		VirtualHosts:             each(r.VirtualHosts, e.virtualHost),
	}
}

func (d *decoder) routeConfig(at string, m *routev3.RouteConfiguration) *resource.RouteConfig {
	return &resource.RouteConfig{
		Name:         m.GetName(),
		Metadata:     d.metadata(at+"metadata", m.GetMetadata()),
		VirtualHosts: eachField(at+"virtual_hosts", m.GetVirtualHosts(), d.virtualHost),
	}
}

func (e *encoder) virtualHost(v *resource.VirtualHost) *routev3.VirtualHost {
	return &routev3.VirtualHost{
		Name: v.Name, Domains: v.Domains, Routes: each(v.Routes, e.route),
		RequestHeadersToAdd: add(&v.RequestHeaders), RequestHeadersToRemove: v.RequestHeaders.Remove,
		ResponseHeadersToAdd: add(&v.ResponseHeaders), ResponseHeadersToRemove: v.ResponseHeaders.Remove,
	}
}

func (d *decoder) virtualHost(at string, m *routev3.VirtualHost) resource.VirtualHost {
	out := resource.VirtualHost{
		Name: m.GetName(), Domains: m.GetDomains(),
		RequestHeaders:  d.mutations(at+".request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		ResponseHeaders: d.mutations(at+".response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
	for i, r := range m.GetRoutes() {
		field := index(at+".routes", i)
		if !d.honours(r.GetMatch()) {
			d.warn(field, "the route is left out: without the part of its match that parrel does not honour it would match too much")
			continue
		}
		out.Routes = append(out.Routes, d.route(field, r))
	}
	return out
}

// add encodes what is set and added, in this order.
func add(m *resource.HeaderMutations) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	put := func(hs []resource.Header, a corev3.HeaderValueOption_HeaderAppendAction) {
		for _, h := range hs {
			out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: h.Name, Value: h.Value}, AppendAction: a, KeepEmptyValue: h.Value == ""})
		}
	}
	put(m.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	put(m.Add, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	return out
}

func (d *decoder) mutations(at string, add []*corev3.HeaderValueOption, remove []string) resource.HeaderMutations {
	var out resource.HeaderMutations
	for _, n := range remove {
		out.Remove = append(out.Remove, strings.ToLower(n))
	}
	for i, o := range add {
		field := index(at+"_headers_to_add", i)
		h := resource.Header{Name: strings.ToLower(o.GetHeader().GetKey()), Value: o.GetHeader().GetValue()}
		if raw := o.GetHeader().GetRawValue(); len(raw) > 0 {
			h.Value = string(raw)
		}
		if h.Value == "" && !o.GetKeepEmptyValue() {
			continue // Envoy adds no empty header
		}
		overwrite := o.GetAppend() != nil && !o.GetAppend().GetValue() //nolint:staticcheck // deprecated, still sent
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			overwrite = true
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		default:
			d.warnf(field+".append_action", "%s is not done; the header is left out", o.GetAppendAction())
			continue
		}
		if overwrite {
			out.Set = append(out.Set, h)
		} else {
			out.Add = append(out.Add, h)
		}
	}
	return out
}

func (e *encoder) route(r *resource.Route) *routev3.Route {
	out := &routev3.Route{
		Name: r.Name, Match: e.match(&r.Match), Metadata: e.metadata(r.Metadata),
		RequestHeadersToAdd: add(&r.RequestHeaders), RequestHeadersToRemove: r.RequestHeaders.Remove,
		ResponseHeadersToAdd: add(&r.ResponseHeaders), ResponseHeadersToRemove: r.ResponseHeaders.Remove,
	}
	switch {
	case r.Forward != nil:
		out.Action = &routev3.Route_Route{Route: e.forward(r.Forward)}
	case r.Redirect != nil:
		out.Action = &routev3.Route_Redirect{Redirect: e.redirect(r.Redirect)}
	case r.Direct != nil:
		a := &routev3.DirectResponseAction{Status: r.Direct.Status}
		if r.Direct.Body != "" {
			a.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: r.Direct.Body}}
		}
		out.Action = &routev3.Route_DirectResponse{DirectResponse: a}
	case r.NonForwarding:
		out.Action = &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}}
	}
	return out
}

func (d *decoder) route(at string, m *routev3.Route) resource.Route {
	out := resource.Route{
		Name: m.GetName(), Match: d.match(at+".match", m.GetMatch()), Metadata: d.metadata(at+".metadata", m.GetMetadata()),
		RequestHeaders:  d.mutations(at+".request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		ResponseHeaders: d.mutations(at+".response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
	switch x := m.GetAction().(type) {
	case *routev3.Route_Route:
		out.Forward = d.forward(at+".route", x.Route)
	case *routev3.Route_Redirect:
		out.Redirect = d.redirect(at+".redirect", x.Redirect)
	case *routev3.Route_DirectResponse:
		out.Direct = &resource.DirectResponse{Status: x.DirectResponse.GetStatus()}
		if b := x.DirectResponse.GetBody(); b != nil {
			out.Direct.Body = string(d.inline(at+".direct_response.body", b))
		}
	case *routev3.Route_NonForwardingAction:
		out.NonForwarding = true
	}
	return out
}

func (e *encoder) match(m *resource.RouteMatch) *routev3.RouteMatch {
	out := &routev3.RouteMatch{Headers: each(m.Headers, e.headerMatch), QueryParameters: each(m.Query, e.queryMatch)}
	switch m.PathKind {
	case resource.PathPrefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Path}
	case resource.PathExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path}
	case resource.PathRegex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(m.Path)}
	case resource.PathSeparatedPrefix:
		out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: m.Path}
	}
	if m.IgnoreCase {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	if m.GRPC {
		out.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	}
	if m.Fraction != nil {
		out.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: *m.Fraction, Denominator: typev3.FractionalPercent_MILLION}}
	}
	return out
}

func (d *decoder) match(at string, m *routev3.RouteMatch) resource.RouteMatch {
	out := resource.RouteMatch{
		IgnoreCase: m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue(),
		GRPC:       m.GetGrpc() != nil,
		Query:      eachField(at+".query_parameters", m.GetQueryParameters(), d.queryMatch),
	}
	switch x := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.PathKind, out.Path = resource.PathPrefix, x.Prefix
	case *routev3.RouteMatch_Path:
		out.PathKind, out.Path = resource.PathExact, x.Path
	case *routev3.RouteMatch_SafeRegex:
		out.PathKind, out.Path, out.IgnoreCase = resource.PathRegex, x.SafeRegex.GetRegex(), false
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.PathKind, out.Path = resource.PathSeparatedPrefix, x.PathSeparatedPrefix
	default:
		d.fail(at+".path_specifier", "must be set")
	}
	for i, h := range m.GetHeaders() {
		out.Headers = append(out.Headers, *d.headerMatch(index(at+".headers", i), h))
	}
	if f := m.GetRuntimeFraction(); f != nil {
		scale := uint64(1)
		switch f.GetDefaultValue().GetDenominator() {
		case typev3.FractionalPercent_HUNDRED:
			scale = 10_000
		case typev3.FractionalPercent_TEN_THOUSAND:
			scale = 100
		}
		n := uint32(min(uint64(f.GetDefaultValue().GetNumerator())*scale, 1_000_000))
		out.Fraction = &n
	}
	return out
}

func (e *encoder) queryMatch(q *resource.QueryMatch) *routev3.QueryParameterMatcher {
	out := &routev3.QueryParameterMatcher{Name: q.Name}
	if q.String != nil {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: e.text(q.String)}
	} else {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	}
	return out
}

func (d *decoder) queryMatch(at string, m *routev3.QueryParameterMatcher) resource.QueryMatch {
	out := resource.QueryMatch{Name: m.GetName()}
	switch x := m.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		out.String = d.text(at+".string_match", x.StringMatch)
	case *routev3.QueryParameterMatcher_PresentMatch:
		if out.Present = x.PresentMatch; !out.Present {
			d.fail(at+".present_match", "absence of a parameter is no match that parrel knows")
		}
	case nil:
		out.Present = true
	}
	return out
}

func (e *encoder) forward(f *resource.Forward) *routev3.RouteAction {
	out := &routev3.RouteAction{
		Timeout: durationp(f.Timeout), IdleTimeout: durationp(f.IdleTimeout),
		PrefixRewrite: f.PrefixRewrite, HashPolicy: each(f.Hash, e.hash),
	}
	if len(f.Weighted) > 0 {
		w := &routev3.WeightedCluster{}
		for i := range f.Weighted {
			c := &f.Weighted[i]
			w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{
				Name: c.Name, Weight: wrapperspb.UInt32(c.Weight),
				RequestHeadersToAdd: add(&c.RequestHeaders), RequestHeadersToRemove: c.RequestHeaders.Remove,
				ResponseHeadersToAdd: add(&c.ResponseHeaders), ResponseHeadersToRemove: c.ResponseHeaders.Remove,
			})
		}
		out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	} else {
		out.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: f.Cluster}
	}
	if x := f.RegexRewrite; x != nil {
		out.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: regex(x.Regex), Substitution: x.Substitution}
	}
	switch {
	case f.HostRewrite != "":
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: f.HostRewrite}
	case f.AutoHostRewrite:
		out.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: wrapperspb.Bool(true)}
	}
	if r := f.Retry; r != nil {
		p := &routev3.RetryPolicy{
			RetryOn: strings.Join(r.On, ","), NumRetries: wrapperspb.UInt32(r.NumRetries),
			RetriableStatusCodes: r.StatusCodes, PerTryTimeout: duration(r.PerTryTimeout),
		}
		if r.BackoffBase > 0 {
			p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: duration(r.BackoffBase), MaxInterval: duration(r.BackoffMax)}
		}
		out.RetryPolicy = p
	}
	return out
}

func (d *decoder) forward(at string, m *routev3.RouteAction) *resource.Forward {
	out := &resource.Forward{
		Timeout: d.durationp(at+".timeout", m.GetTimeout()), IdleTimeout: d.durationp(at+".idle_timeout", m.GetIdleTimeout()),
		PrefixRewrite: m.GetPrefixRewrite(), Hash: eachField(at+".hash_policy", m.GetHashPolicy(), d.hash),
	}
	switch x := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		out.Cluster = x.Cluster
	case *routev3.RouteAction_WeightedClusters:
		for i, c := range x.WeightedClusters.GetClusters() {
			field := index(at+".weighted_clusters.clusters", i)
			out.Weighted = append(out.Weighted, resource.WeightedCluster{
				Name: c.GetName(), Weight: c.GetWeight().GetValue(),
				RequestHeaders:  d.mutations(field+".request", c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove()),
				ResponseHeaders: d.mutations(field+".response", c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove()),
			})
		}
	}
	if x := m.GetRegexRewrite(); x != nil {
		out.RegexRewrite = &resource.RegexRewrite{Regex: x.GetPattern().GetRegex(), Substitution: x.GetSubstitution()}
	}
	out.HostRewrite = m.GetHostRewriteLiteral()
	out.AutoHostRewrite = m.GetAutoHostRewrite().GetValue()
	if p := m.GetRetryPolicy(); p != nil {
		out.Retry = d.retry(at+".retry_policy", p)
	}
	return out
}

func (d *decoder) retry(at string, p *routev3.RetryPolicy) *resource.Retry {
	out := &resource.Retry{
		NumRetries: 1, StatusCodes: p.GetRetriableStatusCodes(),
		PerTryTimeout: d.duration(at+".per_try_timeout", p.GetPerTryTimeout()),
		BackoffBase:   d.duration(at+".retry_back_off.base_interval", p.GetRetryBackOff().GetBaseInterval()),
		BackoffMax:    d.duration(at+".retry_back_off.max_interval", p.GetRetryBackOff().GetMaxInterval()),
	}
	if n := p.GetNumRetries(); n != nil {
		out.NumRetries = n.GetValue()
	}
	for _, w := range strings.Split(p.GetRetryOn(), ",") {
		if w = strings.ToLower(strings.TrimSpace(w)); w != "" {
			out.On = append(out.On, w)
		}
	}
	return out
}

func (e *encoder) hash(h *resource.HashPolicy) *routev3.RouteAction_HashPolicy {
	out := &routev3.RouteAction_HashPolicy{Terminal: h.Terminal}
	switch {
	case h.Header != "":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Header}}
	case h.Cookie != "":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: h.Cookie, Ttl: durationp(h.CookieTTL), Path: h.CookiePath}}
	case h.SourceIP:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}
	case h.Query != "":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.Query}}
	}
	return out
}

func (d *decoder) hash(at string, m *routev3.RouteAction_HashPolicy) resource.HashPolicy {
	out := resource.HashPolicy{Terminal: m.GetTerminal()}
	switch x := m.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		out.Header = strings.ToLower(x.Header.GetHeaderName())
	case *routev3.RouteAction_HashPolicy_Cookie_:
		out.Cookie, out.CookiePath, out.CookieTTL = x.Cookie.GetName(), x.Cookie.GetPath(), d.durationp(at+".cookie.ttl", x.Cookie.GetTtl())
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		out.SourceIP = x.ConnectionProperties.GetSourceIp()
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		out.Query = x.QueryParameter.GetName()
	}
	return out
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND, 303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func (e *encoder) redirect(r *resource.Redirect) *routev3.RedirectAction {
	out := &routev3.RedirectAction{HostRedirect: r.Host, PortRedirect: r.Port, StripQuery: r.StripQuery, ResponseCode: redirectCodes[r.Code]}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch {
	case r.Path != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path}
	case r.PrefixRewrite != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.PrefixRewrite}
	}
	return out
}

func (d *decoder) redirect(at string, m *routev3.RedirectAction) *resource.Redirect {
	out := &resource.Redirect{
		Scheme: m.GetSchemeRedirect(), Host: m.GetHostRedirect(), Port: m.GetPortRedirect(),
		Path: m.GetPathRedirect(), PrefixRewrite: m.GetPrefixRewrite(), StripQuery: m.GetStripQuery(),
	}
	if m.GetHttpsRedirect() {
		out.Scheme = "https"
	}
	known := false
	for code, v := range redirectCodes {
		if v == m.GetResponseCode() {
			out.Code, known = code, true
		}
	}
	if !known {
		d.fail(at+".response_code", fmt.Sprintf("unknown value %d", m.GetResponseCode()))
	}
	return out
}
