package generate

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// naive is Consul's rule told in another way: among the intentions that match
// source and destination, the one that is most exact decides, the destination
// counting before the source; the default where none does. It knows nothing of
// the mesh package.
func naive(entries map[string]map[string]discovery.IntentionAction, def discovery.IntentionAction, src, dst string) bool {
	for _, d := range []string{dst, "*"} {
		for _, s := range []string{src, "*"} {
			if a, ok := entries[d][s]; ok {
				return a == discovery.Allow
			}
		}
	}
	return def == discovery.Allow
}

// names holds traps: one the prefix of another, characters of expressions.
func names() []string {
	return []string{"web", "web-admin", "api", "a.b", "aXb", "w", "api.v2"}
}

// TestIntentions holds 10,000 random (intentions, source, destination) cases
// against the naive rule.
func TestIntentions(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 1))
	services := names()
	cases := 0
	for cases < 10_000 {
		entries := map[string]map[string]discovery.IntentionAction{}
		d := discovery.Delta{Full: true, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
		d.DefaultIntention = pick(r, discovery.Allow, discovery.Deny)
		for range r.IntN(6) {
			dst := pick(r, append(services, "*", "*", "*")...)
			src := pick(r, append(services, "*", "*", "*")...)
			if entries[dst] == nil {
				entries[dst] = map[string]discovery.IntentionAction{}
			}
			entries[dst][src] = pick(r, discovery.Allow, discovery.Deny)
		}
		for dst, sources := range entries {
			key := discovery.EntryKey{Kind: mesh.KindServiceIntentions, Partition: "default", Namespace: "default", Name: dst}
			body := &discovery.ServiceIntentions{}
			for src, action := range sources {
				body.Sources = append(body.Sources, discovery.SourceIntention{Name: src, Action: action, Type: "consul"})
			}
			d.Entries[key] = &discovery.ConfigEntry{Key: key, Body: body}
		}
		m := build(d)
		for _, dst := range services {
			rbac, err := decide.CompileRBAC(intentions(m, m.Local(dst)))
			if err != nil {
				t.Fatal(err)
			}
			for _, src := range services {
				cases++
				from := m.Local(src)
				from.Datacenter = pick(r, "dc1", "dc2")
				got := rbac.Authorise(nil, &decide.Facts{PeerID: SPIFFEID(m, from)}, nil)
				if want := naive(entries, m.Default, src, dst); got.Allowed != want {
					t.Fatalf("%s → %s: got %v, want %v; default %s, intentions %v", src, dst, got.Allowed, want, m.Default, entries)
				}
				// The caller's sidecar is told of whom the callee's lets it call.
				if m.MayCall(m.Local(src), m.Local(dst)) != got.Allowed {
					t.Fatalf("%s → %s: MayCall is not what the callee says, %v", src, dst, got.Allowed)
				}
			}
		}
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// TestIntentionsWhole: nobody but the workloads of this mesh's services, in
// their exact form, is let in by an intention.
func TestIntentionsWhole(t *testing.T) {
	m := build(meshtest.MustRead(`
default: deny
entries:
- {kind: service-intentions, name: api, sources: [{name: web, action: allow}]}
- {kind: service-intentions, name: any, sources: [{name: "*", action: allow}]}
- {kind: service-intentions, name: l7, sources: [{name: web, permissions: [{action: allow, http: {path_prefix: /}}]}, {name: "*", action: allow}]}
- {kind: service-intentions, name: peered, sources: [{name: web, peer: other, action: allow}]}
`))
	const td = "spiffe://parrel.test"
	for _, c := range []struct {
		dst, peer string
		want      bool
	}{
		{"api", td + "/ns/default/dc/dc1/svc/web", true},
		{"api", td + "/ns/default/dc/dc2/svc/web", true},
		{"api", td + "/ns/default/dc/dc1/svc/web-admin", false},
		{"api", td + "/ns/default/dc/dc1/svc/web/more", false},
		{"api", td + "/ns/default/dc/a/b/svc/web", false},
		{"api", td + "/ns/other/dc/dc1/svc/web", false},
		{"api", td + "/ap/p2/ns/default/dc/dc1/svc/web", false},
		{"api", "spiffe://parrelXtest/ns/default/dc/dc1/svc/web", false},
		{"api", "spiffe://other/ns/default/dc/dc1/svc/web", false},
		{"api", td + "/parrel/controlplane", false},
		{"api", "", false},
		{"any", td + "/ns/default/dc/dc1/svc/web-admin", true},
		{"any", td + "/ns/other/dc/dc1/svc/web", false},
		{"any", td + "/parrel/controlplane", false},
		{"any", "", false},
		{"l7", td + "/ns/default/dc/dc1/svc/web", false},
		{"l7", td + "/ns/default/dc/dc1/svc/api", true},
		{"peered", td + "/ns/default/dc/dc1/svc/web", false},
		{"nobody", td + "/ns/default/dc/dc1/svc/web", false},
	} {
		rbac, err := decide.CompileRBAC(intentions(m, m.Local(c.dst)))
		if err != nil {
			t.Fatal(err)
		}
		if got := rbac.Authorise(nil, &decide.Facts{PeerID: c.peer}, nil); got.Allowed != c.want {
			t.Errorf("%q → %s: got %v (policy %q), want %v", c.peer, c.dst, got.Allowed, got.Policy, c.want)
		}
	}
}

// TestHostileNames: whatever a service is called, the rules compile and let
// nobody in whom the user did not name.
func TestHostileNames(t *testing.T) {
	for _, name := range []string{".*", "web|.*", "a)(b", `\E.*`, "[", "svc/web", "web$|^"} {
		key := discovery.EntryKey{Kind: mesh.KindServiceIntentions, Partition: "default", Namespace: "default", Name: "api"}
		m := build(discovery.Delta{Full: true, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{
			key: {Key: key, Body: &discovery.ServiceIntentions{Sources: []discovery.SourceIntention{{Name: name, Action: discovery.Allow}}}},
		}})
		rbac, err := decide.CompileRBAC(intentions(m, m.Local("api")))
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		peer := SPIFFEID(m, m.Local("web"))
		if got := rbac.Authorise(nil, &decide.Facts{PeerID: peer}, nil); got.Allowed {
			t.Errorf("an intention for %q lets %s in", name, peer)
		}
	}
}

// TestPrecedence holds Consul's table of nine.
func TestPrecedence(t *testing.T) {
	want := map[string]int{
		"default/web→default/api": 9, "default/*→default/api": 8, "*/*→default/api": 7,
		"default/web→default/*": 6, "default/*→default/*": 5, "*/*→default/*": 4,
		"default/web→*/*": 3, "default/*→*/*": 2, "*/*→*/*": 1,
	}
	for _, d := range [][2]string{{"default", "api"}, {"default", "*"}, {"*", "*"}} {
		key := discovery.EntryKey{Kind: mesh.KindServiceIntentions, Partition: "default", Namespace: d[0], Name: d[1]}
		body := &discovery.ServiceIntentions{Sources: []discovery.SourceIntention{
			{Name: "*", Namespace: "*", Action: discovery.Deny}, {Name: "web", Action: discovery.Allow}, {Name: "*", Action: discovery.Deny},
		}}
		m := build(discovery.Delta{Full: true, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{key: {Key: key, Body: body}}})
		last := 10
		for _, i := range m.Intentions(m.Local("api")) {
			name := fmt.Sprintf("%s/%s→%s/%s", i.Namespace, i.Name, d[0], d[1])
			if i.Precedence != want[name] {
				t.Errorf("%s: precedence %d, want %d", name, i.Precedence, want[name])
			}
			if cmp.Compare(i.Precedence, last) >= 0 {
				t.Errorf("%s comes after precedence %d", name, last)
			}
			last = i.Precedence
		}
		if last == 10 {
			t.Errorf("no intentions for destination %v", d)
		}
	}
}

// TestDefaultAllowIsForServices: an identity of this mesh that is no service can
// be named by no intention, so that nothing would deny it.
func TestDefaultAllowIsForServices(t *testing.T) {
	m := build(discovery.Delta{Full: true, DefaultIntention: discovery.Allow})
	rbac, err := decide.CompileRBAC(intentions(m, m.Local("api")))
	if err != nil {
		t.Fatal(err)
	}
	for peer, want := range map[string]bool{
		SPIFFEID(m, m.Local("web")):                                     true,
		"spiffe://" + meshtest.TrustDomain + "/ap/b/ns/x/dc/d2/svc/web": true,
		"spiffe://" + meshtest.TrustDomain + "/parrel/controlplane":     false,
		"spiffe://" + meshtest.TrustDomain + "/ops/x":                   false,
		"spiffe://" + meshtest.TrustDomain + "/ns/default/dc/dc1/svc/":  false,
		"spiffe://other.example/ns/default/dc/dc1/svc/web":              false,
		"": false,
	} {
		if got := rbac.Authorise(nil, &decide.Facts{PeerID: peer}, nil); got.Allowed != want {
			t.Errorf("%q: allowed %v, want %v", peer, got.Allowed, want)
		}
	}
}
