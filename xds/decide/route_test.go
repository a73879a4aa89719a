package decide

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

func compile(t testing.TB, rc *resource.RouteConfig) *Routes {
	t.Helper()
	r, err := CompileRoutes(rc)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// oneHost is a configuration whose routes are named after their position.
func oneHost(routes ...resource.Route) *resource.RouteConfig {
	for i := range routes {
		if routes[i].Name == "" {
			routes[i].Name = fmt.Sprint(i)
		}
	}
	return &resource.RouteConfig{Name: "r", VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: routes}}}
}

func to(cluster string, m resource.RouteMatch) resource.Route {
	return resource.Route{Name: cluster, Match: m, Forward: &resource.Forward{Cluster: cluster}}
}

func TestVirtualHosts(t *testing.T) {
	rc := &resource.RouteConfig{Name: "r"}
	for _, d := range []string{"web", "web.example", "*.example", "*.api.example", "*-x.example", "web.*", "web.api.*", "*", "Upper", "web:8080", "[::1]"} {
		rc.VirtualHosts = append(rc.VirtualHosts, resource.VirtualHost{Name: d, Domains: []string{d}})
	}
	r := compile(t, rc)
	for authority, want := range map[string]string{
		"web": "web", "WEB": "web", "web:80": "web", "web:8080": "web:8080", "web.example:443": "web.example",
		"a.example": "*.example", "a.b.example": "*.example", "A.API.example": "*.api.example", "api.example": "*.example",
		".example": "*", "a-x.example": "*-x.example", "web.org": "web.*", "web.api.org": "web.api.*", "web.": "*",
		"other": "*", "": "*", "upper": "Upper", "[::1]:80": "[::1]", strings.Repeat("A", 300) + ".example": "*.example",
	} {
		var out RouteVerdict
		r.Route(get("/", ":authority", authority), &Facts{}, nil, &out)
		if out.VirtualHost != want {
			t.Errorf("%q goes to %q, want %q", authority, out.VirtualHost, want)
		}
		if !out.NotFound {
			t.Errorf("%q: found in a host without routes", authority)
		}
	}
	r = compile(t, &resource.RouteConfig{VirtualHosts: []resource.VirtualHost{{Name: "a", Domains: []string{"a"}}}})
	out := RouteVerdict{Cluster: "left over"}
	r.Route(get("/"), &Facts{}, nil, &out)
	if !out.NotFound || out.VirtualHost != "" || out.Cluster != "" {
		t.Errorf("%+v", out)
	}
}

func TestRouteMatchers(t *testing.T) {
	half := uint32(500_000)
	for _, tc := range []struct {
		name string
		m    resource.RouteMatch
		h    *request
		want bool
	}{
		{"prefix", resource.RouteMatch{Path: "/a"}, get("/ab?x"), true},
		{"other prefix", resource.RouteMatch{Path: "/a"}, get("/b"), false},
		{"prefix in the query", resource.RouteMatch{Path: "/a?"}, get("/a?x"), false},
		{"empty prefix", resource.RouteMatch{}, get("*"), true},
		{"prefix without case", resource.RouteMatch{Path: "/A", IgnoreCase: true}, get("/ab"), true},
		{"exact", resource.RouteMatch{PathKind: resource.PathExact, Path: "/a"}, get("/a?x=/b"), true},
		{"exact and a fragment", resource.RouteMatch{PathKind: resource.PathExact, Path: "/a"}, get("/a#x"), true},
		{"exact and more", resource.RouteMatch{PathKind: resource.PathExact, Path: "/a"}, get("/a/"), false},
		{"exact and a parameter", resource.RouteMatch{PathKind: resource.PathExact, Path: "/a"}, get("/a;x"), false},
		{"exact without case", resource.RouteMatch{PathKind: resource.PathExact, Path: "/A", IgnoreCase: true}, get("/a"), true},
		{"regex", resource.RouteMatch{PathKind: resource.PathRegex, Path: "/v[0-9]"}, get("/v1?x"), true},
		{"regex is for the whole path", resource.RouteMatch{PathKind: resource.PathRegex, Path: "/v[0-9]"}, get("/v1/x"), false},
		{"regex on no text", resource.RouteMatch{PathKind: resource.PathRegex, Path: "/.*"}, get("/\xff"), false},
		{"segments", resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/a"}, get("/a/b"), true},
		{"the segment itself", resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/a"}, get("/a?b"), true},
		{"part of a segment", resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/a"}, get("/ab"), false},
		{"segments without case", resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/A", IgnoreCase: true}, get("/a/b"), true},
		{"header", resource.RouteMatch{Headers: []resource.HeaderMatch{{Name: "a", Present: true}}}, get("/", "a", "x"), true},
		{"no header", resource.RouteMatch{Headers: []resource.HeaderMatch{{Name: "a", Present: true}}}, get("/"), false},
		{"one header of two", resource.RouteMatch{Headers: []resource.HeaderMatch{{Name: "a", Present: true}, {Name: "b", Present: true}}}, get("/", "a", "x"), false},
		{"header that is no text, inverted", resource.RouteMatch{Headers: []resource.HeaderMatch{{Name: "a", Invert: true, String: str(resource.StringRegex, "x")}}}, get("/", "a", "\xff"), false},
		{"query", resource.RouteMatch{Query: []resource.QueryMatch{{Name: "q", Present: true}}}, get("/?q"), true},
		{"no query", resource.RouteMatch{Query: []resource.QueryMatch{{Name: "q", Present: true}}}, get("/?p"), false},
		{"query value", resource.RouteMatch{Query: []resource.QueryMatch{{Name: "q", String: str(resource.StringPrefix, "a")}}}, get("/?q=ab"), true},
		{"other query value", resource.RouteMatch{Query: []resource.QueryMatch{{Name: "q", String: str(resource.StringPrefix, "a")}}}, get("/?q=b"), false},
		{"missing query value", resource.RouteMatch{Query: []resource.QueryMatch{{Name: "q", String: str(resource.StringRegex, ".*")}}}, get("/"), false},
		{"gRPC", resource.RouteMatch{GRPC: true}, get("/", "content-type", "application/grpc+proto"), true},
		{"gRPC-Web is not", resource.RouteMatch{GRPC: true}, get("/", "content-type", "application/grpc-web"), false},
		{"no gRPC", resource.RouteMatch{GRPC: true}, get("/"), false},
		{"fraction", resource.RouteMatch{Fraction: &half}, get("/"), true},
	} {
		var out RouteVerdict
		r := compile(t, oneHost(to("c", tc.m)))
		f := &Facts{Draws: [4]uint32{499_999}}
		if r.Route(tc.h, f, nil, &out); out.NotFound == tc.want {
			t.Errorf("%s: not found = %v", tc.name, out.NotFound)
		}
		tr := &Trace{}
		var traced RouteVerdict
		if r.Route(tc.h, f, tr, &traced); traced != out {
			t.Errorf("%s: with a trace the verdict is another: %+v, %+v", tc.name, traced, out)
		}
		if len(tr.Steps) < 2 || tr.Steps[1].Matched != tc.want || tr.Steps[1].Reason == "" {
			t.Errorf("%s: trace %+v", tc.name, tr.Steps)
		}
	}
	var out RouteVerdict
	compile(t, oneHost(to("c", resource.RouteMatch{Fraction: &half}))).Route(get("/"), &Facts{Draws: [4]uint32{500_000}}, nil, &out)
	if !out.NotFound {
		t.Error("a draw outside the fraction matched")
	}
}

func TestSplit(t *testing.T) {
	r := compile(t, oneHost(resource.Route{Forward: &resource.Forward{Weighted: []resource.WeightedCluster{{Name: "a", Weight: 90}, {Name: "z"}, {Name: "b", Weight: 10}}}}))
	count := map[string]int{}
	var out RouteVerdict
	for i := range 50_000 {
		r.Route(get("/"), &Facts{Draws: [4]uint32{0, uint32(i * 20)}}, nil, &out)
		if out.Weighted == nil || out.Weighted.Name != out.Cluster {
			t.Fatalf("%+v", out)
		}
		count[out.Cluster]++
	}
	if count["a"] != 45_000 || count["b"] != 5_000 || count["z"] != 0 {
		t.Errorf("%v", count)
	}
	r.Route(get("/"), &Facts{Draws: [4]uint32{0, 4_000_000_000}}, nil, &out)
	if out.Cluster != "b" {
		t.Errorf("a draw out of range goes to %q", out.Cluster)
	}
}

func TestRewrite(t *testing.T) {
	for _, tc := range []struct {
		name      string
		m         resource.RouteMatch
		f         resource.Forward
		path      string
		want      string
		authority string
	}{
		{"none", resource.RouteMatch{Path: "/a"}, resource.Forward{}, "/a?x", "/a?x", "web"},
		{"prefix", resource.RouteMatch{Path: "/a/"}, resource.Forward{PrefixRewrite: "/"}, "/a/b?x", "/b?x", "web"},
		{"prefix of everything", resource.RouteMatch{Path: "/"}, resource.Forward{PrefixRewrite: "/x/"}, "/b", "/x/b", "web"},
		{"exact", resource.RouteMatch{PathKind: resource.PathExact, Path: "/a"}, resource.Forward{PrefixRewrite: "/b"}, "/a?x", "/b?x", "web"},
		{"regex route", resource.RouteMatch{PathKind: resource.PathRegex, Path: "/a.*"}, resource.Forward{PrefixRewrite: "/b"}, "/abc?x", "/b?x", "web"},
		{"segments", resource.RouteMatch{PathKind: resource.PathSeparatedPrefix, Path: "/a"}, resource.Forward{PrefixRewrite: "/b"}, "/a/c", "/b/c", "web"},
		{"stays a path", resource.RouteMatch{Path: "/a"}, resource.Forward{PrefixRewrite: "b"}, "/a", "/b", "web"},
		{"regex", resource.RouteMatch{Path: "/"}, resource.Forward{RegexRewrite: &resource.RegexRewrite{Regex: "^/v(.)/(.*)$", Substitution: `/\2/$\1`}}, "/v1/a?/v2/b", "/a/$1?/v2/b", "web"},
		{"host", resource.RouteMatch{Path: "/"}, resource.Forward{HostRewrite: "up"}, "/", "/", "up"},
	} {
		f := tc.f
		f.Cluster = "c"
		var out RouteVerdict
		compile(t, oneHost(resource.Route{Match: tc.m, Forward: &f})).Route(get(tc.path), &Facts{}, nil, &out)
		if out.Path != tc.want || out.Authority != tc.authority || out.Cluster != "c" {
			t.Errorf("%s: %+v", tc.name, out)
		}
	}
}

func TestRedirect(t *testing.T) {
	for _, tc := range []struct {
		rd        resource.Redirect
		authority string
		path      string
		want      string
		status    int
	}{
		{resource.Redirect{Scheme: "https"}, "web", "/a?b", "https://web/a?b", 301},
		{resource.Redirect{Scheme: "https"}, "web:80", "/", "https://web/", 301},
		{resource.Redirect{Scheme: "https"}, "web:8080", "/", "https://web:8080/", 301},
		{resource.Redirect{Scheme: "https", Port: 8443, Code: 308}, "web:80", "/", "https://web:8443/", 308},
		{resource.Redirect{Scheme: "https", Port: 443}, "web:80", "/", "https://web/", 301},
		{resource.Redirect{Host: "other"}, "web", "/a?b", "http://other/a?b", 301},
		{resource.Redirect{Host: "[::1]", Port: 81}, "web", "/", "http://[::1]:81/", 301},
		{resource.Redirect{Path: "/n"}, "web", "/a?b", "http://web/n?b", 301},
		{resource.Redirect{Path: "/n", StripQuery: true}, "web", "/a?b", "http://web/n", 301},
		{resource.Redirect{Path: "/n?c", StripQuery: true}, "web", "/a?b", "http://web/n?c", 301},
		{resource.Redirect{PrefixRewrite: "/x"}, "web", "/a/b?c", "http://web/x/b?c", 301},
		{resource.Redirect{StripQuery: true, Code: 302}, "web", "/a?b", "http://web/a", 302},
	} {
		rd := tc.rd
		var out RouteVerdict
		compile(t, oneHost(resource.Route{Match: resource.RouteMatch{Path: tc.path[:min(2, len(tc.path))]}, Redirect: &rd})).Route(get(tc.path, ":authority", tc.authority), &Facts{}, nil, &out)
		if out.Redirect != tc.want || out.Status != tc.status || out.NotFound {
			t.Errorf("%+v: %+v", tc.rd, out)
		}
	}
}

func TestDirectAndNonForwarding(t *testing.T) {
	r := compile(t, oneHost(
		resource.Route{Match: resource.RouteMatch{Path: "/d"}, Direct: &resource.DirectResponse{Status: 503, Body: "x"}},
		resource.Route{Match: resource.RouteMatch{Path: "/"}, NonForwarding: true}))
	var out RouteVerdict
	if r.Route(get("/d"), &Facts{}, nil, &out); out.Direct == nil || out.Status != 503 || out.NotFound {
		t.Errorf("%+v", out)
	}
	if r.Route(get("/"), &Facts{}, nil, &out); !out.NotFound || out.Direct != nil || out.Route == nil {
		t.Errorf("%+v", out)
	}
}

func TestCompileRoutesNamesTheField(t *testing.T) {
	_, err := CompileRoutes(oneHost(to("c", resource.RouteMatch{Headers: []resource.HeaderMatch{{Name: "a", String: str(resource.StringRegex, "(")}}})))
	if err == nil || !strings.Contains(err.Error(), "virtual_hosts[0].routes[0].match.headers[0].string_match.safe_regex") {
		t.Error(err)
	}
}

// TestIndexAgainstLinear: the index finds the very route that a naive search in
// order finds, and the trace tells of the same.
func TestIndexAgainstLinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rc := resourcetest.RouteConfig().Draw(t, "routes")
		r, err := CompileRoutes(rc)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			h := get(rapid.SampledFrom([]string{"/", "/a", "/a/", "/a/b", "/ab", "/b", "/B", "/b/c", "/v1", "*", "", "/a?q=a&r", "/a/b?q=/v1", "/\xff"}).Draw(t, "path"),
				":authority", rapid.SampledFrom([]string{"h0.example", "x.h0.example", "h0.org", "H1.EXAMPLE:80", "h2.example", "h1.upper.example:8080", "z"}).Draw(t, "authority"))
			for _, n := range []string{"x-a", "x-b", "content-type", "cookie"} {
				if v := rapid.SampledFrom([]string{"", "a", "application/grpc", "5", "/v1x", "\xff"}).Draw(t, n); v != "" {
					h.headers[n] = v
				}
			}
			f := &Facts{Draws: [4]uint32{uint32(rapid.IntRange(0, 999_999).Draw(t, "d0")), uint32(rapid.IntRange(0, 999_999).Draw(t, "d1"))}}
			var out, traced RouteVerdict
			r.Route(h, f, nil, &out)
			r.Route(h, f, &Trace{}, &traced)
			if out != traced {
				t.Fatalf("with a trace the verdict is another:\n%+v\n%+v", out, traced)
			}
			if want := linear(rc, h, f); out.Route != want {
				t.Fatalf("%+v: the index finds %+v, a search in order %+v", h, out.Route, want)
			}
		}
	})
}

// linear is a second reading of the rules, as plain as can be.
func linear(rc *resource.RouteConfig, h *request, f *Facts) *resource.Route {
	vh := linearHost(rc, strings.ToLower(h.authority))
	if vh == nil {
		return nil
	}
	path, _, _ := strings.Cut(h.path, "?")
	for i := range vh.Routes {
		r := &vh.Routes[i]
		m := &r.Match
		p, want := path, m.Path
		if m.IgnoreCase {
			p, want = strings.ToLower(p), strings.ToLower(want)
		}
		ok := strings.HasPrefix(p, want)
		switch m.PathKind {
		case resource.PathExact:
			ok = p == want
		case resource.PathSeparatedPrefix:
			ok = p == want || strings.HasPrefix(p, want+"/")
		case resource.PathRegex:
			ok = regexp.MustCompile("^("+want+")$").MatchString(p) && !strings.Contains(p, "\xff")
		}
		ok = ok && (m.Fraction == nil || f.Draws[0] < *m.Fraction)
		ct := h.headers["content-type"]
		ok = ok && (!m.GRPC || ct == "application/grpc" || strings.HasPrefix(ct, "application/grpc+"))
		for j := range m.Headers {
			hm, _ := compileHeader(&m.Headers[j]) // its own tests are in TestHeader
			ok = ok && hm.match(h) == yes
		}
		for _, q := range m.Query {
			v, has := linearQuery(h.path, q.Name)
			if q.String != nil && has {
				tm, _ := compileText(q.String)
				has = tm.match(v) == yes
			}
			ok = ok && has
		}
		if ok {
			return r
		}
	}
	return nil
}

func linearQuery(target, name string) (string, bool) {
	_, q, _ := strings.Cut(target, "?")
	for _, p := range strings.Split(q, "&") {
		if k, v, _ := strings.Cut(p, "="); k == name && q != "" {
			return v, true
		}
	}
	return "", false
}

func linearHost(rc *resource.RouteConfig, authority string) *resource.VirtualHost {
	host, _, _ := strings.Cut(authority, ":")
	var best *resource.VirtualHost
	rank := -1
	for i := range rc.VirtualHosts {
		for _, d := range rc.VirtualHosts[i].Domains {
			d = strings.ToLower(d)
			r := -1
			switch {
			case d == authority:
				r = 4000
			case d == host:
				r = 3000
			case d == "*":
				r = 0
			case d[0] == '*' && len(host) >= len(d) && strings.HasSuffix(host, d[1:]):
				r = 2000 + len(d)
			case d[len(d)-1] == '*' && len(host) >= len(d) && strings.HasPrefix(host, d[:len(d)-1]):
				r = 1000 + len(d)
			}
			if r > rank {
				rank, best = r, &rc.VirtualHosts[i]
			}
		}
	}
	return best
}

// many is a configuration of n routes, mostly exact and prefix paths.
func many(n int) *resource.RouteConfig {
	var rs []resource.Route
	for i := range n {
		m := resource.RouteMatch{Path: fmt.Sprintf("/service/%d/", i)}
		if i%2 == 0 {
			m = resource.RouteMatch{PathKind: resource.PathExact, Path: fmt.Sprintf("/exact/%d", i)}
		}
		rs = append(rs, to(fmt.Sprint("c", i), m))
	}
	return oneHost(append(rs, to("rest", resource.RouteMatch{Path: "/"}))...)
}

func TestRouteDoesNotAllocate(t *testing.T) {
	r := compile(t, many(1000))
	h := get("/service/501/x?y=1", ":authority", "Web.Example:80")
	f := &Facts{}
	var out RouteVerdict
	if n := testing.AllocsPerRun(200, func() { r.Route(h, f, nil, &out) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if out.Cluster != "c501" {
		t.Errorf("%+v", out)
	}
	split := compile(t, oneHost(resource.Route{
		Match: resource.RouteMatch{PathKind: resource.PathRegex, Path: "/s.*", Headers: []resource.HeaderMatch{{Name: "a", String: str(resource.StringRegex, "x+")}},
			Query: []resource.QueryMatch{{Name: "y", String: str(resource.StringExact, "1")}}},
		Forward: &resource.Forward{Weighted: []resource.WeightedCluster{{Name: "a", Weight: 1}, {Name: "b", Weight: 1}}}}))
	h.headers["a"] = "xx"
	if n := testing.AllocsPerRun(200, func() { split.Route(h, f, nil, &out) }); n != 0 || out.Cluster != "a" {
		t.Errorf("%v allocations, %+v", n, out)
	}
}

func BenchmarkRoute10k(b *testing.B) {
	r := compile(b, many(10_000))
	f := &Facts{}
	for _, path := range []string{"/exact/9998", "/service/9999/x", "/none"} {
		h := get(path)
		b.Run(strings.ReplaceAll(path[1:], "/", "_"), func(b *testing.B) {
			b.ReportAllocs()
			var out RouteVerdict
			for b.Loop() {
				r.Route(h, f, nil, &out)
			}
		})
	}
}

func TestTraceReads(t *testing.T) {
	r := compile(t, oneHost(
		to("a", resource.RouteMatch{Path: "/v2"}),
		to("b", resource.RouteMatch{Path: "/", Headers: []resource.HeaderMatch{{Name: "x-canary", String: str(resource.StringExact, "1")}}}),
		to("c", resource.RouteMatch{Path: "/"})))
	tr := &Trace{}
	var out RouteVerdict
	r.Route(get("/api"), &Facts{}, tr, &out)
	var got []string
	for _, s := range tr.Steps {
		got = append(got, fmt.Sprintf("%s %v: %s", s.Subject, s.Matched, s.Reason))
	}
	want := []string{
		`virtual host "v" true: domain "*" matches the authority "web"`,
		`route v/routes[0] "a" false: path "/api" does not have the prefix "/v2"`,
		`route v/routes[1] "b" false: it needs the header x-canary equal to "1", but it is missing`,
		`route v/routes[2] "c" true: path "/api" and everything else match`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}
