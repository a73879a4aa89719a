package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/api"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// source waits until the catalogue's state is as wanted.
func (m *mesh) source(within time.Duration, what string, ok func(api.Source) bool) time.Duration {
	m.T.Helper()
	return m.Eventually(within, what, func() error {
		s, err := m.cp.Status()
		if err == nil && !ok(s.Source) {
			err = fmt.Errorf("%+v", s.Source)
		}
		return err
	})
}

func fresh(s api.Source) bool { return !s.Stale && len(s.StaleService) == 0 }

// TestLeaderLoss kills the leader of three Consul servers under load, then the
// quorum.
func TestLeaderLoss(t *testing.T) {
	t.Parallel()
	agents := consultest.Cluster(t, 3)
	leader := consultest.Leader(t, agents)
	var others []*consultest.Agent
	for _, a := range agents {
		if a != leader {
			others = append(others, a)
		}
	}
	m := newMesh(t, options{agents: others, instances: []string{"api-1", "api-2"}})
	load := m.Load(2, m.api)
	load.More(t, 50)

	m.Step("the leader is killed: another one is elected")
	leader.Stop()
	m.Eventually(90*time.Second, "a new leader", func() error {
		var now string
		others[0].Get("/v1/status/leader", &now)
		if now == "" || now == leader.Server() {
			return fmt.Errorf("leader %q", now)
		}
		return nil
	})
	m.source(90*time.Second, "a fresh catalogue", fresh)
	load.More(t, 50)
	m.Step("what happens then arrives")
	m.agent.Put("/v1/agent/service/maintenance/api-2?enable=true", nil)
	m.Only(90*time.Second, m.api, "api-1")
	m.agent.Put("/v1/agent/service/maintenance/api-2?enable=false", nil)
	m.Only(90*time.Second, m.api, "api-1", "api-2")

	m.Step("a second server is killed: no quorum, the catalogue is marked stale and kept")
	others[1].Stop()
	took := m.source(90*time.Second, "a stale catalogue, with a reason", func(s api.Source) bool { return s.Stale && s.Reason != "" })
	t.Logf("stale after %s", took)
	out, errs, err := m.Command("status", "--api", m.cp.API)
	if err != nil || !strings.Contains(out, "STALE") {
		t.Errorf("parrel status: %v %s:\n%s", err, errs, out)
	}
	load.More(t, 100)
	m.Only(soon, m.api, "api-1", "api-2")

	m.Step("both are back: fresh")
	leader.Start()
	others[1].Start()
	m.source(90*time.Second, "a fresh catalogue", fresh)
	m.agent.Put("/v1/agent/service/maintenance/api-2?enable=true", nil)
	m.Only(90*time.Second, m.api, "api-1")
	load.Clean(t)
}

// TestConsulAnswersEmpty: a Consul that has forgotten everything takes nothing
// away, a service that is really gone goes.
func TestConsulAnswersEmpty(t *testing.T) {
	t.Parallel()
	agent := consultest.Dev(t, consultest.Options{})
	r := rig.New(t, parrel)
	proxy := r.FaultProxy(agent.HTTP)
	m := newMesh(t, options{agents: []*consultest.Agent{agent}, consul: proxy.Addr, instances: []string{"api-1", "api-2"}})
	load := m.Load(2, m.api)
	load.More(t, 50)
	before := m.web.Endpoints("api")

	m.Step("every list is empty: the last set is kept, with a mark and an alarm")
	proxy.Lie()
	m.source(soon, "the alarm and the services that are kept", func(s api.Source) bool {
		return s.Stale && s.Reason != "" && len(s.StaleService) > 0
	})
	// Confirmations are tried again and again meanwhile, and fail.
	path := "/v1/health/connect/api"
	m.Eventually(90*time.Second, "the control plane asks for confirmation", func() error {
		if n := proxy.Consistent(path) + proxy.Consistent("/v1/health/service/api"); n < 2 {
			return fmt.Errorf("asked %d times", n)
		}
		return nil
	})
	load.More(t, 200)
	if after := m.web.Endpoints("api"); len(after) != 2 || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the endpoints were %v and are %v", before, after)
	}
	out, _, err := m.Command("status", "--api", m.cp.API)
	if err != nil || !strings.Contains(out, "STALE") {
		t.Errorf("parrel status: %v:\n%s", err, out)
	}

	m.Step("healed: fresh")
	proxy.Heal()
	m.source(90*time.Second, "a fresh catalogue", fresh)
	m.Only(soon, m.api, "api-1", "api-2")
	load.Clean(t)

	m.Step("a service that is deregistered is gone once two consistent readings have said so")
	asked := proxy.Consistent(path) + proxy.Consistent("/v1/health/service/api")
	m.agent.Deregister("api-1")
	m.agent.Deregister("api-2")
	m.refusedWith(90*time.Second, m.api, http.StatusServiceUnavailable, "no_healthy_upstream")
	if n := proxy.Consistent(path) + proxy.Consistent("/v1/health/service/api") - asked; n < 2 {
		t.Errorf("gone after %d consistent readings", n)
	}
	m.source(soon, "a fresh catalogue", fresh)
}

// TestControlPlaneKilled: nothing changes while it is dead, and what changed
// meanwhile arrives when it is back.
func TestControlPlaneKilled(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{instances: []string{"api-1", "api-2"}, define: ttl})
	m.cp.InSync("web-1-sidecar-proxy", "api-1-sidecar-proxy", "api-2-sidecar-proxy")
	first := m.sent("web-1-sidecar-proxy")
	load := m.Load(2, m.api)
	load.More(t, 50)

	m.Step("killed under load; an instance fails, an intention changes")
	m.cp.Kill()
	m.setCheck("api-2:ttl", "critical")
	m.agent.Entry(rig.Intentions("api", "web", "allow", "orders", "deny"))
	load.More(t, 200)
	m.Only(soon, m.api, "api-1", "api-2")

	m.Step("back: sidecars resume, the changes arrive")
	m.cp.Start()
	m.cp.Ready()
	m.cp.InSync("web-1-sidecar-proxy", "api-1-sidecar-proxy", "api-2-sidecar-proxy")
	m.Only(90*time.Second, m.api, "api-1")
	m.Eventually(soon, "the intention at api-1", func() error {
		if !strings.Contains(m.apis["api-1"].sidecar.Page("/config_dump"), "orders") {
			return errors.New("the sidecar does not have it")
		}
		return nil
	})
	again := m.sent("web-1-sidecar-proxy")
	t.Logf("bytes sent to web: at first %v, after the restart %v", first, again)
	for _, ty := range []string{"LDS", "CDS", "RDS", "SDS"} {
		if again[ty] > first[ty]/4 {
			t.Errorf("%s: nothing changed, and %d bytes were sent again (%d at first)", ty, again[ty], first[ty])
		}
	}
	load.Clean(t)
}

// sent gives the bytes sent to a sidecar by type.
func (m *mesh) sent(node string) map[string]uint64 {
	m.T.Helper()
	s, err := m.cp.Status()
	if err != nil {
		m.T.Fatal(err)
	}
	out := map[string]uint64{}
	for _, sc := range s.Sidecars {
		if sc.Node == node {
			for _, ty := range sc.Types {
				out[ty.Type] = ty.BytesSent
			}
		}
	}
	return out
}

// TestRestartWithEverythingDead: sidecars on both sides are killed and started
// again with Consul and the control plane dead, and serve.
func TestRestartWithEverythingDead(t *testing.T) {
	t.Parallel()
	agent := consultest.Dev(t, consultest.Options{})
	// The sidecars know of the agent, as on a real host.
	m := newMesh(t, options{agents: []*consultest.Agent{agent}, sidecar: []string{"--http-addr", agent.HTTP}})
	ledger := rig.Port(t)
	m.agent.Entry(rig.Intentions("ledger", "web", "allow"))
	tcp := m.serve("ledger", m.TCPApp("ledger-1"))
	m.call("ledger", ledger)
	greeted := func() error {
		l, greeting, err := rig.DialLine(ledger)
		if err != nil {
			return err
		}
		defer l.Close()
		if greeting != "ledger-1" {
			return fmt.Errorf("greeted with %q", greeting)
		}
		return l.Echo("over mTLS")
	}
	m.Eventually(soon, "ledger answers", greeted)

	sidecars := []*rig.Sidecar{m.web, m.apis["api-1"].sidecar, tcp}
	m.saved(sidecars...)
	m.Step("everything else dies")
	agent.Stop()
	m.cp.Kill()
	for _, s := range sidecars {
		m.Step("%s is killed and started again", s.Name)
		s.Kill()
		s.Start()
		t.Logf("%s answers after %s", s.Name, m.Only(soon, m.api, "api-1"))
		m.Eventually(soon, "ledger answers", greeted)
	}
	m.Step("all of them at once")
	for _, s := range sidecars {
		s.Kill()
	}
	if _, err := rig.Ask(m.api); err == nil {
		t.Error("with all sidecars dead a request is answered")
	}
	for _, s := range sidecars {
		s.Start()
	}
	m.Only(soon, m.api, "api-1")
	m.Eventually(soon, "ledger answers", greeted)
	a, err := rig.Ask(m.api)
	if err != nil || !strings.Contains(a.Peer, principal("web")) {
		t.Errorf("api saw %+v (%v)", a, err)
	}
	m.Step("who was denied is denied still")
	orders := m.Authority().Leaf([]string{principal("orders")}, nil)
	if status, err := request(m.apis["api-1"].addr(), &orders); err != nil || status != http.StatusForbidden {
		t.Errorf("orders is answered with %d (%v)", status, err)
	}
}

// saved waits until the sidecars have their configuration on disk: they write
// it a second after a change at the latest, so that files which have not changed
// for longer hold everything.
func (m *mesh) saved(sidecars ...*rig.Sidecar) {
	m.T.Helper()
	for _, s := range sidecars {
		m.Eventually(soon, s.Name+" has saved its configuration", func() error {
			return filepath.Walk(filepath.Join(s.DataDir, "config"), func(path string, info os.FileInfo, err error) error {
				if err == nil && time.Since(info.ModTime()) < 1500*time.Millisecond {
					err = fmt.Errorf("%s has just changed", path)
				}
				return err
			})
		})
	}
}

// TestTwoControlPlanes: sidecars that know of two go on with the other one.
func TestTwoControlPlanes(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{planes: 2, define: ttl})
	load := m.Load(2, m.api)
	nodes := []string{"web-1-sidecar-proxy", "api-1-sidecar-proxy"}
	m.cp.InSync(nodes...)
	m.Step("the first one dies: the sidecars go to the second")
	m.cp.Kill()
	m.second.InSync(nodes...)
	m.Step("a new instance joins there and is used")
	m.start("api-2", ttl)
	m.Only(90*time.Second, m.api, "api-1", "api-2")
	m.setCheck("api-2:ttl", "critical")
	m.Only(soon, m.api, "api-1")
	m.Step("the first one is back, the second dies")
	m.cp.Start()
	m.cp.Ready()
	m.second.Kill()
	m.cp.InSync(append(nodes, "api-2-sidecar-proxy")...)
	m.setCheck("api-2:ttl", "passing")
	m.Only(soon, m.api, "api-1", "api-2")
	load.Clean(t)
}
