package controlplane

import (
	"maps"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// inbox holds what the source delivered and the mesh has not taken yet, merged:
// of one service only the last word counts. Its size is bounded by that of the
// catalogue, however far the mesh is behind.
type inbox struct {
	news chan struct{} // one token when there is something new

	mu      sync.Mutex // guards pending and any
	pending discovery.Delta
	any     bool
}

func newInbox() *inbox { return &inbox{news: make(chan struct{}, 1)} }

// put adds a delivery; it never blocks.
func (b *inbox) put(d discovery.Delta) {
	b.mu.Lock()
	b.pending = merge(b.pending, d)
	b.any = true
	b.mu.Unlock()
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// take removes what may be applied now. Where everything must wait, ok is false
// and wait says for how long; 0 where there is nothing at all.
func (b *inbox) take(g *gate, now time.Time) (d discovery.Delta, wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.any {
		return d, 0, false
	}
	d = b.pending
	b.pending, b.any = discovery.Delta{}, false
	if d.Full {
		g.passed(now, d.Services)
		return d, 0, true
	}
	held := map[discovery.ServiceName]*discovery.Service{}
	for name := range d.Services {
		if left := g.closedFor(name, now); left > 0 {
			held[name] = d.Services[name]
			if wait == 0 || left < wait {
				wait = left
			}
		}
	}
	for name := range held {
		delete(d.Services, name)
	}
	if len(held) > 0 {
		b.pending, b.any = discovery.Delta{Services: held}, true
		if len(d.Services)+len(d.Entries) == 0 && d.Roots == nil && d.Status == nil && d.DefaultIntention == "" {
			return d, wait, false
		}
	}
	g.passed(now, d.Services)
	return d, 0, true
}

// merge puts b after a. It never writes to the maps of b, which belong to the
// source; the maps of the result are its own.
func merge(a, b discovery.Delta) discovery.Delta {
	if b.Full {
		a.Full, a.Services, a.Entries = true, nil, nil
	}
	a.Services = overlay(a.Services, b.Services)
	a.Entries = overlay(a.Entries, b.Entries)
	if b.Roots != nil {
		a.Roots = b.Roots
	}
	if b.Status != nil {
		a.Status = b.Status
	}
	if b.DefaultIntention != "" {
		a.DefaultIntention = b.DefaultIntention
	}
	return a
}

func overlay[K comparable, V any](a, b map[K]V) map[K]V {
	if a == nil {
		return maps.Clone(b)
	}
	maps.Copy(a, b)
	return a
}

// gate spaces out the pushes of each service. It belongs to one goroutine.
type gate struct {
	every time.Duration
	last  map[discovery.ServiceName]time.Time
	swept time.Time
}

func newGate(every time.Duration) *gate {
	return &gate{every: every, last: map[discovery.ServiceName]time.Time{}}
}

// closedFor says how long a service has to wait; 0 or less: not at all.
func (g *gate) closedFor(name discovery.ServiceName, now time.Time) time.Duration {
	t, ok := g.last[name]
	if !ok {
		return 0
	}
	return t.Add(g.every).Sub(now)
}

// passed notes that these services are pushed now.
func (g *gate) passed(now time.Time, services map[discovery.ServiceName]*discovery.Service) {
	if now.Sub(g.swept) >= g.every {
		maps.DeleteFunc(g.last, func(_ discovery.ServiceName, t time.Time) bool { return now.Sub(t) >= g.every })
		g.swept = now
	}
	for name := range services {
		g.last[name] = now
	}
}
