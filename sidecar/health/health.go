package health

import (
	"fmt"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Passive ejection.
//
// Why: a dead instance costs every request that is sent to it a connect attempt
// until the catalogue hears of it.
//
// Conditions: Threshold connect failures in a row eject an address for
// BaseEjection times the number of its ejections, at most MaxEjection. At most
// MaxShare per cent of the addresses that the catalogue allows are out at a
// time, and one always stays.
//
// First start: every address is in.
//
// Recovery: when its time is over the address is in again with one failure
// below the threshold, so that the next failure ejects it again and longer; a
// success clears it. It is in again at once where everything that is in has
// failed last, and it has not within Readmit: in a rolling restart the instance
// that has just come back is the only one that works. Each Forget without failure forgets one ejection. The first
// ejection is short because the usual cause is short: a new instance is in the
// catalogue a moment before its sidecar listens.
const (
	Threshold    = 3
	BaseEjection = 1 * time.Second
	Forget       = 10 * time.Second
	MaxEjection  = 5 * time.Minute
	MaxShare     = 50
	Readmit      = 100 * time.Millisecond
)

// Endpoint is what the catalogue says of one address.
type Endpoint struct {
	Address string
	Status  resource.HealthStatus
}

// State is the verdict on one address.
type State struct {
	Address string
	Usable  bool
	Why     string // why in or out, for people
}

// Tracker merges catalogue and experience for one cluster. Safe for concurrent
// use.
type Tracker struct {
	mu        sync.Mutex
	endpoints []Endpoint
	panicAt   float64
	seen      map[string]*record
}

// record is what was seen of one address; guarded by Tracker.mu.
type record struct {
	failures  int // connect failures in a row
	last      string
	lastAt    time.Time
	ejections int
	until     time.Time // ejected until; zero: not ejected
}

// NewTracker returns a tracker without endpoints.
func NewTracker() *Tracker { return &Tracker{seen: map[string]*record{}} }

// Set replaces the endpoints; what was seen of those that stay is kept. panicAt
// is the panic threshold in per cent, 0: never.
func (t *Tracker) Set(endpoints []Endpoint, panicAt float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endpoints, t.panicAt = endpoints, panicAt
	present := make(map[string]bool, len(endpoints))
	for _, e := range endpoints {
		present[e.Address] = true
	}
	for a := range t.seen {
		if !present[a] {
			delete(t.seen, a)
		}
	}
}

// Succeeded notes a connection that was opened. It says whether States changed.
func (t *Tracker) Succeeded(address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.seen[address]
	if r == nil {
		return false
	}
	out := !r.until.IsZero()
	r.failures, r.last, r.until = 0, "", time.Time{}
	if r.ejections == 0 {
		delete(t.seen, address)
	}
	return out
}

// Failed notes a connection that could not be opened. It says whether States
// changed.
func (t *Tracker) Failed(address, reason string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known(address) {
		return false
	}
	r := t.seen[address]
	if r == nil {
		r = &record{}
		t.seen[address] = r
	}
	t.forget(r, now)
	r.failures++
	r.last, r.lastAt = reason, now
	changed := t.readmit(now)
	if r.failures < Threshold || r.until.After(now) || !t.mayEject(now) {
		return changed
	}
	r.ejections++
	r.until = now.Add(min(time.Duration(r.ejections)*BaseEjection, MaxEjection))
	r.failures = Threshold - 1
	return true
}

// readmit ends ejections where every address that is in has failed last; the
// caller holds mu.
func (t *Tracker) readmit(now time.Time) bool {
	var out []*record
	for _, e := range t.endpoints {
		if !usable(e.Status) {
			continue
		}
		switch r := t.seen[e.Address]; {
		case r == nil || r.failures == 0:
			return false
		case r.until.After(now) && now.Sub(r.lastAt) >= Readmit:
			out = append(out, r)
		}
	}
	for _, r := range out {
		r.until = time.Time{}
	}
	return len(out) > 0
}

func (t *Tracker) known(address string) bool {
	for _, e := range t.endpoints {
		if e.Address == address {
			return true
		}
	}
	return false
}

// forget takes one ejection off for each Forget without failure.
func (t *Tracker) forget(r *record, now time.Time) {
	since := r.lastAt
	if r.until.After(since) {
		since = r.until
	}
	for r.ejections > 0 && now.Sub(since) >= Forget {
		since = since.Add(Forget)
		r.ejections--
	}
}

// mayEject says whether one more address may go; the caller holds mu.
func (t *Tracker) mayEject(now time.Time) bool {
	allowed, out := 0, 0
	for _, e := range t.endpoints {
		if !usable(e.Status) {
			continue
		}
		allowed++
		if r := t.seen[e.Address]; r != nil && r.until.After(now) {
			out++
		}
	}
	return allowed-out > 1 && (out+1)*100 <= allowed*MaxShare
}

func usable(s resource.HealthStatus) bool {
	return s != resource.Unhealthy && s != resource.Draining
}

// States is the verdict on every endpoint, in order, and when it changes by
// itself next; zero: not by itself.
func (t *Tracker) States(now time.Time) (states []State, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	states = make([]State, len(t.endpoints))
	in := 0
	for i, e := range t.endpoints {
		states[i] = State{Address: e.Address, Usable: usable(e.Status), Why: catalogue(e.Status)}
		if r := t.seen[e.Address]; r != nil && states[i].Usable {
			switch {
			case r.until.After(now):
				states[i].Usable = false
				states[i].Why = fmt.Sprintf("ejected until %s after %d connect failures (last: %s)",
					r.until.UTC().Format(time.RFC3339), Threshold, r.last)
				if next.IsZero() || r.until.Before(next) {
					next = r.until
				}
			case r.failures > 0:
				states[i].Why += fmt.Sprintf("; %d connect failures in a row (last: %s)", r.failures, r.last)
			}
		}
		if states[i].Usable {
			in++
		}
	}
	if n := len(states); n > 0 && float64(in)*100 < t.panicAt*float64(n) {
		for i := range states {
			if !states[i].Usable {
				states[i].Usable = true
				states[i].Why = fmt.Sprintf("used in spite of being %s: only %d of %d are usable, below the panic threshold of %g %%",
					states[i].Why, in, n, t.panicAt)
			}
		}
	}
	return states, next
}

func catalogue(s resource.HealthStatus) string {
	switch s {
	case resource.Unhealthy:
		return "unhealthy in the catalogue"
	case resource.Draining:
		return "draining in the catalogue"
	case resource.Degraded:
		return "degraded in the catalogue"
	case resource.Healthy:
		return "healthy in the catalogue"
	}
	return "in the catalogue"
}
