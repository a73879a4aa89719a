package vip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/parrel-mesh/parrel/discovery"
)

func name(s string) discovery.ServiceName {
	return discovery.ServiceName{Partition: "default", Namespace: "default", Datacenter: "dc1", Name: s}
}

// colliding finds two names, in order, whose first candidates are the same.
func colliding(t *testing.T) (discovery.ServiceName, discovery.ServiceName) {
	t.Helper()
	seen := map[netip.Addr]string{}
	for i := range 200_000 {
		s := fmt.Sprintf("svc-%06d", i)
		at := Candidate(name(s), 0)
		if other, ok := seen[at]; ok {
			return name(other), name(s)
		}
		seen[at] = s
	}
	t.Fatal("no two of 200,000 names collide: the range is not what it should be")
	panic("unreachable")
}

// TestAssigner: 10,000 services have 10,000 addresses of the range, the same
// whatever the order in which they came, after restarts and removals too.
func TestAssigner(t *testing.T) {
	const n = 10_000
	names := make([]discovery.ServiceName, 0, n)
	for i := range n - 2 {
		names = append(names, name(fmt.Sprintf("service-%d", i)))
	}
	first, second := colliding(t)
	names = append(names, first, second)

	build := func(order []discovery.ServiceName) *Assigner {
		a := &Assigner{}
		for _, s := range order {
			a.Set(s, netip.Addr{})
		}
		return a
	}
	a := build(names)
	seen := map[netip.Addr]bool{}
	for _, s := range names {
		at, ok := a.Addr(s)
		if !ok || seen[at] || !Own().Contains(at) || !Range().Contains(at) {
			t.Fatalf("%s has %s (%v), taken before: %v", s, at, ok, seen[at])
		}
		seen[at] = true
	}
	same := func(what string, b *Assigner) {
		t.Helper()
		for _, s := range names {
			x, _ := a.Addr(s)
			if y, _ := b.Addr(s); x != y {
				t.Fatalf("%s: %s has %s there and %s here", what, s, y, x)
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	shuffled := append([]discovery.ServiceName{}, names...)
	r.Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	other := build(shuffled)
	same("another control plane, that heard of them in another order", other)

	// A third heard of services that are gone since, and of the same ones again.
	third := build(shuffled)
	for i := range 300 {
		third.Set(name(fmt.Sprintf("gone-%d", i)), netip.Addr{})
	}
	for i := range 300 {
		third.Remove(name(fmt.Sprintf("gone-%d", i)))
		third.Remove(names[i*7])
	}
	for i := range 300 {
		third.Set(names[i*7], netip.Addr{})
	}
	same("a control plane with a past", third)

	// Of two that collide the first by name keeps its place; when it goes, the
	// other one takes it, as it would have after a restart.
	if at, _ := a.Addr(first); at != Candidate(first, 0) {
		t.Errorf("%s has %s, want its own first candidate", first, at)
	}
	if at, _ := a.Addr(second); at != Candidate(second, 1) {
		t.Errorf("%s has %s, want its second candidate", second, at)
	}
	changed := a.Remove(first)
	if len(changed) != 2 || changed[0] != first || changed[1] != second {
		t.Errorf("removing %s changed %v", first, changed)
	}
	if at, _ := a.Addr(second); at != Candidate(second, 0) {
		t.Errorf("%s has %s after the other one is gone", second, at)
	}
	restarted := build(append(append([]discovery.ServiceName{}, names[:n-2]...), second))
	names = append(names[:n-2:n-2], second)
	same("restarted after the removal", restarted)
	if changed := a.Set(first, netip.Addr{}); len(changed) != 2 {
		t.Errorf("its return changed %v", changed)
	}
}

// TestDeclared: what the catalogue names goes before any hash, and an address
// that two services claim belongs to the first by name.
func TestDeclared(t *testing.T) {
	a := &Assigner{}
	at := netip.MustParseAddr("240.0.0.1")
	check := func(s string, want netip.Addr) {
		t.Helper()
		if got, _ := a.Addr(name(s)); got != want {
			t.Errorf("%s has %s, want %s", s, got, want)
		}
	}
	a.Set(name("web"), netip.Addr{})
	check("web", Candidate(name("web"), 0))
	if changed := a.Set(name("web"), at); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
	check("web", at)
	a.Set(name("web"), netip.MustParseAddr("::ffff:240.0.0.1"))
	check("web", at)
	a.Set(name("api"), at)
	check("api", at)
	check("web", Candidate(name("web"), 0))
	a.Remove(name("api"))
	check("web", at)
	// A name that the catalogue gives is another's candidate.
	a.Set(name("db"), Candidate(name("cache"), 0))
	a.Set(name("cache"), netip.Addr{})
	check("cache", Candidate(name("cache"), 1))
	a.Remove(name("db"))
	check("cache", Candidate(name("cache"), 0))
	if got := a.Remove(name("unknown")); got != nil {
		t.Errorf("removing nobody changed %v", got)
	}
}

// TestChanged: what Set and Remove return is what is different, at least.
func TestChanged(t *testing.T) {
	first, second := colliding(t)
	names := []discovery.ServiceName{first, second, name("a"), name("b"), name("zz")}
	declared := []netip.Addr{{}, {}, netip.MustParseAddr("240.0.0.1"), Candidate(first, 0), Candidate(name("a"), 0)}
	r := rand.New(rand.NewPCG(3, 4))
	a := &Assigner{}
	for range 5000 {
		before := map[discovery.ServiceName]netip.Addr{}
		for _, s := range names {
			before[s], _ = a.Addr(s)
		}
		s := names[r.IntN(len(names))]
		var changed []discovery.ServiceName
		if r.IntN(3) == 0 {
			changed = a.Remove(s)
		} else {
			changed = a.Set(s, declared[r.IntN(len(declared))])
		}
		told := map[discovery.ServiceName]bool{}
		for _, c := range changed {
			told[c] = true
		}
		fresh := &Assigner{}
		for c, d := range a.declared {
			fresh.Set(c, d)
		}
		for _, c := range names {
			now, _ := a.Addr(c)
			if now != before[c] && !told[c] {
				t.Fatalf("%s went from %s to %s and is not named", c, before[c], now)
			}
			if want, _ := fresh.Addr(c); now != want {
				t.Fatalf("%s has %s, and made anew %s", c, now, want)
			}
		}
	}
}

func TestTwin(t *testing.T) {
	v4 := netip.MustParseAddr("240.0.0.7")
	v6 := netip.MustParseAddr("fd70:6172:7265:6c::f000:7")
	if Twin(v4) != v6 || FromTwin(v6) != v4 || FromTwin(v4) != v4 || Twin(v6) != v6 {
		t.Errorf("%s %s", Twin(v4), FromTwin(v6))
	}
	if Range6().String() != "fd70:6172:7265:6c::/96" || Range().String() != "240.0.0.0/4" || Own().String() != "244.0.0.0/6" {
		t.Errorf("%s %s %s", Range6(), Range(), Own())
	}
	if Range6().Contains(netip.MustParseAddr("fd70:6172:7265:6d::1")) {
		t.Error("the range is too wide")
	}
}
