package consul

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// rule runs f in virtual time against a fake agent with the services given,
// each with so many instances, after the first delivery.
func rule(t *testing.T, name string, services map[string]int, change func(*Config), f func(t *testing.T, a *fake, v *view)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newFake()
			defer a.close()
			for name, n := range services {
				a.put(name, n)
			}
			cfg := a.config()
			if change != nil {
				change(&cfg)
			}
			v, stop := run(t, cfg)
			defer stop()
			v.await(t, time.Minute, "a first delivery", func(v *view) bool { return v.full == 1 })
			v.pass(time.Second)
			f(t, a, v)
			v.pass(0)
			stop()
		})
	})
}

// pass lets virtual time pass; what the test read before happened before what
// the view takes in then.
func (v *view) pass(d time.Duration) {
	v.edge()
	time.Sleep(d)
	synctest.Wait()
	v.edge()
}

// edge orders what came before it for the race detector.
func (v *view) edge() {
	v.mu.Lock()
	defer v.mu.Unlock()
}

// TestSourceRules has one test for each rule of reading Consul.
func TestSourceRules(t *testing.T) {
	one := map[string]int{"web": 2}
	const web = "/v1/health/connect/web"

	rule(t, "the first delivery is everything", one, nil, func(t *testing.T, a *fake, v *view) {
		if len(proxies(v, "web")) != 2 || v.policy != discovery.Deny || v.roots == nil || v.roots.RootsPEM[0] != "new" {
			t.Errorf("services %v, policy %q, roots %+v", v.services, v.policy, v.roots)
		}
		if v.services["consul"] != nil {
			t.Error("Consul's own service is no part of the mesh")
		}
	})

	rule(t, "an index that goes backwards starts over from 0", one, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() {
			a.head = func(r *http.Request, _ http.Header, index *uint64) {
				if r.URL.Path == web {
					*index = 3
				}
			}
		}, web)
		v.pass(time.Second)
		q := a.questions(web)
		// 0, then the first index; the answer's index is 3, below it: 0 again,
		// which is answered at once with 3.
		if len(q) < 4 || q[0].index != "" || q[1].index == "" || q[2].index != "" || q[3].index != "3" {
			t.Errorf("asked for %+v", q)
		}
	})

	rule(t, "an index is never below 1", nil, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() {
			a.head = func(r *http.Request, _ http.Header, index *uint64) {
				if r.URL.Path == web {
					*index = 0
				}
			}
		})
		a.put("web", 1)
		v.pass(time.Second)
		q := a.questions(web)
		if len(q) < 2 || q[1].index != "1" || q[len(q)-1].index != "1" {
			t.Errorf("asked for %+v", q)
		}
		// A server that does not block is not asked in a loop either.
		if len(q) > 12 {
			t.Errorf("asked %d times in a second", len(q))
		}
	})

	rule(t, "reads are stale unless they confirm", one, nil, func(t *testing.T, a *fake, v *view) {
		a.put("web", 0)
		v.pass(3 * time.Second)
		consistent := 0
		for _, q := range a.asked {
			if q.consistent {
				consistent++
			} else if !q.stale && q.path != "/v1/agent/self" {
				t.Errorf("%s was asked neither stale nor consistent", q.path)
			}
		}
		if consistent != 4 { // two confirmations of two readings each
			t.Errorf("%d consistent readings, want 4", consistent)
		}
	})

	for _, status := range []int{429, 500, 503} {
		rule(t, fmt.Sprintf("%d keeps the last set and backs off", status), one, nil, func(t *testing.T, a *fake, v *view) {
			start := time.Now()
			a.change(func() { a.fail = func(*http.Request) (int, string) { return status, "no" } })
			v.pass(30 * time.Second)
			if len(proxies(v, "web")) != 2 || !v.status.Stale || v.status.Since.IsZero() || !strings.Contains(v.status.Reason, "no") {
				t.Errorf("web = %v, status %+v", proxies(v, "web"), v.status)
			}
			var gaps []time.Duration
			last := start
			for _, q := range a.questions(web) {
				if q.at.After(start) {
					gaps = append(gaps, q.at.Sub(last))
					last = q.at
				}
			}
			// Jitter is at its middle: three quarters of 100 ms, doubled, to 4 s.
			want := []time.Duration{75, 150, 300, 600, 1200, 2400, 3000, 3000}
			for i, w := range want {
				if i >= len(gaps) || gaps[i] != w*time.Millisecond {
					t.Fatalf("gap %d of %v, want %v times 1e6", i, gaps, want)
				}
			}
			a.change(func() { a.fail = nil })
			v.pass(5 * time.Second)
			if v.status.Stale {
				t.Errorf("5 s after recovery still %+v", v.status)
			}
			if q := a.questions(web); q[len(q)-2].index != "" {
				t.Error("after an error the first question must not block")
			}
		})
	}

	rule(t, "no leader is stale, and nothing is lost", one, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() {
			a.head = func(_ *http.Request, h http.Header, _ *uint64) {
				h.Set("X-Consul-Knownleader", "false")
				h.Set("X-Consul-Lastcontact", "7000")
			}
		})
		v.pass(6 * time.Second) // a pulse
		if !v.status.Stale || v.status.Age != 7*time.Second || len(proxies(v, "web")) != 2 {
			t.Errorf("status %+v, web %v", v.status, proxies(v, "web"))
		}
		a.change(func() {
			a.head = func(_ *http.Request, h http.Header, _ *uint64) { h.Set("X-Consul-Lastcontact", "11000") }
		})
		v.pass(6 * time.Second)
		if !v.status.Stale || !strings.Contains(v.status.Reason, "11s old") {
			t.Errorf("answers of 11 s ago: %+v", v.status)
		}
		a.change(func() { a.head = nil })
		v.pass(6 * time.Second)
		if v.status.Stale {
			t.Errorf("with a leader: %+v", v.status)
		}
	})

	rule(t, "a single removal applies at once", one, nil, func(t *testing.T, a *fake, v *view) {
		a.put("web", 1)
		v.pass(time.Millisecond)
		if len(proxies(v, "web")) != 1 {
			t.Errorf("web = %v", proxies(v, "web"))
		}
	})

	rule(t, "the last instance is kept until that is confirmed twice", one, nil, func(t *testing.T, a *fake, v *view) {
		a.put("web", 0)
		v.pass(300 * time.Millisecond)
		if s := v.services["web"]; s == nil || !s.Stale || len(s.Proxies) != 2 {
			t.Fatalf("before the second confirmation: %+v", s)
		}
		v.pass(300 * time.Millisecond)
		if v.services["web"] != nil {
			t.Errorf("after the second confirmation: %+v", v.services["web"])
		}
	})

	rule(t, "a stale server that answers empty is not believed", one, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() { a.amnesia = func(r *http.Request) bool { return r.URL.Query().Has("stale") } },
			web, "/v1/health/service/web", "/v1/catalog/services")
		v.pass(time.Minute)
		if s := v.services["web"]; s == nil || len(s.Proxies) != 2 {
			t.Errorf("web = %+v", s)
		}
	})

	rule(t, "a confirmation that ACLs cut down confirms nothing", one, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() {
			a.amnesia = func(*http.Request) bool { return true }
			a.head = func(_ *http.Request, h http.Header, _ *uint64) { h.Set("X-Consul-Results-Filtered-By-ACLs", "true") }
		}, web, "/v1/health/service/web", "/v1/catalog/services")
		v.pass(time.Minute)
		if s := v.services["web"]; s == nil || !s.Stale || len(v.status.Problems) == 0 {
			t.Errorf("web = %+v, status %+v", s, v.status)
		}
	})

	six := map[string]int{"a": 2, "b": 2, "c": 2}
	rule(t, "a collapse is kept, raises an alarm and is confirmed slowly", six, nil, func(t *testing.T, a *fake, v *view) {
		a.put("a", 1)
		a.put("b", 1)
		a.put("c", 0)
		v.pass(time.Second)
		if !v.status.Stale || !strings.Contains(v.status.Reason, "more than 50 %") || v.services["c"] == nil {
			t.Errorf("status %+v, services %v", v.status, v.services)
		}
		v.pass(4 * time.Second)
		if v.status.Stale || v.services["c"] != nil || len(proxies(v, "a")) != 1 {
			t.Errorf("confirmed: status %+v, services %v", v.status, v.services)
		}
	})

	rule(t, "entries that vanish together are confirmed", nil, nil, func(t *testing.T, a *fake, v *view) {
		const path = "/v1/config/service-defaults"
		a.change(func() {
			a.entries["service-defaults"] = []map[string]any{{"Kind": "service-defaults", "Name": "a", "ModifyIndex": 7}, {"Kind": "service-defaults", "Name": "b", "ModifyIndex": 8}}
		}, path)
		v.pass(time.Second)
		if len(v.entries) != 2 {
			t.Fatalf("entries %v", v.entries)
		}
		a.change(func() { a.amnesia = func(r *http.Request) bool { return r.URL.Query().Has("stale") } }, path)
		v.pass(time.Minute)
		if len(v.entries) != 2 {
			t.Errorf("a stale server took the entries away: %v", v.entries)
		}
		a.change(func() { a.amnesia = nil; delete(a.entries, "service-defaults") }, path)
		v.pass(time.Second)
		if len(v.entries) != 0 {
			t.Errorf("confirmed, and still %v", v.entries)
		}
	})

	rule(t, "churn is coalesced, a first change is not delayed", map[string]int{"web": 50}, nil, func(t *testing.T, a *fake, v *view) {
		v.pass(time.Second)
		before := len(v.deliveries)
		at := time.Now()
		for i := range 100 { // 50 a second
			a.put("web", 49-i%2)
			v.pass(20 * time.Millisecond)
		}
		v.pass(time.Second)
		got := v.deliveries[before:]
		if len(got) == 0 || got[0].at != at {
			t.Fatalf("the first change came late: %v", got)
		}
		for i := 1; i < len(got); i++ {
			if d := got[i].at.Sub(got[i-1].at); d < 100*time.Millisecond {
				t.Errorf("deliveries %d and %d are %s apart", i-1, i, d)
			}
		}
		if len(proxies(v, "web")) != 48 {
			t.Errorf("the last change was lost: %d", len(proxies(v, "web")))
		}
	})

	rule(t, "a denied query is a problem with a remedy", one, nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() {
			a.fail = func(r *http.Request) (int, string) {
				if r.URL.Path == web {
					return 403, "Permission denied"
				}
				return 0, ""
			}
		})
		v.pass(time.Second)
		if p := v.status.Problems; len(p) != 1 || !strings.Contains(p[0].Reason, "Permission denied") || !strings.Contains(p[0].Remedy, "token") {
			t.Errorf("problems %+v", p)
		}
	})
}

func TestBounds(t *testing.T) {
	many := func(n int) map[string]int {
		m := map[string]int{}
		for i := range n {
			m[fmt.Sprintf("s%04d", i)] = 1
		}
		return m
	}
	rule(t, "100 services", many(100), nil, func(t *testing.T, a *fake, v *view) {
		v.pass(10 * time.Second)
		t.Logf("%d open blocking queries, %d sockets", a.most, a.pipe.most)
		if a.most > 125 || a.pipe.most > 150 {
			t.Errorf("%d open blocking queries (125), %d sockets (150)", a.most, a.pipe.most)
		}
	})
	rule(t, "1000 services", many(1000), nil, func(t *testing.T, a *fake, v *view) {
		if len(v.services) != 1000 {
			t.Fatalf("%d services", len(v.services))
		}
		v.pass(10 * time.Second)
		start := time.Now()
		a.put("s0999", 2) // beyond what has a query of its own
		took := v.await(t, 10*time.Second, "a swept service's change", func(v *view) bool { return len(proxies(v, "s0999")) == 2 })
		t.Logf("%d open blocking queries, %d sockets; a swept change took %s", a.most, a.pipe.most, took)
		if a.most > 125 || a.pipe.most > 150 || time.Since(start) > 5*time.Second {
			t.Errorf("%d open blocking queries (125), %d sockets (150), a change took %s (5s)", a.most, a.pipe.most, took)
		}
		v.pass(5 * time.Second)
		a.put("s0001", 2) // one with a query of its own
		if took := v.await(t, 10*time.Second, "a watched service's change", func(v *view) bool { return len(proxies(v, "s0001")) == 2 }); took != 0 {
			t.Errorf("a watched change took %s", took)
		}
	})
	rule(t, "1000 services, agent gone and back", many(1000), nil, func(t *testing.T, a *fake, v *view) {
		a.change(func() { a.fail = func(*http.Request) (int, string) { return 500, "No cluster leader" } })
		v.pass(time.Minute)
		a.change(func() { a.fail = nil })
		took := v.await(t, time.Minute, "recovery", func(v *view) bool { return !v.status.Stale })
		t.Logf("recovered after %s", took)
		if took > 10*time.Second || len(v.services) != 1000 {
			t.Errorf("recovery took %s, %d services", took, len(v.services))
		}
	})
}

// TestFirstDelivery: one service that never answers does not keep the mesh from
// starting for longer than FirstDelivery.
func TestFirstDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFake()
		defer a.close()
		a.put("good", 1)
		a.put("bad", 1)
		a.fail = func(r *http.Request) (int, string) {
			if strings.HasSuffix(r.URL.Path, "/bad") {
				return 500, "no"
			}
			return 0, ""
		}
		v, stop := run(t, a.config())
		defer stop()
		took := v.await(t, time.Minute, "a first delivery", func(v *view) bool { return v.full == 1 })
		if took < 30*time.Second || took > 31*time.Second || v.services["good"] == nil || !v.status.Stale {
			t.Errorf("after %s: %v, %+v", took, v.services, v.status)
		}
		stop()
	})
}

func TestPolicy(t *testing.T) {
	self := func(intention, acl string) string {
		return fmt.Sprintf(`{"Config":{"Datacenter":"dc1"},"DebugConfig":{"DefaultIntentionPolicy":%q,"ACLResolverSettings":{"ACLDefaultPolicy":%q}}}`, intention, acl)
	}
	for _, c := range []struct {
		self   string
		denied bool
		want   discovery.IntentionAction
	}{
		{self("", "allow"), false, discovery.Allow},
		{self("", "deny"), false, discovery.Deny},
		{self("deny", "allow"), false, discovery.Deny},
		{self("allow", "deny"), false, discovery.Allow},
		{self("", ""), false, discovery.Deny},
		{"", true, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newFake()
			defer a.close()
			a.self = c.self
			a.fail = func(r *http.Request) (int, string) {
				if c.denied && r.URL.Path == "/v1/agent/self" {
					return 403, "Permission denied"
				}
				return 0, ""
			}
			v, stop := run(t, a.config())
			defer stop()
			v.await(t, time.Minute, "a first delivery", func(v *view) bool { return v.full == 1 })
			if v.policy != c.want {
				t.Errorf("%s: policy %q, want %q", c.self, v.policy, c.want)
			}
			stop()
		})
	}
}

func TestCursor(t *testing.T) {
	for _, c := range []struct {
		before, answer, after uint64
		news                  bool
	}{
		{0, 7, 7, true}, {7, 7, 7, false}, {7, 9, 9, true}, {9, 7, 0, true}, {0, 0, 1, true}, {1, 0, 1, false}, {5, 0, 0, true},
	} {
		cur := cursor{c.before}
		if news := cur.advance(c.answer); news != c.news || cur.index != c.after {
			t.Errorf("at %d an answer %d: index %d, news %v; want %d, %v", c.before, c.answer, cur.index, news, c.after, c.news)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, r := range []float64{0, 0.999} {
		b := backoff{most: 4 * time.Second, rand: func() float64 { return r }}
		for i, full := range []time.Duration{100, 200, 400, 800, 1600, 3200, 4000, 4000} {
			if d := b.next(); d < full*time.Millisecond/2 || d > full*time.Millisecond {
				t.Errorf("attempt %d: %s, want half to all of %d ms", i, d, full)
			}
		}
	}
}

func TestInstance(t *testing.T) {
	in := instance(&api.ServiceEntry{
		Node: &api.Node{Node: "n", Address: "10.0.0.1", Datacenter: "dc2", Locality: &api.Locality{Region: "eu", Zone: "a"}},
		Service: &api.AgentService{
			Kind: "connect-proxy", ID: "p", Service: "web-sidecar-proxy", Port: 21000, Weights: api.AgentWeights{Passing: 3, Warning: 0},
			Proxy: &api.AgentServiceConnectProxyConfig{
				DestinationServiceName: "web", Config: map[string]any{"a": map[string]any{"b": 1}},
				Upstreams: []api.Upstream{{DestinationName: "api", LocalBindPort: 9191}},
			},
		},
		Checks: api.HealthChecks{{CheckID: "c", Status: "warning", Output: "o"}},
	})
	if in.Address != "10.0.0.1" || in.Service.Datacenter != "dc2" || in.Region != "eu" || in.Zone != "a" {
		t.Errorf("%+v", in)
	}
	if in.Health != discovery.Critical || in.Weights != (discovery.Weights{Passing: 3, Warning: 1}) {
		t.Errorf("a warning with weight 0 gets no traffic: %s, %+v", in.Health, in.Weights)
	}
	if u := in.Proxy.Upstreams[0]; u.DestinationType != "service" || u.LocalBindAddress != "127.0.0.1" {
		t.Errorf("upstream %+v", u)
	}
	if got := fmt.Sprint(in.Proxy.Set); got != "[Proxy.Config.a.b Proxy.DestinationServiceName Proxy.Upstreams[].DestinationName Proxy.Upstreams[].LocalBindPort]" {
		t.Errorf("Set = %s", got)
	}
}
