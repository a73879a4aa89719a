package l7

import (
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/stream"
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
		"/a%2fb":             "!the path has an encoded slash or backslash",
		"/a%5Cb":             "!the path has an encoded slash or backslash",
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
		got, err := NormalisePath(in)
		if err != nil {
			got = "!" + err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = NormalisePath("/api/v1/users/42?full=1") }); n != 0 {
		t.Errorf("a plain path allocates %v times", n)
	}
}

// Whatever is accepted has one spelling: to normalise it again changes nothing,
// and no spelling of an empty, dot or encoded segment is left.
func FuzzNormalisePath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/", "/a//b?c", "/%E2%82%AC", "/a;b/..;c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once, err := NormalisePath(s)
		if err != nil {
			return
		}
		twice, err := NormalisePath(once)
		if err != nil || twice != once {
			t.Fatalf("%q → %q → %q, %v", s, once, twice, err)
		}
		path, _, _ := strings.Cut(once, "?")
		for seg := range strings.SplitSeq(path, "/") {
			if seg == "." || seg == ".." {
				t.Fatalf("%q → %q has a dot segment", s, once)
			}
		}
		if strings.Contains(path, "//") || strings.ContainsAny(once, "\r\n\x00\\ #") && !strings.Contains(s, "?") {
			t.Fatalf("%q → %q", s, once)
		}
	})
}

func TestAuthority(t *testing.T) {
	for a, want := range map[string]bool{"": true, "a": true, "A.b.:80": true, "[::1]:80": true, "[::1]": true, "a:": true,
		"a@b": false, "a/b": false, "a b": false, "[::1": false, "a:8x": false, "[::1]x": false, "a,b": false, "a\\b": false, "::1]": false} {
		if err := checkAuthority(a); (err == nil) != want {
			t.Errorf("%q: %v", a, err)
		}
	}
}

func TestSanitise(t *testing.T) {
	const web = "spiffe://td/ns/default/dc/dc1/svc/web"
	sent := stream.Header{
		{Name: "x-forwarded-client-cert", Value: "URI=spiffe://forged"}, {Name: "x_forwarded_client_cert", Value: "URI=spiffe://forged"},
		{Name: "x-forwarded-for", Value: "1.2.3.4"}, {Name: "x_forwarded-for", Value: "6.6.6.6"}, {Name: "forwarded", Value: "for=x"},
		{Name: "x-envoy-internal", Value: "true"}, {Name: "x-parrel-peer", Value: "root"}, {Name: "accept", Value: "*/*"}, {Name: "my_own", Value: "kept"},
	}
	for name, tt := range map[string]struct {
		inbound bool
		peer    string
		xfcc    resource.ForwardClientCert
		want    []string
	}{
		"stranger":         {inbound: true, xfcc: resource.SanitizeSetXFCC, want: []string{"accept", "my_own"}},
		"peer":             {inbound: true, peer: web, xfcc: resource.SanitizeSetXFCC, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own", "x-forwarded-client-cert=By=spiffe://td/api;URI=" + web}},
		"peer, sanitise":   {inbound: true, peer: web, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own"}},
		"peer, append":     {inbound: true, peer: web, xfcc: resource.AppendForwardXFCC, want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own", "x-forwarded-client-cert=URI=spiffe://forged,By=spiffe://td/api;URI=" + web}},
		"stranger, append": {inbound: true, xfcc: resource.AppendForwardXFCC, want: []string{"accept", "my_own"}},
		"own application":  {want: []string{"x-forwarded-for", "forwarded", "x-envoy-internal", "x-parrel-peer", "accept", "my_own"}},
	} {
		x := &connection{e: &Engine{c: Config{Manager: &resource.HTTPManager{XFCC: tt.xfcc}, Inbound: tt.inbound, Destination: Service{Principal: "spiffe://td/api"}}},
			peer: tt.peer, trusted: !tt.inbound || tt.peer != ""}
		h := sent.Clone()
		x.sanitise(&h)
		var got []string
		for _, f := range h {
			if f.Name == hXFCC {
				f.Name += "=" + f.Value
			}
			got = append(got, f.Name)
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
