package sidecar

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// running are the workloads of a process, which come and go with AllLocal.
type running struct {
	mu    sync.Mutex
	list  []*workload // guarded by mu: by name; replaced, never changed
	ended bool        // guarded by mu: nothing is started any more
}

// all are the workloads that there are, by name.
func (s *Sidecar) all() []*workload {
	s.running.mu.Lock()
	defer s.running.mu.Unlock()
	return s.running.list
}

// others are all but one.
func (s *Sidecar) others(name string) []*workload {
	return slices.DeleteFunc(slices.Clone(s.all()), func(w *workload) bool { return w.cfg.name() == name })
}

// add takes a workload in; false where the process ends.
func (s *Sidecar) add(w *workload) bool {
	r := &s.running
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	list := append(slices.Clone(r.list), w)
	slices.SortFunc(list, func(a, b *workload) int { return strings.Compare(a.cfg.name(), b.cfg.name()) })
	r.list = list
	s.leaving.Add(1)
	return true
}

// remove takes a workload out.
func (s *Sidecar) remove(w *workload) {
	r := &s.running
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = slices.DeleteFunc(slices.Clone(r.list), func(o *workload) bool { return o == w })
}

// drop takes out a workload that is over, with what it had of the process.
func (s *Sidecar) drop(w *workload) {
	s.captures.forget(w.cfg.name())
	_ = s.dns.Update(w.cfg.name(), nil)
	s.uncaptured.Delete(w.id())
	s.metrics.Forget(w.cfg.name())
	s.remove(w)
}

// noMore ends the taking in, before everybody is told to leave.
func (s *Sidecar) noMore() {
	s.running.mu.Lock()
	s.running.ended = true
	s.running.mu.Unlock()
}

// launch runs a workload that was taken in. leave ends when the process leaves.
func (s *Sidecar) launch(g *group, leave context.Context, w *workload) {
	w.leave, w.goNow = context.WithCancel(leave)
	w.done = make(chan struct{})
	var hard context.Context
	hard, w.kill = context.WithCancel(g.ctx)
	left := sync.OnceFunc(func() { close(w.left); s.leaving.Done() })
	w.left = make(chan struct{})
	g.start("workload "+w.cfg.name(), func(context.Context) error {
		defer close(w.done)
		defer w.kill()
		defer w.goNow()
		err := w.run(hard, w.leave, left)
		if err == nil || hard.Err() != nil && g.ctx.Err() == nil || s.cfg.AllLocal == nil && len(s.all()) == 1 {
			return err
		}
		// The others go on: /ready and the log say what is wrong with this one.
		w.failed.Store(&err)
		w.log.Error("sidecar: a workload cannot go on; the others of this process do", telemetry.KeyError, err.Error())
		return nil
	})
}

// retire ends one workload softly: the catalogue is told, its traffic drains,
// everything of it ends.
func (s *Sidecar) retire(ctx context.Context, w *workload) {
	w.log.Info("sidecar: the service is not registered any more; its workload ends")
	w.goNow()
	select {
	case <-w.left:
	case <-ctx.Done():
	}
	if s.cfg.Leave > 0 && w.live.Len() > 0 {
		sleep(ctx, s.cfg.Leave)
	}
	limit, cancel := context.WithTimeout(ctx, s.cfg.Drain)
	defer cancel()
	for _, d := range [][]resource.Direction{{resource.Inbound}, nil} {
		if err := w.listeners.Drain(limit, d...); err != nil {
			w.log.Warn("sidecar: not everything ended in time", telemetry.KeyCode, telemetry.DrainTimeout.String(), telemetry.KeyError, err.Error())
		}
	}
	w.kill()
	<-w.done
	s.drop(w)
}

// How long a service may be gone from the catalogue, or a workload be broken,
// before something is done.
const (
	goneFor    = 3 * time.Second  // deregistered and registered anew in between: nothing happens
	restartMin = 5 * time.Second  // before a workload that could not go on is started again
	restartMax = time.Minute      // the same, after several times
	steadyFor  = 10 * time.Minute // then it counts as the first time again
)

// follower keeps workloads for what is registered on this host.
type follower struct {
	s     *Sidecar
	g     *group
	leave context.Context
	named map[string]bool // workloads of the configuration: not its own

	kept map[string]*followed // by workload's name
	wg   sync.WaitGroup       // retirements
}

// followed is one service instance and its workload.
type followed struct {
	w       *workload // nil: ended, or still to be started
	service LocalService
	gone    time.Time // zero: it is registered
	tries   int
	again   time.Time // when it is started again
	began   time.Time
	ending  chan struct{} // closed when the workload before has ended; nil: there is none
}

// follow runs until ctx ends. listed is called after the first list.
func (s *Sidecar) follow(g *group, leave context.Context, listed func()) func(context.Context) error {
	f := &follower{s: s, g: g, leave: leave, kept: map[string]*followed{}, named: map[string]bool{}}
	for _, w := range s.all() {
		f.named[w.cfg.name()] = true
	}
	return func(ctx context.Context) error {
		lists := make(chan []LocalService, 1)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer f.wg.Wait()
		wg.Go(func() {
			_ = s.deps.Registrar.(Follower).Follow(ctx, func(l []LocalService) {
				select { // the newest alone counts
				case <-lists:
				default:
				}
				lists <- l
			})
		})
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case l := <-lists:
				f.list(ctx, l)
				listed()
			case <-tick.C:
			}
			f.look(ctx)
		}
	}
}

// wanted says whether an instance gets a workload: it has a proxy, or says whose
// its processes are.
func wanted(l *LocalService) bool { return l.Proxy != nil || attributed(l.Meta) }

// list takes in what is registered now.
func (f *follower) list(ctx context.Context, all []LocalService) {
	now := time.Now()
	there := map[string]bool{}
	for _, l := range all {
		name := l.ID + "-sidecar-proxy"
		if !wanted(&l) || f.named[name] {
			continue
		}
		there[name] = true
		k := f.kept[name]
		if k == nil {
			k = &followed{}
			f.kept[name] = k
		}
		if k.w != nil && moved(&k.service, &l) {
			f.end(ctx, k)
		}
		k.service, k.gone = l, time.Time{}
		if k.w != nil {
			k.w.local.Store(&l)
			f.s.captures.refresh()
		}
	}
	for name, k := range f.kept {
		if !there[name] && k.gone.IsZero() {
			k.gone = now
		}
	}
}

// moved says whether a registration became another one: its workload begins anew.
func moved(old, now *LocalService) bool {
	proxy := func(l *LocalService) (id string, port int) {
		if l.Proxy == nil {
			return l.ID + "-sidecar-proxy", 0
		}
		return l.Proxy.ID, l.Proxy.Port
	}
	oldID, oldPort := proxy(old)
	id, port := proxy(now)
	return old.Name != now.Name || old.Namespace != now.Namespace || old.Partition != now.Partition ||
		oldID != id || oldPort != 0 && port != 0 && oldPort != port
}

// look starts what is due, and ends what is gone.
func (f *follower) look(ctx context.Context) {
	now := time.Now()
	for name, k := range f.kept {
		if k.w != nil && k.w.ended() {
			f.broke(k, now)
		}
		switch {
		case !k.gone.IsZero() && now.Sub(k.gone) >= goneFor:
			if k.w != nil {
				f.end(ctx, k)
			}
			if k.settled() {
				delete(f.kept, name)
			}
		case k.gone.IsZero() && k.w == nil && k.settled() && !now.Before(k.again):
			f.begin(k, now)
		}
	}
}

func (k *followed) settled() bool {
	if k.ending == nil {
		return true
	}
	select {
	case <-k.ending:
		k.ending = nil
		return true
	default:
		return false
	}
}

// begin starts the workload of an instance.
func (f *follower) begin(k *followed, now time.Time) {
	a := f.s.cfg.AllLocal
	c := Workload{ServiceID: k.service.ID, Service: k.service.Name, TokenFile: a.TokenFile, Address: a.Address, Transparent: a.Transparent}
	if a.TokenDir != "" {
		c.TokenFile = filepath.Join(a.TokenDir, fileName(k.service.Name))
	}
	w, err := newWorkload(f.s, c)
	if err != nil {
		f.s.deps.Log.Error("sidecar: a workload cannot be made; trying again", telemetry.KeyWorkload, c.name(), telemetry.KeyError, err.Error())
		f.later(k, now)
		return
	}
	w.dynamic = true
	local := k.service
	w.local.Store(&local)
	f.s.opened.Add(1)
	if !f.s.add(w) {
		f.s.opened.Done()
		return
	}
	k.w, k.began = w, now
	w.log.Info("sidecar: a service of this host gets its workload", "service", k.service.Name, "service_id", k.service.ID)
	f.s.launch(f.g, f.leave, w)
}

// end retires a workload in the background.
func (f *follower) end(ctx context.Context, k *followed) {
	w := k.w
	k.w, k.ending, k.tries, k.again = nil, make(chan struct{}), 0, time.Time{}
	ended := k.ending
	f.wg.Go(func() {
		defer close(ended)
		f.s.retire(ctx, w)
	})
}

// broke plans another start of a workload that could not go on.
func (f *follower) broke(k *followed, now time.Time) {
	if now.Sub(k.began) >= steadyFor {
		k.tries = 0
	}
	if !k.again.After(k.began) {
		f.later(k, now)
	}
	if now.Before(k.again) {
		return
	}
	f.s.drop(k.w)
	k.w = nil
}

func (f *follower) later(k *followed, now time.Time) {
	k.again = now.Add(min(restartMin<<min(k.tries, 8), restartMax))
	k.tries++
}

// ended says whether a workload's goroutines are over.
func (w *workload) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}
