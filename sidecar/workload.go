package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/compile"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// workload runs one proxy.
type workload struct {
	*Sidecar // the process; read-only
	cfg      Workload
	log      *slog.Logger

	registration *registration
	listeners    *listener.Set
	live         *live.Index
	current      atomic.Pointer[compile.Snapshot]
	complete     atomic.Bool // a complete set was in force once
	identified   atomic.Bool // there was a usable identity once
	parts        atomic.Pointer[parts]
	failed       atomic.Pointer[error] // why it ended before the process
	// local is the service as the catalogue of this host has it; nil: not known.
	local atomic.Pointer[LocalService]

	// Set by launch.
	dynamic     bool               // it came with AllLocal
	leave       context.Context    // over: it is to leave
	goNow, kill context.CancelFunc // end leave, and everything
	left, done  chan struct{}      // closed when the catalogue was told, and when all has ended

	turn    chan struct{}      // whoever holds it changes the clusters
	leaving map[string]leaving // with the turn
	sweep   chan struct{}      // capacity 1: leaving has grown
}

// parts exist once it is known whom the workload stands for.
type parts struct {
	place    place
	identity Identity
	source   Source
	warmer   *warm.Warmer
	clusters *cluster.Manager
}

// leaving is a cluster that was removed and may still be in use.
type leaving struct {
	spec  cluster.Spec
	until time.Time
}

func newWorkload(s *Sidecar, cfg Workload) (*workload, error) {
	w := &workload{Sidecar: s, cfg: cfg, log: s.deps.Log.With(telemetry.KeyWorkload, cfg.name()),
		live: live.New(live.Config{}), turn: make(chan struct{}, 1), leaving: map[string]leaving{}, sweep: make(chan struct{}, 1)}
	w.turn <- struct{}{}
	// Connections that no engine gets, because they are refused before, have
	// their line in the process's access log.
	access, err := s.logs.Compile(s.cfg.AccessLog)
	if err != nil {
		return nil, fmt.Errorf("sidecar: access log: %w", err)
	}
	w.listeners = listener.NewSet(listener.Deps{Net: workloadNet{w.traffic, w}, OwnPort: w.captures.ownPort, Overload: w.overload, Identity: w.identitySource(), Live: w.live,
		Record: telemetry.Multi(w.record, access), Log: w.log, Now: w.deps.Now})
	if s.cfg.HoldInbound {
		w.listeners.Bar(resource.Inbound)
	}
	w.registration = &registration{w: cfg, reg: s.deps.Registrar, log: w.log, rand: s.deps.Rand, hold: w.listeners.Hold,
		late: s.cfg.HoldInbound, ready: w.serves}
	if s.cfg.DataDir != "" {
		dir, err := workloadDir(s.cfg.DataDir, cfg.name())
		if err != nil {
			return nil, err
		}
		w.registration.file = dir + "/registration.json"
	}
	return w, nil
}

// source of listeners' identity before and after parts are there.
func (w *workload) identitySource() mtls.Source { return lateIdentity{w} }

// lateIdentity is the workload's identity, which exists only once the service
// is known; before that there is none, and whoever needs one refuses.
type lateIdentity struct{ w *workload }

func (l lateIdentity) Current() *mtls.Snapshot {
	if p := l.w.parts.Load(); p != nil {
		return p.identity.Current()
	}
	return &mtls.Snapshot{Err: errors.New("it is not known yet whom this sidecar stands for")}
}

func (l lateIdentity) Changed() <-chan struct{} {
	if p := l.w.parts.Load(); p != nil {
		return p.identity.Changed()
	}
	return nil
}

// run runs the workload until ctx ends and everything of it has ended.
// leave ends before ctx: the catalogue is to be told that the proxy goes.
func (w *workload) run(ctx, leave context.Context, left func()) error {
	defer left()
	w.opened.Done()

	g := newGroup(ctx)
	g.start("listeners", w.listeners.Run)
	g.start("workload", func(ctx context.Context) error { return w.build(ctx, leave, left, g) })
	return g.wait()
}

// build finds out whom the workload stands for and starts its parts.
func (w *workload) build(ctx, leave context.Context, left func(), g *group) error {
	find, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(leave, cancel)
	defer stop()
	defer cancel()
	at, err := w.registration.find(find)
	if err != nil {
		return nil // only because it is to end
	}
	if w.local.Load() == nil {
		w.local.Store(at.service(w.cfg.ServiceID))
	}
	if err := w.registration.prepare(find); err != nil {
		w.log.Error("sidecar: cannot open the port that peers dial; is another process using it?", telemetry.KeyError, err.Error())
	}
	p := &parts{place: at}
	if p.identity, err = w.newIdentity(at); err != nil {
		return err
	}
	p.clusters = cluster.NewManager(w.clusterDeps(p.identity))
	p.warmer = warm.New(warm.Config{Publish: w.publish(g), Subscriber: subscriber{p}, Log: w.log})
	if p.source, err = w.newSource(at, p); err != nil {
		return err
	}
	w.parts.Store(p)
	if !w.Sidecar.cfg.Static {
		g.start("identity", w.keepIdentity(p))
		g.start("identity's life", w.watchLife(p))
	}
	g.start("clusters", p.clusters.Run)
	g.start("clusters that leave", w.sweepClusters)
	g.start("warming", p.warmer.Run)
	g.start("configuration", p.source.Run)

	// The catalogue hears of the proxy while its port is open already.
	register, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(leave, end)()
	w.registration.run(register)
	select {
	case <-leave.Done():
	case <-ctx.Done():
	}
	tell, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	w.registration.leave(tell)
	left()
	return nil
}

// subscriber passes on to the source, which is made after the warmer.
type subscriber struct{ p *parts }

func (s subscriber) Subscribe(t resource.Type, names []string) { s.p.source.Subscribe(t, names) }

// applier is the source's handler.
type applier struct{ w *warm.Warmer }

func (a applier) Apply(u client.Update) {
	a.w.Apply(warm.Change{Type: u.Type, Upserted: u.Upserted, Removed: u.Removed})
}

// publish puts a set in force.
func (w *workload) publish(g *group) func(*warm.Set) {
	return func(set *warm.Set) {
		old := w.current.Load()
		next, errs := compile.Compile(set, old, w.compileDeps())
		if w.refuseStatic(g, old == nil, errs) {
			return
		}
		for _, err := range errs {
			w.log.Error("sidecar: part of the configuration is refused", telemetry.KeyError, err.Error())
		}
		w.swapClusters(old, next)
		w.current.Store(next)
		closed := append(w.listeners.Update(next.Version, w.captures.place(w, next.Listeners)), w.dns.Update(w.cfg.name(), next.DNS)...)
		if w.refuseStatic(g, old == nil, closed) {
			return
		}
		for _, err := range closed {
			w.log.Error("sidecar: a listener is not open", telemetry.KeyError, err.Error())
		}
		counts := w.live.Recheck(g.ctx)
		w.keepTrust(old, next)
		if set.Complete {
			w.complete.Store(true)
		}
		w.metrics.SetConfigVersion(w.cfg.name(), next.Version)
		w.log.Debug("sidecar: configuration in force", telemetry.KeyVersion, next.Version, "complete", set.Complete,
			"listeners", len(next.Listeners), "clusters", len(next.Upstreams),
			"connections_kept", counts.Kept, "connections_draining", counts.Draining, "connections_closed", counts.Closed)
	}
}

// swapClusters adds and changes clusters; those that are gone stay for Linger.
func (w *workload) swapClusters(old, next *compile.Snapshot) {
	<-w.turn
	defer func() { w.turn <- struct{}{} }()
	present := make(map[string]bool, len(next.Upstreams))
	specs := make([]cluster.Spec, 0, len(next.Upstreams))
	for _, u := range next.Upstreams {
		present[u.Cluster.Name] = true
		delete(w.leaving, u.Cluster.Name)
		specs = append(specs, cluster.Spec(u))
	}
	grown := false
	if old != nil {
		until := time.Now().Add(w.Sidecar.cfg.Linger)
		for _, u := range old.Upstreams {
			if name := u.Cluster.Name; !present[name] {
				w.leaving[name] = leaving{cluster.Spec(u), until}
				grown = true
			}
		}
	}
	w.updateClusters(specs)
	if grown {
		select {
		case w.sweep <- struct{}{}:
		default:
		}
	}
}

// updateClusters hands the clusters and those that leave to the manager. Called
// with the turn.
func (w *workload) updateClusters(specs []cluster.Spec) {
	for _, name := range slices.Sorted(maps.Keys(w.leaving)) {
		specs = append(specs, w.leaving[name].spec)
	}
	w.parts.Load().clusters.Update(specs)
}

// sweepClusters takes away clusters whose time is over.
func (w *workload) sweepClusters(ctx context.Context) error {
	for {
		next := w.sweepOnce()
		var after <-chan time.Time
		if !next.IsZero() {
			after = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.sweep:
		case <-after:
		}
	}
}

func (w *workload) sweepOnce() (next time.Time) {
	<-w.turn
	defer func() { w.turn <- struct{}{} }()
	now, gone := time.Now(), false
	for name, l := range w.leaving {
		if !now.Before(l.until) {
			delete(w.leaving, name)
			gone = true
		} else if next.IsZero() || l.until.Before(next) {
			next = l.until
		}
	}
	if s := w.current.Load(); gone && s != nil {
		specs := make([]cluster.Spec, 0, len(s.Upstreams))
		for _, u := range s.Upstreams {
			specs = append(specs, cluster.Spec(u))
		}
		w.updateClusters(specs)
	}
	return next
}

// keepTrust lets the identity source remember the roots that the control plane
// announced, so that it survives their rotation.
func (w *workload) keepTrust(old, next *compile.Snapshot) {
	set := next.Trust(resource.SecretTrust)
	if set == nil || set == old.Trust(resource.SecretTrust) {
		return
	}
	if k, ok := w.parts.Load().identity.(interface {
		UpdateTrust(*x509bundle.Set) error
	}); ok {
		if err := k.UpdateTrust(set); err != nil {
			w.log.Warn("sidecar: new roots could not be kept on disk", telemetry.KeyError, err.Error())
		}
	}
}

// keepIdentity runs the identity source. One that gave no usable identity and
// cannot ends the process with its reason: the token is wrong. One that did,
// and now is over, does not: listeners stay and refuse with the reason, and the
// process's other workloads go on.
func (w *workload) keepIdentity(p *parts) func(context.Context) error {
	return func(ctx context.Context) error {
		err := p.identity.Run(ctx)
		if err == nil || ctx.Err() != nil || !w.identified.Load() {
			return err
		}
		if _, own := mtls.Usable(p.identity.Current(), w.deps.Now()); own == nil {
			return err // not over: the source itself is broken
		}
		w.log.Error("sidecar: the identity is over and cannot be renewed: connections are refused until the sidecar is started again with a new token",
			telemetry.KeyError, err.Error())
		<-ctx.Done()
		return ctx.Err()
	}
}

// watchLife raises the alarm over a certificate that is not renewed, and shows
// its end in the metrics.
func (w *workload) watchLife(p *parts) func(context.Context) error {
	return func(ctx context.Context) error {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { _ = mtls.WatchLife(ctx, mtls.WatchConfig{Source: p.identity, Log: w.log, Now: w.deps.Now}) })
		for {
			changed := p.identity.Changed()
			if _, err := mtls.Usable(p.identity.Current(), w.deps.Now()); err == nil {
				w.identified.Store(true)
			}
			if svid := p.identity.Current().SVID; svid != nil && len(svid.Certificates) > 0 {
				w.metrics.SetCertExpiry(w.cfg.name(), svid.Certificates[0].NotAfter)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}
}
