package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// Config says which directory is the catalogue. Zero values of the optional
// fields are the defaults named beside them.
type Config struct {
	Dir              string                    // required
	Datacenter       string                    // "dc1"
	NodeName         string                    // "local"
	NodeAddress      string                    // "127.0.0.1": the address of a service that names none
	Checks           bool                      // run the definitions' checks; without, each counts as passing
	DefaultIntention discovery.IntentionAction // Deny
	Rescan           time.Duration             // 2s: how often the directory is read without being told
	Debounce         time.Duration             // 50ms: quiet time before a change is read
	Confirm          time.Duration             // 250ms: between the readings that confirm a loss
	ConfirmCollapse  time.Duration             // 2s: the same where most of the mesh vanished
	Guard            discovery.GuardConfig

	Log   *slog.Logger                                                              // slog.Default()
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)      // net.Dialer: connections of checks
	Watch func(ctx context.Context, dir string) (events <-chan struct{}, err error) // Notify; an error leaves the rescan alone
}

// Source is the catalogue of one directory.
type Source struct {
	cfg Config
	cat *catalogue
}

// New checks the configuration. An error says what to mend.
func New(cfg Config) (*Source, error) {
	cfg.Datacenter = cmp.Or(cfg.Datacenter, "dc1")
	cfg.NodeName = cmp.Or(cfg.NodeName, "local")
	cfg.NodeAddress = cmp.Or(cfg.NodeAddress, "127.0.0.1")
	cfg.DefaultIntention = cmp.Or(cfg.DefaultIntention, discovery.Deny)
	cfg.Rescan = cmp.Or(cfg.Rescan, 2*time.Second)
	cfg.Debounce = cmp.Or(cfg.Debounce, 50*time.Millisecond)
	cfg.Confirm = cmp.Or(cfg.Confirm, 250*time.Millisecond)
	cfg.ConfirmCollapse = cmp.Or(cfg.ConfirmCollapse, 2*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Watch == nil {
		cfg.Watch = Notify
	}
	switch {
	case cfg.Dir == "":
		return nil, errors.New("file: no directory of definitions is named; name one")
	case cfg.DefaultIntention != discovery.Allow && cfg.DefaultIntention != discovery.Deny:
		return nil, fmt.Errorf("file: the default intention is %q; write allow or deny", cfg.DefaultIntention)
	}
	info, err := os.Stat(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("file: %w; name a directory that exists", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("file: %s is no directory; name the directory that holds the definitions", cfg.Dir)
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	node := discovery.Node{Name: cfg.NodeName, Address: cfg.NodeAddress, Datacenter: cfg.Datacenter}
	return &Source{cfg: cfg, cat: newCatalogue(cfg.Dir, node)}, nil
}

// Run delivers the whole directory, then what changes, until ctx ends. It may
// be called once.
func (s *Source) Run(ctx context.Context, sink discovery.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &run{
		cfg: s.cfg, cat: s.cat, sink: sink, guard: discovery.NewGuard(s.cfg.Guard),
		checker: newChecker(s.cfg.Dial, s.cfg.Checks),
		offered: map[discovery.ServiceName]*discovery.Service{},
		entries: map[discovery.EntryKey]*discovery.ConfigEntry{},
	}
	defer r.checker.close()
	defer cancel() // before close, which waits
	return r.loop(ctx)
}

// run is the state of one Run, owned by its goroutine.
type run struct {
	cfg     Config
	cat     *catalogue
	sink    discovery.Sink
	guard   *discovery.Guard
	checker *checker

	offered map[discovery.ServiceName]*discovery.Service // what the directory said last
	entries map[discovery.EntryKey]*discovery.ConfigEntry
	status  discovery.Status
	dirErr  error
	full    bool // the first delivery is made
}

func (r *run) loop(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	events, err := r.cfg.Watch(ctx, r.cfg.Dir)
	all := events
	if err != nil {
		r.cfg.Log.Warn("the directory cannot be watched and is read every "+r.cfg.Rescan.String(), "dir", r.cfg.Dir, "err", err)
		events = nil
	}
	defer func() {
		cancel()
		if all != nil { // the watcher ends with ctx and closes it
			for range all {
			}
		}
	}()
	r.rescan(ctx)
	r.firstChecks(ctx)
	r.deliver()
	rescan := time.NewTicker(r.cfg.Rescan)
	defer rescan.Stop()
	settle := time.NewTimer(0)
	defer settle.Stop()
	<-settle.C
	confirm := time.NewTimer(0)
	defer confirm.Stop()
	<-confirm.C
	waiting := false
	for {
		if held := r.guard.Held(); len(held) > 0 && !waiting {
			waiting = true
			confirm.Reset(r.confirmDelay(held))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			settle.Reset(r.cfg.Debounce)
			continue
		case <-settle.C:
			r.rescan(ctx)
		case <-rescan.C:
			r.rescan(ctx)
		case <-confirm.C:
			waiting = false
			r.confirm(ctx)
			continue
		case res := <-r.checker.results:
			changed := r.checker.took(res)
			for more := true; more; {
				select {
				case res = <-r.checker.results:
					changed = r.checker.took(res) || changed
				default:
					more = false
				}
			}
			if !changed {
				continue
			}
		}
		r.deliver()
	}
}

// firstChecks waits until every check has run once, for a bounded time: a check
// is critical until then, and a control plane that restarts must not tell a mesh
// that works that nothing in it is healthy.
func (r *run) firstChecks(ctx context.Context) {
	limit := time.NewTimer(firstChecksWithin)
	defer limit.Stop()
	for r.checker.pending() {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case res := <-r.checker.results:
			r.checker.took(res)
		}
	}
}

// firstChecksWithin is how long the first delivery waits for first results.
const firstChecksWithin = time.Second

func (r *run) confirmDelay(held []discovery.ServiceName) time.Duration {
	for _, name := range held {
		if r.guard.Collapsed(name) {
			return r.cfg.ConfirmCollapse
		}
	}
	return r.cfg.Confirm
}

// rescan reads the directory; an error of the directory itself changes nothing.
func (r *run) rescan(ctx context.Context) {
	changed, err := r.cat.scan()
	if err != nil && r.dirErr == nil {
		r.cfg.Log.Warn("the catalogue's directory cannot be read; what was read last stays in force", "dir", r.cfg.Dir, "err", err)
	}
	r.dirErr = err
	if changed {
		for _, p := range r.cat.problems() {
			r.cfg.Log.Warn("a definition is refused; what was good before stays in force", "at", p.Origin.String(), "reason", p.Reason, "remedy", p.Remedy)
		}
		r.checker.update(ctx, r.cat.registrations())
	}
}

// confirm reads the directory again: that is the strongest reading there is.
func (r *run) confirm(ctx context.Context) {
	held := r.guard.Held()
	r.rescan(ctx)
	if r.dirErr != nil {
		r.deliver()
		return
	}
	said := r.services()
	now := time.Now()
	services := r.offer(said)
	for _, name := range held {
		for n, s := range r.guard.Confirmed(now, name, said[name]) {
			services[n] = s
		}
	}
	r.send(services)
}

// deliver sends what is different from what was sent.
func (r *run) deliver() { r.send(r.offer(r.services())) }

// offer gives the guard what the directory says differently from before.
func (r *run) offer(said map[discovery.ServiceName]*discovery.Service) map[discovery.ServiceName]*discovery.Service {
	changed := map[discovery.ServiceName]*discovery.Service{}
	for name, s := range said {
		if old := r.offered[name]; old != nil && reflect.DeepEqual(old, s) {
			continue
		}
		changed[name] = s
	}
	for name := range r.offered {
		if said[name] == nil {
			changed[name] = nil
		}
	}
	r.offered = said
	return r.guard.Offer(time.Now(), changed)
}

func (r *run) send(services map[discovery.ServiceName]*discovery.Service) {
	d := discovery.Delta{Services: services, Entries: r.changedEntries()}
	if !r.full {
		r.full = true
		d.Full, d.DefaultIntention = true, r.cfg.DefaultIntention
	}
	if st := r.newStatus(); d.Full || !reflect.DeepEqual(st, r.status) {
		r.status = st
		d.Status = &st
	}
	if d.Full || len(d.Services) > 0 || len(d.Entries) > 0 || d.Status != nil {
		r.sink.Apply(d)
	}
}

func (r *run) newStatus() discovery.Status {
	st := discovery.Status{Problems: append(r.cat.problems(), r.checker.unrun(r.cat.registrations())...)}
	switch reason := r.guard.Reason(); {
	case r.dirErr != nil:
		st.Stale, st.Reason = true, r.dirErr.Error()
	case reason != "":
		st.Stale, st.Reason = true, reason
	}
	if st.Stale {
		st.Since = r.status.Since
		if !r.status.Stale {
			st.Since = time.Now()
		}
	}
	return st
}

func (r *run) changedEntries() map[discovery.EntryKey]*discovery.ConfigEntry {
	now := r.cat.entries()
	changed := map[discovery.EntryKey]*discovery.ConfigEntry{}
	for k, e := range now {
		if r.entries[k] != e && !reflect.DeepEqual(r.entries[k], e) {
			changed[k] = e
		}
	}
	for k := range r.entries {
		if now[k] == nil {
			changed[k] = nil
		}
	}
	r.entries = now
	return changed
}

// services makes the catalogue of what is in force and the states of checks.
func (r *run) services() map[discovery.ServiceName]*discovery.Service {
	regs := r.cat.registrations()
	states := r.checker.states(regs)
	var instances []*discovery.Instance
	for _, reg := range regs {
		in := *reg.Instance
		if needsPort(reg) {
			if in.Port = r.cat.ports[in.ID]; in.Port == 0 {
				continue // named among the problems
			}
		}
		in.Checks = states[in.ID]
		for i := range in.Checks {
			// An output differs with every run; it is worth a word only where
			// something is wrong.
			if in.Checks[i].Health == discovery.Passing {
				in.Checks[i].Output = ""
			}
		}
		in.Weights, in.Health = discovery.Weigh(in.Weights, discovery.CombineHealth(in.Checks))
		instances = append(instances, &in)
	}
	return discovery.Group(instances)
}
