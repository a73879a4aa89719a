package warm

import (
	"maps"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// held is one received resource. Immutable.
type held struct {
	r    resource.Resource
	hash uint64
	refs []Key
}

// state is everything a step depends on.
type state struct {
	recv   map[Key]*held     // the newest version of everything, as received
	active map[Key]*held     // what the last set is made of
	since  map[Key]time.Time // wanted by something of recv or active, since when
	held   map[Key]time.Time // held back, since when
}

// plan is one step in the making.
type plan struct {
	*state
	now     time.Time
	timeout time.Duration
	next    map[Key]*held
	leaving map[Key]*held // removed, in force until nothing refers to it
	pending map[Key]Pending
	wake    time.Time
}

// step computes the next set. It reads nothing but state, now and timeout.
//
// Order: what others refer to comes first, so that one pass is enough. A
// candidate is admitted when all it refers to is there, or was waited for in
// vain and no older version could go on instead.
func (s *state) step(now time.Time, timeout time.Duration) (*Set, time.Time) {
	s.want(now)
	p := &plan{state: s, now: now, timeout: timeout,
		next: make(map[Key]*held, len(s.active)+8), leaving: map[Key]*held{}, pending: map[Key]Pending{}}
	for _, t := range []resource.Type{resource.TypeCluster, resource.TypeRoute, resource.TypeListener} {
		p.admitAll(t)
	}
	p.settle()
	set := p.build()
	s.active = p.next
	s.held = make(map[Key]time.Time, len(p.pending))
	for k, q := range p.pending {
		s.held[k] = q.Since
	}
	return set, p.wake
}

// want brings since up to date: every reference of what was received and of
// what is in force, and forgets received resources that nothing wants any more.
func (s *state) want(now time.Time) {
	wanted := make(map[Key]time.Time, len(s.since))
	add := func(h *held) {
		for _, k := range h.refs {
			if t, ok := s.since[k]; ok {
				wanted[k] = t
			} else {
				wanted[k] = now
			}
		}
	}
	for _, m := range []map[Key]*held{s.recv, s.active} {
		for k, h := range m {
			if k.Type == resource.TypeListener || k.Type == resource.TypeCluster {
				add(h)
			}
		}
	}
	for _, m := range []map[Key]*held{s.recv, s.active} {
		for k, h := range m {
			if _, ok := wanted[k]; ok && k.Type == resource.TypeRoute {
				add(h)
			}
		}
	}
	for k := range s.since { // no longer subscribed: what comes next time is fresh
		if _, ok := wanted[k]; !ok && k.Type != resource.TypeCluster {
			delete(s.recv, k)
		}
	}
	s.since = wanted
}

func (p *plan) admitAll(t resource.Type) {
	for k, h := range p.recv {
		if k.Type == t {
			p.admit(k, h)
		}
	}
	if t == resource.TypeListener {
		return // a listener that was removed is gone at once
	}
	for k, h := range p.active {
		if k.Type == t && p.recv[k] == nil {
			p.leaving[k] = h
		}
	}
}

// admit puts the candidate, or the version before, into the next set.
func (p *plan) admit(k Key, cand *held) {
	old := p.active[k]
	if old == cand {
		p.next[k] = cand
		return
	}
	var waits []Key
	for _, dep := range cand.refs {
		if p.have(dep) {
			continue
		}
		if expiry := p.since[dep].Add(p.timeout); p.now.Before(expiry) {
			waits = append(waits, dep)
			if p.wake.IsZero() || expiry.Before(p.wake) {
				p.wake = expiry
			}
		} else if old != nil && !slices.Contains(old.refs, dep) {
			waits = append(waits, dep)
		}
	}
	if len(waits) == 0 {
		p.next[k] = cand
		return
	}
	if old != nil {
		p.next[k] = old
	}
	slices.SortFunc(waits, Key.compare)
	since, ok := p.state.held[k]
	if !ok {
		since = p.now
	}
	p.pending[k] = Pending{Key: k, For: waits, Since: since, Old: old != nil}
}

// have says whether what is referred to is there.
func (p *plan) have(k Key) bool {
	switch k.Type {
	case resource.TypeCluster, resource.TypeRoute:
		return p.next[k] != nil || p.leaving[k] != nil
	}
	return p.recv[k] != nil || p.active[k] != nil
}

// settle makes the next set whole: what leaves but is still referred to stays,
// routes that no listener takes go, endpoints and secrets are added.
func (p *plan) settle() {
	routes := make(map[Key]bool)
	clusters := make(map[Key]bool)
	for k, h := range p.next {
		if k.Type != resource.TypeListener {
			continue
		}
		for _, ref := range h.refs {
			switch ref.Type {
			case resource.TypeRoute:
				routes[ref] = true
			case resource.TypeCluster:
				clusters[ref] = true
			}
		}
	}
	keep := func(k Key) {
		if h := p.leaving[k]; h != nil && p.next[k] == nil {
			p.next[k] = h
		}
	}
	for k := range routes {
		keep(k)
	}
	maps.DeleteFunc(p.next, func(k Key, _ *held) bool { return k.Type == resource.TypeRoute && !routes[k] })
	for k, h := range p.next {
		if k.Type == resource.TypeRoute {
			for _, ref := range h.refs {
				clusters[ref] = true
			}
		}
	}
	for k := range clusters {
		keep(k)
	}
	leaves := make(map[Key]*held)
	for _, h := range p.next {
		for _, ref := range h.refs {
			if ref.Type != resource.TypeEndpoints && ref.Type != resource.TypeSecret {
				continue
			}
			if r := p.recv[ref]; r != nil {
				leaves[ref] = r
			} else if a := p.active[ref]; a != nil {
				leaves[ref] = a
			}
		}
	}
	maps.Copy(p.next, leaves)
}

func (p *plan) build() *Set {
	s := newSet()
	hashes := make(map[resource.Resource]uint64, len(p.next))
	absent := make(map[Key]bool)
	for k, h := range p.next {
		hashes[h.r] = h.hash
		switch r := h.r.(type) {
		case *resource.Listener:
			s.Listeners[k.Name] = r
		case *resource.RouteConfig:
			s.Routes[k.Name] = r
		case *resource.Cluster:
			s.Clusters[k.Name] = r
		case *resource.Endpoints:
			s.Endpoints[k.Name] = r
		case *resource.Secret:
			s.Secrets[k.Name] = r
		}
		for _, ref := range h.refs {
			if p.next[ref] == nil {
				absent[ref] = true
			}
		}
	}
	s.Absent = slices.SortedFunc(maps.Keys(absent), Key.compare)
	for _, q := range p.pending {
		s.Pending = append(s.Pending, q)
	}
	slices.SortFunc(s.Pending, func(a, b Pending) int { return a.Key.compare(b.Key) })
	s.seal(func(r resource.Resource) uint64 { return hashes[r] })
	return s
}
