package warm

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// DefaultFetchTimeout is how long a resource that another refers to is waited
// for: Envoy's initial_fetch_timeout.
const DefaultFetchTimeout = 15 * time.Second

// Change is what one delivery changed of one type.
type Change struct {
	Type     resource.Type
	Upserted []resource.Resource
	Removed  []string
}

// Subscriber is told which names of RDS, EDS and SDS are wanted, always the
// whole set of a type, sorted. Called from Run's goroutine only.
type Subscriber interface {
	Subscribe(t resource.Type, names []string)
}

// Config of a Warmer.
type Config struct {
	// Publish takes each new set; one at a time, from Run's goroutine. While it
	// runs, changes gather, and only the newest set follows.
	Publish func(*Set)
	// Subscriber may be nil for configuration that needs none (a file).
	Subscriber Subscriber
	// FetchTimeout is how long a new resource waits for what it refers to; 0:
	// DefaultFetchTimeout. A resource with an older version in force waits
	// without limit: the old version goes on.
	FetchTimeout time.Duration
	Log          *slog.Logger
}

// Warmer gathers changes and publishes sets.
type Warmer struct {
	cfg    Config
	wakeup chan struct{} // capacity 1

	mu   sync.Mutex
	news map[Key]*held          // guarded by mu: changes since the last step; nil: removed
	seen map[resource.Type]bool // guarded by mu: types that were answered at least once

	state // Run's goroutine only
}

// New makes a Warmer.
func New(c Config) *Warmer {
	if c.FetchTimeout <= 0 {
		c.FetchTimeout = DefaultFetchTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Warmer{
		cfg:    c,
		wakeup: make(chan struct{}, 1),
		news:   make(map[Key]*held),
		seen:   make(map[resource.Type]bool),
		state: state{
			recv:   make(map[Key]*held),
			active: make(map[Key]*held),
			since:  make(map[Key]time.Time),
		},
	}
}

// Apply takes one change. It never blocks on Publish; safe for concurrent use,
// though the order of calls is the order of changes.
func (w *Warmer) Apply(c Change) {
	fresh := make([]*held, len(c.Upserted)) // digests are computed off the lock
	for i, r := range c.Upserted {
		fresh[i] = &held{r: r, hash: resource.Hash(r), refs: References(r)}
	}
	w.mu.Lock()
	w.seen[c.Type] = true
	for _, name := range c.Removed {
		w.news[Key{c.Type, name}] = nil
	}
	for _, h := range fresh {
		w.news[Key{c.Type, h.r.ResourceName()}] = h
	}
	w.mu.Unlock()
	select {
	case w.wakeup <- struct{}{}:
	default:
	}
}

// Run publishes sets until ctx ends, and returns ctx's error.
func (w *Warmer) Run(ctx context.Context) error {
	var (
		last   *Set
		subs   = map[resource.Type][]string{}
		warned = map[Key]bool{}
	)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		answered := w.take()
		next, wake := w.step(time.Now(), w.cfg.FetchTimeout)
		next.Complete = answered && len(next.Pending) == 0
		w.subscribe(subs, answered)
		if answered && (last == nil || !last.same(next)) {
			last = next
			w.warn(next, warned)
			w.cfg.Publish(next)
		} else if last != nil {
			w.warn(next, warned)
		}
		timer.Stop()
		if !wake.IsZero() {
			timer.Reset(max(time.Until(wake), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wakeup:
		case <-timer.C:
		}
	}
}

// take moves what came in to the state, and says whether listeners and clusters
// were both answered.
func (w *Warmer) take() bool {
	w.mu.Lock()
	news := w.news
	w.news = make(map[Key]*held)
	answered := w.seen[resource.TypeListener] && w.seen[resource.TypeCluster]
	w.mu.Unlock()
	for k, h := range news {
		if h == nil {
			delete(w.recv, k)
			continue
		}
		// The same content again keeps its pointer, so that whoever compares
		// by pointer sees no change.
		for _, old := range []*held{w.recv[k], w.active[k]} {
			if old != nil && old.hash == h.hash && resource.Equal(old.r, h.r) {
				h = old
				break
			}
		}
		w.recv[k] = h
	}
	return answered
}

// subscribe passes on what is wanted. Who uses a secret is known only once
// listeners and clusters are there; before, a subscription to some would make
// the client forget the others that it has on disk.
func (w *Warmer) subscribe(have map[resource.Type][]string, answered bool) {
	if w.cfg.Subscriber == nil {
		return
	}
	want := map[resource.Type][]string{}
	for k := range w.since {
		want[k.Type] = append(want[k.Type], k.Name)
	}
	for _, t := range []resource.Type{resource.TypeSecret, resource.TypeEndpoints, resource.TypeRoute} {
		slices.Sort(want[t])
		if t == resource.TypeSecret && !answered {
			continue
		}
		if !slices.Equal(have[t], want[t]) {
			have[t] = want[t]
			w.cfg.Subscriber.Subscribe(t, slices.Clone(want[t]))
		}
	}
}

// warn logs, once each, what did not come.
func (w *Warmer) warn(s *Set, warned map[Key]bool) {
	missing := map[Key]bool{}
	for _, k := range s.Absent {
		missing[k] = true
		if !warned[k] {
			w.cfg.Log.Warn("warm: no answer in time; going on without it",
				"resource", k.String(), "waited", w.cfg.FetchTimeout.String())
		}
	}
	for _, p := range s.Pending {
		if time.Since(p.Since) < w.cfg.FetchTimeout {
			continue
		}
		missing[p.Key] = true
		if !warned[p.Key] {
			w.cfg.Log.Warn("warm: a new version waits for what it refers to; the version before stays in force",
				"resource", p.Key.String(), "waits_for", p.For[0].String(), "others", len(p.For)-1)
		}
	}
	maps.DeleteFunc(warned, func(k Key, _ bool) bool { return !missing[k] })
	maps.Copy(warned, missing)
}
