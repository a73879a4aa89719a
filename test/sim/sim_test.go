package sim

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Ports of web's upstreams in these tests.
const (
	apiPort    = 9001
	usersPort  = 9002
	ledgerPort = 9003
)

// shop is web, which calls api (http), users (grpc) and ledger (tcp).
type shop struct {
	*Mesh
	web                *Instance
	api, users, ledger []*Instance
}

var webUpstreams = []Upstream{{Service: "api", Port: apiPort}, {Service: "users", Port: usersPort}, {Service: "ledger", Port: ledgerPort}}

// newShop makes one with that many instances of each service.
func newShop(t *testing.T, c Config, n int) *shop {
	t.Helper()
	s := &shop{Mesh: New(t, c)}
	for name, protocol := range map[string]Protocol{"api": HTTP, "users": GRPC, "ledger": TCP} {
		s.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(protocol)})
		s.Catalogue.Intentions(name, "web", "allow")
	}
	for range n {
		s.api = append(s.api, s.Add(Spec{Service: "api", Protocol: HTTP}))
		s.users = append(s.users, s.Add(Spec{Service: "users", Protocol: GRPC}))
		s.ledger = append(s.ledger, s.Add(Spec{Service: "ledger", Protocol: TCP}))
	}
	s.web = s.Add(Spec{Service: "web", Upstreams: webUpstreams})
	s.Ready()
	s.Plane.InSync(3*n+1, 5*time.Second)
	return s
}

// loads calls all three services.
func (s *shop) load(c LoadConfig) (out []*Load) {
	for port, p := range map[int]Protocol{apiPort: HTTP, usersPort: GRPC, ledgerPort: TCP} {
		c.Port, c.Protocol = port, p
		out = append(out, s.web.Load(c))
	}
	return out
}

// clean requires that nothing failed and that each load sent at least least.
func clean(t *testing.T, loads []*Load, least int) {
	t.Helper()
	for _, l := range loads {
		if r := l.Stop(); r.Failed > 0 || r.Sent < least {
			t.Errorf("port %d: %s", l.cfg.Port, r)
		}
	}
}

// TestMesh: a mesh comes up, every protocol is served by every instance, and
// who is not allowed is refused.
func TestMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 1, Latency: time.Millisecond}, 2)
		stranger := s.Add(Spec{Service: "stranger", Upstreams: webUpstreams})
		s.Ready()
		loads := s.load(LoadConfig{})
		time.Sleep(10 * time.Second)
		for _, l := range loads {
			r := l.Stop()
			if r.Failed > 0 || r.Sent < 200 || len(r.By) != 2 {
				t.Errorf("port %d: %s", l.cfg.Port, r)
			}
		}
		if status, _, why, err := stranger.Get(apiPort, "/"); err != nil || status != 503 && status != 403 {
			t.Errorf("a stranger was answered %d, %v: %s", status, err, why)
		}
		if c, err := stranger.Line(ledgerPort); err == nil {
			if by, err := c.Say("hello"); err == nil {
				t.Errorf("a stranger was served by %s", by)
			}
			_ = c.Close()
		}
	})
}

// TestSeed: what a driver draws depends on the seed alone.
func TestSeed(t *testing.T) {
	draw := func(seed uint64) (out []string) {
		synctest.Test(t, func(t *testing.T) {
			m := New(t, Config{Seed: seed})
			for range 100 {
				out = append(out, fmt.Sprint(m.Rand.Uint64(), m.Fork("x").Uint64(), m.Fork("y").Uint64()))
			}
		})
		return out
	}
	if !slices.Equal(draw(7), draw(7)) {
		t.Error("the same seed gave two sequences")
	}
	if slices.Equal(draw(7), draw(8)) {
		t.Error("two seeds gave one sequence")
	}
}
