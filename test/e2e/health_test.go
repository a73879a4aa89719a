package e2e

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// ttl gives an instance a check that the test sets.
func ttl(id string, s rig.Service) rig.Service {
	return s.With(map[string]any{"Check": map[string]any{"CheckID": id + ":ttl", "TTL": "10m", "Status": "passing"}})
}

func (m *mesh) setCheck(id, status string) {
	m.T.Helper()
	m.agent.Put("/v1/agent/check/update/"+id, map[string]any{"Status": status})
}

// TestRegisteredIsUsed follows an instance through its life: what Consul says
// of it is what callers do.
func TestRegisteredIsUsed(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{define: ttl})
	a, err := rig.Ask(m.api)
	if err != nil || !strings.Contains(a.Peer, principal("web")) {
		t.Fatalf("api saw %+v (%v), want %s", a, err, principal("web"))
	}
	load := m.Load(2, m.api)

	m.Step("a second instance is registered: used")
	m.start("api-2", ttl)
	m.used("api-1", "api-2")

	m.Step("its check fails: unused; passes: used")
	m.setCheck("api-2:ttl", "critical")
	t.Logf("unused after %s", m.used("api-1"))
	m.setCheck("api-2:ttl", "passing")
	t.Logf("used after %s", m.used("api-1", "api-2"))

	m.Step("the service in maintenance: unused; back: used")
	m.agent.Put("/v1/agent/service/maintenance/api-2?enable=true&reason=test", nil)
	m.used("api-1")
	m.agent.Put("/v1/agent/service/maintenance/api-2?enable=false", nil)
	m.used("api-1", "api-2")

	m.Step("the proxy alone in maintenance: unused; back: used")
	m.agent.Put("/v1/agent/service/maintenance/api-2-sidecar-proxy?enable=true&reason=test", nil)
	m.used("api-1")
	m.agent.Put("/v1/agent/service/maintenance/api-2-sidecar-proxy?enable=false", nil)
	m.used("api-1", "api-2")

	m.Step("deregistered: unused, although its sidecar still runs")
	m.agent.Deregister("api-2")
	m.used("api-1")
	if !m.apis["api-2"].sidecar.Alive() {
		t.Error("the sidecar of a deregistered instance has ended")
	}
	m.Step("registered again: used")
	m.agent.Register(ttl("api-2", rig.Define("api", "api-2", m.apis["api-2"].app.Port, m.apis["api-2"].port)))
	m.used("api-1", "api-2")
	load.Clean(t)

	m.Step("the whole node in maintenance: nothing is usable, and the answer says so; back: used")
	m.agent.Put("/v1/agent/maintenance?enable=true&reason=test", nil)
	m.refusedWith(soon, m.api, http.StatusServiceUnavailable, "no_healthy_upstream")
	m.agent.Put("/v1/agent/maintenance?enable=false", nil)
	m.used("api-1", "api-2")

	m.Step("the last one deregistered: gone after confirmation")
	m.agent.Deregister("api-1")
	m.agent.Deregister("api-2")
	m.refusedWith(soon, m.api, http.StatusServiceUnavailable, "no_healthy_upstream")
}

// recheck is how long Consul itself may take to say of an instance what its
// checks say: an agent that misses a change of a service runs the alias check of
// its proxy once a minute.
const recheck = 90 * time.Second

// used waits until Consul gives exactly these instances of api as passing, and
// then until exactly they are called; it says how long the latter took.
func (m *mesh) used(instances ...string) time.Duration {
	m.T.Helper()
	m.Eventually(recheck, fmt.Sprintf("Consul gives %v", instances), func() error {
		var given []struct {
			Service struct {
				Proxy struct{ DestinationServiceID string }
			}
		}
		m.agent.Get("/v1/health/connect/api?passing", &given)
		var ids []string
		for _, g := range given {
			ids = append(ids, g.Service.Proxy.DestinationServiceID)
		}
		slices.Sort(ids)
		if !slices.Equal(ids, instances) {
			return fmt.Errorf("it gives %v", ids)
		}
		return nil
	})
	return m.Only(soon, m.api, instances...)
}

// refusedWith waits until requests are answered with this status and code.
func (m *mesh) refusedWith(within time.Duration, port, status int, code string) time.Duration {
	m.T.Helper()
	return m.Eventually(within, fmt.Sprintf("requests are refused with %d %s", status, code), func() error {
		got, proxyStatus, err := rig.Status(port)
		if err == nil && (got != status || !strings.Contains(proxyStatus, `"`+code+`"`)) {
			err = fmt.Errorf("answered with %d %s", got, proxyStatus)
		}
		return err
	})
}

// TestHealthCombinations sets every combination of a node check and a service
// check and reads the endpoint's state in the caller's sidecar.
func TestHealthCombinations(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{define: func(id string, s rig.Service) rig.Service {
		return ttl(id, s).Sidecar(map[string]any{"Weights": map[string]any{"Passing": 10, "Warning": 3}})
	}})
	m.agent.Put("/v1/agent/check/register", map[string]any{"ID": "disk", "Name": "disk", "TTL": "10m", "Status": "passing"})
	states := []string{"passing", "warning", "critical", "maintenance"}
	set := func(node bool, state string) {
		check, path := "api-1:ttl", "/v1/agent/service/maintenance/api-1"
		if node {
			check, path = "disk", "/v1/agent/maintenance"
		}
		if state == "maintenance" {
			m.agent.Put(path+"?enable=true&reason=test", nil)
			return
		}
		m.agent.Put(path+"?enable=false", nil)
		m.setCheck(check, state)
	}
	for n, node := range states {
		set(true, node)
		for s, service := range states {
			set(false, service)
			worst := max(n, s)
			want := rig.Endpoint{Healthy: worst <= 1, Flags: "healthy", Weight: "10"}
			if worst == 1 {
				want.Weight = "3"
			}
			if worst > 1 {
				want.Flags = "/failed_eds_health"
			}
			m.Eventually(recheck, fmt.Sprintf("node %s, service %s", node, service), func() error {
				if got := m.web.Endpoints("api")[m.apis["api-1"].addr()]; got != want {
					return fmt.Errorf("endpoint %+v, want %+v", got, want)
				}
				return nil
			})
			status, proxyStatus, err := rig.Status(m.api)
			if err != nil || (status == http.StatusOK) != want.Healthy {
				t.Errorf("node %s, service %s: a request is answered with %d %s (%v)", node, service, status, proxyStatus, err)
			}
		}
	}
}

// TestWeights: Weights of 1 and 3 share requests 1 to 3, and a change of them
// loses none.
func TestWeights(t *testing.T) {
	t.Parallel()
	weight := map[string]int{"api-1": 1, "api-2": 3}
	define := func(id string, s rig.Service) rig.Service {
		return s.Sidecar(map[string]any{"Weights": map[string]any{"Passing": weight[id], "Warning": 1}})
	}
	m := newMesh(t, options{instances: []string{"api-1", "api-2"}, define: define})
	share := func(want float64) {
		t.Helper()
		const n = 4000
		seen, err := rig.Answers(m.api, n)
		if err != nil {
			t.Fatal(err)
		}
		got := float64(seen["api-2"]) / n
		t.Logf("of %d: %v", n, seen)
		if math.Abs(got-want) > 0.03 {
			t.Errorf("api-2 got a share of %.3f of the requests, want %.2f", got, want)
		}
	}
	share(0.75)

	m.Step("the weights change under load")
	load := m.Load(1, m.api)
	weight["api-2"] = 1
	i := m.apis["api-2"]
	m.agent.Register(define("api-2", rig.Define("api", "api-2", i.app.Port, i.port)))
	m.Eventually(soon, "the new weight", func() error {
		if e := m.web.Endpoints("api")[i.addr()]; e.Weight != "1" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	load.More(t, 100)
	load.Clean(t)
	share(0.5)
}
