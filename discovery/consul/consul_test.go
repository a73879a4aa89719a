package consul

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// view is a Sink that keeps what a control plane would know, and when.
type view struct {
	mu         sync.Mutex
	changed    chan struct{}
	deliveries []delivery
	full       int
	services   map[string]*discovery.Service
	entries    map[discovery.EntryKey]*discovery.ConfigEntry
	roots      *discovery.TrustRoots
	status     discovery.Status
	policy     discovery.IntentionAction
}

type delivery struct {
	at   time.Time
	name string // of a service
}

func newView() *view {
	return &view{changed: make(chan struct{}), services: map[string]*discovery.Service{}, entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
}

func (v *view) Apply(d discovery.Delta) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if d.Full {
		v.full++
		clear(v.services)
		clear(v.entries)
	}
	for n, s := range d.Services {
		v.deliveries = append(v.deliveries, delivery{time.Now(), n.Name})
		if s == nil {
			delete(v.services, n.Name)
		} else {
			v.services[n.Name] = s
		}
	}
	for k, e := range d.Entries {
		if e == nil {
			delete(v.entries, k)
		} else {
			v.entries[k] = e
		}
	}
	if d.Status != nil {
		v.status = *d.Status
	}
	if d.Roots != nil {
		v.roots = d.Roots
	}
	if d.DefaultIntention != "" {
		v.policy = d.DefaultIntention
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

// await waits until ok is true of the view, at most for most, and gives how
// long that took.
func (v *view) await(t *testing.T, most time.Duration, what string, ok func(*view) bool) time.Duration {
	t.Helper()
	start := time.Now()
	end := time.NewTimer(most)
	defer end.Stop()
	for {
		v.mu.Lock()
		is, changed := ok(v), v.changed
		v.mu.Unlock()
		if is {
			return time.Since(start)
		}
		select {
		case <-changed:
		case <-end.C:
			v.mu.Lock()
			defer v.mu.Unlock()
			t.Fatalf("after %s still not: %s; services %v, status %+v", most, what, v.services, v.status)
		}
	}
}

func run(t *testing.T, cfg Config) (*view, func()) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v := newView()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, v) }()
	var once sync.Once
	return v, func() {
		once.Do(func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func proxies(v *view, name string) []*discovery.Instance {
	if s := v.services[name]; s != nil {
		return s.Proxies
	}
	return nil
}
