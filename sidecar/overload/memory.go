package overload

import (
	"runtime/metrics"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// gauge reads what the Go runtime has in use: everything that it mapped, less
// what is free or was given back. Objects that are dead and not yet collected
// count, which is why the collector is told to work from collectAt on.
type gauge struct{ s []metrics.Sample }

func newGauge() *gauge {
	return &gauge{[]metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}}
}

func (g *gauge) read() int64 {
	metrics.Read(g.s)
	return int64(g.s[0].Value.Uint64() - g.s[1].Value.Uint64() - g.s[2].Value.Uint64())
}

// touch notes that something was asked, and starts the sampling where it rests.
func (m *Manager) touch() {
	if m.c.memory == 0 || m.asked.Load() {
		return
	}
	m.asked.Store(true)
	if m.armed.CompareAndSwap(false, true) {
		m.timer.Set(often)
	}
}

// What a request and a connection may come to hold before it shows: a stack, a
// connection to an upstream, buffers for both directions. While nothing like it
// is left, each of them is a reason to look at the memory at once: the timer is
// late just when the process has too much to do.
const (
	requestCost    = 64 << 10
	connectionCost = 32 << 10
)

// promise notes that n bytes may soon be held.
func (m *Manager) promise(n int64) {
	if m.c.memory == 0 || m.left.Add(-n) >= 0 {
		return
	}
	if m.looking.TryLock() { // else somebody looks
		m.look()
		m.looking.Unlock()
	}
}

// look decides the state by the memory in use; the caller holds looking.
func (m *Manager) look() (used int64, now State) {
	used = m.Deps.Memory()
	m.used.Store(used)
	if used > m.highest.Load() {
		m.highest.Store(used)
	}
	// A quarter of what there is to the next state, a few requests at the least.
	m.left.Store(max((m.c.memory/100*slowAt-used)/4, 8*requestCost))
	before := m.State()
	if now = next(before, used, m.c.memory); now != before {
		m.enter(before, now, used)
	}
	if now == Refusing {
		m.press(time.Now())
	}
	return used, now
}

// sample looks at the memory and decides when to look again. The wheel calls it,
// one call at a time.
func (m *Manager) sample() {
	m.looking.Lock()
	used, now := m.look()
	m.looking.Unlock()

	if m.asked.Swap(false) || now != Normal {
		m.quiet = 0
	} else {
		m.quiet++
	}
	m.guard.Ask()
	if m.quiet > quietSamples {
		m.quiet = 0
		m.armed.Store(false)
		if !m.asked.Load() || !m.armed.CompareAndSwap(false, true) {
			return
		}
	}
	every := rarely
	if used > m.c.memory/100*oftenFrom {
		every = often
	}
	m.timer.Set(every)
}

// next is the state after before, with that much in use.
func next(before State, used, limit int64) State {
	share := used * 100 / limit
	switch {
	case share >= refuseAt || before == Refusing && share >= refuseUntil:
		return Refusing
	case share >= slowAt || before != Normal && share >= slowUntil:
		return Slow
	}
	return Normal
}

func (m *Manager) enter(before, now State, used int64) {
	m.state.Store(uint32(now))
	if now == Normal {
		m.guard.Release()
	} else {
		m.guard.Shut()
	}
	if now != Refusing {
		m.pressed = time.Time{}
	}
	switch {
	case now == Normal:
		m.Log.Info("overload: memory is there again", "in_use", used, "limit", m.c.memory)
	case now > before:
		m.Log.Warn("overload: memory runs out; give the sidecar more, or send it less", "state", now.String(),
			"in_use", used, "limit", m.c.memory, telemetry.KeyCode, telemetry.Overload.String())
	}
}

// press asks for connections to be ended once the state has lasted.
func (m *Manager) press(now time.Time) {
	if m.pressed.IsZero() {
		m.pressed = now
	}
	if now.Sub(m.pressed) < shedAfter || now.Sub(m.lastShed) < shedEvery {
		return
	}
	m.lastShed = now
	select {
	case m.shedNow <- struct{}{}:
	default:
	}
}
