package l7

import (
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// watch keeps the time-outs of one exchange with one timer of the wheel: the
// stream's idle time, the request's whole receipt, the response's completion,
// the caller's deadline. Progress is noted without reading the clock; the timer
// looks at it when it would have gone off.
//
// It belongs to an exchange object that serves many exchanges, one after the
// other, and a look of the wheel's may come late: what it decides holds only if
// the state has not changed since it began.
type watch struct {
	wheel *wheel.Wheel
	timer wheel.Timer
	on    func() // ends the exchange; called at most once per start, from the wheel's goroutine

	// state is a generation above a code: 0 while the watch is on, the code of
	// the time-out that ended the exchange, or watchOff.
	state atomic.Uint64
	done  chan struct{} // holds a token from the end of on() until stop takes it

	// phase counts what happened; odd while the exchange writes to the client,
	// which may block.
	phase atomic.Uint32
	seen  atomic.Uint32 // phase when the idle time was last reckoned

	began int64 // of the exchange, in the wheel's time
	// In the wheel's time; 0: no limit.
	idleAt   atomic.Int64
	idle     atomic.Int64 // a length
	request  atomic.Int64 // 0 also when the request is complete
	response atomic.Int64
	caller   atomic.Int64
}

// watchOff is the state's low byte between exchanges.
const watchOff = 0xff

func (w *watch) init(wh *wheel.Wheel, on func()) {
	w.wheel, w.on, w.done = wh, on, make(chan struct{}, 1)
	w.timer.Init(wh, w.check)
	w.state.Store(watchOff)
}

// start begins an exchange at the moment now of the wheel.
func (w *watch) start(now int64, idle time.Duration) {
	w.began = now
	w.clear(&w.request)
	w.clear(&w.response)
	w.clear(&w.caller)
	w.waiting() // the exchange before may have ended while it wrote
	w.seen.Store(w.phase.Load())
	if w.idle.Load() != int64(idle) {
		w.idle.Store(int64(idle))
	}
	w.idleAt.Store(now + int64(idle))
	w.state.Store((w.state.Load()>>8 + 1) << 8)
	w.arm()
}

func (w *watch) clear(at *atomic.Int64) {
	if at.Load() != 0 {
		at.Store(0)
	}
}

// since is the time from the exchange's begin to a moment of the wheel.
func (w *watch) since(now int64) time.Duration { return time.Duration(now - w.began) }

// now is how long the exchange has taken.
func (w *watch) now() time.Duration { return w.since(w.wheel.Now()) }

// moved says that something moved, without saying when: for what is followed by
// more at once.
func (w *watch) moved() { w.phase.Add(2) }

// touch says that something moved just now, which it returns.
func (w *watch) touch() int64 {
	now := w.wheel.Now()
	if idle := w.idle.Load(); idle > 0 {
		w.idleAt.Store(now + idle)
	}
	return now
}

// idleAfter changes the stream's idle time-out, from a moment of the wheel; 0:
// none.
func (w *watch) idleAfter(now int64, d time.Duration) {
	w.idle.Store(int64(d))
	at := int64(0)
	if d > 0 {
		at = now + int64(d)
	}
	w.idleAt.Store(at)
	w.arm()
}

// requestBy bounds the receipt of the request from now on; 0: not.
func (w *watch) requestBy(d time.Duration) {
	if d > 0 {
		w.request.Store(w.began + int64(d))
		w.arm()
	}
}

// requestDone lifts that bound.
func (w *watch) requestDone() { w.clear(&w.request) }

// responseBy bounds the completion of the response, from a moment of the wheel;
// 0: not.
func (w *watch) responseBy(from int64, d time.Duration) { w.bound(&w.response, from, d) }

// callerBy bounds the exchange by what the caller said it would wait.
func (w *watch) callerBy(from int64, d time.Duration) { w.bound(&w.caller, from, d) }

func (w *watch) bound(at *atomic.Int64, from int64, d time.Duration) {
	if d > 0 {
		at.Store(from + int64(d))
		w.arm()
	}
}

// unbound lifts all but the idle time-out: the stream has become a tunnel.
func (w *watch) unbound() {
	w.clear(&w.request)
	w.clear(&w.response)
	w.clear(&w.caller)
}

// writing says that the exchange begins to write to the client.
func (w *watch) writing() {
	if w.phase.Load()&1 == 0 {
		w.phase.Add(1)
	}
}

// waiting says that it has written and waits for something else.
func (w *watch) waiting() {
	if w.phase.Load()&1 != 0 {
		w.phase.Add(1)
	}
}

// isWriting says whether a write may be under way.
func (w *watch) isWriting() bool { return w.phase.Load()&1 != 0 }

// next is the nearest moment and the code that it would end with.
func (w *watch) next() (at int64, code telemetry.Code) {
	at, code = w.idleAt.Load(), telemetry.StreamIdleTimeout
	if t := w.request.Load(); t > 0 && (at == 0 || t < at) {
		at, code = t, telemetry.RequestTimeout
	}
	if t := w.response.Load(); t > 0 && (at == 0 || t < at) {
		at, code = t, telemetry.UpstreamRequestTimeout
	}
	if t := w.caller.Load(); t > 0 && (at == 0 || t < at) {
		at, code = t, telemetry.UpstreamRequestTimeout
	}
	return at, code
}

func (w *watch) arm() {
	if at, _ := w.next(); at > 0 {
		w.timer.SetAt(at)
	}
}

// check is called by the wheel when the nearest moment may have come.
func (w *watch) check() {
	state := w.state.Load()
	if byte(state) != 0 {
		return
	}
	at, code := w.next()
	now := w.wheel.Now()
	switch {
	case at == 0:
		return
	case at > now:
		w.timer.SetAt(at)
		return
	case code == telemetry.StreamIdleTimeout:
		// Something moved since, nobody knows when: its time begins now.
		if p := w.phase.Load(); w.seen.Swap(p) != p {
			w.touch()
			w.arm()
			return
		}
	}
	if w.state.CompareAndSwap(state, state|uint64(code)) {
		w.on()
		w.done <- struct{}{}
	}
}

// restart watches on after a time-out has ended the exchange's work: over what
// is written to tell of it, by the idle time alone.
func (w *watch) restart() {
	w.stop()
	w.start(w.wheel.Now(), time.Duration(w.idle.Load()))
}

// stop ends the watch. When it returns no time-out touches the exchange.
func (w *watch) stop() {
	state := w.state.Load()
	if byte(state) == watchOff {
		return
	}
	w.timer.Stop()
	if byte(state) == 0 && w.state.CompareAndSwap(state, state|watchOff) {
		return
	}
	<-w.done
	w.state.Store(w.state.Load() | watchOff)
}

// fired is the code of the time-out that ended the exchange, OK where none did.
func (w *watch) fired() telemetry.Code {
	if c := byte(w.state.Load()); c != watchOff {
		return telemetry.Code(c)
	}
	return telemetry.OK
}

// limit is how long that time-out was, for messages.
func (w *watch) limit(c telemetry.Code) time.Duration {
	if c == telemetry.StreamIdleTimeout {
		return time.Duration(w.idle.Load())
	}
	return w.now().Round(time.Millisecond)
}
