package attack

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// denyPaths refuses a prefix and an exact path to everybody.
func denyPaths() resource.HTTPFilter {
	path := func(k resource.StringKind, v string) resource.Permission {
		return resource.Permission{Path: &resource.StringMatch{Kind: k, Value: v}}
	}
	return resource.HTTPFilter{Name: "rbac", RBAC: &resource.RBAC{Rules: &resource.RBACRules{Action: resource.RBACDeny, Policies: []resource.RBACPolicy{
		{Name: "protected", Principals: []resource.Principal{{Any: true}},
			Permissions: []resource.Permission{path(resource.StringPrefix, "/admin/"), path(resource.StringExact, "/admin"), path(resource.StringExact, "/secret")}}}}}}
}

// spellings are ways to write /admin/x and /secret, or to come near them.
func spellings() []string {
	var out []string
	add := func(s ...string) { out = append(out, s...) }
	for _, p := range []string{"/admin/x", "/admin", "/admin/", "/secret"} {
		add(p, p+"?", p+"?x", p+"?/../y", p+"#", p+"#x", p+"/.", p+"/..", p+"/../"+p[1:], "//"+p[1:], "///"+p[1:], "/."+p, "/./."+p, "/x/.."+p, "/x/../"+p[1:], "/.."+p, "/../.."+p,
			"/%2e"+p, "/%2E/"+p[1:], "/%2e%2e"+p, "/x/%2e%2e"+p, "/x/%2E%2e"+p, "/x/.%2e"+p, "/x/%2e."+p, "/%2f"+p[1:], "/%2F"+p[1:], "%2f"+p[1:], "/x/..%2f"+p[1:], "/x%2f.."+p, "/x/..%2F..%2f"+p[1:],
			"/\\"+p[1:], "\\"+p[1:], "/x\\.."+p, "/x/..\\"+p[1:], "/%5c"+p[1:], "/x/..%5c"+p[1:], "/x%5C..%5C"+p[1:],
			p+";", p+";x=y", p+";x/y", "/;"+p, "/;x=y"+p, "/x;y/.."+p, "/x/..;"+p, "/x/..;y"+p, "/x/.;"+p, "/x/%2e%2e;"+p, "/x/..%3b"+p, p+"%3b", p+"%3Bx=y",
			p+"%20", p+" ", p+"%09", p+"%00", p+"%00.html", p+"%0a", p+"%0d%0a", "/%00"+p, p+".", p+"./", p+"...", p+"%2e",
			"http://a.example"+p, "http://a.example/"+p, "http://a.example:80"+p, "http://a.example/x/.."+p, "HTTP://A.EXAMPLE"+p, "http://a.example/%2e"+p, "http://a.example"+p+"#x",
			"/x"+p+"/../.."+p, "/"+p+"//", p+"//x", p+"/./x", p+"%2fx", p+"%5cx", p+"/%2e%2e%2fx", p+"?x=/../secret", p+"%3fx", p+"%23x")
		// Each letter by itself and all of them encoded, in both cases of digits.
		all, lower := "/", "/"
		for i, c := range []byte(p[1:]) {
			if c == '/' {
				all, lower = all+"/", lower+"/"
				continue
			}
			enc := fmt.Sprintf("%%%02X", c)
			add(p[:i+1]+enc+p[i+2:], p[:i+1]+strings.ToLower(enc)+p[i+2:], p[:i+1]+"%25"+enc[1:]+p[i+2:], p[:i+1]+"%u00"+strings.ToLower(enc[1:])+p[i+2:])
			all, lower = all+enc, lower+strings.ToLower(enc)
		}
		add(all, lower, "/."+all, "/x/.."+lower)
		// Overlong UTF-8 (RFC 3629, section 10) and look-alikes.
		add("/%c0%af"+p[1:], "/%c0%ae%c0%ae"+p, "/%e0%80%af"+p[1:], "/%e0%80%ae%e0%80%ae"+p, "/%f0%80%80%af"+p[1:], "/%c1%a1dmin/x", "/%c1%b3ecret", "/%ef%bc%8f"+p[1:], "/%ef%bd%81dmin/x", "/\xc0\xaf"+p[1:], "/\xef\xbc\x8f"+p[1:],
			"/%c0%2f"+p[1:], "/%c0."+p, "/%252f"+p[1:], "/%252e%252e"+p, "/%255c"+p[1:], "/%25%32%66"+p[1:], "/%"+p[1:], "/%2"+p, "/%2g"+p, "/%zz"+p)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// readings are what servers make of a target: they decode once, and then one
// or more of them takes backslashes as slashes, drops parameters, merges
// slashes and resolves dots, or takes overlong UTF-8 for what it says.
func readings(target string) []string {
	p := target
	if i := strings.IndexAny(p, "?#"); i >= 0 {
		p = p[:i]
	}
	decoded, err := url.PathUnescape(p)
	if err != nil {
		decoded = p
	}
	if i := strings.IndexByte(decoded, 0); i >= 0 {
		decoded = decoded[:i]
	}
	overlong := strings.NewReplacer("\xc0\xaf", "/", "\xc0\xae", ".", "\xe0\x80\xaf", "/", "\xe0\x80\xae", ".", "\xf0\x80\x80\xaf", "/", "\xc1\xa1", "a", "\xc1\xb3", "s").Replace(decoded)
	var out []string
	for _, s := range []string{p, decoded, overlong} {
		for _, back := range []bool{false, true} {
			for _, params := range []bool{false, true} {
				r := s
				if back {
					r = strings.ReplaceAll(r, "\\", "/")
				}
				if params {
					parts := strings.Split(r, "/")
					for i := range parts {
						parts[i], _, _ = strings.Cut(parts[i], ";")
					}
					r = strings.Join(parts, "/")
				}
				out = append(out, r, resolved(r))
			}
		}
	}
	return out
}

// resolved is the path after its empty and dot segments are taken away.
func resolved(p string) string {
	var out []string
	parts := strings.Split(p, "/")
	for i, s := range parts {
		switch s {
		case "", ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, s)
			continue
		}
		if i == len(parts)-1 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

func protected(path string) bool {
	return path == "/secret" || path == "/admin" || strings.HasPrefix(path, "/admin/")
}

// TestPathSpellings: HG4. No spelling of a denied path reaches a backend as
// something that any of the usual decoders takes for that path, over HTTP/1.1 or
// HTTP/2; and what is near it and something else is not denied.
func TestPathSpellings(t *testing.T) {
	all := spellings()
	if len(all) < 300 {
		t.Fatalf("%d spellings", len(all))
	}
	l := &lane{address: freeAddress(t), b: newBackend(t)}
	start(t, nil, cluster("x", l.b.address(), resource.ProtocolHTTP1), inbound("x", l.address, manager("x", denyPaths())))
	check := func(how, spelling, status string) (arrived bool) {
		got, bad := l.b.take()
		for _, b := range bad {
			t.Errorf("%s %q: garbage: %s", how, spelling, b)
		}
		for _, s := range got {
			for _, r := range readings(s.target) {
				if protected(r) {
					t.Errorf("%s %q arrived as %q, which servers read as %q (status %s)", how, spelling, s.target, r, status)
					break
				}
			}
		}
		if len(got) == 0 && status == "200" {
			t.Errorf("%s %q: 200, and nothing arrived", how, spelling)
		}
		return len(got) > 0
	}
	h2 := connectH2(t, l.address)
	for i, s := range all {
		c := connect(t, l.address)
		c.send("GET " + s + " HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
		r, _ := c.read("GET")
		_ = c.Close()
		check("HTTP/1.1", s, fmt.Sprint(r.status))

		h2.headers(uint32(2*i+1), true, request("GET", s)...)
		o, err := h2.wait(uint32(2*i + 1))
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if o.over { // refused with all of the connection
			h2 = connectH2(t, l.address)
		}
		check("HTTP/2", s, o.status)
	}
	for _, near := range []string{"/", "/x", "/administrator", "/Admin/x", "/SECRET", "/secrets", "/secret/x", "/x?/admin/x", "/x/admin/x", "/secret.html", "/%C3%A4", "/x;y=z"} {
		c := connect(t, l.address)
		c.send("GET " + near + " HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
		r, err := c.read("GET")
		if err != nil || r.status != 200 || r.body != "echo GET "+near+" 0" {
			t.Errorf("%q is denied: %d %q, %v", near, r.status, r.body, err)
		}
	}
}
