package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Start and end beside an application.
//
// Why: an application must be able to call from its first millisecond to its
// last, and must be called only while it can answer.
//
// Conditions: the end has two phases. Inbound first: the catalogue is told,
// Config.Leave passes, then listeners close and connections end after the work
// in hand. Outbound stays as it is meanwhile, since the work in hand makes calls
// of its own, and until Deps.BeforeOutbound returns.
//
// First start: with Config.HoldInbound outbound listeners open as soon as they
// can, inbound ones when the owner says that the application answers.
//
// Recovery: none is needed; each phase is bounded by Config.Drain, and
// [Sidecar.Hasten] ends the one in hand.

// awaitPause is how often what is missing is looked at again while starting.
const awaitPause = 5 * time.Millisecond

// AwaitOutbound returns nil when every workload has its identity and its
// configuration, and every listener is open that Config.HoldInbound does not
// keep closed. Where ctx ends before, the error says what is missing.
func (s *Sidecar) AwaitOutbound(ctx context.Context) error {
	return s.await(ctx, (*workload).missingOutbound)
}

// Await is AwaitOutbound for everything that /ready asks for.
func (s *Sidecar) Await(ctx context.Context) error { return s.await(ctx, (*workload).missing) }

func (s *Sidecar) await(ctx context.Context, missing func(*workload) []string) error {
	tick := time.NewTicker(awaitPause)
	defer tick.Stop()
	for {
		lacks := s.lacks(missing)
		if len(lacks) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("sidecar: not ready: %s: %w", strings.Join(lacks, "; "), context.Cause(ctx))
		}
	}
}

// Missing says, in sentences, what the process waits for before it is ready.
func (s *Sidecar) Missing() []string { return s.lacks((*workload).missing) }

func (s *Sidecar) lacks(missing func(*workload) []string) (out []string) {
	out = s.processLacks()
	for _, w := range s.all() {
		for _, m := range missing(w) {
			out = append(out, w.id()+": "+m)
		}
	}
	return out
}

// processLacks is what no workload lacks, but the process.
func (s *Sidecar) processLacks() (out []string) {
	for _, why := range []string{s.unlisted(), s.redirector.missing()} {
		if why != "" {
			out = append(out, why)
		}
	}
	return out
}

// unlisted says that it is not known yet which workloads there are to be; "":
// it is.
func (s *Sidecar) unlisted() string {
	if s.cfg.AllLocal == nil || s.listed.Load() {
		return ""
	}
	return "it is not known yet which services are registered on this host: the catalogue has not answered"
}

// Applications are the addresses, HOST:PORT or a Unix socket's path, at which
// the workloads' applications are called, as the configuration in force says.
// Sorted; none where nothing comes in.
func (s *Sidecar) Applications() (out []string) {
	for _, w := range s.all() {
		if snap := w.current.Load(); snap != nil {
			for _, u := range snap.Upstreams {
				if u.Endpoints == nil || u.Cluster.Name != localApp && !strings.HasPrefix(u.Cluster.Name, localApp+"|") {
					continue
				}
				for _, l := range u.Endpoints.Localities {
					for _, e := range l.Endpoints {
						out = append(out, addressOf(e.Address))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// localApp is how the cluster of a workload's application is called, by parrel
// (with more behind a bar) and by Consul.
const localApp = "local_app"

// OpenInbound opens the listeners that Config.HoldInbound keeps closed.
func (s *Sidecar) OpenInbound() {
	for _, w := range s.all() {
		for _, err := range w.listeners.Unbar(resource.Inbound) {
			w.log.Error("sidecar: a listener is not open", telemetry.KeyError, err.Error())
		}
	}
}

// serves returns when the workload serves; it looks less often as time passes.
func (w *workload) serves(ctx context.Context) error {
	for pause := awaitPause; len(w.missing()) > 0; pause = min(2*pause, 50*awaitPause) {
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
	return nil
}

// ApplicationGone says that the application has ended: nobody is made to wait
// for it.
func (s *Sidecar) ApplicationGone() { s.alone.Store(true) }

// Hasten ends what a soft end is waiting for, now or later: traffic in hand is
// cut.
func (s *Sidecar) Hasten() { s.goFaster() }

// depart is the soft end; it is skipped where the process cannot go on.
func (s *Sidecar) depart(ctx context.Context) {
	s.draining.Store(true)
	if ctx.Err() != nil {
		return
	}
	s.deps.Log.Info("sidecar: leaving", "drain", s.cfg.Drain.String())
	soft, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.hasten, func() { cancel(errHastened) })()
	s.callersLeave(soft)
	limit, end := context.WithTimeout(soft, s.cfg.Drain)
	defer end()
	s.drain(limit, resource.Inbound)
	if s.deps.BeforeOutbound != nil {
		s.deps.BeforeOutbound(ctx)
		anew, end := context.WithTimeout(soft, s.cfg.Drain)
		defer end()
		limit = anew
	}
	s.redirector.end()
	s.drain(limit)
}

var errHastened = errors.New("the end was hastened")

// callersLeave tells the catalogue, and gives callers the time to hear of it.
func (s *Sidecar) callersLeave(ctx context.Context) {
	s.tell()
	if s.cfg.Leave > 0 && s.open() > 0 && !s.alone.Load() {
		sleep(ctx, s.cfg.Leave)
	}
}

// drainRequest is one of the admin API's.
type drainRequest struct {
	inbound bool
	over    chan struct{} // closed when the traffic has ended
}

// askToDrain implements admin.Deps.Drain.
func (s *Sidecar) askToDrain(inboundOnly bool) <-chan struct{} {
	r := drainRequest{inboundOnly, make(chan struct{})}
	select {
	case s.drains <- r:
	default: // enough are waiting; who waits for this one hears nothing
	}
	return r.over
}

func (s *Sidecar) drainWhenAsked(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-s.drains:
			s.draining.Store(true)
			wg.Go(func() {
				defer close(r.over)
				s.callersLeave(ctx)
				limit, end := context.WithTimeout(ctx, s.cfg.Drain)
				defer end()
				s.drain(limit, resource.Inbound)
				if !r.inbound {
					s.drain(limit)
				}
			})
		}
	}
}

// missingOutbound is missing without what inbound traffic alone needs.
func (w *workload) missingOutbound() (out []string) {
	if err := w.failed.Load(); err != nil {
		return []string{"it ended: " + (*err).Error()}
	}
	p := w.parts.Load()
	if p == nil {
		return []string{"the service that it stands for is not known yet: the catalogue has not answered"}
	}
	if _, err := mtls.Usable(p.identity.Current(), w.deps.Now()); err != nil && !w.Sidecar.cfg.Static {
		out = append(out, "no identity: "+err.Error())
	}
	s := w.current.Load()
	if !w.complete.Load() {
		why := "no complete configuration yet"
		if s != nil {
			for _, q := range s.Set.Pending {
				why += fmt.Sprintf("; %s waits for %s", q.Key, q.For[0])
			}
		} else if st := p.source.Status(); !st.Connected && st.LastError != "" {
			why += ": no stream to the control plane: " + st.LastError
		}
		out = append(out, why)
	}
	if err := errors.Join(w.listeners.Listening(), w.dns.Listening(w.cfg.name())); err != nil {
		out = append(out, err.Error())
	}
	return out
}

// missing says, in sentences, what the workload waits for before it is ready.
func (w *workload) missing() []string {
	out := w.missingOutbound()
	if held := w.listeners.Barred(); len(held) > 0 {
		out = append(out, "the application does not answer yet: "+strings.Join(held, ", ")+" opens when it does")
	}
	return out
}
