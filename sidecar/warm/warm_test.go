package warm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is one consistent configuration, as a control plane would have it.
type world map[Key]resource.Resource

func (w world) add(rs ...resource.Resource) world {
	for _, r := range rs {
		w[Key{r.ResourceType(), r.ResourceName()}] = r
	}
	return w
}

func tcp(name, cluster string) *resource.Listener {
	return &resource.Listener{Name: name, Address: resource.Address{Host: "127.0.0.1", Port: 1},
		Chains: []resource.FilterChain{{Name: "c", TCP: &resource.TCPProxy{Cluster: cluster}}}}
}

func http(name, route string) *resource.Listener {
	return &resource.Listener{Name: name, Address: resource.Address{Host: "127.0.0.1", Port: 1},
		Chains: []resource.FilterChain{{Name: "c", HTTP: &resource.HTTPManager{RouteName: route}}}}
}

func routes(name string, clusters ...string) *resource.RouteConfig {
	rc := &resource.RouteConfig{Name: name, VirtualHosts: []resource.VirtualHost{{Name: "v", Domains: []string{"*"}}}}
	for _, c := range clusters {
		rc.VirtualHosts[0].Routes = append(rc.VirtualHosts[0].Routes, resource.Route{Forward: &resource.Forward{Cluster: c}})
	}
	return rc
}

func cluster(name, eds string) *resource.Cluster {
	return &resource.Cluster{Name: name, EDSName: eds, TLS: &resource.UpstreamTLS{TLSParams: resource.TLSParams{
		Certificate: resource.CertSource{SDS: resource.SecretIdentity}, Trust: resource.CertSource{SDS: resource.SecretTrust}}}}
}

func endpoints(name string, port uint16) *resource.Endpoints {
	return &resource.Endpoints{Cluster: name, Localities: []resource.Locality{{Endpoints: []resource.Endpoint{{Address: resource.Address{Host: "10.0.0.1", Port: port}}}}}}
}

func trust() *resource.Secret {
	return &resource.Secret{Name: resource.SecretTrust, TrustPEM: []resource.TrustBundle{{TrustDomain: "x", RootsPEM: []byte("x")}}}
}

// drawWorld makes a consistent configuration from few names, so that worlds
// share, move and lose parts.
func drawWorld(t *rapid.T, label string) world {
	w := world{}.add(trust())
	n := func(what string, max int) int { return rapid.IntRange(0, max).Draw(t, label+" "+what) }
	for i := range 4 {
		if n(fmt.Sprintf("has cluster %d", i), 3) == 0 {
			continue
		}
		name, eds := fmt.Sprintf("c%d", i), ""
		if n("other eds name", 2) == 0 {
			eds = name + "-eds"
		}
		c := cluster(name, eds)
		c.ConnectTimeout = time.Duration(n("version of cluster", 1)) * time.Second
		w.add(c, endpoints(c.EDSResource(), uint16(n("port", 2))))
	}
	var names []string
	for k := range w {
		if k.Type == resource.TypeCluster {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return w
	}
	for i := range 3 {
		if n(fmt.Sprintf("has listener %d", i), 3) == 0 {
			continue
		}
		pick := func() string { return names[n("pick", len(names)-1)] }
		name := fmt.Sprintf("l%d", i)
		if n("kind", 1) == 0 {
			w.add(tcp(name, pick()))
			continue
		}
		route := fmt.Sprintf("r%d", n("route name", 1))
		w.add(http(name, route))
		if _, ok := w[Key{resource.TypeRoute, route}]; !ok {
			w.add(routes(route, pick(), pick()))
		}
	}
	return w
}

// whole fails where a set is a half: something refers to what is not in it.
func whole(t interface{ Fatalf(string, ...any) }, s *Set) {
	absent := map[Key]bool{}
	for _, k := range s.Absent {
		absent[k] = true
	}
	for _, typ := range resource.Types() {
		for _, name := range s.Names(typ) {
			r, _ := s.Get(Key{typ, name})
			for _, ref := range References(r) {
				if _, ok := s.Get(ref); !ok && !absent[ref] {
					t.Fatalf("a half: %s %s refers to %s, which is not in the set", typ.Short(), name, ref)
				}
			}
		}
	}
}

// TestNeverAHalfSet delivers the difference between random consistent
// configurations in random order and random portions. Whatever the order: each
// set is whole, a listener of both configurations is never away, and at the end
// the set is exactly the last configuration.
func TestNeverAHalfSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := New(Config{Publish: func(*Set) {}})
		now := time.Unix(1e9, 0)
		have := world{}
		for i := range rapid.IntRange(1, 4).Draw(t, "worlds") {
			next := drawWorld(t, fmt.Sprintf("world %d", i))
			var stay []string
			for k := range have {
				if _, ok := next[k]; ok && k.Type == resource.TypeListener {
					stay = append(stay, k.Name)
				}
			}
			for _, part := range portions(t, differences(have, next)) {
				for _, c := range part {
					w.Apply(c)
				}
				w.take()
				set, _ := w.step(now, time.Hour)
				whole(t, set)
				if len(set.Absent) > 0 {
					t.Fatalf("gave up on %v without waiting", set.Absent)
				}
				for _, l := range stay {
					if set.Listeners[l] == nil {
						t.Fatalf("listener %s is in both configurations and was away in between", l)
					}
				}
				now = now.Add(time.Second)
			}
			set := settled(t, w, next, now)
			if len(set.Pending) > 0 {
				t.Fatalf("everything was delivered, and %v waits", set.Pending)
			}
			equals(t, set, next)
			have = next
		}
	})
}

// settled answers subscriptions as a control plane does: whatever is subscribed
// to anew is delivered anew.
func settled(t *rapid.T, w *Warmer, now world, at time.Time) *Set {
	for {
		set, _ := w.step(at, time.Hour)
		whole(t, set)
		news := false
		for k := range w.since {
			if r, ok := now[k]; ok && k.Type != resource.TypeCluster && w.recv[k] == nil {
				w.Apply(Change{Type: k.Type, Upserted: []resource.Resource{r}})
				news = true
			}
		}
		if !news {
			return set
		}
		w.take()
	}
}

// differences are changes of one resource each.
func differences(have, next world) (out []Change) {
	keys := map[Key]bool{}
	for k := range have {
		keys[k] = true
	}
	for k := range next {
		keys[k] = true
	}
	for _, k := range slices.SortedFunc(maps.Keys(keys), Key.compare) {
		switch r, ok := next[k]; {
		case !ok && (k.Type == resource.TypeListener || k.Type == resource.TypeCluster):
			out = append(out, Change{Type: k.Type, Removed: []string{k.Name}})
		case ok && (have[k] == nil || !resource.Equal(have[k], r)):
			out = append(out, Change{Type: k.Type, Upserted: []resource.Resource{r}})
		}
	}
	return out
}

func portions(t *rapid.T, all []Change) (out [][]Change) {
	all = rapid.Permutation(all).Draw(t, "order")
	for len(all) > 0 {
		n := rapid.IntRange(1, len(all)).Draw(t, "portion")
		out = append(out, all[:n])
		all = all[n:]
	}
	return out
}

// equals compares a set with the part of a world that something refers to.
func equals(t *rapid.T, s *Set, w world) {
	want := world{}
	for k, r := range w {
		if k.Type == resource.TypeListener || k.Type == resource.TypeCluster {
			want[k] = r
		}
	}
	for range 2 {
		for _, r := range maps.Clone(want) {
			for _, ref := range References(r) {
				want[ref] = w[ref]
			}
		}
	}
	n := 0
	for _, typ := range resource.Types() {
		n += len(s.Names(typ))
	}
	for k, r := range want {
		if got, ok := s.Get(k); !ok || !resource.Equal(got, r) {
			t.Fatalf("%s: the set has %+v, want %+v", k, got, r)
		}
	}
	if n != len(want) {
		t.Fatalf("the set has %d resources, want %d", n, len(want))
	}
}

// feed is a Warmer that runs, and what it published and subscribed to.
type feed struct {
	*Warmer
	mu   sync.Mutex
	sets []*Set
	subs []string
}

func (f *feed) Subscribe(t resource.Type, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs = append(f.subs, t.Short()+" "+strings.Join(names, ","))
}

func (f *feed) take() ([]*Set, []string) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	s, u := f.sets, f.subs
	slices.Sort(u) // who asks first depends on what arrived first
	f.sets, f.subs = nil, nil
	return s, u
}

func (f *feed) up(rs ...resource.Resource) {
	for _, r := range rs {
		f.Apply(Change{Type: r.ResourceType(), Upserted: []resource.Resource{r}})
	}
}

func running(t *testing.T, test func(t *testing.T, f *feed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		f.Warmer = New(Config{Subscriber: f, Publish: func(s *Set) {
			whole(t, s)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.sets = append(f.sets, s)
		}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		test(t, f)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestListenerWaitsForAllItNeeds(t *testing.T) {
	running(t, func(t *testing.T, f *feed) {
		f.up(http("l", "r"), cluster("c", ""))
		sets, subs := f.take()
		if len(sets) != 1 || len(sets[0].Listeners)+len(sets[0].Clusters) != 0 || sets[0].Complete {
			t.Fatalf("first: %+v", sets)
		}
		if want := []string{"EDS c", "RDS r", "SDS ROOTCA"}; !slices.Equal(subs, want) {
			t.Errorf("subscribed to %v, want %v", subs, want)
		}
		for _, r := range []resource.Resource{endpoints("c", 1), trust(), routes("r", "c")} {
			f.up(r)
		}
		sets, _ = f.take()
		last := sets[len(sets)-1]
		if !last.Complete || len(last.Listeners) != 1 || len(last.Routes) != 1 {
			t.Fatalf("at the end: %+v", last)
		}

		t.Log("a new version of the route waits for its new cluster, and the old one goes on")
		f.up(routes("r", "c", "d"))
		if sets, _ := f.take(); len(sets) != 1 || sets[0].Complete || len(sets[0].Routes["r"].VirtualHosts[0].Routes) != 1 {
			t.Fatalf("after the route: %+v", sets)
		}
		time.Sleep(time.Minute)
		if sets, _ := f.take(); len(sets) != 0 {
			t.Fatalf("gave the old version up: %+v", sets)
		}
		f.up(cluster("d", ""), endpoints("d", 2))
		sets, subs = f.take()
		last = sets[len(sets)-1]
		if !last.Complete || len(last.Routes["r"].VirtualHosts[0].Routes) != 2 {
			t.Fatalf("with the cluster: %+v", last)
		}
		if want := []string{"EDS c,d"}; !slices.Equal(subs, want) {
			t.Errorf("subscribed to %v, want %v", subs, want)
		}

		t.Log("a cluster that is taken away stays while the route refers to it")
		f.Apply(Change{Type: resource.TypeCluster, Removed: []string{"d"}})
		if sets, _ := f.take(); len(sets) != 0 {
			t.Fatalf("the removal shows: %+v", sets)
		}
		f.up(routes("r", "c"))
		sets, subs = f.take()
		if len(sets) != 1 || sets[0].Clusters["d"] != nil || sets[0].Endpoints["d"] != nil {
			t.Fatalf("the cluster stays: %+v", sets)
		}
		_ = subs
	})
}

func TestGivesUpAfterTheTime(t *testing.T) {
	running(t, func(t *testing.T, f *feed) {
		f.up(trust(), tcp("l", "c"), cluster("c", ""))
		time.Sleep(DefaultFetchTimeout - time.Millisecond)
		if sets, _ := f.take(); len(sets) != 1 || len(sets[0].Clusters) != 0 {
			t.Fatalf("before the time: %+v", sets)
		}
		time.Sleep(2 * time.Millisecond)
		sets, _ := f.take()
		if len(sets) != 1 || sets[0].Clusters["c"] == nil || sets[0].Listeners["l"] == nil || !sets[0].Complete {
			t.Fatalf("after the time: %+v", sets)
		}
		if want := []Key{{resource.TypeEndpoints, "c"}}; !slices.Equal(sets[0].Absent, want) {
			t.Errorf("absent %v, want %v", sets[0].Absent, want)
		}
		f.up(endpoints("c", 1))
		if sets, _ := f.take(); len(sets) != 1 || len(sets[0].Absent) != 0 || sets[0].Endpoints["c"] == nil {
			t.Fatalf("when they come late: %+v", sets)
		}
	})
}

func TestEqualContentPublishesNothing(t *testing.T) {
	running(t, func(t *testing.T, f *feed) {
		f.up(trust(), tcp("l", "c"), cluster("c", ""), endpoints("c", 1))
		sets, _ := f.take()
		first := sets[len(sets)-1]
		f.up(trust(), tcp("l", "c"), cluster("c", ""), endpoints("c", 1))
		if sets, _ := f.take(); len(sets) != 0 {
			t.Fatalf("published again: %+v", sets)
		}
		f.up(endpoints("c", 2))
		sets, _ = f.take()
		if len(sets) != 1 || sets[0].Listeners["l"] != first.Listeners["l"] || sets[0].Clusters["c"] != first.Clusters["c"] {
			t.Error("what did not change is not the same pointer")
		}
		if sets[0].Versions[resource.TypeListener] != first.Versions[resource.TypeListener] ||
			sets[0].Versions[resource.TypeEndpoints] == first.Versions[resource.TypeEndpoints] || sets[0].Version == first.Version {
			t.Errorf("versions %v, before %v", sets[0].Versions, first.Versions)
		}
	})
}

// TestOnlyTheNewest: while a set is being put in force, changes gather.
func TestOnlyTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []uint16
		w := New(Config{Publish: func(s *Set) {
			time.Sleep(time.Second)
			if e := s.Endpoints["c"]; e != nil {
				got = append(got, e.Localities[0].Endpoints[0].Address.Port)
			}
		}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		f := &feed{Warmer: w}
		f.up(trust(), tcp("l", "c"), cluster("c", ""), endpoints("c", 1))
		time.Sleep(10 * time.Second)
		for i := range 100 {
			f.up(endpoints("c", uint16(i+2)))
		}
		time.Sleep(10 * time.Second)
		cancel()
		<-done
		// One of the hundred may be in hand when the others come.
		if len(got) < 2 || len(got) > 3 || got[0] != 1 || got[len(got)-1] != 101 {
			t.Errorf("published %v, want 1, at most one in between, and 101", got)
		}
	})
}
