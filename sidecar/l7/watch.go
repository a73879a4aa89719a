package l7

import (
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// watch keeps the time-outs of one exchange with one timer: the stream's idle
// time, the request's whole receipt, the response's completion, the caller's
// deadline. Progress costs one atomic store; the timer looks at it when it
// would have fired.
type watch struct {
	began time.Time
	timer *time.Timer
	on    func() // ends the exchange; called once, from the timer's goroutine

	// Nanoseconds from began; 0: no limit.
	last     atomic.Int64 // when something last moved
	idle     atomic.Int64 // a length
	request  atomic.Int64 // a moment, 0 also when the request is complete
	response atomic.Int64 // a moment
	caller   atomic.Int64 // a moment

	code    atomic.Uint32
	stopped atomic.Bool
}

func (w *watch) start(idle time.Duration, on func()) {
	w.began, w.on = time.Now(), on
	w.idle.Store(int64(idle))
	w.timer = time.AfterFunc(time.Hour, w.check) // armed below, when the field is set
	w.arm()
}

func (w *watch) now() int64 { return int64(time.Since(w.began)) }

// touch says that something moved.
func (w *watch) touch() { w.last.Store(w.now()) }

// idleAfter changes the stream's idle time-out; 0: none.
func (w *watch) idleAfter(d time.Duration) {
	w.idle.Store(int64(d))
	w.touch()
	w.arm()
}

// requestBy bounds the receipt of the request; 0: not.
func (w *watch) requestBy(d time.Duration) { w.bound(&w.request, d) }

// requestDone lifts that bound.
func (w *watch) requestDone() { w.request.Store(0) }

// responseBy bounds the completion of the response from now on; 0: not.
func (w *watch) responseBy(d time.Duration) { w.bound(&w.response, d) }

// callerBy bounds the exchange by what the caller said it would wait.
func (w *watch) callerBy(d time.Duration) { w.bound(&w.caller, d) }

func (w *watch) bound(at *atomic.Int64, d time.Duration) {
	if d <= 0 {
		return
	}
	at.Store(w.now() + int64(d))
	w.arm()
}

// unbound lifts all but the idle time-out: the stream has become a tunnel.
func (w *watch) unbound() {
	w.request.Store(0)
	w.response.Store(0)
	w.caller.Store(0)
}

// next is the nearest moment and the code that it would end with.
func (w *watch) next() (at int64, code telemetry.Code) {
	pick := func(t int64, c telemetry.Code) {
		if t > 0 && (at == 0 || t < at) {
			at, code = t, c
		}
	}
	if i := w.idle.Load(); i > 0 {
		pick(w.last.Load()+i, telemetry.StreamIdleTimeout)
	}
	pick(w.request.Load(), telemetry.RequestTimeout)
	pick(w.response.Load(), telemetry.UpstreamRequestTimeout)
	pick(w.caller.Load(), telemetry.UpstreamRequestTimeout)
	return at, code
}

func (w *watch) arm() {
	if at, _ := w.next(); at > 0 && !w.stopped.Load() {
		w.timer.Reset(time.Duration(max(at-w.now(), 0)))
	}
}

func (w *watch) check() {
	at, code := w.next()
	if at == 0 || w.stopped.Load() {
		return
	}
	if at > w.now() {
		w.arm()
		return
	}
	if w.code.CompareAndSwap(uint32(telemetry.OK), uint32(code)) {
		w.on()
	}
}

func (w *watch) stop() {
	w.stopped.Store(true)
	w.timer.Stop()
}

// fired is the code of the time-out that ended the exchange, OK where none did.
func (w *watch) fired() telemetry.Code { return telemetry.Code(w.code.Load()) }

// limit is how long that time-out was, for messages.
func (w *watch) limit(c telemetry.Code) time.Duration {
	if c == telemetry.StreamIdleTimeout {
		return time.Duration(w.idle.Load())
	}
	return time.Duration(w.now()).Round(time.Millisecond)
}
