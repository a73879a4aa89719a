package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"
)

// Guard keeps a catalogue that has lost its memory from emptying the mesh.
//
// # Why
//
// A catalogue whose leader died, whose snapshot was restored or whose agents
// were cut off answers, in good faith, that nothing exists. Believing it takes
// every endpoint away from every caller at once.
//
// # Conditions
//
// The loss of single instances applies at once. A loss is held, and the
// service keeps what vanished and is marked Stale, when it would leave a
// service without any instance or without any proxy, or when within Window
// more than Share of all instances vanish and there were MinMesh or more. A
// held loss becomes real when the source has confirmed it Confirmations times
// by its strongest kind of reading, see [Guard.Confirmed]; it ends at once when
// an answer brings the instances back.
//
// # First start
//
// There is nothing to lose: whatever is offered is delivered.
//
// # Recovery
//
// New instances of a held service are delivered while the vanished ones are
// kept. Confirmed losses do not count towards Share.
//
// A Guard is a state machine without goroutines or clock; its owner calls it
// from one goroutine.
type Guard struct {
	cfg    GuardConfig
	known  map[ServiceName]*guarded
	losses []loss
	total  int // registrations in known, applications and proxies
}

// GuardConfig has the numbers of a Guard; zero values are the defaults.
type GuardConfig struct {
	MinMesh       int           // 5
	Share         float64       // 0.5
	Window        time.Duration // 1s
	Confirmations int           // 2
}

type guarded struct {
	kept      *Service // as delivered last, never with Stale set
	held      bool
	collapse  bool // held because the whole mesh shrank
	since     time.Time
	lost      int // what vanished from kept and is counted in losses
	confirmed int
	shown     *Service // what was delivered while held
}

type loss struct {
	at      time.Time
	n       int
	applied bool // not in total any more
}

// NewGuard makes a Guard.
func NewGuard(cfg GuardConfig) *Guard {
	cfg.MinMesh = cmp.Or(cfg.MinMesh, 5)
	cfg.Share = cmp.Or(cfg.Share, 0.5)
	cfg.Window = cmp.Or(cfg.Window, time.Second)
	cfg.Confirmations = cmp.Or(cfg.Confirmations, 2)
	return &Guard{cfg: cfg, known: map[ServiceName]*guarded{}}
}

// Offer takes what the source says of some services, nil for one that it does
// not know, and gives what to deliver in Delta.Services.
func (g *Guard) Offer(now time.Time, said map[ServiceName]*Service) map[ServiceName]*Service {
	lost := 0
	for name, s := range said {
		if k := g.known[name]; k != nil {
			lost += max(0, len(vanished(k.kept, s))-k.lost)
		}
	}
	collapse := g.collapses(now, lost)
	out := map[ServiceName]*Service{}
	for name, s := range said {
		k := g.known[name]
		gone := 0
		if k != nil {
			gone = len(vanished(k.kept, s))
		}
		switch {
		case k == nil && s == nil:
		case k != nil && k.held && gone > 0 && (k.collapse || empties(k.kept, s)):
			g.lose(now, k, gone)
			g.show(out, name, k, s)
		case k != nil && !k.held && gone > 0 && (collapse || empties(k.kept, s)):
			k.held, k.collapse, k.confirmed, k.since = true, collapse, 0, now
			g.lose(now, k, gone)
			g.show(out, name, k, s)
		default:
			if gone > 0 {
				g.losses = append(g.losses, loss{at: now, n: gone, applied: true})
			}
			g.accept(out, name, s)
		}
	}
	if collapse {
		// Answers come one service at a time: those that were held a moment ago
		// for themselves are part of it.
		for _, k := range g.known {
			if k.held && now.Sub(k.since) < g.cfg.Window {
				k.collapse = true
			}
		}
	}
	return out
}

// lose counts what more has vanished from a held service.
func (g *Guard) lose(now time.Time, k *guarded, gone int) {
	if gone > k.lost {
		g.losses = append(g.losses, loss{at: now, n: gone - k.lost})
		k.lost = gone
	}
}

// Confirmed takes one strongest reading of a held service, nil for one that
// does not exist, and gives what to deliver, as Offer does.
func (g *Guard) Confirmed(now time.Time, name ServiceName, s *Service) map[ServiceName]*Service {
	k := g.known[name]
	if k == nil || !k.held {
		return g.Offer(now, map[ServiceName]*Service{name: s})
	}
	out := map[ServiceName]*Service{}
	if len(vanished(k.kept, s)) > 0 {
		k.confirmed++
		if k.confirmed < g.cfg.Confirmations {
			g.show(out, name, k, s)
			return out
		}
	}
	g.accept(out, name, s)
	return out
}

// Held lists the services that wait for confirmation, sorted.
func (g *Guard) Held() []ServiceName {
	var out []ServiceName
	for name, k := range g.known {
		if k.held {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, ServiceName.Compare)
	return out
}

// Collapsed says whether the loss of this held service is part of a collapse
// of the mesh.
func (g *Guard) Collapsed(name ServiceName) bool {
	k := g.known[name]
	return k != nil && k.held && k.collapse
}

// Names lists every service that was delivered and is not gone, sorted.
func (g *Guard) Names() []ServiceName {
	return slices.SortedFunc(maps.Keys(g.known), ServiceName.Compare)
}

// Current gives all services as they were delivered last.
func (g *Guard) Current() map[ServiceName]*Service {
	out := make(map[ServiceName]*Service, len(g.known))
	for name, k := range g.known {
		out[name] = k.kept
		if k.held {
			out[name] = k.shown
		}
	}
	return out
}

// Reason is one sentence about a collapse that is held, for Status; "" where
// there is none. A single service that is held is marked Stale itself.
func (g *Guard) Reason() string {
	held := slices.DeleteFunc(g.Held(), func(n ServiceName) bool { return !g.Collapsed(n) })
	if len(held) == 0 {
		return ""
	}
	return fmt.Sprintf("more than %d %% of the mesh vanished from the catalogue within %s: %d services (first %s) are kept until that is confirmed %d times",
		int(g.cfg.Share*100), g.cfg.Window, len(held), held[0], g.cfg.Confirmations)
}

func (g *Guard) collapses(now time.Time, lost int) bool {
	g.losses = slices.DeleteFunc(g.losses, func(l loss) bool { return now.Sub(l.at) >= g.cfg.Window })
	recent, before := 0, g.total
	for _, l := range g.losses {
		recent += l.n
		if l.applied {
			before += l.n
		}
	}
	return lost > 0 && before >= g.cfg.MinMesh && float64(recent+lost) > g.cfg.Share*float64(before)
}

func (g *Guard) accept(out map[ServiceName]*Service, name ServiceName, s *Service) {
	if k := g.known[name]; k != nil {
		g.total -= len(members(k.kept))
	}
	out[name] = s
	if s == nil {
		delete(g.known, name)
		return
	}
	g.known[name] = &guarded{kept: s}
	g.total += len(members(s))
}

// show delivers a held service: what the answer has, and what vanished from it.
func (g *Guard) show(out map[ServiceName]*Service, name ServiceName, k *guarded, s *Service) {
	if s == nil {
		s = &Service{Name: name, Index: k.kept.Index}
	}
	// A new instance of a held service is known from now on, so that it cannot
	// vanish unnoticed.
	g.total -= len(members(k.kept))
	k.kept = &Service{Name: name, Index: s.Index, Instances: merge(s.Instances, k.kept.Instances), Proxies: merge(s.Proxies, k.kept.Proxies)}
	g.total += len(members(k.kept))
	shown := *k.kept
	shown.Stale = true
	if k.shown != nil && reflect.DeepEqual(k.shown.Instances, shown.Instances) && reflect.DeepEqual(k.shown.Proxies, shown.Proxies) {
		return // nothing new to tell
	}
	k.shown = &shown
	out[name] = k.shown
}

// memberKey is one registration in one list: a connect-native instance is in
// both, and may vanish from one alone.
type memberKey struct {
	proxy    bool
	node, id string
}

func members(s *Service) map[memberKey]bool {
	out := map[memberKey]bool{}
	if s != nil {
		for _, in := range s.Instances {
			out[memberKey{false, in.Node, in.ID}] = true
		}
		for _, in := range s.Proxies {
			out[memberKey{true, in.Node, in.ID}] = true
		}
	}
	return out
}

func vanished(old, now *Service) []memberKey {
	there := members(now)
	var out []memberKey
	for k := range members(old) {
		if !there[k] {
			out = append(out, k)
		}
	}
	return out
}

// empties says whether a list that had members has none any more.
func empties(old, now *Service) bool {
	if now == nil {
		now = &Service{}
	}
	return len(old.Instances) > 0 && len(now.Instances) == 0 || len(old.Proxies) > 0 && len(now.Proxies) == 0
}

func merge(now, old []*Instance) []*Instance {
	out := slices.Clone(now)
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n *Instance) bool { return compareInstances(n, o) == 0 }) {
			out = append(out, o)
		}
	}
	SortInstances(out)
	return out
}
