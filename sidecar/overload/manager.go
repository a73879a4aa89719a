package overload

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// State is how hard the process is pressed.
type State uint32

const (
	// Normal: nothing is held back.
	Normal State = iota
	// Slow, from 85 % of the memory cap until it is below 80 %: no connection is
	// accepted, and each read from a client waits, a second at the most, so that
	// what is in hand ends and little comes after.
	Slow
	// Refusing, from 95 % until below 90 %: besides, new requests are refused,
	// new connections are closed as they come, and connections that hold memory
	// are ended, a few at a time.
	Refusing
)

func (s State) String() string {
	return [...]string{"normal", "slow", "refusing"}[min(s, 2)]
}

// Sampling of memory: often where it is short, else rarely, and not at all once
// nothing has been asked for quietSamples.
const (
	often        = 10 * time.Millisecond
	rarely       = 100 * time.Millisecond
	oftenFrom    = 50 // per cent of the cap
	quietSamples = 20
)

// How connections are ended while the state is Refusing: shedPercent of them,
// one at least, each shedEvery, the first after shedAfter, which gives the
// collector time to show what is really in use.
const (
	shedAfter   = 200 * time.Millisecond
	shedEvery   = 100 * time.Millisecond
	shedPercent = 5
)

// Deps is what a Manager works with; zero fields take the process's own.
type Deps struct {
	Wheel  *wheel.Wheel
	Log    *slog.Logger
	Memory func() int64 // bytes in use; nil: the Go runtime's account
	// Limit tells the collector what it has to stay below; nil: it is not told.
	Limit func(bytes int64)
}

// Manager watches over one process. A nil Manager bounds nothing. Safe for
// concurrent use.
type Manager struct {
	c bounds
	Deps
	listeners map[string]int
	guard     netio.Guard
	sources   sources

	state   atomic.Uint32
	asked   atomic.Bool  // somebody asked since the last sample
	armed   atomic.Bool  // the timer is set
	used    atomic.Int64 // bytes, at the last sample
	highest atomic.Int64 // of used
	open    atomic.Int64 // admitted connections
	paused  atomic.Int32 // listeners that wait in Await
	timer   wheel.Timer
	shedNow chan struct{} // capacity 1

	counts [reasonEnd]atomic.Uint64

	quiet int          // the sampling timer's own
	left  atomic.Int64 // bytes that may be promised before the next look

	looking  sync.Mutex // a look is under way
	pressed  time.Time  // since when the state is Refusing; zero: it is not; guarded by looking
	lastShed time.Time  // guarded by looking

	mu       sync.Mutex
	shedders map[*shedder]struct{} // guarded by mu
}

type shedder struct{ shed func(n int) int }

// Reason is why something was held back, for the metrics.
type Reason uint8

const (
	ConnectionsGlobal   Reason = iota // beyond Config.Connections
	ConnectionsListener               // beyond a listener's limit
	ConnectionsSource                 // beyond Config.PerSource
	ConnectionsMemory                 // refused for want of memory
	ConnectionsShed                   // open ones, ended for want of memory
	RequestsMemory                    // refused for want of memory
	Pauses                            // times that a listener stopped accepting
	reasonEnd
)

// New makes the manager of a process. It costs nothing before it is asked.
func New(c Config, d Deps) *Manager {
	if d.Wheel == nil {
		d.Wheel = wheel.New()
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{c: c.bounds(), Deps: d, listeners: c.Listeners, shedNow: make(chan struct{}, 1), shedders: map[*shedder]struct{}{}}
	m.sources.init()
	m.timer.Init(d.Wheel, m.sample)
	m.guard.Limit(m.c.descriptors)
	if m.c.memory > 0 {
		if m.Deps.Memory == nil {
			m.Deps.Memory = newGauge().read
		}
		if d.Limit != nil {
			d.Limit(m.c.memory / 100 * collectAt)
		}
		m.guard.Touch = m.touch
		m.guard.Ask()
	}
	return m
}

// Net returns n with the traffic's connections counted and, under pressure,
// slowed. Only what carries traffic goes through it.
func (m *Manager) Net(n netio.Net) netio.Net {
	if m == nil {
		return n
	}
	return netio.Guarded(n, &m.guard)
}

// Run ends connections when there are too many for the memory, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			m.timer.Remove()
			m.guard.Release()
			return ctx.Err()
		case <-m.shedNow:
			m.shed()
		}
	}
}

// OnShed makes shed one of those that end connections when memory is short: it
// ends at most n of them and says how many it ended. stop takes it off.
func (m *Manager) OnShed(shed func(n int) int) (stop func()) {
	if m == nil {
		return func() {}
	}
	s := &shedder{shed}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shedders[s] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.shedders, s)
	}
}

func (m *Manager) shed() {
	if m.State() != Refusing {
		return
	}
	m.mu.Lock()
	all := make([]*shedder, 0, len(m.shedders))
	for s := range m.shedders {
		all = append(all, s)
	}
	m.mu.Unlock()
	n := max(int(m.open.Load())*shedPercent/100, 1)
	ended := 0
	for _, s := range all {
		if ended < n {
			ended += s.shed(n - ended)
		}
	}
	if ended > 0 {
		m.counts[ConnectionsShed].Add(uint64(ended))
		m.Log.Warn("overload: connections ended, because memory is used up", "connections", ended,
			"in_use", m.used.Load(), "limit", m.c.memory, telemetry.KeyCode, telemetry.Overload.String())
	}
}

// State is the present one.
func (m *Manager) State() State {
	if m == nil {
		return Normal
	}
	return State(m.state.Load())
}

// Refuse says whether a new request is to be refused, with code Overload; it
// counts those that are. In state Slow it waits before, as a read from a client
// does: a client may have sent many requests in one read. Otherwise it costs two
// loads and an addition.
func (m *Manager) Refuse() bool {
	if m == nil {
		return false
	}
	m.touch()
	m.promise(requestCost)
	if State(m.state.Load()) == Slow {
		m.guard.Wait()
	}
	if State(m.state.Load()) != Refusing {
		return false
	}
	m.counts[RequestsMemory].Add(1)
	return true
}

// Ticket is an admitted connection's place. The zero value is none.
type Ticket struct {
	m   *Manager
	src netip.Addr
}

// Release gives the place back, once.
func (t Ticket) Release() {
	if t.m != nil {
		t.m.open.Add(-1)
		t.m.sources.leave(t.src)
	}
}

// Admit asks for a place for a connection that was accepted by the named
// listener, which has open others. A code other than OK refuses it: it is to be
// closed at once.
func (m *Manager) Admit(listener string, open int, src netip.Addr) (Ticket, telemetry.Code) {
	if m == nil {
		return Ticket{}, telemetry.OK
	}
	m.touch()
	m.promise(connectionCost)
	limit, named := m.listeners[listener]
	if !named {
		limit = m.c.perListener
	}
	switch {
	case m.State() == Refusing:
		m.counts[ConnectionsMemory].Add(1)
		return Ticket{}, telemetry.Overload
	case limit > 0 && open >= limit:
		m.counts[ConnectionsListener].Add(1)
		return Ticket{}, telemetry.ConnectionLimit
	case m.open.Add(1) > int64(m.c.connections) && m.c.connections > 0:
		m.open.Add(-1)
		m.counts[ConnectionsGlobal].Add(1)
		return Ticket{}, telemetry.ConnectionLimit
	}
	key := m.key(src)
	if !m.sources.enter(key, m.c.perSource) {
		m.open.Add(-1)
		m.counts[ConnectionsSource].Add(1)
		return Ticket{}, telemetry.SourceLimit
	}
	return Ticket{m, key}, telemetry.OK
}

// key is what a source's connections are counted by; the zero address is not
// counted.
func (m *Manager) key(a netip.Addr) netip.Addr {
	a = a.Unmap()
	switch {
	case m.c.perSource == 0 || !a.IsValid() || a.IsLoopback() && !m.c.loopback:
		return netip.Addr{}
	case a.Is6():
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

// Pauses of accepting are looked at again so often.
const (
	pauseMin = 5 * time.Millisecond
	pauseMax = 250 * time.Millisecond
)

// Await waits until the next connection may be accepted, or until done is
// closed, and then returns false.
func (m *Manager) Await(done <-chan struct{}) bool {
	if m == nil || !m.full() {
		return true
	}
	m.counts[Pauses].Add(1)
	m.paused.Add(1)
	defer m.paused.Add(-1)
	wait := pauseMin
	t := time.NewTimer(wait)
	defer t.Stop()
	for m.full() {
		m.touch()
		select {
		case <-done:
			return false
		case <-t.C:
		}
		wait = min(2*wait, pauseMax)
		t.Reset(wait)
	}
	return true
}

// full says whether accepting waits. While requests are refused, connections are
// taken and closed, so that their clients go elsewhere.
func (m *Manager) full() bool {
	if State(m.state.Load()) == Slow {
		return true
	}
	if m.c.waitAt > 0 && m.open.Load() >= int64(m.c.waitAt) {
		return true
	}
	if m.c.pauseAt == 0 {
		return false
	}
	accepted, dialled := m.guard.Open()
	return accepted+dialled >= m.c.pauseAt
}
