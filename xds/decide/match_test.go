package decide

import (
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request is a Head for tests.
type request struct {
	method, authority, scheme, path string
	headers                         map[string]string
}

func (r *request) Method() string    { return r.method }
func (r *request) Authority() string { return r.authority }
func (r *request) Scheme() string    { return r.scheme }
func (r *request) Path() string      { return r.path }
func (r *request) Header(name string) (string, bool) {
	v, ok := r.headers[name]
	return v, ok
}

func get(path string, headers ...string) *request {
	r := &request{method: "GET", authority: "web", scheme: "http", path: path, headers: map[string]string{}}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == ":authority" {
			r.authority = headers[i+1]
			continue
		}
		r.headers[headers[i]] = headers[i+1]
	}
	return r
}

func str(kind resource.StringKind, v string) *resource.StringMatch {
	return &resource.StringMatch{Kind: kind, Value: v}
}

func TestText(t *testing.T) {
	for _, tc := range []struct {
		m    resource.StringMatch
		yes  string // separated by spaces; "_" is the empty text
		no   string
		huh  string
		name string
	}{
		{resource.StringMatch{Kind: resource.StringExact, Value: "aB"}, "aB", "ab aBc _", "", ""},
		{resource.StringMatch{Kind: resource.StringExact, Value: "aB", IgnoreCase: true}, "ab AB", "a abc", "", ""},
		{resource.StringMatch{Kind: resource.StringExact, Value: "k", IgnoreCase: true}, "K", "\u212a", "", "the Kelvin sign is no K"},
		{resource.StringMatch{Kind: resource.StringPrefix, Value: "/a"}, "/a /ab /a/b", "/A a _", "", ""},
		{resource.StringMatch{Kind: resource.StringSuffix, Value: ".x"}, "a.x .x", "a.xy x", "", ""},
		{resource.StringMatch{Kind: resource.StringSuffix, Value: ".X", IgnoreCase: true}, "a.x", "ax", "", ""},
		{resource.StringMatch{Kind: resource.StringContains, Value: "bc"}, "abcd bc", "bBc _", "", ""},
		{resource.StringMatch{Kind: resource.StringContains, Value: "bc", IgnoreCase: true}, "aBCd", "b", "", ""},
		{resource.StringMatch{Kind: resource.StringRegex, Value: "a|ab"}, "a ab", "abc xa", "", "the whole text must match"},
		{resource.StringMatch{Kind: resource.StringRegex, Value: `\Qa.`}, "a.", "ab a.)", "", "an open quotation ends with the pattern"},
		{resource.StringMatch{Kind: resource.StringRegex, Value: "(?i)a$"}, "A", "Ab A\n", "", ""},
		{resource.StringMatch{Kind: resource.StringRegex, Value: ".*"}, "_ a", "a\nb", "a\xff", "bytes that are no text are not matched"},
	} {
		m, err := compileText(&tc.m)
		if err != nil {
			t.Fatal(err)
		}
		check := func(in string, want truth) {
			for _, s := range strings.Split(in, " ") {
				if s == "" {
					continue
				}
				if got := m.match(strings.ReplaceAll(s, "_", "")); got != want {
					t.Errorf("%+v on %q: %d, want %d %s", tc.m, s, got, want, tc.name)
				}
			}
		}
		check(tc.yes, yes)
		check(tc.no, no)
		check(tc.huh, unknown)
	}
}

func TestHeader(t *testing.T) {
	present := func(h string) resource.HeaderMatch { return resource.HeaderMatch{Name: h, Present: true} }
	exact := func(h, v string) resource.HeaderMatch {
		return resource.HeaderMatch{Name: h, String: str(resource.StringExact, v)}
	}
	invert := func(m resource.HeaderMatch) resource.HeaderMatch { m.Invert = true; return m }
	empty := func(m resource.HeaderMatch) resource.HeaderMatch { m.MissingAsEmpty = true; return m }
	rng := resource.HeaderMatch{Name: "n", IsRange: true, RangeStart: -1, RangeEnd: 10}
	regex := resource.HeaderMatch{Name: "a", String: str(resource.StringRegex, ".+")}
	for _, tc := range []struct {
		name string
		m    resource.HeaderMatch
		h    *request
		want truth
	}{
		{"present", present("a"), get("/", "a", ""), yes},
		{"absent", present("a"), get("/"), no},
		{"inverted presence", invert(present("a")), get("/"), yes},
		{"missing counts as present where it is empty", empty(present("a")), get("/"), yes},
		{"exact", exact("a", "x"), get("/", "a", "x"), yes},
		{"other value", exact("a", "x"), get("/", "a", "y"), no},
		{"inverted", invert(exact("a", "x")), get("/", "a", "y"), yes},
		{"missing matches no value", exact("a", "x"), get("/"), no},
		{"missing matches no value even inverted", invert(exact("a", "x")), get("/"), no},
		{"missing as empty, inverted", invert(empty(exact("a", "x"))), get("/"), yes},
		{"missing as empty", empty(exact("a", "")), get("/"), yes},
		{"upper case in the rule", exact("A", "x"), get("/", "a", "x"), yes},
		{"range", rng, get("/", "n", "9"), yes},
		{"end of range", rng, get("/", "n", "10"), no},
		{"start of range", rng, get("/", "n", "-1"), yes},
		{"no number", rng, get("/", "n", "9x"), no},
		{"no number inverted", invert(rng), get("/", "n", "9x"), yes},
		{"regex", regex, get("/", "a", "x"), yes},
		{"regex on no text", regex, get("/", "a", "\xff"), unknown},
		{"regex on no text, inverted", invert(regex), get("/", "a", "\xff"), unknown},
		{"method", exact(":method", "GET"), get("/"), yes},
		{"scheme", exact(":scheme", "http"), get("/"), yes},
		{"authority", exact(":authority", "web"), get("/"), yes},
		{"host is the authority", exact("host", "web"), get("/"), yes},
		{"path with query", exact(":path", "/a?b"), get("/a?b"), yes},
		{"path that is none", exact(":path", "a"), get("a"), unknown},
	} {
		m, err := compileHeader(&tc.m)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.match(tc.h); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	m, _ := compileHeader(&regex)
	if m.match(nil) != unknown {
		t.Error("without a request it cannot be told")
	}
}

func TestQueryValue(t *testing.T) {
	for _, tc := range []struct {
		target, name, want string
		ok                 bool
	}{
		{"/?a=1&b=2", "b", "2", true},
		{"/?a=1&a=2", "a", "1", true},
		{"/?a", "a", "", true},
		{"/?a=b=c", "a", "b=c", true},
		{"/?aa=1", "a", "", false},
		{"/a=1", "a", "", false},
		{"/?x#?a=1", "a", "", false},
		{"/?a=%20", "a", "%20", true},
	} {
		if v, ok := queryValue(tc.target, tc.name); v != tc.want || ok != tc.ok {
			t.Errorf("%s %s: %q %v", tc.target, tc.name, v, ok)
		}
	}
}

func TestWithoutPort(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "a:80": "a", "a:x": "a:x", "[::1]": "[::1]", "[::1]:80": "[::1]", "::1": "::1", "": "", ":80": "", "a:": "a"} {
		if got := withoutPort(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestGoTemplate(t *testing.T) {
	for in, want := range map[string]string{`\1/x`: "${1}/x", `$1`: "$$1", `\\1`: `\1`, `\10`: "${1}0", `\`: `\`, `a\b`: `a\b`} {
		if got := goTemplate(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
