package l7

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// hooks is a filter made of functions; nil ones do nothing.
type hooks struct {
	request  func(ctx context.Context, x *filter.Exchange, req *stream.Request) (*stream.Response, any, error)
	response func(resp *stream.Response) error
	done     func()
}

func (h hooks) Request(ctx context.Context, x *filter.Exchange, req *stream.Request) (*stream.Response, any, error) {
	if h.request == nil {
		return nil, nil, nil
	}
	return h.request(ctx, x, req)
}

func (h hooks) Response(_ context.Context, _ *filter.Exchange, _ any, resp *stream.Response) error {
	if h.response == nil {
		return nil
	}
	return h.response(resp)
}

func (h hooks) Done(*filter.Exchange, any) {
	if h.done != nil {
		h.done()
	}
}

// chainOf builds a chain of the filters.
func chainOf(t *testing.T, fs ...filter.Filter) *filter.Chain {
	t.Helper()
	var registry []filter.Entry
	var configs []resource.HTTPFilter
	for i, f := range fs {
		name := string(rune('a' + i))
		registry = append(registry, filter.Entry{Kind: name, Configured: func(c *resource.HTTPFilter) bool { return c.Name == name },
			New: func(*resource.HTTPFilter, filter.Deps) (filter.Filter, error) { return f, nil }})
		configs = append(configs, resource.HTTPFilter{Name: name})
	}
	c, err := filter.Build(registry, append(configs, resource.HTTPFilter{Name: "router", Router: &resource.Router{}}), filter.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// upper is a body in capitals, read as the body below comes.
type upper struct{ stream.Body }

func (u upper) Read(p []byte) (int, error) {
	n, err := u.Body.Read(p)
	copy(p, strings.ToUpper(string(p[:n])))
	return n, err
}

// A filter that replaces bodies sees every byte both ways as it comes, and
// trailers go on.
func TestFilterReplacesBodies(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var got string
		var out *parts
		f := hooks{
			request: func(_ context.Context, _ *filter.Exchange, req *stream.Request) (*stream.Response, any, error) {
				req.Body = upper{req.Body}
				return nil, nil, nil
			},
			response: func(resp *stream.Response) error {
				resp.Body = upper{resp.Body}
				return nil
			},
		}
		c := chainOf(t, f)
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			got = all(req.Body)
			out = newParts(ctx)
			out.trailers = stream.Header{{Name: "x-out", Value: "1"}}
			return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1}, Body: out}, nil
		}, func(c2 *Config) { c2.Filters = func() *filter.Chain { return c } })
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://app/", io.MultiReader(strings.NewReader("in"), strings.NewReader("put")))
		resp, err := client(g).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		for _, s := range []string{"one", "two"} {
			out.c <- s
			if n, err := resp.Body.Read(buf); err != nil || string(buf[:n]) != strings.ToUpper(s) {
				t.Fatalf("%q %v", buf[:n], err)
			}
		}
		close(out.c)
		if _, err := resp.Body.Read(buf); err != io.EOF {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got != "INPUT" || resp.Trailer.Get("X-Out") != "1" {
			t.Errorf("the application got %q; trailers %v", got, resp.Trailer)
		}
		synctest.Wait()
		if r := g.rec.last(t); r.BytesIn != 5 || r.BytesOut != 6 || r.Code != telemetry.OK {
			t.Errorf("%+v", r)
		}
	})
}

// A filter may wait: nothing goes upstream before; a time-out ends its wait.
func TestFilterPauses(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var asked atomic.Int64
		c := chainOf(t, hooks{request: func(ctx context.Context, _ *filter.Exchange, req *stream.Request) (*stream.Response, any, error) {
			wait := time.Second
			if req.Head.Path == "/ever" {
				wait = time.Hour
			}
			select {
			case <-time.After(wait):
				if asked.Load() != 0 {
					t.Error("the request went on before its filter let it")
				}
				return nil, nil, nil
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}})
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			asked.Add(1)
			return echo(ctx, req)
		}, func(c2 *Config) {
			c2.Filters = func() *filter.Chain { return c }
			c2.Manager.StreamIdleTimeout = 10 * time.Second
		})
		cl := client(g)
		began := time.Now()
		if resp, _ := get(t, cl, "GET", "/", nil); resp.StatusCode != 200 || time.Since(began) != time.Second {
			t.Errorf("%d after %v", resp.StatusCode, time.Since(began))
		}
		asked.Store(0)
		began = time.Now()
		if resp, _ := get(t, cl, "GET", "/ever", nil); resp.StatusCode != 504 || time.Since(began) != 10*time.Second || asked.Load() != 0 {
			t.Errorf("%d after %v, asked %d", resp.StatusCode, time.Since(began), asked.Load())
		}
	})
}

// A filter may answer by itself, also with a body that streams.
func TestFilterAnswers(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var done atomic.Int64
		c := chainOf(t,
			hooks{response: func(resp *stream.Response) error { resp.Head.Header.Add("x-seen", "1"); return nil }, done: func() { done.Add(1) }},
			hooks{request: func(ctx context.Context, _ *filter.Exchange, _ *stream.Request) (*stream.Response, any, error) {
				p := newParts(ctx, "from ", "the filter")
				close(p.c)
				return &stream.Response{Head: stream.ResponseHead{Status: 203, ContentLength: -1}, Body: p}, nil, nil
			}},
			hooks{done: func() { t.Error("a filter behind the answer was called") }})
		g := newRig(t, func(context.Context, *stream.Request) (*stream.Response, error) {
			t.Error("the application was asked")
			return ok(""), nil
		}, func(c2 *Config) { c2.Filters = func() *filter.Chain { return c } })
		resp, body := get(t, client(g), "POST", "/", strings.NewReader("unread"))
		synctest.Wait() // the exchange ends after its answer
		if resp.StatusCode != 203 || body != "from the filter" || resp.Header.Get("X-Seen") != "1" || done.Load() != 1 {
			t.Errorf("%d %q %v, done %d", resp.StatusCode, body, resp.Header, done.Load())
		}
	})
}

// A panic in any part of a filter ends its own request and is counted; the
// connection, and what else is on it, goes on (DP16).
func TestFilterPanics(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var done atomic.Int64
		boom := func(path, want string) {
			if path == want {
				panic("boom")
			}
		}
		var path string
		c := chainOf(t, hooks{done: func() { done.Add(1) }}, hooks{
			request: func(_ context.Context, _ *filter.Exchange, req *stream.Request) (*stream.Response, any, error) {
				path = strings.Clone(req.Head.Path)
				boom(path, "/request")
				return nil, nil, nil
			},
			response: func(*stream.Response) error { boom(path, "/response"); return nil },
			done:     func() { boom(path, "/done") },
		})
		metrics := telemetry.NewMetrics(telemetry.MetricsConfig{})
		g := newRig(t, echo, func(c2 *Config) { c2.Filters = func() *filter.Chain { return c } })
		g.engine.d.Log = slog.New(slog.DiscardHandler)
		g.engine.rec = telemetry.Multi(g.rec, metrics)
		cl := client(g)
		for path, want := range map[string]int{"/request": 500, "/response": 500, "/done": 200, "/fine": 200} {
			before := done.Load()
			if resp, _ := get(t, cl, "GET", path, nil); resp.StatusCode != want {
				t.Errorf("%s: %d", path, resp.StatusCode)
			}
			synctest.Wait()
			if done.Load() != before+1 {
				t.Errorf("%s: the filter before was told %d times that it is over", path, done.Load()-before)
			}
			if r := g.rec.last(t); (r.Code == telemetry.LocalPanic) != (path != "/fine") {
				t.Errorf("%s: %+v", path, r)
			}
		}
		if len(g.conns) != 1 {
			t.Errorf("%d connections", len(g.conns))
		}
		w := httptest.NewRecorder()
		metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		_, after, _ := strings.Cut(w.Body.String(), `parrel_errors_total{code="local_panic"`)
		if line, _, _ := strings.Cut(after, "\n"); !strings.HasSuffix(line, "} 3") {
			t.Errorf("three panics are counted as %q", line)
		}
	})
}

// An edit of the rules is in force at the next request, and no connection ends
// for it: no GOAWAY, no Connection: close.
func TestRulesChangeUnderOpenConnections(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		const web = "spiffe://td/ns/default/dc/dc1/svc/web"
		build := func(path string) *filter.Chain {
			c, err := Filters(&resource.HTTPManager{Filters: []resource.HTTPFilter{{Name: "rbac", RBAC: &resource.RBAC{Rules: &resource.RBACRules{
				Policies: []resource.RBACPolicy{{Name: "p", Permissions: []resource.Permission{{Path: &resource.StringMatch{Kind: resource.StringPrefix, Value: path}}},
					Principals: []resource.Principal{{Any: true}}}}}}}, {Name: "router", Router: &resource.Router{}}}}, filter.Deps{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		var now atomic.Pointer[filter.Chain]
		now.Store(build("/"))
		rt := routes(t, toApp())
		g := newRig(t, echo, func(c *Config) {
			c.Inbound, c.Filters = true, now.Load
			c.Routes = func() *decide.Routes { return rt }
		})
		g.peer = web
		cl := client(g)
		for i, step := range []struct {
			allow string
			want  int
		}{{"/", 200}, {"/other", 403}, {"/", 200}, {"/a", 200}, {"/nothing", 403}} {
			now.Store(build(step.allow))
			resp, _ := get(t, cl, "GET", "/a", nil)
			if resp.StatusCode != step.want || resp.Close {
				t.Errorf("step %d: %d, close %v", i, resp.StatusCode, resp.Close)
			}
		}
		if len(g.conns) != 1 {
			t.Errorf("%d connections: an edit of the rules ended one", len(g.conns))
		}
	})
}
