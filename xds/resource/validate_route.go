package resource

import (
	"fmt"
	"strings"
)

var _ Resource = (*RouteConfig)(nil)

// Validate says whether parrel can execute the route configuration.
func (r *RouteConfig) Validate() error {
	c := &check{}
	c.name("name", r.Name)
	c.routes("", r)
	return c.err()
}

// routes checks a route configuration; its name may be empty where it is inline.
func (c *check) routes(at string, r *RouteConfig) {
	c.text(at+"name", r.Name)
	c.metadata(at+"metadata", r.Metadata)
	names, domains := map[string]bool{}, map[string]string{}
	for i := range r.VirtualHosts {
		v := &r.VirtualHosts[i]
		vh := fmt.Sprintf("%svirtual_hosts[%d]", at, i)
		c.name(vh+".name", v.Name)
		if names[v.Name] {
			c.failf(vh+".name", "%q is the name of two virtual hosts", v.Name)
		}
		names[v.Name] = true
		if len(v.Domains) == 0 {
			c.failf(vh+".domains", "there is none; no request would come here")
		}
		for j, d := range v.Domains {
			field := fmt.Sprintf("%s.domains[%d]", vh, j)
			c.domain(field, d)
			key := strings.ToLower(d)
			if other, ok := domains[key]; ok {
				c.failf(field, "%q stands in virtual host %q too", d, other)
			}
			domains[key] = v.Name
		}
		c.mutations(vh+".request", &v.RequestHeaders)
		c.mutations(vh+".response", &v.ResponseHeaders)
		for j := range v.Routes {
			c.route(fmt.Sprintf("%s.routes[%d]", vh, j), &v.Routes[j])
		}
	}
}

func (c *check) domain(field, d string) {
	c.name(field, d)
	if strings.Count(d, "*") > 1 || (strings.Contains(d, "*") && d[0] != '*' && d[len(d)-1] != '*') {
		c.failf(field, "%q: a wildcard stands alone, at the beginning or at the end", d)
	}
}

func (c *check) route(at string, r *Route) {
	c.text(at+".name", r.Name)
	c.metadata(at+".metadata", r.Metadata)
	c.mutations(at+".request", &r.RequestHeaders)
	c.mutations(at+".response", &r.ResponseHeaders)
	c.match(at+".match", &r.Match)
	c.one(at, map[string]bool{"route": r.Forward != nil, "redirect": r.Redirect != nil, "direct_response": r.Direct != nil, "non_forwarding_action": r.NonForwarding})
	if r.Forward != nil {
		c.forward(at+".route", r.Forward)
	}
	if r.Redirect != nil {
		c.redirect(at+".redirect", r.Redirect)
	}
	if d := r.Direct; d != nil {
		if d.Status < 200 || d.Status > 599 {
			c.failf(at+".direct_response.status", "%d is no final HTTP status", d.Status)
		}
		c.text(at+".direct_response.body.inline_string", d.Body)
	}
}

func (c *check) match(at string, m *RouteMatch) {
	c.text(at, m.Path)
	switch m.PathKind {
	case PathPrefix: // an empty prefix matches everything, as in Envoy
	case PathExact:
		if m.Path == "" {
			c.failf(at+".path", "must not be empty")
		}
	case PathRegex:
		c.regex(at+".safe_regex.regex", m.Path)
		if m.Path == "" {
			c.failf(at+".safe_regex.regex", "must not be empty")
		}
		if m.IgnoreCase {
			c.failf(at+".case_sensitive", "has no effect on a regex; write (?i) into it")
		}
	case PathSeparatedPrefix:
		if !strings.HasPrefix(m.Path, "/") || strings.HasSuffix(m.Path, "/") || strings.ContainsAny(m.Path, "?#") {
			c.failf(at+".path_separated_prefix", "%q must begin with / and not end with it, without ? and #", m.Path)
		}
	default:
		c.failf(at, "unknown kind %d of path match", m.PathKind)
	}
	for i := range m.Headers {
		c.headerMatch(fmt.Sprintf("%s.headers[%d]", at, i), &m.Headers[i])
	}
	for i := range m.Query {
		q := &m.Query[i]
		field := fmt.Sprintf("%s.query_parameters[%d]", at, i)
		c.name(field+".name", q.Name)
		c.one(field, map[string]bool{"present_match": q.Present, "string_match": q.String != nil})
		if q.String != nil {
			c.stringMatch(field+".string_match", q.String)
		}
	}
	if m.Fraction != nil && *m.Fraction > 1_000_000 {
		c.failf(at+".runtime_fraction", "%d millionths is more than all", *m.Fraction)
	}
}

func (c *check) forward(at string, f *Forward) {
	c.one(at, map[string]bool{"cluster": f.Cluster != "", "weighted_clusters": len(f.Weighted) > 0})
	c.text(at+".cluster", f.Cluster)
	if len(f.Weighted) > 0 {
		c.weights(at+".weighted_clusters", f.Weighted)
	}
	c.durationp(at+".timeout", f.Timeout)
	c.durationp(at+".idle_timeout", f.IdleTimeout)
	c.text(at+".prefix_rewrite", f.PrefixRewrite)
	c.text(at+".host_rewrite_literal", f.HostRewrite)
	if f.PrefixRewrite != "" && f.RegexRewrite != nil {
		c.failf(at+".regex_rewrite", "stands beside prefix_rewrite; choose one")
	}
	if f.HostRewrite != "" && f.AutoHostRewrite {
		c.failf(at+".auto_host_rewrite", "stands beside host_rewrite_literal; choose one")
	}
	if x := f.RegexRewrite; x != nil {
		c.name(at+".regex_rewrite.pattern.regex", x.Regex)
		c.regex(at+".regex_rewrite.pattern.regex", x.Regex)
		c.text(at+".regex_rewrite.substitution", x.Substitution)
	}
	for i := range f.Hash {
		h := &f.Hash[i]
		field := fmt.Sprintf("%s.hash_policy[%d]", at, i)
		c.one(field, map[string]bool{"header": h.Header != "", "cookie": h.Cookie != "", "connection_properties": h.SourceIP, "query_parameter": h.Query != ""})
		if h.Header != "" {
			c.headerName(field+".header.header_name", h.Header)
		}
		c.text(field+".query_parameter.name", h.Query)
		c.text(field+".cookie.name", h.Cookie+h.CookiePath)
		if h.Cookie == "" && (h.CookieTTL != nil || h.CookiePath != "") {
			c.failf(field+".cookie.name", "must not be empty")
		}
		c.durationp(field+".cookie.ttl", h.CookieTTL)
	}
	if f.Retry != nil {
		c.retry(at+".retry_policy", f.Retry)
	}
}

func (c *check) retry(at string, r *Retry) {
	for _, w := range r.On {
		if w == "" || strings.ContainsAny(w, ", \t") || w != strings.ToLower(w) {
			c.failf(at+".retry_on", "%q is no word", w)
		}
		c.text(at+".retry_on", w)
	}
	for i, s := range r.StatusCodes {
		if s < 100 || s > 599 {
			c.failf(fmt.Sprintf("%s.retriable_status_codes[%d]", at, i), "%d is no HTTP status", s)
		}
	}
	c.duration(at+".per_try_timeout", r.PerTryTimeout)
	c.duration(at+".retry_back_off.base_interval", r.BackoffBase)
	c.duration(at+".retry_back_off.max_interval", r.BackoffMax)
	if r.BackoffMax > 0 && (r.BackoffBase == 0 || r.BackoffMax < r.BackoffBase) {
		c.failf(at+".retry_back_off.max_interval", "%s needs a base_interval of at most as much", r.BackoffMax)
	}
}

func (c *check) redirect(at string, r *Redirect) {
	c.text(at+".scheme_redirect", r.Scheme)
	c.text(at+".host_redirect", r.Host)
	c.text(at+".path_redirect", r.Path)
	c.text(at+".prefix_rewrite", r.PrefixRewrite)
	if r.Path != "" && r.PrefixRewrite != "" {
		c.failf(at+".prefix_rewrite", "stands beside path_redirect; choose one")
	}
	if r.Port > 65535 {
		c.failf(at+".port_redirect", "%d is no port", r.Port)
	}
	switch r.Code {
	case 0, 301, 302, 303, 307, 308:
	default:
		c.failf(at+".response_code", "%d is no redirection", r.Code)
	}
	for _, s := range []string{r.Scheme, r.Host, r.Path, r.PrefixRewrite} {
		if strings.ContainsAny(s, "\r\n\x00") {
			c.failf(at, "contains a line break or NUL")
		}
	}
}
