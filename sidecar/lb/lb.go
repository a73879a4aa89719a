package lb

import (
	"sync/atomic"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Endpoint is the handle of one address. The zero value is idle.
type Endpoint struct {
	// Address names it; read-only.
	Address string
	// Owner is whatever the one who built the set keeps beside it, so that a pick
	// needs no search; read-only, and never looked at here.
	Owner any
	// Two counters that only grow: one addition at each end of a request tells
	// both what is in hand and what there has been.
	begun, ended atomic.Int64
}

// Active is the number of requests or connections in hand.
func (e *Endpoint) Active() int64 {
	ended := e.ended.Load() // first: never below zero
	return e.begun.Load() - ended
}

// Total is the number of requests or connections that ever began.
func (e *Endpoint) Total() uint64 { return uint64(e.begun.Load()) }

// Begin counts a request in, End counts it out: least request goes by it.
func (e *Endpoint) Begin() { e.begun.Add(1) }

// End ends what Begin began.
func (e *Endpoint) End() { e.ended.Add(1) }

// Entry is one endpoint of a set.
type Entry struct {
	Endpoint *Endpoint
	Weight   uint32 // 0 counts as 1
	Priority uint32 // lower is preferred
	Usable   bool
}

// Info is what a pick may depend on.
type Info struct {
	// Hash of the request, for hashing policies; none is part of this package yet
	// that reads it.
	Hash    uint64
	HasHash bool
	// Avoid are endpoints that were tried already: others are preferred.
	Avoid []*Endpoint
}

// Picker chooses among one set of endpoints. Safe for concurrent use.
type Picker interface {
	// Pick returns nil where no endpoint is usable.
	Pick(Info) *Endpoint
}

// Policy builds pickers.
type Policy interface {
	// Build makes the picker of a set. previous is the picker that it replaces, of
	// this policy or another, or nil. entries are not retained.
	Build(entries []Entry, previous Picker) Picker
}

// New returns the policy of a cluster's configuration; the zero LBPolicy is
// least request with two choices. rand must be safe for concurrent use.
func New(p resource.LBPolicy, rand func() uint64) Policy {
	switch {
	case p.RoundRobin != nil:
		return roundRobin{}
	case p.Random != nil:
		return random{rand}
	case p.LeastRequest != nil && p.LeastRequest.ChoiceCount > 2:
		return leastRequest{rand, int(p.LeastRequest.ChoiceCount)}
	}
	return leastRequest{rand, 2}
}

// empty picks nothing.
type empty struct{}

func (empty) Pick(Info) *Endpoint { return nil }

// choose reduces a set to the usable entries of the lowest priority that has
// any.
func choose(entries []Entry) []Entry {
	var best uint32
	n := 0
	for _, e := range entries {
		switch {
		case !e.Usable:
		case n == 0 || e.Priority < best:
			best, n = e.Priority, 1
		case e.Priority == best:
			n++
		}
	}
	out := make([]Entry, 0, n)
	for _, e := range entries {
		if e.Usable && e.Priority == best {
			e.Weight = max(e.Weight, 1)
			out = append(out, e)
		}
	}
	return out
}

// avoided says whether an endpoint was tried already.
func avoided(e *Endpoint, avoid []*Endpoint) bool {
	for _, a := range avoid {
		if a == e {
			return true
		}
	}
	return false
}

// other returns the first endpoint from start on that was not tried yet, nil
// where all were.
func other(eps []*Endpoint, start int, avoid []*Endpoint) *Endpoint {
	for i := range eps {
		if e := eps[(start+i)%len(eps)]; !avoided(e, avoid) {
			return e
		}
	}
	return nil
}

func handles(entries []Entry) []*Endpoint {
	out := make([]*Endpoint, len(entries))
	for i, e := range entries {
		out[i] = e.Endpoint
	}
	return out
}

func equalWeights(entries []Entry) bool {
	for _, e := range entries {
		if e.Weight != entries[0].Weight {
			return false
		}
	}
	return true
}
