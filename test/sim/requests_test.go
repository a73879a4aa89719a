package sim

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// ask is one GET: its target, and a field more.
type ask struct{ target, field string }

// ask sends it from web to api and says what came of it: the target that the
// application saw, the place to ask again, or else the status.
func (s *shop) ask(t *testing.T, c *http.Client, a ask) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:9001"+a.target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.field != "" {
		req.Header[a.field] = []string{"x"}
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", a.target, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.Header.Get("X-Target")
	case http.StatusTemporaryRedirect:
		return "307 " + resp.Header.Get("Location")
	}
	return resp.Status[:3]
}

// TestRequestNormalization: how requests may be spelt is what the mesh entry
// says, from the caller's sidecar to the application; the intentions hold under
// all of it, and the calls that are under way do not notice.
func TestRequestNormalization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 41, Latency: time.Millisecond}, 1)
		loads := s.load(LoadConfig{RPS: 20})
		c := &http.Client{
			Transport:     &http.Transport{DialContext: dialer(s.web.host)},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		defer c.CloseIdleConnections()
		escaped, double, dots := ask{target: "/a%2Fb?x//y"}, ask{target: "/a//b"}, ask{target: "/a/../b%2e"}
		underscore := ask{target: "/u", field: "my_field"}
		strict := map[ask]string{escaped: "400", double: "/a/b", dots: "/b.", underscore: "/u"}
		none := map[string]any(nil)
		steps := []struct {
			what  string
			block map[string]any
			want  map[ask]string
		}{
			{"no entry", none, strict},
			{"an empty block: Consul's MergeSlashes is false", map[string]any{}, map[ask]string{escaped: "400", double: "/a//b", dots: "/b.", underscore: "/u"}},
			{"keep", map[string]any{"PathWithEscapedSlashesAction": "KEEP_UNCHANGED"}, map[ask]string{escaped: "/a%2Fb?x//y", double: "/a//b", dots: "/b.", underscore: "/u"}},
			{"unescape and merge", map[string]any{"MergeSlashes": true, "PathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD"}, map[ask]string{escaped: "/a/b?x//y", double: "/a/b", dots: "/b."}},
			{"redirect", map[string]any{"PathWithEscapedSlashesAction": "UNESCAPE_AND_REDIRECT"}, map[ask]string{escaped: "307 http://127.0.0.1:9001/a/b?x//y", double: "/a//b"}},
			{"as received", map[string]any{"InsecureDisablePathNormalization": true}, map[ask]string{escaped: "/a%2Fb?x//y", double: "/a//b", dots: "/a/../b%2e"}},
			{"as received, but", map[string]any{"InsecureDisablePathNormalization": true, "MergeSlashes": true, "PathWithEscapedSlashesAction": "REJECT_REQUEST"}, map[ask]string{escaped: "400", double: "/a/b", dots: "/a/../b%2e"}},
			{"all that the strict reading says", map[string]any{"MergeSlashes": true, "PathWithEscapedSlashesAction": "REJECT_REQUEST"}, strict},
			{"fields refused", map[string]any{"MergeSlashes": true, "HeadersWithUnderscoresAction": "REJECT_REQUEST"}, map[ask]string{escaped: "400", double: "/a/b", underscore: "400"}},
		}
		set := func(block map[string]any) {
			s.Catalogue.Set(map[string]any{"Kind": "mesh", "HTTP": map[string]any{"Incoming": map[string]any{"RequestNormalization": block}}})
			time.Sleep(2 * time.Second)
		}
		for _, step := range steps {
			if step.block != nil {
				set(step.block)
			}
			for a, want := range step.want {
				if got := s.ask(t, c, a); got != want {
					t.Errorf("%s: %s %s gives %s, want %s", step.what, a.target, a.field, got, want)
				}
			}
		}
		s.Catalogue.Delete("mesh", "mesh")
		time.Sleep(2 * time.Second)
		for a, want := range strict {
			if got := s.ask(t, c, a); got != want {
				t.Errorf("the entry is gone: %s %s gives %s, want %s", a.target, a.field, got, want)
			}
		}
		clean(t, loads, 100)

		t.Log("no relaxation gets round a denial")
		s.Catalogue.Intentions("api", "web", "deny")
		before := s.api[0].App.Served()
		for _, step := range steps {
			if step.block == nil {
				continue
			}
			set(step.block)
			for a := range step.want {
				if got := s.ask(t, c, a); got != "403" && got != "400" && got[:3] != "307" {
					t.Errorf("denied, and %s: %s gives %s", step.what, a.target, got)
				}
			}
		}
		if n := s.api[0].App.Served() - before; n != 0 {
			t.Errorf("%d denied requests reached the application", n)
		}
	})
}
