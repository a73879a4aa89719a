package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/consultest"
)

// patience bounds waits for what a real agent has to say: it runs an alias check
// of which it missed a change once a minute.
const patience = 90 * time.Second

// TestRealAgent goes through the life of a service with a real agent.
func TestRealAgent(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	v, stop := run(t, Config{Address: agent.HTTP})
	defer stop()
	v.await(t, patience, "a first delivery", func(v *view) bool { return v.full == 1 && v.roots != nil })
	if v.policy != discovery.Allow {
		t.Errorf("an agent without ACLs allows; the policy is %q", v.policy)
	}
	reg, err := NewRegistrar(Config{Address: agent.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()

	t.Run("registered", func(t *testing.T) {
		var took []time.Duration
		for i := range 5 {
			id := fmt.Sprintf("web-%d", i)
			agent.Register(map[string]any{"ID": id, "Name": "web", "Port": 8000 + i})
			if _, err := reg.Lookup(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := reg.RegisterProxy(t.Context(), ProxyRegistration{Service: "web", ServiceID: id, Port: 21000 + i, ServicePort: 8000 + i}); err != nil {
				t.Fatal(err)
			}
			v.await(t, patience, "the proxy passing", func(v *view) bool {
				p := proxies(v, "web")
				return len(p) == i+1 && p[i].Health == discovery.Passing
			})
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		t.Logf("from RegisterProxy to delivery: %s", took)
		// The middle one: the machine may be busy with other tests.
		if took[2] > 250*time.Millisecond {
			t.Errorf("registration took %s to arrive, want < 250ms", took)
		}
		p := proxies(v, "web")[0]
		if p.ID != "web-0-sidecar-proxy" || p.Port != 21000 || p.Proxy.DestinationServiceID != "web-0" || p.Address != "127.0.0.1" {
			t.Errorf("proxy %+v %+v", p, p.Proxy)
		}
		l, err := reg.Lookup(t.Context(), "web-0")
		if err != nil || l.Proxy == nil || l.Proxy.ID != "web-0-sidecar-proxy" || l.Datacenter != "dc1" {
			t.Errorf("Lookup = %+v, %v", l, err)
		}
		if _, err := reg.Lookup(t.Context(), "nobody"); !errors.Is(err, ErrNotRegistered) {
			t.Errorf("Lookup of nobody: %v", err)
		}
	})

	t.Run("weights", func(t *testing.T) {
		agent.Register(`{"ID":"w","Name":"weighty","Port":1,"Weights":{"Passing":3,"Warning":2},"Connect":{"Native":true}}`)
		v.await(t, patience, "weights 3 and 2", func(v *view) bool {
			p := proxies(v, "weighty")
			return len(p) == 1 && p[0].Weights == discovery.Weights{Passing: 3, Warning: 2} && p[0].Native
		})
	})

	t.Run("transparent", func(t *testing.T) {
		agent.Register(`{"ID":"tp","Name":"tp","Port":8100,"Connect":{"SidecarService":{"Proxy":{"Mode":"transparent",
			"TransparentProxy":{"OutboundListenerPort":15009,"DialedDirectly":true}}}}}`)
		agent.Register(`{"ID":"nat","Name":"nat","Port":8101,"Connect":{"Native":true}}`)
		v.await(t, 10*time.Second, "virtual addresses", func(v *view) bool {
			return len(proxies(v, "tp")) == 1 && len(proxies(v, "nat")) == 1 && proxies(v, "tp")[0].Tagged != nil && proxies(v, "nat")[0].Tagged != nil
		})
		v.mu.Lock()
		defer v.mu.Unlock()
		p := proxies(v, "tp")[0].Proxy
		if p.Mode != discovery.ModeTransparent || p.TransparentProxy != (discovery.TransparentProxy{OutboundListenerPort: 15009, DialedDirectly: true}) {
			t.Errorf("proxy %+v", p)
		}
		// The server that leads gives each service of the mesh one, on its proxies and
		// native instances; every instance of a service has the same.
		seen := map[netip.Addr]string{}
		for name, n := range map[string]int{"tp": 1, "nat": 1, "web": 5} {
			s := v.services[name]
			consul, platform := s.Virtual()
			if len(s.Proxies) != n || len(consul) != 1 || len(platform) != 0 || !netip.MustParsePrefix("240.0.0.0/4").Contains(consul[0]) {
				t.Errorf("%s with %d proxies has %v and %v", name, len(s.Proxies), consul, platform)
				continue
			}
			if other := seen[consul[0]]; other != "" {
				t.Errorf("%s and %s both have %s", name, other, consul[0])
			}
			seen[consul[0]] = name
		}
	})

	t.Run("transparent entries", func(t *testing.T) {
		agent.Entry(`{"Kind":"mesh","TransparentProxy":{"MeshDestinationsOnly":true},"AllowEnablingPermissiveMutualTLS":true}`)
		agent.Entry(`{"Kind":"service-defaults","Name":"tp","Mode":"transparent","MutualTLSMode":"permissive","TransparentProxy":{"OutboundListenerPort":15010}}`)
		agent.Entry(`{"Kind":"proxy-defaults","Name":"global","Mode":"transparent","TransparentProxy":{"DialedDirectly":true}}`)
		v.await(t, 10*time.Second, "three entries", func(v *view) bool { return len(v.entries) == 3 })
		var mesh *discovery.Mesh
		var service *discovery.ServiceDefaults
		var global *discovery.ProxyDefaults
		v.mu.Lock()
		entries := maps.Clone(v.entries)
		v.mu.Unlock()
		for _, e := range entries {
			switch body := e.Body.(type) {
			case *discovery.Mesh:
				mesh = body
			case *discovery.ServiceDefaults:
				service = body
			case *discovery.ProxyDefaults:
				global = body
			}
		}
		if mesh == nil || !mesh.MeshDestinationsOnly || !mesh.AllowEnablingPermissiveMutualTLS {
			t.Errorf("mesh %+v", mesh)
		}
		if service == nil || service.Mode != "transparent" || service.MutualTLSMode != "permissive" || service.TransparentProxy.OutboundListenerPort != 15010 {
			t.Errorf("service-defaults %+v", service)
		}
		if global == nil || global.Mode != "transparent" || !global.TransparentProxy.DialedDirectly {
			t.Errorf("proxy-defaults %+v", global)
		}
		agent.DeleteEntry("service-defaults", "tp")
		agent.DeleteEntry("proxy-defaults", "global")
		agent.DeleteEntry("mesh", "mesh")
		v.await(t, 10*time.Second, "no entry", func(v *view) bool { return len(v.entries) == 0 })
	})

	t.Run("critical and maintenance", func(t *testing.T) {
		health := func(h discovery.Health) func(*view) bool {
			return func(v *view) bool {
				for _, p := range proxies(v, "web") {
					if p.ID == "web-1-sidecar-proxy" {
						return p.Health == h
					}
				}
				return false
			}
		}
		agent.Put("/v1/agent/check/register", `{"ID":"c","Name":"c","ServiceID":"web-1","TTL":"60s","Status":"critical"}`)
		v.await(t, patience, "critical by the alias", health(discovery.Critical))
		agent.Put("/v1/agent/check/warn/c", nil)
		v.await(t, patience, "warning", health(discovery.Warning))
		agent.Put("/v1/agent/check/pass/c", nil)
		v.await(t, patience, "passing", health(discovery.Passing))
		agent.Put("/v1/agent/service/maintenance/web-1-sidecar-proxy?enable=true", nil)
		v.await(t, patience, "maintenance", health(discovery.Maintenance))
		agent.Put("/v1/agent/service/maintenance/web-1-sidecar-proxy?enable=false", nil)
		v.await(t, patience, "passing again", health(discovery.Passing))
		agent.Put("/v1/agent/maintenance?enable=true", nil)
		v.await(t, patience, "node maintenance", health(discovery.Maintenance))
		agent.Put("/v1/agent/maintenance?enable=false", nil)
		v.await(t, patience, "passing at last", health(discovery.Passing))
	})

	t.Run("entries", func(t *testing.T) {
		key := func(kind, name string) discovery.EntryKey {
			return discovery.EntryKey{Kind: kind, Partition: "default", Namespace: "default", Name: name}
		}
		agent.Entry(`{"Kind":"service-defaults","Name":"web","Protocol":"http"}`)
		agent.Entry(`{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"*","Action":"deny"},{"Name":"api","Action":"allow"}]}`)
		agent.Entry(`{"Kind":"service-router","Name":"web","Routes":[]}`)
		v.await(t, patience, "all entries", func(v *view) bool { return len(v.entries) == 3 })
		in := v.entries[key("service-intentions", "web")].Body.(*discovery.ServiceIntentions)
		if len(in.Sources) != 2 || in.Sources[0].Name != "api" || in.Sources[0].Precedence != 9 || in.Sources[1].Precedence != 8 {
			t.Errorf("intentions %+v", in)
		}
		if e := v.entries[key("service-router", "web")]; e.Body != nil {
			t.Errorf("router %+v", e)
		}
		agent.DeleteEntry("service-intentions", "web")
		v.await(t, patience, "the intention gone", func(v *view) bool { return v.entries[key("service-intentions", "web")] == nil })
	})

	t.Run("deregistered", func(t *testing.T) {
		var took []time.Duration
		for _, i := range []int{4, 3, 2} { // and as many are left
			if err := reg.DeregisterProxy(t.Context(), fmt.Sprintf("web-%d-sidecar-proxy", i)); err != nil {
				t.Fatal(err)
			}
			took = append(took, v.await(t, patience, "one proxy fewer", func(v *view) bool { return len(proxies(v, "web")) == i }))
		}
		// The middle one: the machine may be busy with other tests.
		if slices.Sort(took); took[1] > 250*time.Millisecond {
			t.Errorf("single removals took %s", took)
		}
		if err := reg.DeregisterProxy(t.Context(), "web-4-sidecar-proxy"); err != nil {
			t.Errorf("deregistering again: %v", err)
		}
		agent.Deregister("w")
		v.await(t, patience, "the service kept and stale, or gone", func(v *view) bool { return v.services["weighty"] == nil || v.services["weighty"].Stale })
		v.await(t, patience, "the service gone once that was confirmed", func(v *view) bool { return v.services["weighty"] == nil })
	})
}

// TestRealAgentForgets kills an agent that keeps nothing: it comes back empty,
// and what it knew is kept until the emptiness is confirmed.
func TestRealAgentForgets(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	for i := range 6 {
		agent.Register(map[string]any{"Name": fmt.Sprintf("s%d", i), "Port": 1000 + i, "Connect": map[string]any{"Native": true}})
	}
	v, stop := run(t, Config{Address: agent.HTTP, ConfirmCollapse: 3 * time.Second})
	defer stop()
	v.await(t, patience, "six services", func(v *view) bool { return len(v.services) == 6 })

	agent.Stop()
	v.await(t, patience, "stale", func(v *view) bool { return v.status.Stale })
	if len(v.services) != 6 {
		t.Errorf("with the agent dead %d services are left", len(v.services))
	}
	agent.Start()
	agent.WaitLeader(patience)
	v.await(t, patience, "services marked stale", func(v *view) bool {
		stale := 0
		for _, s := range v.services {
			if s.Stale {
				stale++
			}
		}
		return stale == 6
	})
	for i := range 3 { // half of them register anew
		agent.Register(map[string]any{"Name": fmt.Sprintf("s%d", i), "Port": 1000 + i, "Connect": map[string]any{"Native": true}})
	}
	v.await(t, patience, "the others gone once confirmed", func(v *view) bool { return len(v.services) == 3 && !v.status.Stale })
	if v.full != 1 {
		t.Errorf("%d full deliveries, want 1", v.full)
	}
}

// TestRealAgentBack kills an agent that keeps its state: nothing is lost.
func TestRealAgentBack(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{Durable: true})
	agent.Register(`{"Name":"web","Port":1,"Connect":{"Native":true}}`)
	v, stop := run(t, Config{Address: agent.HTTP})
	defer stop()
	v.await(t, patience, "web", func(v *view) bool { return len(proxies(v, "web")) == 1 })
	agent.Stop()
	v.await(t, patience, "stale", func(v *view) bool { return v.status.Stale })
	agent.Start()
	agent.WaitLeader(patience)
	took := v.await(t, patience, "fresh again", func(v *view) bool { return !v.status.Stale })
	t.Logf("fresh %s after the agent had a leader", took)
	agent.Register(`{"ID":"web-2","Name":"web","Port":2,"Connect":{"Native":true}}`)
	v.await(t, patience, "a second instance", func(v *view) bool { return len(proxies(v, "web")) == 2 })
}

// TestRealLeaderLoss takes the leader and then the quorum away.
func TestRealLeaderLoss(t *testing.T) {
	agents := consultest.Cluster(t, 3)
	leader := consultest.Leader(t, agents)
	var reader, other *consultest.Agent
	for _, a := range agents {
		switch {
		case a == leader:
		case reader == nil:
			reader = a
		default:
			other = a
		}
	}
	reader.Register(`{"Name":"web","Port":1,"Connect":{"Native":true}}`)
	v, stop := run(t, Config{Address: reader.HTTP, Pulse: time.Second})
	defer stop()
	v.await(t, patience, "web", func(v *view) bool { return len(proxies(v, "web")) == 1 })

	leader.Stop()
	other.Stop() // one of three is no quorum: no leader can be elected
	took := v.await(t, patience, "stale", func(v *view) bool { return v.status.Stale })
	t.Logf("stale after %s: %s", took, v.status.Reason)
	if s := v.services["web"]; s == nil || len(s.Proxies) != 1 {
		t.Errorf("without a leader web = %+v", s)
	}
	leader.Start()
	other.Start()
	v.await(t, patience, "fresh again", func(v *view) bool { return !v.status.Stale && v.services["web"] != nil && !v.services["web"].Stale })
}

// rootToken may do everything on an agent with ACLs.
const rootToken = "2b2f9a52-6c1e-4a0a-9d3e-7f2d5b9d8a11"

// TestRealRequestNormalization: what Consul serves of a mesh entry says which
// actions were written, and tells a block without values from none.
func TestRealRequestNormalization(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	v, stop := run(t, Config{Address: agent.HTTP})
	defer stop()
	key := discovery.EntryKey{Kind: "mesh", Partition: "default", Namespace: "default", Name: "mesh"}
	for _, c := range []struct {
		entry string
		want  *discovery.RequestNormalization
	}{
		{`{"Kind":"mesh","HTTP":{"Incoming":{"RequestNormalization":{"InsecureDisablePathNormalization":true,"MergeSlashes":true,"PathWithEscapedSlashesAction":"UNESCAPE_AND_FORWARD","HeadersWithUnderscoresAction":"DROP_HEADER"}}}}`,
			&discovery.RequestNormalization{InsecureDisablePathNormalization: true, MergeSlashes: true, PathWithEscapedSlashesAction: "UNESCAPE_AND_FORWARD", HeadersWithUnderscoresAction: "DROP_HEADER"}},
		{`{"Kind":"mesh","HTTP":{"Incoming":{"RequestNormalization":{"MergeSlashes":false}}}}`, &discovery.RequestNormalization{}},
		{`{"Kind":"mesh","HTTP":{"SanitizeXForwardedClientCert":true}}`, nil},
	} {
		agent.Entry(c.entry)
		v.await(t, patience, c.entry, func(v *view) bool {
			e := v.entries[key]
			if e == nil {
				return false
			}
			m, ok := e.Body.(*discovery.Mesh)
			return ok && reflect.DeepEqual(m.RequestNormalization, c.want)
		})
	}
}

// TestRealACL runs with the rules that the package documentation names.
func TestRealACL(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{HCL: `acl { enabled = true default_policy = "deny" tokens { initial_management = "` + rootToken + `" agent = "` + rootToken + `" default = "` + rootToken + `" } }`})
	agent.Put("/v1/acl/policy", `{"Name":"parrel","Rules":"node_prefix \"\" { policy = \"read\" } service_prefix \"\" { policy = \"read\" intentions = \"read\" } agent_prefix \"\" { policy = \"read\" } mesh = \"read\" key_prefix \"parrel/\" { policy = \"write\" }"}`)
	agent.Put("/v1/acl/token", `{"SecretID":"7d1c3a60-0000-4a0a-9d3e-000000000001","Policies":[{"Name":"parrel"}]}`)
	agent.Register(`{"Name":"web","Port":1,"Connect":{"Native":true}}`)
	agent.Entry(`{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"*","Action":"deny"}]}`)
	agent.Entry(`{"Kind":"mesh","TransparentProxy":{"MeshDestinationsOnly":true}}`)
	v, stop := run(t, Config{Address: agent.HTTP, Token: "7d1c3a60-0000-4a0a-9d3e-000000000001"})
	defer stop()
	v.await(t, patience, "everything, by the documented rules", func(v *view) bool {
		return len(proxies(v, "web")) == 1 && len(v.entries) == 2 && v.policy == discovery.Deny && v.roots != nil
	})
	if len(v.status.Problems) > 0 || v.status.Stale {
		t.Errorf("status %+v", v.status)
	}

	wrong, stopWrong := run(t, Config{Address: agent.HTTP, Token: "00000000-dead-4a0a-9d3e-000000000001"})
	defer stopWrong()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	<-ctx.Done()
	wrong.mu.Lock()
	defer wrong.mu.Unlock()
	if wrong.full != 0 {
		t.Errorf("a token that Consul does not know got a first delivery")
	}
}
