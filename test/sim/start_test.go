package sim

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstMillisecond: a thousand times web's sidecar starts, and web calls its
// upstreams over HTTP and TCP in the moment in which the sidecar says that it
// can: no call fails. Every twentieth start has a new identity and an empty data
// directory; before every tenth one an instance of each upstream was replaced by
// another, so that the configuration on disk names one that is gone; every
// fiftieth finds the control plane dead (Z2).
func TestFirstMillisecond(t *testing.T) {
	starts := 1000
	if testing.Short() {
		starts = 100
	}
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 97, Latency: 100 * time.Microsecond}, 2)
		calls := func(n int) {
			t.Helper()
			if status, _, body, err := s.web.Get(apiPort, "/first"); err != nil || status != 200 {
				t.Errorf("start %d: HTTP: %d %s %v", n, status, body, err)
			}
			l, err := s.web.Line(ledgerPort)
			if err != nil {
				t.Errorf("start %d: TCP: %v", n, err)
				return
			}
			defer l.Close()
			if said, err := l.Say("first"); err != nil {
				t.Errorf("start %d: TCP: %q %v", n, said, err)
			}
		}
		calls(-1)
		for n := range starts {
			s.web.Sidecar.Stop()
			dead := n%50 == 49
			switch {
			case dead:
				s.Plane.Kill()
			case n%20 == 19:
				s.web.Sidecar = nil // a new token, an empty folder
			case n%10 == 9:
				for _, instances := range [][]*Instance{s.api, s.ledger} {
					i := instances[n/20%2]
					i.Sidecar.Stop()
					i.Deregister()
				}
			}
			run := s.web.StartSidecar().run
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err := run.AwaitOutbound(ctx)
			cancel()
			if err != nil {
				t.Fatalf("start %d: %v", n, err)
			}
			calls(n)
			switch {
			case dead:
				s.Plane.Start()
			case n%20 == 19:
			case n%10 == 9:
				for _, instances := range [][]*Instance{s.api, s.ledger} {
					i := instances[n/20%2]
					i.Register()
					i.StartSidecar()
				}
				s.Ready()
				time.Sleep(time.Second)
			}
		}
	})
}
