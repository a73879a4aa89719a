package discovery

import (
	"fmt"
	"testing"
)

// TestCombineHealth goes through every pair of a node's and a service's state.
func TestCombineHealth(t *testing.T) {
	states := []Health{Passing, Warning, Critical, Maintenance}
	check := func(h Health, node bool) Check {
		c := Check{ID: "c", Service: "web", Health: h}
		if node {
			c = Check{ID: "serfHealth", Health: h}
		}
		if h == Maintenance { // Consul's maintenance checks are critical ones with a name
			c.Health, c.ID = Critical, "_service_maintenance:web"
			if node {
				c.ID = "_node_maintenance"
			}
		}
		return c
	}
	want := [4][4]Health{ // [node][service]
		{Passing, Warning, Critical, Maintenance},
		{Warning, Warning, Critical, Maintenance},
		{Critical, Critical, Critical, Maintenance},
		{Maintenance, Maintenance, Maintenance, Maintenance},
	}
	for _, node := range states {
		for _, service := range states {
			t.Run(fmt.Sprintf("node %s service %s", node, service), func(t *testing.T) {
				for _, checks := range [][]Check{
					{check(node, true), check(service, false)},
					{check(service, false), check(node, true)},
					{check(Passing, false), check(node, true), check(service, false), check(Passing, true)},
				} {
					got := CombineHealth(checks)
					if got != want[node][service] {
						t.Errorf("got %s, want %s", got, want[node][service])
					}
					if usable := got == Passing || got == Warning; got.Usable() != usable {
						t.Errorf("%s: Usable is %v", got, got.Usable())
					}
				}
			})
		}
	}
	if got := CombineHealth(nil); got != Passing {
		t.Errorf("without a check: %s", got)
	}
}

func TestWeigh(t *testing.T) {
	for _, c := range []struct {
		in    Weights
		h     Health
		out   Weights
		after Health
	}{
		{Weights{}, Passing, Weights{1, 1}, Passing},
		{Weights{}, Warning, Weights{1, 1}, Warning},
		{Weights{3, 2}, Warning, Weights{3, 2}, Warning},
		{Weights{3, 0}, Passing, Weights{3, 1}, Passing},
		{Weights{3, 0}, Warning, Weights{3, 1}, Critical},
		{Weights{0, 2}, Passing, Weights{1, 2}, Critical},
		{Weights{3, 2}, Maintenance, Weights{3, 2}, Maintenance},
	} {
		if w, h := Weigh(c.in, c.h); w != c.out || h != c.after {
			t.Errorf("%+v %s: %+v %s, want %+v %s", c.in, c.h, w, h, c.out, c.after)
		}
	}
	for word, want := range map[string]Health{"passing": Passing, "warning": Warning, "critical": Critical, "maintenance": Maintenance, "": Critical, "odd": Critical} {
		if got := ParseHealth(word); got != want {
			t.Errorf("%q is %s, want %s", word, got, want)
		}
	}
}
