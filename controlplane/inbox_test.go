package controlplane

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

func svc(name string) discovery.ServiceName {
	return discovery.ServiceName{Partition: "default", Namespace: "default", Datacenter: "dc1", Name: name}
}

func delta(services ...string) discovery.Delta {
	d := discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{}}
	for _, s := range services {
		d.Services[svc(s)] = &discovery.Service{Name: svc(s)}
	}
	return d
}

// TestCoalesce: a service's first change passes at once; changes that follow
// within the interval become one at its end; other services do not wait.
func TestCoalesce(t *testing.T) {
	b, g, now := newInbox(), newGate(100*time.Millisecond), time.Unix(1000, 0)
	step := func(after time.Duration, wantWait time.Duration, want ...string) {
		t.Helper()
		now = now.Add(after)
		d, wait, ok := b.take(g, now)
		if ok != (len(want) > 0) || wait != wantWait || len(d.Services) != len(want) && ok {
			t.Fatalf("took %v, wait %v, %v; want %v, wait %v", d.Services, wait, ok, want, wantWait)
		}
		for _, s := range want {
			if _, in := d.Services[svc(s)]; !in {
				t.Fatalf("%s was not taken", s)
			}
		}
	}
	step(0, 0)
	b.put(delta("a"))
	step(0, 0, "a")
	b.put(delta("a"))
	step(10*time.Millisecond, 90*time.Millisecond)
	b.put(delta("a", "b"))
	step(10*time.Millisecond, 0, "b")
	b.put(delta("a"))
	step(10*time.Millisecond, 70*time.Millisecond)
	step(70*time.Millisecond, 0, "a")
	step(0, 0)
	b.put(delta("a"))
	step(time.Second, 0, "a")

	full := delta("c")
	full.Full = true
	b.put(delta("a"))
	b.put(full)
	d, _, ok := b.take(g, now)
	if !ok || !d.Full || len(d.Services) != 1 {
		t.Fatalf("a full delivery replaces what was pending: %v", d.Services)
	}
}

// TestCoalesceKeepsSourcesMaps: what a source delivered is never written to.
func TestCoalesceKeepsSourcesMaps(t *testing.T) {
	b := newInbox()
	first := delta("a")
	b.put(first)
	b.put(delta("b"))
	if len(first.Services) != 1 {
		t.Errorf("the delivery was changed: %v", first.Services)
	}
}

// TestChurn: 50 changes a second of one service come to at most 10 pushes.
func TestChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		defer w.end()
		full := delta("a")
		full.Full = true
		w.feed <- full
		<-w.cp.Ready()
		from := w.cp.Mesh().Version
		for i := range 50 {
			d := delta("a")
			d.Services[svc("a")].Instances = []*discovery.Instance{{Service: svc("a"), ID: "a", Node: "n", Address: "10.0.0.1", Port: i}}
			w.feed <- d
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		got := w.cp.Mesh()
		if n := got.Version - from; n > 12 || n < 5 {
			t.Errorf("%d versions of the mesh in a second of churn", n)
		}
		if s, _ := got.Service(svc("a")); s.Instances[0].Port != 49 {
			t.Errorf("the last change is lost: port %d", s.Instances[0].Port)
		}
	})
}
