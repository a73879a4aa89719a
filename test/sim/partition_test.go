package sim

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// cutPlane makes the control plane vanish for every sidecar.
func (s *shop) cutPlane() {
	for _, i := range s.instances {
		s.Partition(s.Plane, i)
	}
}

func (s *shop) healPlane() {
	for _, i := range s.instances {
		s.Heal(s.Plane, i)
	}
}

// TestPlaneGone: with the control plane out of reach the mesh serves for as
// long as its certificates live, however long nobody calls; alarms begin at
// 70 % of their lives; at the end connections are refused and say why (DP1,
// ID3).
func TestPlaneGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 41, Latency: time.Millisecond}, 1)
		held, err := s.web.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if _, err := held.Say("hello"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		s.cutPlane()
		t.Log("a day, with pauses of up to three hours")
		for time.Since(start) < 24*time.Hour {
			time.Sleep(time.Duration(s.Rand.Int64N(int64(3 * time.Hour))))
			none(t, "after "+time.Since(start).String(), s.burst(3))
			if _, err := held.Say("still here"); err != nil {
				t.Fatalf("the held connection after %s: %v", time.Since(start), err)
			}
		}
		t.Log("until shortly before the end")
		for _, at := range []time.Duration{40, 49, 60, 70, 71} {
			time.Sleep(time.Until(start.Add(at * time.Hour)))
			none(t, "after "+time.Since(start).String(), s.burst(3))
		}
		for _, i := range s.instances {
			alarms := s.Log.Find(i.ID, "should have been renewed by now")
			if len(alarms) == 0 {
				t.Errorf("%s raised no alarm", i.ID)
				continue
			}
			if at := alarms[0].At.Sub(start); at < 50*time.Hour || at > 51*time.Hour {
				t.Errorf("%s raised its first alarm after %s; 70 %% of 72 h are 50.4 h", i.ID, at)
			}
			if ok, why := i.Sidecar.Ready(); !ok {
				t.Errorf("%s is not ready: %s", i.ID, why)
			}
		}

		t.Log("expired: refused, with the reason")
		time.Sleep(time.Until(start.Add(72*time.Hour + 5*time.Minute)))
		if !s.web.Sidecar.Running() {
			t.Fatalf("the sidecar ended: %v", s.web.Sidecar.err)
		}
		status, _, body, err := s.web.Get(apiPort, "/")
		if err != nil || status != 503 || !strings.Contains(body, "expired") && !strings.Contains(body, "identity") {
			t.Errorf("a request after the end: %d %q %v", status, body, err)
		}
		if err := s.lineOnce(); err == nil {
			t.Error("a connection after the end was served")
		}
		for _, i := range s.instances {
			if len(s.Log.Find(i.ID, "the certificate has expired")) == 0 {
				t.Errorf("%s does not say that its certificate has expired", i.ID)
			}
			if ok, why := i.Sidecar.Ready(); ok || !strings.Contains(why, "expired") {
				t.Errorf("%s is ready %t: %q", i.ID, ok, why)
			}
		}
	})
}

// TestPlaneHeals: what changed during a partition arrives after it, and nothing
// failed meanwhile; a sidecar that alone is silent does not hold up the others.
func TestPlaneHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 42, Latency: time.Millisecond}, 2)
		loads := s.load(LoadConfig{RPS: 6})
		s.Partition(s.Plane, s.ledger[0])
		for range 20 {
			s.Catalogue.Set(map[string]any{"Kind": "proxy-defaults", "Name": "global",
				"Config": map[string]any{"local_connect_timeout_ms": 1000 + s.Rand.IntN(1000)}})
			start := time.Now()
			s.users[1].SetHealth([]discovery.Health{discovery.Critical, discovery.Passing}[s.Rand.IntN(2)])
			time.Sleep(200 * time.Millisecond)
			for _, sc := range s.Plane.Status().Sidecars {
				if !sc.InSync && sc.Service != "ledger" {
					t.Errorf("%s is not in sync %s after a change while ledger-1 is silent", sc.Node, time.Since(start))
				}
			}
			time.Sleep(3 * time.Second)
		}
		for _, sc := range s.Plane.Status().Sidecars {
			if sc.Node == "ledger-1-sidecar-proxy" && sc.Connected {
				t.Error("the stream of the silent sidecar is still open after a minute")
			}
		}
		s.Heal(s.Plane, s.ledger[0])
		s.Plane.InSync(7, time.Minute)

		s.cutPlane()
		s.api[1].SetHealth(discovery.Critical)
		time.Sleep(time.Minute)
		s.healPlane()
		s.Plane.InSync(7, time.Minute)
		time.Sleep(time.Second)
		before := s.api[1].App.Served()
		time.Sleep(5 * time.Second)
		if n := s.api[1].App.Served() - before; n > 0 {
			t.Errorf("api-2 served %d requests after it was known to be critical", n)
		}
		clean(t, loads, 500)
	})
}

// TestPeerCut: an instance that nobody can reach any more is left out. What was
// on its way to it ends in bounded time; what begins later goes to the others,
// at the latest after one connect time-out, and hangs nowhere.
func TestPeerCut(t *testing.T) {
	const connectTimeout = 5 * time.Second
	for _, silent := range []bool{true, false} {
		t.Run(fmt.Sprintf("silent=%t", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop(t, Config{Seed: 43, Latency: time.Millisecond}, 3)
				loads := s.load(LoadConfig{RPS: 8, Calm: true, Timeout: time.Minute})
				time.Sleep(2 * time.Second)
				if silent {
					s.Partition(s.web, s.api[0])
					s.Partition(s.web, s.users[0])
					s.Partition(s.web, s.ledger[0])
				} else {
					for _, i := range []*Instance{s.api[0], s.users[0], s.ledger[0]} {
						i.Sidecar.Kill()
					}
				}
				time.Sleep(40 * time.Second) // dead connections have been found
				for _, l := range loads {
					r := l.Reset()
					t.Logf("port %d, during: %d sent, %d failed, slowest %s", l.cfg.Port, r.Sent, r.Failed, r.Slowest)
					if r.Slowest > 31*time.Second {
						t.Errorf("port %d: a request took %s: %s", l.cfg.Port, r.Slowest, r)
					}
					if !silent && r.Failed > l.cfg.Workers {
						t.Errorf("port %d: more failed than were on their way: %s", l.cfg.Port, r)
					}
				}
				time.Sleep(30 * time.Second)
				for _, l := range loads {
					if r := l.Reset(); r.Failed > 0 || r.Slowest > connectTimeout+time.Second || len(r.By) != 2 {
						t.Errorf("port %d, after: %s", l.cfg.Port, r)
					}
				}
				if silent {
					s.Heal(s.web, s.api[0])
					s.Heal(s.web, s.users[0])
					s.Heal(s.web, s.ledger[0])
				} else {
					for _, i := range []*Instance{s.api[0], s.users[0], s.ledger[0]} {
						i.StartSidecar()
					}
				}
				time.Sleep(time.Minute)
				for _, l := range loads {
					l.Reset()
				}
				time.Sleep(20 * time.Second)
				for _, l := range loads {
					if r := l.Stop(); r.Failed > 0 || len(r.By) != 3 {
						t.Errorf("port %d, healed: %s", l.cfg.Port, r)
					}
				}
			})
		})
	}
}

// TestSilentApp: an application that takes requests and answers none costs its
// callers the route's time-out and nobody else anything.
func TestSilentApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 44, Latency: time.Millisecond}, 1)
		s.api[0].App.Hang(true)
		start := time.Now()
		status, _, body, err := s.web.Get(apiPort, "/")
		if took := time.Since(start); err != nil || status != 504 || took < 14*time.Second || took > 16*time.Second {
			t.Errorf("%d %q %v after %s", status, body, err, took)
		}
		s.api[0].App.Hang(false)
		none(t, "afterwards", s.burst(5))
	})
}
