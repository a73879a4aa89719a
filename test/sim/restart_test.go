package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// killAll kills the sidecars as SIGKILL does.
func (s *shop) killAll() {
	for _, i := range s.instances {
		i.Sidecar.Kill()
	}
}

func (s *shop) startAll() {
	for _, i := range s.instances {
		i.StartSidecar()
	}
}

// TestRestartAlone: with control plane and catalogue dead, sidecars that were
// killed serve from their disks within seconds of their start (DP2).
func TestRestartAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 21, Latency: time.Millisecond}, 2)
		none(t, "before", s.burst(5))
		time.Sleep(5 * time.Second) // what was received has been written
		s.api[0].SetWeights(discovery.Weights{Passing: 2, Warning: 1})
		time.Sleep(5 * time.Second) // and what was received since: there are two copies
		s.Plane.Kill()
		s.Catalogue.Down(true)
		s.killAll()
		s.startAll()
		s.Ready()
		none(t, "from disk", s.burst(20))
		time.Sleep(time.Hour)
		none(t, "an hour later", s.burst(20))
		if ok, why := s.web.Sidecar.Ready(); !ok {
			t.Errorf("web is not ready: %s", why)
		}

		t.Log("once more, with the newest copy of the configuration torn: the one before serves, and the log says so")
		web := s.web.Sidecar
		web.Kill()
		newest := filepath.Join(web.Dir(), "config", s.web.Proxy(), "last-good")
		info, err := os.Stat(newest)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(newest, info.Size()/2); err != nil {
			t.Fatal(err)
		}
		s.web.StartSidecar()
		s.Ready()
		none(t, "from the copy before", s.burst(5))
		if len(s.Log.Find("web-1", "last-good", "damaged", "previous")) == 0 {
			t.Errorf("nothing says that %s was torn", newest)
		}
	})
}

// TestPlaneRestarts: the control plane is killed, things change, and it comes
// back: nothing fails, what did not change is not sent again, what changed
// arrives, no listener is closed (CP3, CP4).
func TestPlaneRestarts(t *testing.T) {
	const empty = 128 // bytes of a response without a resource, which says that nothing changed
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 22, Latency: time.Millisecond}, 2)
		loads := s.load(LoadConfig{RPS: 8})
		held, err := s.web.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		versions := map[string]string{}
		for _, i := range s.instances {
			versions[i.ID] = version(t, i)
		}
		for round := range 5 {
			s.Plane.Kill()
			time.Sleep(20 * time.Second)
			s.Plane.Start()
			s.Plane.InSync(7, time.Minute)
			time.Sleep(time.Second)
			for _, sc := range s.Plane.Status().Sidecars {
				for _, ty := range sc.Types {
					if ty.BytesSent > empty {
						t.Errorf("round %d: %s was sent %d bytes of %s that it had already", round, sc.Node, ty.BytesSent, ty.Type)
					}
				}
			}
			for _, i := range s.instances {
				if v := version(t, i); v != versions[i.ID] {
					t.Errorf("round %d: the configuration of %s changed from %s to %s", round, i.ID, versions[i.ID], v)
				}
			}
			if _, err := held.Say("still here"); err != nil {
				t.Fatalf("round %d: the held connection: %v", round, err)
			}
		}
		if n := len(s.Log.Find("", "listener: closed")); n > 0 {
			t.Errorf("%d listeners were closed", n)
		}

		t.Log("an instance leaves while nobody hears of it, and the control plane comes back")
		s.Plane.Kill()
		s.ledger[1].SetHealth(discovery.Critical)
		s.api[1].Deregister()
		time.Sleep(10 * time.Second)
		s.Plane.Start()
		s.Plane.InSync(6, time.Minute)
		time.Sleep(time.Second)
		before := s.api[1].App.Served()
		time.Sleep(5 * time.Second)
		if n := s.api[1].App.Served() - before; n > 0 {
			t.Errorf("api-2 served %d requests after the control plane knew that it is gone", n)
		}
		clean(t, loads, 800)
	})
}

// version is the configuration in force, as the sidecar calls it.
func version(t *testing.T, i *Instance) string {
	t.Helper()
	status, body := i.Sidecar.Admin("/config_dump")
	if status != 200 {
		t.Fatalf("%s: /config_dump: %d %s", i.ID, status, body)
	}
	_, rest, _ := strings.Cut(body, "version_info")
	return rest[:min(len(rest), 40)]
}

// TestRollingRestart: sidecars that registered themselves are stopped one after
// another and started again, under load: each tells the catalogue first, ends
// what it has in hand and is called again when it is back; nothing fails (DP6).
func TestRollingRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(t, Config{Seed: 23, Latency: time.Millisecond})
		s := &shop{Mesh: m}
		for _, name := range []string{"api", "users", "ledger"} {
			m.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(protocols[name])})
			m.Catalogue.Intentions(name, "web", "allow")
			for range 3 {
				m.Add(Spec{Service: name, Protocol: protocols[name], SelfRegister: true})
			}
		}
		servers := m.instances
		s.web = m.Add(Spec{Service: "web", Upstreams: webUpstreams})
		m.Ready()
		m.Plane.InSync(10, 5*time.Second)
		loads := s.load(LoadConfig{RPS: 30, Workers: 6})
		for _, i := range servers {
			i.Sidecar.Stop()
			served := i.App.Served()
			time.Sleep(time.Second)
			if n := i.App.Served() - served; n > 0 {
				t.Errorf("%s served %d requests after its sidecar had ended", i.ID, n)
			}
			i.StartSidecar()
			m.Ready()
			time.Sleep(3 * time.Second)
			if i.App.Served() == served {
				t.Errorf("%s is not called after its sidecar came back", i.ID)
			}
		}
		clean(t, loads, 500)
	})
}
