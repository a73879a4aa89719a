package decide

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

const (
	webID = "spiffe://td/ns/default/dc/dc1/svc/web"
	badID = "spiffe://td/ns/default/dc/dc1/svc/webx"
)

func facts() *Facts {
	return &Facts{PeerID: webID, Source: netip.MustParseAddrPort("10.1.2.3:5000"), Destination: netip.MustParseAddrPort("10.9.9.9:8080"), ServerName: "api.example"}
}

func rules(action resource.RBACAction, ps ...resource.RBACPolicy) *resource.RBAC {
	return &resource.RBAC{Rules: &resource.RBACRules{Action: action, Policies: ps}}
}

func pol(name string, p resource.Permission, q resource.Principal) resource.RBACPolicy {
	return resource.RBACPolicy{Name: name, Permissions: []resource.Permission{p}, Principals: []resource.Principal{q}}
}

func authorise(t testing.TB, r *resource.RBAC, h Head, f *Facts) AuthVerdict {
	t.Helper()
	c, err := CompileRBAC(r)
	if err != nil {
		t.Fatal(err)
	}
	v := c.Authorise(h, f, nil)
	tr := &Trace{}
	if w := c.Authorise(h, f, tr); w != v {
		t.Fatalf("with a trace the verdict is another: %+v, %+v", v, w)
	}
	return v
}

var anyone, anything = resource.Principal{Any: true}, resource.Permission{Any: true}

func TestActions(t *testing.T) {
	match := pol("p", anything, anyone)
	other := pol("o", resource.Permission{Path: str(resource.StringExact, "/other")}, anyone)
	for _, tc := range []struct {
		name string
		r    *resource.RBAC
		want AuthVerdict
	}{
		{"nothing configured", &resource.RBAC{}, AuthVerdict{Allowed: true, ShadowAllowed: true}},
		{"ALLOW without a policy denies all", rules(resource.RBACAllow), AuthVerdict{ShadowAllowed: true}},
		{"DENY without a policy allows all", rules(resource.RBACDeny), AuthVerdict{Allowed: true, ShadowAllowed: true}},
		{"LOG without a policy", rules(resource.RBACLog), AuthVerdict{Allowed: true, ShadowAllowed: true}},
		{"ALLOW that matches", rules(resource.RBACAllow, other, match), AuthVerdict{Allowed: true, Policy: "p", ShadowAllowed: true}},
		{"ALLOW that does not", rules(resource.RBACAllow, other), AuthVerdict{ShadowAllowed: true}},
		{"DENY that matches", rules(resource.RBACDeny, other, match), AuthVerdict{Policy: "p", ShadowAllowed: true}},
		{"DENY that does not", rules(resource.RBACDeny, other), AuthVerdict{Allowed: true, ShadowAllowed: true}},
		{"LOG enforces nothing", rules(resource.RBACLog, match), AuthVerdict{Allowed: true, Policy: "p", ShadowAllowed: true}},
		{"shadow enforces nothing", &resource.RBAC{Shadow: &resource.RBACRules{Action: resource.RBACDeny, Policies: []resource.RBACPolicy{match}}}, AuthVerdict{Allowed: true, ShadowPolicy: "p"}},
	} {
		if got := authorise(t, tc.r, get("/"), facts()); got != tc.want {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
	if v := (*RBAC)(nil).Authorise(nil, facts(), nil); !v.Allowed || !v.ShadowAllowed {
		t.Error("no filter denies")
	}
}

func TestPermissionsAndPrincipals(t *testing.T) {
	port := func(p uint16) *uint16 { return &p }
	peer := func(k resource.StringKind, v string) resource.Principal {
		return resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: str(k, v)}}
	}
	hdr := resource.HeaderMatch{Name: "x-a", String: str(resource.StringExact, "1")}
	no := &resource.Permission{Path: str(resource.StringExact, "/never")}
	for _, tc := range []struct {
		name string
		p    resource.Permission
		q    resource.Principal
		want bool
	}{
		{"path without query", resource.Permission{Path: str(resource.StringExact, "/a")}, anyone, true},
		{"other path", resource.Permission{Path: str(resource.StringExact, "/b")}, anyone, false},
		{"header", resource.Permission{Header: &hdr}, anyone, true},
		{"port", resource.Permission{DestinationPort: port(8080)}, anyone, true},
		{"other port", resource.Permission{DestinationPort: port(8081)}, anyone, false},
		{"range", resource.Permission{DestinationPortRange: &resource.PortRange{Start: 8080, End: 8081}}, anyone, true},
		{"end of range", resource.Permission{DestinationPortRange: &resource.PortRange{Start: 8000, End: 8080}}, anyone, false},
		{"destination", resource.Permission{DestinationIP: "10.9.0.0/16"}, anyone, true},
		{"other destination", resource.Permission{DestinationIP: "10.8.0.0/16"}, anyone, false},
		{"server name", resource.Permission{ServerName: str(resource.StringSuffix, ".example")}, anyone, true},
		{"and", resource.Permission{And: []resource.Permission{anything, {DestinationPort: port(8080)}}}, anyone, true},
		{"and, one not", resource.Permission{And: []resource.Permission{anything, *no}}, anyone, false},
		{"or", resource.Permission{Or: []resource.Permission{*no, anything}}, anyone, true},
		{"or, none", resource.Permission{Or: []resource.Permission{*no, *no}}, anyone, false},
		{"not", resource.Permission{Not: no}, anyone, true},
		{"peer", anything, peer(resource.StringExact, webID), true},
		{"peer is no prefix", anything, peer(resource.StringExact, strings.TrimSuffix(webID, "b")), false},
		{"a dot is a dot", anything, peer(resource.StringExact, strings.Replace(webID, "default", "defaul.", 1)), false},
		{"peer by regex, whole", anything, peer(resource.StringRegex, "spiffe://td/ns/[^/]+/dc/[^/]+/svc/we"), false},
		{"peer by regex", anything, peer(resource.StringRegex, "spiffe://td/ns/[^/]+/dc/[^/]+/svc/web"), true},
		{"any peer", anything, resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{}}, true},
		{"source", anything, resource.Principal{SourceIP: "10.1.2.3/32"}, true},
		{"other source", anything, resource.Principal{SourceIP: "10.1.2.4/32"}, false},
		{"header of the principal", anything, resource.Principal{Header: &hdr}, true},
		{"path of the principal", anything, resource.Principal{Path: str(resource.StringPrefix, "/a")}, true},
		{"principals and", anything, resource.Principal{And: []resource.Principal{anyone, {SourceIP: "11.0.0.0/8"}}}, false},
		{"principals or", anything, resource.Principal{Or: []resource.Principal{{SourceIP: "11.0.0.0/8"}, anyone}}, true},
		{"principals not", anything, resource.Principal{Not: &resource.Principal{SourceIP: "11.0.0.0/8"}}, true},
	} {
		h := get("/a?b", "x-a", "1")
		if got := authorise(t, rules(resource.RBACAllow, pol("p", tc.p, tc.q)), h, facts()); got.Allowed != tc.want {
			t.Errorf("%s: allowed = %v", tc.name, got.Allowed)
		}
		if got := authorise(t, rules(resource.RBACDeny, pol("p", tc.p, tc.q)), h, facts()); got.Allowed == tc.want {
			t.Errorf("%s: denied = %v", tc.name, !got.Allowed)
		}
	}
}

func TestPeers(t *testing.T) {
	r := rules(resource.RBACAllow, pol("p", anything, resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: str(resource.StringExact, webID)}}))
	anon := rules(resource.RBACAllow, pol("p", anything, resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{}}))
	for id, want := range map[string]bool{webID: true, badID: false, "": false, strings.ToUpper(webID): false} {
		f := facts()
		f.PeerID = id
		if got := authorise(t, r, nil, f); got.Allowed != want {
			t.Errorf("%q allowed = %v", id, got.Allowed)
		}
		if got := authorise(t, anon, nil, f); got.Allowed != (id != "") {
			t.Errorf("%q is authenticated = %v", id, got.Allowed)
		}
	}
	mapped := facts()
	mapped.Source = netip.MustParseAddrPort("[::ffff:10.1.2.3]:1")
	if !authorise(t, rules(resource.RBACAllow, pol("p", anything, resource.Principal{SourceIP: "10.0.0.0/8"})), nil, mapped).Allowed {
		t.Error("an IPv4 address in IPv6 form escapes its prefix")
	}
}

// TestUnknownNeverOpensADoor: what cannot be told denies in DENY and does not
// allow in ALLOW, negated or not, alone or among others.
func TestUnknownNeverOpensADoor(t *testing.T) {
	regex := resource.HeaderMatch{Name: "x-a", String: str(resource.StringRegex, "admin")}
	cases := []struct {
		name string
		h    Head
		p    resource.Permission
	}{
		{"header where there is no request", nil, resource.Permission{Header: &resource.HeaderMatch{Name: "x-a", Present: true}}},
		{"path where there is no request", nil, resource.Permission{Path: str(resource.StringPrefix, "/")}},
		{"regex on bytes that are no text", get("/", "x-a", "\xffadmin"), resource.Permission{Header: &regex}},
		{"path without a slash", get("admin"), resource.Permission{Path: str(resource.StringPrefix, "/admin")}},
		{"absolute form", get("http://web/admin"), resource.Permission{Path: str(resource.StringPrefix, "/admin")}},
		{"asterisk form", get("*"), resource.Permission{Path: str(resource.StringPrefix, "/admin")}},
		{":path without a slash", get("admin"), resource.Permission{Header: &resource.HeaderMatch{Name: ":path", String: str(resource.StringPrefix, "/admin")}}},
		{"path that is no text", get("/admin\xff"), resource.Permission{Path: str(resource.StringRegex, "/admin.*")}},
	}
	for _, tc := range cases {
		for form, p := range map[string]resource.Permission{
			"alone": tc.p, "not": {Not: &tc.p}, "and": {And: []resource.Permission{anything, tc.p}},
			"or": {Or: []resource.Permission{{ServerName: str(resource.StringExact, "never")}, tc.p}},
		} {
			if authorise(t, rules(resource.RBACAllow, pol("p", p, anyone)), tc.h, facts()).Allowed {
				t.Errorf("%s, %s: ALLOW allows", tc.name, form)
			}
			if authorise(t, rules(resource.RBACDeny, pol("p", p, anyone)), tc.h, facts()).Allowed {
				t.Errorf("%s, %s: DENY allows", tc.name, form)
			}
		}
	}
	// What is known decides beside what is not.
	known := resource.Permission{Or: []resource.Permission{anything, cases[0].p}}
	if !authorise(t, rules(resource.RBACAllow, pol("p", known, anyone)), nil, facts()).Allowed {
		t.Error("a permission that matches is hidden by one that cannot be told")
	}
	other := resource.Principal{SourceIP: "11.0.0.0/8"}
	if !authorise(t, rules(resource.RBACDeny, pol("p", cases[0].p, other)), nil, facts()).Allowed {
		t.Error("DENY denies a principal that it does not name")
	}
}

// TestHeaderNameCase: a rule for X-Role must see x-role, or a DENY fails open.
func TestHeaderNameCase(t *testing.T) {
	r := rules(resource.RBACDeny, pol("p", resource.Permission{Header: &resource.HeaderMatch{Name: "X-Role", String: str(resource.StringExact, "guest")}}, anyone))
	if authorise(t, r, get("/", "x-role", "guest"), facts()).Allowed {
		t.Error("the case of a header name opens the door")
	}
}

// TestSamePathForRoutingAndAuthorisation: a DENY on a path holds wherever the
// route of that path is taken.
func TestSamePathForRoutingAndAuthorisation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.IntRange(0, 2).Draw(t, "kind")
		value := []string{"/admin", "/admin", "/adm.*"}[kind]
		m := resource.RouteMatch{PathKind: []resource.PathKind{resource.PathPrefix, resource.PathExact, resource.PathRegex}[kind], Path: value}
		s := str([]resource.StringKind{resource.StringPrefix, resource.StringExact, resource.StringRegex}[kind], value)
		target := rapid.StringMatching(`/?(admin|x)?[;?#/]?(a=b)?[;?#]?`).Draw(t, "target")
		r, err := CompileRoutes(oneHost(to("admin", m)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := CompileRBAC(rules(resource.RBACDeny, pol("p", resource.Permission{Path: s}, anyone)))
		if err != nil {
			t.Fatal(err)
		}
		var out RouteVerdict
		r.Route(get(target), facts(), nil, &out)
		if allowed := c.Authorise(get(target), facts(), nil).Allowed; allowed && !out.NotFound {
			t.Fatalf("%q is routed as %s and not denied as such", target, value)
		}
	})
}

// TestAuthoriseAgainstNaive compares with a plain evaluation of the tree.
func TestAuthoriseAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := resourcetest.RBAC().Draw(t, "rbac")
		c, err := CompileRBAC(r)
		if err != nil {
			t.Fatal(err)
		}
		var h Head
		if rapid.Bool().Draw(t, "request") {
			q := get(rapid.SampledFrom([]string{"/", "/v1/x?y", "a", "*", "/a"}).Draw(t, "path"))
			for _, n := range []string{"x-a", "x-b", "cookie"} {
				if v := rapid.SampledFrom([]string{"", "a", "7", "\xff"}).Draw(t, n); v != "" {
					q.headers[n] = v
				}
			}
			h = q
		}
		f := facts()
		f.PeerID = rapid.SampledFrom([]string{"", "a", webID, "\xff"}).Draw(t, "peer")
		tr := &Trace{}
		v := c.Authorise(h, f, nil)
		if w := c.Authorise(h, f, tr); v != w {
			t.Fatalf("with a trace the verdict is another: %+v, %+v", v, w)
		}
		if want := naive(r.Rules, h, f); v.Allowed != want {
			t.Fatalf("allowed = %v, want %v", v.Allowed, want)
		}
		if want := naive(r.Shadow, h, f); v.ShadowAllowed != want {
			t.Fatalf("shadow allowed = %v, want %v", v.ShadowAllowed, want)
		}
	})
}

// naive evaluates a rule set twice, in two-valued logic, once with every unknown
// leaf as the action needs it: that is the definition of failing closed.
func naive(r *resource.RBACRules, h Head, f *Facts) bool {
	if r == nil || r.Action == resource.RBACLog {
		return true
	}
	asYes := r.Action == resource.RBACDeny
	for _, p := range r.Policies {
		ok := slices.ContainsFunc(p.Permissions, func(x resource.Permission) bool { return naivePermission(&x, h, f, asYes) }) &&
			slices.ContainsFunc(p.Principals, func(x resource.Principal) bool { return naivePrincipal(&x, h, f, asYes) })
		if ok {
			return r.Action == resource.RBACAllow
		}
	}
	return r.Action == resource.RBACDeny
}

// leaf judges a leaf; unknown becomes what the caller needs, below a negation
// the opposite.
func leaf(t truth, asYes bool) bool { return t == yes || t == unknown && asYes }

func naivePermission(p *resource.Permission, h Head, f *Facts, asYes bool) bool {
	switch {
	case len(p.And) > 0:
		return !slices.ContainsFunc(p.And, func(x resource.Permission) bool { return !naivePermission(&x, h, f, asYes) })
	case len(p.Or) > 0:
		return slices.ContainsFunc(p.Or, func(x resource.Permission) bool { return naivePermission(&x, h, f, asYes) })
	case p.Not != nil:
		return !naivePermission(p.Not, h, f, !asYes)
	}
	n, err := compilePermission(p)
	if err != nil {
		panic(err)
	}
	return leaf(n.match(h, f), asYes)
}

func naivePrincipal(p *resource.Principal, h Head, f *Facts, asYes bool) bool {
	switch {
	case len(p.And) > 0:
		return !slices.ContainsFunc(p.And, func(x resource.Principal) bool { return !naivePrincipal(&x, h, f, asYes) })
	case len(p.Or) > 0:
		return slices.ContainsFunc(p.Or, func(x resource.Principal) bool { return naivePrincipal(&x, h, f, asYes) })
	case p.Not != nil:
		return !naivePrincipal(p.Not, h, f, !asYes)
	}
	n, err := compilePrincipal(p)
	if err != nil {
		panic(err)
	}
	return leaf(n.match(h, f), asYes)
}

func TestCompileRBACNamesTheField(t *testing.T) {
	bad := resource.Permission{Not: &resource.Permission{Header: &resource.HeaderMatch{Name: "a", String: str(resource.StringRegex, "(")}}}
	_, err := CompileRBAC(rules(resource.RBACAllow, pol("p", bad, anyone)))
	if err == nil || !strings.Contains(err.Error(), `rules.policies["p"].permissions[0].not_rule.header: `) {
		t.Error(err)
	}
	if _, err = CompileRBAC(rules(resource.RBACAllow, pol("p", anything, resource.Principal{}))); err == nil {
		t.Error("an empty principal compiles")
	}
}

func TestAuthoriseTraceReads(t *testing.T) {
	c, err := CompileRBAC(rules(resource.RBACAllow,
		pol("admin", resource.Permission{Path: str(resource.StringPrefix, "/admin")}, anyone),
		pol("web", anything, resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: str(resource.StringExact, badID)}})))
	if err != nil {
		t.Fatal(err)
	}
	tr := &Trace{}
	c.Authorise(get("/x"), facts(), tr)
	var got []string
	for _, s := range tr.Steps {
		got = append(got, fmt.Sprintf("%s %v: %s", s.Subject, s.Matched, s.Reason))
	}
	want := []string{
		`policy "admin" false: no permission matches: path with the prefix "/admin"`,
		`policy "web" false: no principal matches: peer equal to "` + badID + `"; the peer is "` + webID + `" from 10.1.2.3:5000`,
		`policy false: no policy that allows matches: denied`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

func BenchmarkAuthorise(b *testing.B) {
	var ps []resource.RBACPolicy
	for i := range 50 {
		ps = append(ps, pol(fmt.Sprint(i), anything, resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{Name: str(resource.StringExact, fmt.Sprint("spiffe://td/", i))}}))
	}
	c, err := CompileRBAC(rules(resource.RBACAllow, ps...))
	if err != nil {
		b.Fatal(err)
	}
	f := facts()
	b.ReportAllocs()
	for b.Loop() {
		c.Authorise(nil, f, nil)
	}
}
