package decide

import (
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestNormalisePath(t *testing.T) {
	for in, want := range map[string]string{
		"/":                  "/",
		"/a/b?x=/../%2f&y":   "/a/b?x=/../%2f&y",
		"/a//b":              "/a/b",
		"//a":                "/a",
		"/a/./b":             "/a/b",
		"/a/../b":            "/b",
		"/a/b/..":            "/a/",
		"/a/.":               "/a/",
		"/a/":                "/a/",
		"/%61dmin":           "/admin",
		"/%2e%2e/a/%2E%2E/b": "!the path leads above the root",
		"/a/%2E%2E/b":        "/b",
		"/a%3ab":             "/a%3Ab",
		"/%e2%82%ac":         "/%E2%82%AC",
		"/\xe2\x82\xac":      "/%E2%82%AC",
		"/.hidden/...":       "/.hidden/...",
		"/a;v=1/b":           "/a;v=1/b",
		"/%25%32%65":         "/%252e",
		"/a/..;/b":           "!the path has a dot segment with parameters",
		"/a/%2e%2e;x/b":      "!the path has a dot segment with parameters",
		"/..":                "!the path leads above the root",
		"/0/;/..":            "!the path leads up from what some read as none or as several segments",
		"/0/%252e/..":        "!the path leads up from what some read as none or as several segments",
		"/a%2fb/..":          "!the path leads up from what some read as none or as several segments",
		"/a/b;v=1%20/..":     "/a/",
		"/a%2fb":             "escaped slash: /a%2Fb",
		"/a%5Cb":             "escaped slash: /a%5Cb",
		`/a\b`:               "!the path has a backslash",
		"/a%00b":             "!the path has an encoded NUL",
		"/a%0d%0aX: y":       "!the path has an encoded control character",
		"/a%":                "!the path has an invalid percent encoding",
		"/a%4":               "!the path has an invalid percent encoding",
		"/a%zz":              "!the path has an invalid percent encoding",
		"/a\r\nb":            "!the path has a control character or a space",
		"/a b":               "!the path has a control character or a space",
		"/a#b":               "!the request target has a fragment",
		"/a?b c":             "!the query has a control character, a space or a fragment",
		"":                   "!the request target does not begin with a slash",
		"*":                  "!the request target does not begin with a slash",
		"http://evil/a":      "!the request target does not begin with a slash",
	} {
		p, err := NormalisePath(in, PathRules{})
		got := p.Target
		switch {
		case err != nil:
			got = "!" + err.Error()
		case p.EscapedSlash:
			got = "escaped slash: " + got
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = NormalisePath("/api/v1/users/42?full=1", PathRules{}) }); n != 0 {
		t.Errorf("a plain path allocates %v times", n)
	}
}

// Raw paths stay as they are, but for what the rules say expressly.
func TestRawPath(t *testing.T) {
	const in = "/a//../%2e%2F%5cb%zz\xe9?x//y"
	for _, tt := range []struct {
		rules PathRules
		want  string
	}{
		{PathRules{}, "/a//../%2e%2F%5cb%zz%E9?x//y"},
		{PathRules{EscapedSlashes: resource.KeepEscapedSlashes}, "/a//../%2e%2F%5cb%zz%E9?x//y"},
		{PathRules{EscapedSlashes: resource.RejectEscapedSlashes}, "escaped slash: /a//../%2e%2F%5cb%zz%E9?x//y"},
		{PathRules{EscapedSlashes: resource.ForwardEscapedSlashes}, "/a//../%2e//b%zz%E9?x//y"},
		{PathRules{EscapedSlashes: resource.RedirectEscapedSlashes, MergeSlashes: true}, "redirect: /a/../%2e/b%zz%E9?x//y"},
		{PathRules{MergeSlashes: true}, "/a/../%2e%2F%5cb%zz%E9?x//y"},
	} {
		tt.rules.Raw = true
		p, err := NormalisePath(in, tt.rules)
		got := p.Target
		switch {
		case p.EscapedSlash:
			got = "escaped slash: " + got
		case p.Redirect:
			got = "redirect: " + got
		}
		if err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v, want %q", tt.rules, got, err, tt.want)
		}
	}
}

// A rule that holds for one reading of a path and not for another lets nothing
// through and stops what it denies; ordinary encodings have one reading.
func TestPathReadings(t *testing.T) {
	compiled := func(action resource.RBACAction, m *resource.StringMatch) *RBAC {
		c, err := CompileRBAC(rules(action, pol("p", resource.Permission{Path: m}, anyone)))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tt := range []struct {
		rule *resource.StringMatch
		path string
		deny bool // by a rule that denies
		pass bool // by one that allows
	}{
		{str(resource.StringExact, "/admin"), "/admin", true, true},
		{str(resource.StringExact, "/admin"), "/other", false, false},
		{str(resource.StringExact, "/admin"), "/admin;x=1", true, false},
		{str(resource.StringPrefix, "/admin"), "/admin;x=1", true, true},
		{str(resource.StringPrefix, "/admin/"), "/admin;x=1/users", true, false},
		{str(resource.StringExact, "/admin"), "/%2561dmin", true, false},
		{str(resource.StringExact, "/admin"), "/%252561dmin", true, false},
		{str(resource.StringPrefix, "/admin"), "/x%2F..%2Fadmin", true, false},
		{str(resource.StringPrefix, "/admin"), "/x%252f..%252fadmin", true, false},
		{str(resource.StringPrefix, "/admin"), "/%5Cadmin", true, false},
		{str(resource.StringPrefix, "/admin"), "/x/../admin", true, false}, // as raw paths have it
		{str(resource.StringPrefix, "/admin"), "//admin", true, false},
		{str(resource.StringPrefix, "/files/"), "/files/a%20b%C3%A9", true, true},
		{str(resource.StringPrefix, "/files/"), "/files/100%25", true, true},
		{str(resource.StringPrefix, "/files/"), "/files/a%252Fb;v=1", true, true},
		{str(resource.StringPrefix, "/files/"), "/files/%252e%252e/admin", true, false},
		{str(resource.StringExact, "/a%20b"), "/a%20b", true, true},
		{str(resource.StringExact, "/caf%c3%a9/%61"), "/caf%C3%A9/a", true, true}, // a rule has the spelling that paths have
		{str(resource.StringExact, "/caf\u00e9"), "/caf%C3%A9", true, true},
	} {
		if allowed := compiled(resource.RBACDeny, tt.rule).Authorise(get(tt.path), facts(), nil).Allowed; allowed == tt.deny {
			t.Errorf("deny %v: %q allowed %v", tt.rule, tt.path, allowed)
		}
		if allowed := compiled(resource.RBACAllow, tt.rule).Authorise(get(tt.path), facts(), nil).Allowed; allowed != tt.pass {
			t.Errorf("allow %v: %q allowed %v", tt.rule, tt.path, allowed)
		}
	}
	byHeader, err := CompileRBAC(rules(resource.RBACDeny, pol("p", resource.Permission{Header: &resource.HeaderMatch{Name: ":path", String: str(resource.StringPrefix, "/admin?")}}, anyone)))
	if err != nil {
		t.Fatal(err)
	}
	if byHeader.Authorise(get("/admin;x?y"), facts(), nil).Allowed || !byHeader.Authorise(get("/adminx?y"), facts(), nil).Allowed {
		t.Error("a rule about the header :path is got round by a parameter")
	}
	plain := compiled(resource.RBACAllow, str(resource.StringPrefix, "/api/"))
	h, f := get("/api/v1/users/42%20x?full=1"), facts()
	if n := testing.AllocsPerRun(100, func() { plain.Authorise(h, f, nil) }); n != 0 {
		t.Errorf("an ordinary path allocates %v times", n)
	}
}

// What is accepted has one spelling under every rule: to normalise it again
// changes nothing, no empty, dot or unreserved encoded part is left, and nothing
// of it is wider than what came: the loosest reader reads the same in both.
func FuzzNormalisePath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/", "/a//b?c", "/%E2%82%AC", "/a;b/..;c", "/a//../b", "//..//a", "/a%2f..%2fb", "/%252e%252e/x", "/a/%c0%ae/b", "/0/;/..", "/x/%252e%252e/.."} {
		for rules := range 5 {
			f.Add(s, uint8(rules))
		}
	}
	f.Fuzz(func(t *testing.T, s string, how uint8) {
		rules := PathRules{EscapedSlashes: resource.EscapedSlashes(how % 5)}
		once, err := NormalisePath(s, rules)
		if err != nil {
			return
		}
		twice, err := NormalisePath(once.Target, rules)
		if err != nil || twice.Target != once.Target || twice.Redirect || twice.Kept != "" {
			t.Fatalf("%q → %+v → %+v, %v", s, once, twice, err)
		}
		path := PathOf(once.Target)
		for seg := range strings.SplitSeq(path, "/") {
			if seg == "." || seg == ".." {
				t.Fatalf("%q → %q has a dot segment", s, once.Target)
			}
		}
		if path[0] != '/' || strings.Contains(path, "//") || strings.ContainsAny(path, "\r\n\x00\\ #") {
			t.Fatalf("%q → %q", s, once.Target)
		}
		if before, after := loosest(PathOf(s)), loosest(path); before != after {
			t.Fatalf("%q → %q: the loosest reader had %q, now %q", s, once.Target, before, after)
		}
		if once.Kept != "" {
			if again, err := NormalisePath(once.Kept, rules); err != nil || again.Target != once.Target || again.Kept != once.Kept {
				t.Fatalf("%q: kept %q → %+v, %v", s, once.Kept, again, err)
			}
		}
	})
}
