package sidecar

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// Redirection by the sidecar itself.
//
// Why: who makes the rules has to know which workload has which port, and when
// it can take connections; the sidecar does.
//
// Conditions: a workload is captured from the moment when its certificates and
// its configuration are there for the first time and its listeners are open. The
// rules follow services that come and go.
//
// First start: rules that fail closed and stand from a life before stay as they
// are for a workload that is not that far yet.
//
// Recovery: what cannot be made is tried again every redirectRetry, and said.
// Rules that fail open lapse when the process dies, and are taken away when it
// ends; those that fail closed stay in both cases.
const (
	redirectLook  = 250 * time.Millisecond
	redirectRetry = 2 * time.Second
)

// redirector makes the rules.
type redirector struct {
	s     *Sidecar
	m     intercept.Manager
	base  intercept.Config
	once  map[string]bool               // proxies that were ready once
	stood map[string]intercept.Workload // rules of a life before, which fail closed
	said  string                        // the last thing that went wrong

	cgroups func(intercept.Config) (map[string]uint64, error) // intercept.Cgroups

	lacks atomic.Pointer[string]          // what is missing, for readiness
	seen  atomic.Pointer[map[string]bool] // proxies that the rules in force were made with

	mu      sync.Mutex        // serialises changes of the rules
	applied *intercept.Config // guarded by mu: what this life made; nil: nothing
	groups  map[string]uint64 // guarded by mu: the cgroups that it was made for
	over    bool              // guarded by mu: no rules are made any more
}

func newRedirector(s *Sidecar, r *Redirect) *redirector {
	x := &redirector{s: s, m: r.Manager, base: r.Base, cgroups: intercept.Cgroups, once: map[string]bool{}, stood: map[string]intercept.Workload{}}
	x.lack("redirection is not in force yet")
	x.seen.Store(&map[string]bool{})
	return x
}

func (r *redirector) lack(why string) { r.lacks.Store(&why) }

// missing says what of redirection is not there; "" where all is, or none is
// wanted. Safe on nil.
func (r *redirector) missing() string {
	if r == nil {
		return ""
	}
	if why := *r.lacks.Load(); why != "" {
		return why
	}
	seen := *r.seen.Load()
	for _, w := range r.s.all() {
		if r.s.captures.captured(w.cfg.name()) && !seen[w.id()] {
			return "redirection is not in force yet for " + w.id()
		}
	}
	return ""
}

// run makes rules until ctx ends. It fails where there can be none.
func (r *redirector) run(ctx context.Context) error {
	st, err := r.m.Show(ctx)
	if err != nil {
		return err
	}
	if st.Installed && !st.FailOpen && !r.base.FailOpen {
		for _, w := range st.Workloads {
			r.stood[w.Name] = intercept.Workload{Name: w.Name, UID: w.UID, Cgroup: w.Cgroup, OutboundPort: w.OutboundPort}
		}
	}
	defer r.end()
	var holding sync.WaitGroup
	defer holding.Wait()
	cleaned := make(chan error, 1)
	begun := false
	var again time.Time
	tick := time.NewTicker(redirectLook)
	defer tick.Stop()
	for {
		if now := time.Now(); !now.Before(again) {
			err := r.step(ctx)
			if err != nil {
				again = now.Add(redirectRetry)
			}
			r.tell(ctx, err)
			if r.made() && !begun {
				begun = true
				holding.Go(func() { cleaned <- r.hold(ctx) })
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-cleaned:
			begun = false
			if r.forgotten() {
				r.s.deps.Log.Warn("sidecar: somebody took the redirection away, and it is not made again; start the sidecar anew to have it back", telemetry.KeyError, fmt.Sprint(err))
			}
		case <-tick.C:
		}
	}
}

// step brings the rules to what is wanted.
func (r *redirector) step(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil
	}
	want, groups, err := r.want()
	if err != nil {
		return err
	}
	seen := maps.Clone(r.once)
	maps.DeleteFunc(seen, func(_ string, ready bool) bool { return !ready })
	if err := r.put(ctx, want, groups); err != nil {
		return err
	}
	r.seen.Store(&seen)
	return nil
}

// put makes the rules what is wanted, if they are not; the caller holds mu.
func (r *redirector) put(ctx context.Context, want *intercept.Config, groups map[string]uint64) error {
	switch {
	case want == nil && r.applied == nil, want != nil && r.applied != nil && reflect.DeepEqual(*want, *r.applied) && maps.Equal(groups, r.groups):
		return nil
	case want == nil:
		if err := r.m.Clean(ctx); err != nil {
			return err
		}
		r.applied = nil
		return nil
	}
	if err := r.m.Apply(ctx, *want); err != nil {
		return err
	}
	r.applied, r.groups = want, groups
	r.s.deps.Log.Info("sidecar: redirection is in force", "workloads", len(want.Outbound), "inbound_port", want.InboundPort, "fail_open", want.FailOpen)
	return nil
}

// made says whether there are rules of this life.
func (r *redirector) made() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied != nil
}

// forgotten ends the making of rules, and says whether there were any: others
// took them away, and know why.
func (r *redirector) forgotten() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	there := r.applied != nil && !r.over
	if there {
		r.applied, r.over = nil, true
	}
	return there
}

// tell says what went wrong, once, and what is missing.
func (r *redirector) tell(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if r.said != err.Error() {
			r.said = err.Error()
			r.s.deps.Log.Error("sidecar: redirection cannot be made; trying again", telemetry.KeyError, r.said)
		}
		r.lack("redirection cannot be made: " + err.Error())
	case r.made(), len(r.s.all()) == 0 && r.s.unlisted() == "":
		r.said = ""
		r.lack("")
	}
}

func (r *redirector) hold(ctx context.Context) error {
	return r.m.Hold(ctx, intercept.Holding{Notify: func(err error) {
		r.s.deps.Log.Warn("sidecar: redirection", telemetry.KeyError, err.Error())
	}})
}

// want is what is to be in force, with the cgroups that it is for; nil: nothing.
func (r *redirector) want() (*intercept.Config, map[string]uint64, error) {
	p := r.s.plan()
	known := map[string]bool{}
	p.Proxies = slices.DeleteFunc(p.Proxies, func(x intercept.PlanProxy) bool {
		known[x.ProxyID] = true
		r.once[x.ProxyID] = r.once[x.ProxyID] || x.Ready
		_, stood := r.stood[x.ProxyID]
		if r.once[x.ProxyID] {
			delete(r.stood, x.ProxyID)
		}
		if x.Error != "" {
			r.s.errorOnce(x.ProxyID, x.Error)
		}
		return !r.once[x.ProxyID] && !stood
	})
	maps.DeleteFunc(r.once, func(id string, _ bool) bool { return !known[id] })
	if len(p.Proxies) == 0 {
		p.InboundPort, p.DNSPort = 0, 0
	}
	c, err := p.Config()
	if err != nil {
		return nil, nil, err
	}
	c.Outbound = append(c.Outbound, r.standing(c.Outbound, known)...)
	groups, err := r.present(&c)
	if err != nil {
		return nil, nil, err
	}
	if len(c.Outbound) == 0 {
		c.DNSPort = 0
	}
	if len(c.Outbound) == 0 && c.InboundPort == 0 {
		return nil, nil, nil
	}
	b := &r.base
	c.InboundMode, c.ProxyUID, c.ProxyGID = b.InboundMode, b.ProxyUID, b.ProxyGID
	c.ExcludeInboundPorts, c.ExcludeOutboundPorts = b.ExcludeInboundPorts, b.ExcludeOutboundPorts
	c.ExcludeInboundCIDRs, c.ExcludeOutboundCIDRs = b.ExcludeInboundCIDRs, b.ExcludeOutboundCIDRs
	c.ExcludeUIDs, c.ExcludeGIDs, c.ExcludeCgroups = b.ExcludeUIDs, b.ExcludeGIDs, b.ExcludeCgroups
	c.ExcludeInterfaces, c.VirtualCIDRs = b.ExcludeInterfaces, b.VirtualCIDRs
	if c.DNSPort != 0 {
		c.ExcludeDNSUIDs = b.ExcludeDNSUIDs
	}
	c.IPv6, c.FailOpen, c.HoldFor = b.IPv6, b.FailOpen, b.HoldFor
	return &c, groups, c.Validate()
}

// present leaves out workloads whose cgroup does not exist: they have no process.
func (r *redirector) present(c *intercept.Config) (map[string]uint64, error) {
	if !slices.ContainsFunc(c.Outbound, func(w intercept.Workload) bool { return w.Cgroup != "" }) {
		return nil, nil
	}
	groups, err := r.cgroups(*c)
	if err != nil {
		return nil, err
	}
	c.Outbound = slices.DeleteFunc(c.Outbound, func(w intercept.Workload) bool {
		_, there := groups[w.Cgroup]
		if w.Cgroup != "" && !there {
			r.s.errorOnce(w.Name, fmt.Sprintf("there is no cgroup %s yet: they are when there is", w.Cgroup))
			return true
		}
		return false
	})
	return groups, nil
}

// standing are the workloads of a life before that are still to come.
func (r *redirector) standing(now []intercept.Workload, known map[string]bool) (out []intercept.Workload) {
	if len(r.stood) == 0 {
		return nil
	}
	here := map[string]bool{}
	for _, w := range r.s.all() {
		here[w.id()] = w.failed.Load() == nil
	}
	for _, name := range slices.Sorted(maps.Keys(r.stood)) {
		w := r.stood[name]
		taken := slices.ContainsFunc(now, func(n intercept.Workload) bool {
			return n.OutboundPort == w.OutboundPort || n.UID != nil && w.UID != nil && *n.UID == *w.UID || n.Cgroup != "" && n.Cgroup == w.Cgroup
		})
		switch {
		case taken, r.s.unlisted() == "" && !here[name]:
			delete(r.stood, name)
		case !known[name]:
			out = append(out, w)
		}
	}
	return out
}

// end takes away rules that fail open, so that what comes after the sidecar can
// go on without it. It may be called again. Safe on nil.
func (r *redirector) end() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over = true; r.applied == nil {
		return
	}
	r.applied = nil
	if !r.base.FailOpen {
		r.s.deps.Log.Info("sidecar: the redirection fails closed and stays: nothing of the workloads gets past it until the sidecar is back, or `parrel redirect clean` takes it away")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.m.Clean(ctx); err != nil {
		r.s.deps.Log.Warn("sidecar: the redirection could not be taken away; it lapses by itself", telemetry.KeyError, err.Error())
	}
}

// errorOnce logs why a workload is not captured, once for each reason.
func (s *Sidecar) errorOnce(id, why string) {
	if was, _ := s.uncaptured.Swap(id, why); was != why {
		s.deps.Log.Error("sidecar: outbound connections of a workload are not captured", telemetry.KeyWorkload, id, telemetry.KeyError, why)
	}
}
