package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/vip"
	"github.com/parrel-mesh/parrel/discovery"
)

// TestTransparent: field by field the registration, else service-defaults, else
// proxy-defaults.
func TestTransparent(t *testing.T) {
	const catalogue = `
services:
- {name: own, port: 80, connect: {sidecar_service: {proxy: {mode: transparent, transparent_proxy: {outbound_listener_port: 1}}}}}
- {name: refuses, port: 80, connect: {sidecar_service: {proxy: {mode: direct}}}}
- {name: service, port: 80, connect: {sidecar_service: {proxy: {transparent_proxy: {dialed_directly: true}}}}}
- {name: other, port: 80, connect: {sidecar_service: {}}}
- {name: native, port: 80, connect: {native: true}}
entries:
- {kind: service-defaults, name: own, mode: direct, transparent_proxy: {outbound_listener_port: 2, dialed_directly: true}}
- {kind: service-defaults, name: service, mode: transparent, transparent_proxy: {outbound_listener_port: 2}}
- {kind: service-defaults, name: other, mode: direct}
- {kind: proxy-defaults, name: global, mode: %q, transparent_proxy: {outbound_listener_port: 3}}
`
	for _, mode := range []string{"", "transparent"} {
		b := builder()
		m, _ := b.Apply(meshtest.MustRead(fmt.Sprintf(catalogue, mode)))
		for id, want := range map[string]string{
			"own-sidecar-proxy": "{1 true} true", "refuses-sidecar-proxy": "{3 false} false",
			"service-sidecar-proxy": "{2 true} true", "other-sidecar-proxy": "{3 false} false", "native": "{0 false} false",
		} {
			w, ok := m.Workload(id)
			if !ok {
				t.Fatal(id)
			}
			tp, on := m.Transparent(w)
			if got := fmt.Sprint(tp, on); got != want {
				t.Errorf("proxy-defaults %q: %s is %s, want %s", mode, id, got, want)
			}
		}
	}
}

// TestCallable: after any change, Callable is what Calls says of each service, and
// each connect service of the datacenter has an address of its own, the one that
// a control plane which starts now gives it.
func TestCallable(t *testing.T) {
	world := []string{"a", "b", "c", "d", "e"}
	some := 0
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 3))
		b := builder()
		for range 60 {
			d := discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{}, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
			pick := func(from ...string) string { return from[r.IntN(len(from))] }
			switch r.IntN(5) {
			case 0, 1:
				name := pick(world...)
				n := b.Current().Local(name)
				d.Services[n] = nil
				if r.IntN(3) > 0 {
					d.Services[n] = one(name, pick("", "{}", "{}")).Services[n]
				}
			case 2, 3:
				key := discovery.EntryKey{Kind: KindServiceIntentions, Partition: "default", Namespace: pick("default", "default", "*"), Name: pick(append(world, "*")...)}
				if key.Namespace == "*" {
					key.Name = "*"
				}
				d.Entries[key] = nil
				if r.IntN(3) > 0 {
					body := &discovery.ServiceIntentions{}
					for _, src := range []string{pick(world...), "*"} {
						s := discovery.SourceIntention{Name: src, Namespace: pick("default", "other"), Action: discovery.IntentionAction(pick("allow", "deny", "?"))}
						if r.IntN(6) == 0 {
							s.Action, s.Permissions = "", []discovery.IntentionPermission{{Action: discovery.Allow}}
						}
						if r.IntN(6) == 0 {
							s.Peer = "far"
						}
						body.Sources = append(body.Sources, s)
					}
					d.Entries[key] = &discovery.ConfigEntry{Key: key, Body: body}
				}
			case 4:
				d.DefaultIntention = discovery.IntentionAction(pick("allow", "deny"))
			}
			m, _ := b.Apply(d)
			fresh := &vip.Assigner{}
			for name, svc := range m.Services() {
				v, ok := m.Virtual(name)
				if ok != (len(svc.Proxies) > 0) {
					t.Fatalf("seed %d: %s has %v %v with %d proxies", seed, name, v, ok, len(svc.Proxies))
				}
				if ok {
					fresh.Set(name, netip.Addr{})
				}
			}
			for name := range m.Services() {
				v, _ := m.Virtual(name)
				if want, _ := fresh.Addr(name); v.Addr != want {
					t.Fatalf("seed %d: %s has %s, and from a control plane that starts now %s", seed, name, v.Addr, want)
				}
			}
			for _, src := range world {
				var want []discovery.ServiceName
				for _, dst := range m.ServiceNames() {
					if m.Calls(m.Local(src), dst) {
						want = append(want, dst)
					}
					// What the callee says, in the order in which its intentions decide.
					allowed := m.Default == discovery.Allow
					for _, i := range m.Intentions(dst) {
						if i.Peer == "" && (i.Name == src || i.Name == "*") && i.Namespace == "default" {
							allowed = i.Effect == discovery.Allow || len(i.Permissions) > 0
							break
						}
					}
					if allowed != m.MayCall(m.Local(src), dst) {
						t.Fatalf("seed %d: MayCall(%s, %s) is not what the intentions say", seed, src, dst)
					}
				}
				some += len(want)
				if got := m.Callable(m.Local(src)); !slices.Equal(got, want) {
					t.Fatalf("seed %d: %s may call %v, and of each alone %v", seed, src, got, want)
				}
			}
		}
	}
	if some < 1000 {
		t.Errorf("only %d calls were allowed: the deltas are too plain", some)
	}
}

// TestMemo: made once, for the newest snapshot only, and never more than a few.
func TestMemo(t *testing.T) {
	b := builder()
	old, _ := b.Apply(one("a", "{}"))
	made := 0
	get := func(m *Snapshot, key any) any { return m.Memo(key, func() any { made++; return new(int) }) }
	if get(old, 1) != get(old, 1) || made != 1 {
		t.Errorf("made %d times", made)
	}
	next, _ := b.Apply(one("b", "{}"))
	before := get(next, 1)
	if made != 2 || get(old, 1) == before || get(old, 1) == get(old, 1) {
		t.Error("an old snapshot keeps what was made of it, or gives what is not its own")
	}
	made = 0
	for i := range 2 * memoSize {
		get(next, i)
	}
	for i := range memoSize {
		get(next, i)
	}
	if made != 2*memoSize-1 {
		t.Errorf("made %d times", made)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if get := next.Memo(0, func() any { return new(int) }); get != next.Memo(0, func() any { return nil }) {
				t.Error("two values of one key")
			}
		})
	}
	wg.Wait()
}
