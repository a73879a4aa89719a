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

// sample looks at the memory, decides the state and when to look again. The
// wheel calls it, one call at a time.
func (m *Manager) sample() {
	used := m.Deps.Memory()
	m.used.Store(used)
	if used > m.highest.Load() {
		m.highest.Store(used)
	}
	before := m.State()
	now := next(before, used, m.c.memory)
	if now != before {
		m.enter(before, now, used)
	}
	if now == Refusing {
		m.press(time.Now())
	}

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
