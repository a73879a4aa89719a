// Package authorize compares the L4 intentions that parrel executes with what a
// real Consul agent says of the same calls (/v1/agent/connect/authorize; its
// /v1/connect/intentions/check ignores default_intention_policy).
package authorize

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

const (
	sets     = 250 // random sets of intentions
	perSet   = 40  // calls asked of each
	dc       = "dc1"
	kind     = "service-intentions"
	parallel = 8
)

// sources hold traps: one the prefix of another, characters of expressions.
var sources = []string{"web", "web-admin", "api", "a.b", "aXb", "w", "api.v2", "nobody"}

func TestAuthorize(t *testing.T) {
	for _, policy := range []string{"allow", "deny"} {
		t.Run("default "+policy, func(t *testing.T) { compare(t, policy) })
	}
}

func compare(t *testing.T, policy string) {
	agent := consultest.Dev(t, consultest.Options{HCL: `default_intention_policy = "` + policy + `"`})
	client, err := api.NewClient(&api.Config{Address: agent.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	roots, _, err := client.Agent().ConnectCARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(250, uint64(len(policy))))
	var asked, allowed, differ int
	for set := range sets / 2 {
		// Names of their own for each set: the agent caches answers by destination.
		dsts := []string{fmt.Sprintf("d%d", set), fmt.Sprintf("d%d.x", set), fmt.Sprintf("d%d-x", set)}
		d := discovery.Delta{Full: true, DefaultIntention: discovery.IntentionAction(policy),
			Services: map[discovery.ServiceName]*discovery.Service{}, Entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
		written := write(t, agent, r, dsts, d.Entries)
		for _, dst := range dsts {
			register(d.Services, dst)
		}
		m, _ := mesh.NewBuilder(mesh.Config{TrustDomain: roots.TrustDomain, Datacenter: dc}).Apply(d)
		type call struct{ src, dst string }
		calls := make([]call, perSet)
		for i := range calls {
			calls[i] = call{sources[r.IntN(len(sources))], dsts[r.IntN(len(dsts))]}
		}
		consul := make([]bool, len(calls))
		var wg sync.WaitGroup
		for w := range parallel {
			wg.Go(func() {
				for i := w; i < len(calls); i += parallel {
					consul[i] = authorize(t, client, roots.TrustDomain, calls[i].src, calls[i].dst)
				}
			})
		}
		wg.Wait()
		for i, c := range calls {
			asked++
			got := ours(t, m, c.src, c.dst)
			if got {
				allowed++
			}
			if got != consul[i] {
				differ++
				t.Errorf("%s → %s: parrel says %v, Consul %v; intentions: %v", c.src, c.dst, got, consul[i], written)
			}
		}
		for _, name := range append(dsts, "*") {
			agent.DeleteEntry(kind, name)
		}
	}
	if asked < sets*perSet/2 || allowed == 0 || allowed == asked {
		t.Errorf("%d calls, %d allowed: the cases do not cover both answers", asked, allowed)
	}
	t.Logf("%d calls, %d allowed, %d differ", asked, allowed, differ)
}

// write puts random intentions into Consul and takes them as it serves them.
func write(t *testing.T, agent *consultest.Agent, r *rand.Rand, dsts []string, into map[discovery.EntryKey]*discovery.ConfigEntry) (written []string) {
	t.Helper()
	for _, dst := range append(dsts[:2:2], "*") { // the third has only what "*" says
		var srcs []map[string]any
		for _, src := range append(sources[:len(sources)-1:len(sources)-1], "*") {
			if r.IntN(3) == 0 {
				action := []string{"allow", "deny"}[r.IntN(2)]
				srcs = append(srcs, map[string]any{"Name": src, "Action": action})
				written = append(written, src+" → "+dst+": "+action)
			}
		}
		if srcs == nil {
			continue
		}
		agent.Entry(map[string]any{"Kind": kind, "Name": dst, "Sources": srcs})
		var served map[string]any
		agent.Get("/v1/config/"+kind+"/"+dst, &served)
		e, err := discovery.DecodeServedEntry(served, discovery.Origin{Place: "consul"})
		if err != nil {
			t.Fatal(err)
		}
		into[e.Key] = e
	}
	return written
}

// register makes a service with a sidecar.
func register(into map[discovery.ServiceName]*discovery.Service, name string) {
	n := discovery.ServiceName{Partition: discovery.DefaultPartition, Namespace: discovery.DefaultNamespace, Datacenter: dc, Name: name}
	proxy := n
	proxy.Name += "-sidecar-proxy"
	into[n] = &discovery.Service{Name: n, Proxies: []*discovery.Instance{{
		Service: proxy, ID: name + "-sidecar-proxy", Node: "n1", Kind: discovery.KindConnectProxy, Address: "10.0.0.1", Port: 21000,
		Weights: discovery.Weights{Passing: 1, Warning: 1},
		Proxy:   &discovery.Proxy{DestinationService: name, DestinationServiceID: name, LocalServicePort: 80},
	}}}
}

// ours is the verdict of the rules that the destination's sidecar is given.
func ours(t *testing.T, m *mesh.Snapshot, src, dst string) bool {
	t.Helper()
	w, ok := m.Workload(dst + "-sidecar-proxy")
	if !ok {
		t.Fatalf("no workload of %s", dst)
	}
	l, _, ok := generate.Resource(m, generate.View{Workload: w}, resource.TypeListener, generate.PublicListener)
	if !ok {
		t.Fatalf("%s has no public listener", dst)
	}
	rules, err := decide.CompileRBAC(l.(*resource.Listener).Chains[0].Network[0].RBAC)
	if err != nil {
		t.Fatal(err)
	}
	return rules.Authorise(nil, &decide.Facts{PeerID: generate.SPIFFEID(m, m.Local(src))}, nil).Allowed
}

// authorize asks Consul's agent.
func authorize(t *testing.T, client *api.Client, trustDomain, src, dst string) bool {
	out, err := client.Agent().ConnectAuthorize(&api.AgentAuthorizeParams{Target: dst, ClientCertSerial: "00:01",
		ClientCertURI: fmt.Sprintf("spiffe://%s/ns/default/dc/%s/svc/%s", trustDomain, dc, src)})
	if err != nil {
		t.Error(err)
		return false
	}
	return out.Authorized
}
