package l7

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// spellings are ways to write /admin/keys, and to come to it from elsewhere.
func spellings() []string {
	slash := []string{"/", "//", "/./", "/.//", "/%2e/", "/%2E/", "%2f", "%2F", `\`, "%5c", "%5C", "/x/../", "/x/%2e%2e/", "/x/.%2E/", "/x//../",
		"/;/", "/;a=b/", "/.;a/", "/x/..;/", "/x/..;a=b/", "/x/%2e%2e;/", "/x/..%3b/", "/x%2f..%2f", "/x%5c..%5c", "%252f", "/%252e/", "/x/%252e%252e/",
		"/x%252f..%252f", "%c0%af", "/x/%c0%ae%c0%ae/", "%e0%80%af", "/x/..%c0%af", "/%00/", "/\t/", "/x/..%00/", "/%u002e/", "%u2215", "/\xc0\xae/", "/%2561/../"}
	name := []string{"admin", "%61dmin", "%61%64%6d%69%6e", "%61%64%6D%69%6E", "a%64min", "%2561dmin", "%252561dmin", "admin;", "admin;x=1", "admin;x=/y", "admin%3bx", "ad\x00min", "admin%00"}
	end := []string{"keys", "keys;", "key%73", "keys?x=1", "keys/.", "keys/x/..", "keys#x", "keys%23", "./keys", "keys%20", "%6Beys"}
	var out []string
	for i, a := range slash {
		b := slash[(i*7+3)%len(slash)]
		out = append(out, a+"admin/keys", "/admin"+a+"keys", a+"admin"+b+"keys")
		for k, n := range name {
			if (i+k)%4 == 0 {
				out = append(out, a+n+"/keys")
			}
		}
		for k, e := range end {
			if (i+k)%4 == 0 {
				out = append(out, a+"admin/"+e)
			}
		}
	}
	return out
}

// reads are what applications make of the path that they get.
var reads = map[string]func(string) string{
	"as it is":               func(p string) string { return p },
	"decoded":                decoded,
	"decoded twice":          func(p string) string { return decoded(decoded(p)) },
	"without parameters":     cutParams,
	"parameters, decoded":    func(p string) string { return decoded(cutParams(p)) },
	"decoded, parameters":    func(p string) string { return cutParams(decoded(p)) },
	"backslashes":            func(p string) string { return strings.ReplaceAll(decoded(p), `\`, "/") },
	"backslashes, parameter": func(p string) string { return cutParams(strings.ReplaceAll(decoded(p), `\`, "/")) },
	"overlong": func(p string) string {
		return strings.NewReplacer("\xc0\xaf", "/", "\xc0\xae", ".").Replace(decoded(p))
	},
}

func decoded(p string) string {
	if d, err := url.PathUnescape(p); err == nil {
		return d
	}
	return p
}

func cutParams(p string) string {
	segs := strings.Split(p, "/")
	for i, s := range segs {
		segs[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segs, "/")
}

// resolved takes empty and dot segments away, as a file server does.
func resolved(p string) string {
	var out []string
	folder := false
	for seg := range strings.SplitSeq(p, "/") {
		folder = seg == "" || seg == "." || seg == ".."
		switch seg {
		case "", ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, seg)
		}
	}
	if folder { // an exact rule says nothing of a folder's slash
		out = append(out, "")
	}
	return "/" + strings.Join(out, "/")
}

// None of the spellings of a path gets round a rule that denies it, nor through
// one that allows another, under the strict reading and under every relaxation:
// whatever application reads what was forwarded reads another path (HG4).
func TestSpellingsOfADeniedPath(t *testing.T) {
	path := func(kind resource.StringKind, v string) resource.Permission {
		return resource.Permission{Path: &resource.StringMatch{Kind: kind, Value: v}}
	}
	policy := func(a resource.RBACAction, ps ...resource.Permission) *resource.RBAC {
		return &resource.RBAC{Rules: &resource.RBACRules{Action: a, Policies: []resource.RBACPolicy{{Name: "p", Permissions: ps, Principals: []resource.Principal{{Any: true}}}}}}
	}
	for name, rules := range map[string]*resource.RBAC{
		"deny by prefix":      policy(resource.RBACDeny, path(resource.StringPrefix, "/admin")),
		"deny exactly":        policy(resource.RBACDeny, path(resource.StringExact, "/admin/keys")),
		"deny by expression":  policy(resource.RBACDeny, path(resource.StringRegex, "/admin/.*")),
		"allow all but it":    policy(resource.RBACAllow, resource.Permission{Not: &resource.Permission{Path: &resource.StringMatch{Kind: resource.StringPrefix, Value: "/admin"}}}),
		"allow another alone": policy(resource.RBACAllow, path(resource.StringPrefix, "/x/"), path(resource.StringPrefix, "/x%2F")),
	} {
		for relaxed, edit := range map[string]func(*Config){
			"strict":         func(*Config) {},
			"raw":            func(c *Config) { c.Manager.RawPaths = true },
			"raw, merged":    func(c *Config) { c.Manager.RawPaths, c.Manager.MergeSlashes = true, true },
			"raw, refused":   func(c *Config) { c.Manager.RawPaths, c.Manager.EscapedSlashes = true, resource.RejectEscapedSlashes },
			"raw, unescaped": func(c *Config) { c.Manager.RawPaths, c.Manager.EscapedSlashes = true, resource.ForwardEscapedSlashes },
			"keep %2F":       func(c *Config) { c.Manager.EscapedSlashes = resource.KeepEscapedSlashes },
			"unescape %2F":   func(c *Config) { c.Manager.EscapedSlashes = resource.ForwardEscapedSlashes },
			"redirect %2F":   func(c *Config) { c.Manager.EscapedSlashes = resource.RedirectEscapedSlashes },
			"route relaxed": func(c *Config) {
				r := toApp()
				r.Metadata = resource.Metadata{resource.MetaPath: resource.PathKeepsSlashes + " " + resource.PathTakesEscapedSlashes}
				rt := routes(t, r)
				c.Routes = func() *decide.Routes { return rt }
			},
		} {
			t.Run(name+"/"+relaxed, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var sent string
					g := newRig(t, func(_ context.Context, req *stream.Request) (*stream.Response, error) {
						got, _, _ := strings.Cut(req.Head.Path, "?")
						for how, read := range reads {
							if p := resolved(read(got)); p == "/admin/keys" {
								t.Errorf("%q was forwarded as %q, which is %q when %s", sent, got, p, how)
							}
						}
						return ok("x"), nil
					}, func(c *Config) {
						c.Manager.Filters = []resource.HTTPFilter{{Name: "rbac", RBAC: rules}, {Name: "router", Router: &resource.Router{}}}
						edit(c)
					})
					reached := 0
					for _, sent = range spellings() {
						c := g.dial()
						_, _ = io.WriteString(c, "GET "+sent+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
						resp, err := http.ReadResponse(bufio.NewReader(c), nil)
						if err != nil {
							t.Fatalf("%q: %v", sent, err)
						}
						switch resp.StatusCode {
						case 200:
							reached++
						case 400, 403, 307:
						default:
							t.Errorf("%q: %d", sent, resp.StatusCode)
						}
						_ = c.Close()
					}
					// A path beside it is not refused.
					if resp, _ := get(t, g.h1(), "GET", "/x/public", nil); resp.StatusCode != 200 {
						t.Errorf("/x/public: %d", resp.StatusCode)
					}
					t.Logf("%d of %d reached the application, as other paths", reached, len(spellings()))
				})
			})
		}
	}
}

// A route may take what the strict reading refuses, for itself alone.
func TestRouteRelaxesPaths(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, echo, func(c *Config) {
			objects := toApp()
			objects.Match.Path = "/objects/"
			objects.Metadata = resource.Metadata{resource.MetaPath: "keep-slashes allow-escaped-slashes"}
			rt := routes(t, objects, toApp())
			c.Routes = func() *decide.Routes { return rt }
		})
		c := client(g)
		for target, want := range map[string]string{
			"/objects/a//b%2fc": "GET /objects/a//b%2Fc ", "/objects//../objects/a//b": "GET /objects/a//b ",
			"/other/a//b": "GET /other/a/b ", "/other/a%2fb": "400", "/objects/../other%2fb": "400",
		} {
			resp, body := get(t, c, "GET", target, nil)
			if resp.StatusCode == 400 {
				body = "400"
			}
			if body != want {
				t.Errorf("%s: %q, want %q", target, body, want)
			}
		}
	})
}

// The same on the wire.
func TestUnderscoreRequests(t *testing.T) {
	for action, want := range map[resource.Underscores]string{resource.AllowUnderscores: "1", resource.DropUnderscores: "", resource.RejectUnderscores: "400"} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, func(_ context.Context, req *stream.Request) (*stream.Response, error) {
				return ok(req.Head.Header.Get("my_own")), nil
			}, func(c *Config) { c.Manager.Underscores = action })
			resp, body := get(t, g.h1(), "GET", "/", nil, func(r *http.Request) { r.Header = http.Header{"My_own": {"1"}} })
			if resp.StatusCode == 400 {
				body = "400"
			}
			if body != want {
				t.Errorf("%v: %q, want %q", action, body, want)
			}
		})
	}
}
