package discovery

import (
	"fmt"
	"testing"
	"time"
)

func name(s string) ServiceName {
	return ServiceName{Partition: "default", Namespace: "default", Datacenter: "dc1", Name: s}
}

func service(s string, instances ...int) *Service {
	out := &Service{Name: name(s)}
	for _, i := range instances {
		out.Proxies = append(out.Proxies, &Instance{Node: "n", ID: fmt.Sprintf("%s-%d", s, i)})
	}
	return out
}

type guardTest struct {
	t   *testing.T
	g   *Guard
	now time.Time
}

func (g *guardTest) offer(services ...*Service) map[ServiceName]*Service {
	said := map[ServiceName]*Service{}
	for _, s := range services {
		said[s.Name] = s
		if len(s.Proxies) == 0 {
			said[s.Name] = nil
		}
	}
	return g.g.Offer(g.now, said)
}

// is checks how many proxies a delivery or the guard has, and whether stale.
func (g *guardTest) is(s string, proxies int, stale bool) {
	g.t.Helper()
	got := g.g.Current()[name(s)]
	n, st := 0, false
	if got != nil {
		n, st = len(got.Proxies), got.Stale
	}
	if n != proxies || st != stale {
		g.t.Errorf("%s has %d proxies, stale %v; want %d, %v", s, n, st, proxies, stale)
	}
}

func TestGuard(t *testing.T) {
	start := func(t *testing.T, services ...*Service) *guardTest {
		g := &guardTest{t, NewGuard(GuardConfig{}), time.Unix(1000, 0)}
		if got := g.offer(services...); len(got) != len(services) {
			t.Fatalf("first start: %v", got)
		}
		g.now = g.now.Add(time.Minute)
		return g
	}
	t.Run("single removals apply at once", func(t *testing.T) {
		g := start(t, service("a", 1, 2, 3), service("b", 1, 2, 3))
		g.offer(service("a", 1, 2))
		g.is("a", 2, false)
		g.now = g.now.Add(2 * time.Second)
		g.offer(service("a", 1))
		g.is("a", 1, false)
	})
	t.Run("the last one is held until two confirmations", func(t *testing.T) {
		g := start(t, service("a", 1), service("b", 1, 2, 3))
		g.offer(service("a"))
		g.is("a", 1, true)
		g.g.Confirmed(g.now, name("a"), nil)
		g.is("a", 1, true)
		out := g.g.Confirmed(g.now, name("a"), nil)
		if s, said := out[name("a")]; s != nil || !said {
			t.Errorf("delivered %v", out)
		}
		if len(g.g.Held()) != 0 {
			t.Errorf("still held: %v", g.g.Held())
		}
	})
	t.Run("an answer that brings it back ends it", func(t *testing.T) {
		g := start(t, service("a", 1), service("b", 1, 2, 3))
		g.offer(service("a"))
		g.offer(service("a", 1))
		g.is("a", 1, false)
		g.offer(service("a"))
		g.g.Confirmed(g.now, name("a"), service("a", 1))
		g.is("a", 1, false)
	})
	t.Run("one confirmation of an earlier loss does not count for a later one", func(t *testing.T) {
		g := start(t, service("a", 1), service("b", 1, 2, 3))
		g.offer(service("a"))
		g.g.Confirmed(g.now, name("a"), nil)
		g.offer(service("a", 1))
		g.offer(service("a"))
		g.g.Confirmed(g.now, name("a"), nil)
		g.is("a", 1, true)
	})
	t.Run("a new instance of a held service is delivered", func(t *testing.T) {
		g := start(t, service("a", 1, 2), service("b", 1, 2, 3, 4))
		g.g.cfg.Share = 0.1 // any loss is a collapse
		g.offer(service("a", 1))
		g.is("a", 2, true)
		g.offer(service("a", 1, 9))
		g.is("a", 3, true)
	})
	t.Run("collapse", func(t *testing.T) {
		g := start(t, service("a", 1, 2, 3), service("b", 1, 2, 3))
		g.offer(service("a", 1), service("b", 1))
		g.is("a", 3, true)
		g.is("b", 3, true)
		if g.g.Reason() == "" || !g.g.Collapsed(name("a")) {
			t.Error("no alarm")
		}
		g.g.Confirmed(g.now, name("a"), service("a", 1))
		g.g.Confirmed(g.now, name("a"), service("a", 1))
		g.is("a", 1, false)
		g.is("b", 3, true)
	})
	t.Run("collapse, one service after another", func(t *testing.T) {
		g := start(t, service("a", 1), service("b", 1), service("c", 1), service("d", 1), service("e", 1))
		for _, s := range []string{"a", "b", "c"} {
			g.offer(service(s))
			g.now = g.now.Add(100 * time.Millisecond)
		}
		for _, s := range []string{"a", "b", "c"} {
			if !g.g.Collapsed(name(s)) {
				t.Errorf("%s is no part of the collapse", s)
			}
		}
	})
	t.Run("slowly is no collapse", func(t *testing.T) {
		g := start(t, service("a", 1, 2, 3, 4, 5, 6))
		for i := 5; i >= 1; i-- {
			g.now = g.now.Add(time.Second)
			g.offer(service("a", []int{1, 2, 3, 4, 5, 6}[:i]...))
			g.is("a", i, false)
		}
	})
	t.Run("exactly half is no collapse, nor is a small mesh", func(t *testing.T) {
		g := start(t, service("a", 1, 2, 3, 4, 5, 6))
		g.offer(service("a", 1, 2, 3))
		g.is("a", 3, false)
		g = start(t, service("a", 1, 2, 3, 4))
		g.offer(service("a", 1))
		g.is("a", 1, false)
	})
	t.Run("confirmed losses do not make the next one a collapse", func(t *testing.T) {
		g := start(t, service("a", 1), service("b", 1, 2, 3, 4))
		g.offer(service("a"))
		g.g.Confirmed(g.now, name("a"), nil)
		g.g.Confirmed(g.now, name("a"), nil)
		g.now = g.now.Add(2 * time.Second)
		g.offer(service("b", 1, 2, 3))
		g.is("b", 3, false)
	})
	t.Run("a native instance that vanishes from one list", func(t *testing.T) {
		both := service("a", 1)
		both.Instances = both.Proxies
		g := start(t, both, service("b", 1, 2, 3))
		g.g.Offer(g.now, map[ServiceName]*Service{name("a"): {Name: name("a"), Instances: both.Instances}})
		g.is("a", 1, true)
	})
	t.Run("deliveries already made are never changed", func(t *testing.T) {
		first := service("a", 1)
		g := start(t, first, service("b", 1, 2, 3))
		out := g.offer(service("a"))
		if first.Stale || out[name("a")] == first {
			t.Error("the delivered value was changed")
		}
		if again := g.offer(service("a")); len(again) != 0 {
			t.Errorf("delivered again without news: %v", again)
		}
	})
}
