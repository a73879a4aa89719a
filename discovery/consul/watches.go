package consul

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// target is one thing that is asked of one service: its proxies
// (/v1/health/connect) or its own instances (/v1/health/service).
type target struct {
	service string
	proxies bool
}

func (t target) name() string {
	if t.proxies {
		return "health/connect/" + t.service
	}
	return "health/service/" + t.service
}

// watches spreads the targets over a bounded number of blocking queries.
//
// # Why
//
// An agent allows 200 connections per client, and a blocking query holds one.
//
// # Conditions
//
// The proxies of services come first, in the order of their names, then the
// services' own instances, until Config.Watches are taken: each of these has a
// blocking query of its own and is seen at once. The rest is swept: two
// blocking queries that say nothing but that something changed somewhere (the
// list of services for registrations, the pulse for checks) start a round of
// short reads at Config.SweepRate a second, proxies first, an answer with the
// index of before being dropped. A round a minute runs without being told.
//
// # First start
//
// Every target is read once.
//
// # Recovery
//
// A target that fails is read again in the next round or, with a query of its
// own, after a back-off.
type watches struct {
	ctx  context.Context // of Run
	feed *feed
	wg   sync.WaitGroup
	wake chan struct{}

	open map[target]context.CancelFunc // only the collector's goroutine

	mu    sync.Mutex
	swept []target
	fresh map[target]bool // to be taken in whatever its index is
}

func newWatches(ctx context.Context, f *feed) *watches {
	return &watches{ctx: ctx, feed: f, wake: make(chan struct{}, 1), open: map[target]context.CancelFunc{}, fresh: map[target]bool{}}
}

// spawn runs f; wait waits for it.
func (w *watches) spawn(f func()) { w.wg.Go(f) }

func (w *watches) wait() { w.wg.Wait() }

// stir starts a round of sweeping, if there is anything to sweep.
func (w *watches) stir() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// set says which services there are, sorted. It is called by the collector.
func (w *watches) set(names []string) {
	want := map[target]bool{}
	var rest []target
	for _, proxies := range []bool{true, false} {
		for _, n := range names {
			t := target{n, proxies}
			if len(want) < w.feed.cfg.Watches {
				want[t] = true
			} else {
				rest = append(rest, t)
			}
		}
	}
	for t, stop := range w.open {
		if !want[t] {
			stop()
			delete(w.open, t)
		}
	}
	for t := range want {
		if w.open[t] == nil {
			ctx, stop := context.WithCancel(w.ctx)
			w.open[t] = stop
			w.spawn(func() {
				w.feed.follow(ctx, t.name(), w.feed.cfg.Wait, func(o *api.QueryOptions) (*api.QueryMeta, event, error) { return w.feed.read(t, o) })
				w.feed.emit(w.ctx, func(c *collector) { c.health.forget(t.name()) })
			})
		}
	}
	w.mu.Lock()
	before := make(map[target]bool, len(w.swept))
	for _, t := range w.swept {
		before[t] = true
	}
	for _, t := range rest {
		if !before[t] {
			w.fresh[t] = true
		}
	}
	w.swept = rest
	w.mu.Unlock()
	if len(rest) > 0 {
		w.stir()
	}
}

// read asks for one target.
func (f *feed) read(t target, o *api.QueryOptions) (*api.QueryMeta, event, error) {
	ask := f.client.Health().Service
	if t.proxies {
		ask = f.client.Health().Connect
	}
	entries, meta, err := ask(t.service, "", false, o)
	if err != nil {
		return nil, nil, err
	}
	in := instances(entries)
	if !t.proxies {
		in = own(in)
	}
	return meta, func(c *collector) { c.answered(t, in, meta.LastIndex) }, nil
}

// own drops proxies: a proxy may carry the name of a service.
func own(in []*discovery.Instance) []*discovery.Instance {
	out := in[:0]
	for _, i := range in {
		if i.Kind != discovery.KindConnectProxy {
			out = append(out, i)
		}
	}
	return out
}

// confirm makes one leader-consistent reading of a held service. A reading that
// fails, or that ACLs cut down, confirms nothing.
func (f *feed) confirm(ctx context.Context, name discovery.ServiceName) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o := (&api.QueryOptions{RequireConsistent: true, Datacenter: f.cfg.Datacenter}).WithContext(ctx)
	proxies, meta, err := f.client.Health().Connect(name.Name, "", false, o)
	if err != nil || meta.ResultsFilteredByACLs {
		return
	}
	services, meta, err := f.client.Health().Service(name.Name, "", false, o)
	if err != nil || meta.ResultsFilteredByACLs {
		return
	}
	p, s := instances(proxies), own(instances(services))
	f.emit(ctx, func(c *collector) { c.confirmed(name, p, s, meta.LastIndex) })
}

const (
	sweepers  = 8
	sweepGap  = 250 * time.Millisecond // at least, between two rounds
	sweepIdle = time.Minute
)

// sweep runs rounds until the context of Run ends.
func (w *watches) sweep() {
	last := map[target]uint64{} // index of each target's last answer
	back := backoff{most: w.feed.cfg.MaxBackoff, rand: w.feed.cfg.Rand}
	idle := time.NewTicker(sweepIdle)
	defer idle.Stop()
	for w.ctx.Err() == nil {
		select {
		case <-w.ctx.Done():
			return
		case <-w.wake:
		case <-idle.C:
		}
		w.mu.Lock()
		targets := w.swept
		for t := range w.fresh {
			delete(last, t)
		}
		clear(w.fresh)
		w.mu.Unlock()
		if len(targets) == 0 {
			continue
		}
		r := &round{w: w, before: last, after: make(map[target]uint64, len(targets))}
		r.run(targets)
		last = r.after
		if r.failures > 0 {
			sleep(w.ctx, back.next())
			w.stir()
			continue
		}
		back.failures = 0
		sleep(w.ctx, sweepGap)
	}
}

// round reads each of its targets once.
type round struct {
	w      *watches
	before map[target]uint64 // read-only

	mu       sync.Mutex
	after    map[target]uint64
	failures int
}

// mostFailures ends a round: the agent is gone, and the next round will tell.
const mostFailures = 2 * sweepers

func (r *round) run(targets []target) {
	todo := make(chan target)
	var wg sync.WaitGroup
	for range sweepers {
		wg.Go(func() {
			for t := range todo {
				r.one(t)
			}
		})
	}
	for _, t := range targets {
		select {
		case todo <- t:
		case <-r.w.ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
}

func (r *round) one(t target) {
	r.mu.Lock()
	given := r.failures >= mostFailures
	r.mu.Unlock()
	if given || r.w.ctx.Err() != nil {
		return
	}
	f := r.w.feed
	pace := time.NewTimer(time.Second * sweepers / time.Duration(f.cfg.SweepRate))
	defer pace.Stop()
	meta, apply, err := f.ask(r.w.ctx, 0, 0, func(o *api.QueryOptions) (*api.QueryMeta, event, error) { return f.read(t, o) })
	r.mu.Lock()
	if err != nil {
		r.failures++
	} else {
		r.after[t] = meta.LastIndex
	}
	r.mu.Unlock()
	news := err == nil && meta.LastIndex != r.before[t]
	f.emit(r.w.ctx, func(c *collector) {
		if err != nil {
			c.failed(t.name(), err)
			return
		}
		c.heard(t.name(), meta)
		if news {
			apply(c)
		}
	})
	select {
	case <-pace.C:
	case <-r.w.ctx.Done():
	}
}
