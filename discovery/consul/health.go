package consul

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// health says how far the catalogue's answers can be believed. It belongs to
// the collector.
type health struct {
	maxAge  time.Duration
	failing map[string]failure
	age     map[string]time.Duration // LastContact of each query's last answer
	orphan  map[string]bool          // that answer came from a server without a leader
	hidden  map[string]bool          // that answer was cut down by ACLs
}

type failure struct {
	err   error
	since time.Time
}

func newHealth(maxAge time.Duration) *health {
	return &health{maxAge: maxAge, failing: map[string]failure{}, age: map[string]time.Duration{}, orphan: map[string]bool{}, hidden: map[string]bool{}}
}

// failed says whether this is the first failure of all.
func (h *health) failed(name string, err error) bool {
	first := len(h.failing) == 0
	f, again := h.failing[name]
	if !again {
		f.since = time.Now()
	}
	f.err = err
	h.failing[name] = f
	return first
}

// heard says whether with this answer everything answers again.
func (h *health) heard(name string, meta *api.QueryMeta, _ time.Time) bool {
	_, was := h.failing[name]
	delete(h.failing, name)
	h.age[name] = meta.LastContact
	set(h.orphan, name, !meta.KnownLeader)
	set(h.hidden, name, meta.ResultsFilteredByACLs)
	return was && len(h.failing) == 0
}

// forget drops a query that is no longer asked.
func (h *health) forget(name string) {
	delete(h.failing, name)
	delete(h.age, name)
	delete(h.orphan, name)
	delete(h.hidden, name)
}

func set(m map[string]bool, name string, is bool) {
	if is {
		m[name] = true
	} else {
		delete(m, name)
	}
}

// status makes the Status, with what was before for Since.
func (h *health) status(now time.Time, before discovery.Status) discovery.Status {
	var st discovery.Status
	for _, a := range h.age {
		st.Age = max(st.Age, a.Truncate(time.Second))
	}
	// The pulse is the one query that is asked again and again; the others'
	// answers may be as old as their last change.
	pulse := h.age[pulseName]
	switch {
	case len(h.failing) > 0:
		name := slices.Sorted(maps.Keys(h.failing))[0]
		st.Stale, st.Reason = true, fmt.Sprintf("Consul does not answer %d of parrel's queries (%s: %s)", len(h.failing), name, h.failing[name].err)
	case h.orphan[pulseName]:
		st.Stale, st.Reason = true, "Consul's servers have no leader"
	case pulse > h.maxAge:
		st.Stale, st.Reason = true, fmt.Sprintf("Consul's answers are %s old", pulse.Truncate(time.Second))
	}
	st.Age = pulse.Truncate(time.Second)
	if st.Stale {
		st.Since = before.Since
		if !before.Stale {
			st.Since = now
		}
	}
	st.Problems = h.problems()
	return st
}

func (h *health) problems() []discovery.Problem {
	var out []discovery.Problem
	for _, name := range slices.Sorted(maps.Keys(h.failing)) {
		if err := h.failing[name].err; denied(err) {
			out = append(out, discovery.Problem{Origin: origin, Reason: name + ": " + err.Error(), Remedy: "give the token the rules that `go doc github.com/parrel-mesh/parrel/discovery/consul` names"})
		}
	}
	if len(h.hidden) > 0 {
		name := slices.Sorted(maps.Keys(h.hidden))[0]
		out = append(out, discovery.Problem{Origin: origin, Reason: fmt.Sprintf("the token may not read everything that %d of parrel's queries ask for (%s)", len(h.hidden), name), Remedy: "give the token the rules that `go doc github.com/parrel-mesh/parrel/discovery/consul` names"})
	}
	return out
}
