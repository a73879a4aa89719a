package decide

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Routes is a route configuration, compiled. Immutable. It keeps pointers into
// the configuration that it was made of.
type Routes struct {
	hosts    []vhost
	exact    map[string]int // lower case
	suffixes wildcards      // "*.example.com"
	prefixes wildcards      // "example.*"
	any      int            // "*"; -1: none
}

type vhost struct {
	res    *resource.VirtualHost
	routes []route
	index  pathIndex
}

// wildcards finds the longest of many fixed parts by their distinct lengths.
type wildcards struct {
	hosts   map[string]int // fixed part, lower case
	lengths []int          // longest first
}

func (w *wildcards) add(part string, host int) {
	if w.hosts == nil {
		w.hosts = map[string]int{}
	}
	w.hosts[part] = host
	w.lengths = insertDesc(w.lengths, len(part))
}

// CompileRoutes compiles a route configuration; its error names the field that
// cannot be compiled.
func CompileRoutes(rc *resource.RouteConfig) (*Routes, error) {
	r := &Routes{hosts: make([]vhost, len(rc.VirtualHosts)), exact: map[string]int{}, any: -1}
	for i := range rc.VirtualHosts {
		v := &rc.VirtualHosts[i]
		h := &r.hosts[i]
		h.res = v
		h.routes = make([]route, len(v.Routes))
		for j := range v.Routes {
			if err := h.routes[j].compile(&v.Routes[j]); err != nil {
				return nil, fmt.Errorf("decide: route configuration %q: virtual_hosts[%d].routes[%d].%w", rc.Name, i, j, err)
			}
		}
		h.index.build(h.routes)
		for _, d := range v.Domains {
			r.domain(strings.ToLower(d), i)
		}
	}
	return r, nil
}

// domain files a domain under its kind; of two equal ones the first stays.
func (r *Routes) domain(d string, host int) {
	switch {
	case d == "*":
		if r.any < 0 {
			r.any = host
		}
	case strings.HasPrefix(d, "*"):
		if _, dup := r.suffixes.hosts[d[1:]]; !dup {
			r.suffixes.add(d[1:], host)
		}
	case strings.HasSuffix(d, "*"):
		if _, dup := r.prefixes.hosts[d[:len(d)-1]]; !dup {
			r.prefixes.add(d[:len(d)-1], host)
		}
	default:
		if _, dup := r.exact[d]; !dup {
			r.exact[d] = host
		}
	}
}

// Route decides where a request goes and writes it to out, which may be reused
// from request to request. f must not be nil. Draws[0] decides route fractions,
// Draws[1] the split by weight.
func (r *Routes) Route(h Head, f *Facts, tr *Trace, out *RouteVerdict) {
	*out = RouteVerdict{NotFound: true}
	i, domain := r.host(h.Authority())
	if i < 0 {
		if tr != nil {
			tr.Add("virtual host", false, fmt.Sprintf("no domain matches the authority %q", h.Authority()))
		}
		return
	}
	v := &r.hosts[i]
	out.VirtualHost, out.Host = v.res.Name, v.res
	path := PathOf(h.Path())
	n := -1
	if tr == nil {
		n = v.index.find(v.routes, path, h, f)
	} else {
		tr.Add(fmt.Sprintf("virtual host %q", v.res.Name), true, fmt.Sprintf("domain %q matches the authority %q", domain, h.Authority()))
		n = v.walk(path, h, f, tr)
	}
	if n < 0 {
		return
	}
	v.routes[n].apply(path, h, f, tr, out)
}

// host finds the virtual host of an authority: exact domain, longest suffix
// wildcard, longest prefix wildcard, "*" (config.route.v3.VirtualHost.domains).
// The authority's port does not count, unless a domain names it.
func (r *Routes) host(authority string) (int, string) {
	var buf [256]byte
	var name []byte
	if len(authority) <= len(buf) {
		name = buf[:len(authority)]
	} else {
		name = make([]byte, len(authority))
	}
	for i := range len(authority) {
		name[i] = lower(authority[i])
	}
	if i, ok := r.exact[string(name)]; ok {
		return i, authority
	}
	name = name[:len(withoutPort(authority))]
	if i, ok := r.exact[string(name)]; ok {
		return i, authority[:len(name)]
	}
	for _, n := range r.suffixes.lengths {
		if n < len(name) { // the wildcard does not match nothing
			if i, ok := r.suffixes.hosts[string(name[len(name)-n:])]; ok {
				return i, "*" + authority[len(name)-n:len(name)]
			}
		}
	}
	for _, n := range r.prefixes.lengths {
		if n < len(name) {
			if i, ok := r.prefixes.hosts[string(name[:n])]; ok {
				return i, authority[:n] + "*"
			}
		}
	}
	return r.any, "*"
}

// withoutPort cuts ":port" off; an IPv6 literal keeps its brackets.
func withoutPort(authority string) string {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.IndexByte(authority[i:], ']') >= 0 {
		return authority
	}
	if strings.IndexByte(authority[:i], ':') >= 0 && authority[i-1] != ']' {
		return authority // a bare IPv6 address
	}
	for _, b := range []byte(authority[i+1:]) {
		if b < '0' || b > '9' {
			return authority
		}
	}
	return authority[:i]
}

// walk looks at every route in order and writes each down.
func (v *vhost) walk(path string, h Head, f *Facts, tr *Trace) int {
	for i := range v.routes {
		r := &v.routes[i]
		why, ok := r.explain(path, h, f)
		tr.Add(r.subject(v.res.Name, i), ok, why)
		if ok {
			return i
		}
	}
	tr.Add(fmt.Sprintf("virtual host %q", v.res.Name), false, "no route matches")
	return -1
}

// apply fills the verdict of the route that matched.
func (r *route) apply(path string, h Head, f *Facts, tr *Trace, out *RouteVerdict) {
	out.NotFound = false
	out.Route, out.RouteName = r.res, r.res.Name
	out.Path, out.Authority = h.Path(), h.Authority()
	switch {
	case r.res.Forward != nil:
		fw := r.res.Forward
		out.Cluster = fw.Cluster
		if len(fw.Weighted) > 0 {
			out.Weighted = r.split(f, tr)
			out.Cluster = out.Weighted.Name
		}
		switch {
		case fw.PrefixRewrite != "":
			out.Path = r.replacePrefix(path, h.Path(), fw.PrefixRewrite)
		case r.rewrite != nil:
			out.Path = rooted(r.rewrite.ReplaceAllString(path, r.substitution)) + h.Path()[len(path):]
		}
		if fw.HostRewrite != "" {
			out.Authority = fw.HostRewrite
		}
	case r.res.Redirect != nil:
		out.Redirect = r.location(path, h)
		out.Status = int(r.res.Redirect.Code)
		if out.Status == 0 {
			out.Status = 301
		}
	case r.res.Direct != nil:
		out.Direct, out.Status = r.res.Direct, int(r.res.Direct.Status)
	default: // non-forwarding: for servers that answer themselves, which no sidecar is
		out.NotFound = true
		tr.Add("route "+strconv.Quote(r.res.Name), false, "it is for servers that answer themselves (non_forwarding_action)")
	}
}

// split picks a weighted cluster by the second draw.
func (r *route) split(f *Facts, tr *Trace) *resource.WeightedCluster {
	ws := r.res.Forward.Weighted
	at := uint64(f.Draws[1]) * r.weights / 1_000_000
	if at >= r.weights { // a draw out of range must not fall off the end
		at = r.weights - 1
	}
	for i := range ws {
		if w := uint64(ws[i].Weight); at >= w {
			at -= w
			continue
		}
		if tr != nil {
			tr.Add("split", true, fmt.Sprintf("draw %d of 1000000 falls to cluster %q with weight %d of %d", f.Draws[1], ws[i].Name, ws[i].Weight, r.weights))
		}
		return &ws[i]
	}
	return &ws[len(ws)-1]
}

// replacePrefix replaces what the route's path matched by to, and keeps the
// rest of the target. A route by regex matched the whole path.
func (r *route) replacePrefix(path, target, to string) string {
	n := len(path)
	if k := r.res.Match.PathKind; k == resource.PathPrefix || k == resource.PathSeparatedPrefix {
		n = min(n, len(r.res.Match.Path))
	}
	return rooted(to + target[n:])
}

// rooted makes sure that a rewritten path is one.
func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// location builds a redirect's target (config.route.v3.RedirectAction).
func (r *route) location(path string, h Head) string {
	rd := r.res.Redirect
	scheme := h.Scheme()
	if scheme == "" {
		scheme = "http"
	}
	host := h.Authority()
	if rd.Host != "" {
		host = rd.Host
	}
	switch {
	case rd.Port != 0:
		host = withoutPort(host)
		if !(rd.Port == 80 && finalScheme(rd, scheme) == "http") && !(rd.Port == 443 && finalScheme(rd, scheme) == "https") {
			host += ":" + strconv.Itoa(int(rd.Port))
		}
	case rd.Scheme != "" && rd.Scheme != scheme: // the old scheme's port means nothing in the new one
		if (scheme == "http" && strings.HasSuffix(host, ":80")) || (scheme == "https" && strings.HasSuffix(host, ":443")) {
			host = withoutPort(host)
		}
	}
	target := h.Path()
	switch {
	case rd.Path != "" && strings.Contains(rd.Path, "?"):
		target = rd.Path
	case rd.Path != "":
		target = rd.Path + target[len(path):]
	case rd.PrefixRewrite != "":
		target = r.replacePrefix(path, target, rd.PrefixRewrite)
	}
	if rd.StripQuery && !strings.Contains(rd.Path, "?") {
		target = PathOf(target)
	}
	return finalScheme(rd, scheme) + "://" + host + target
}

func finalScheme(rd *resource.Redirect, scheme string) string {
	if rd.Scheme != "" {
		return rd.Scheme
	}
	return scheme
}
