package h1

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// Limits of a head where none are given.
const (
	DefaultMaxHeader = 60 << 10
	DefaultMaxFields = 128
)

const (
	// lingerTime and lingerBytes bound how long a connection is kept after a
	// response that came before the request's end, so that the response is not
	// lost to an RST (RFC 9112, section 9.6).
	lingerTime  = 2 * time.Second
	lingerBytes = 4 << 20
	// maxDrained is how long a request that the handler did not read to its end
	// may be for its rest to be read instead of closing the connection.
	maxDrained = 64 << 10
	// watchEvery is how often a connection is looked at while its exchange lasts:
	// nobody reads then, and a client that has reset it ends the exchange.
	watchEvery = time.Second
)

// Server is what all connections of one engine share. Read-only after it is
// first used.
type Server struct {
	Handler stream.Handler
	// Wheel measures the time-outs; nil: there are none.
	Wheel         *wheel.Wheel
	HeaderTimeout time.Duration // for a request's head, from its first byte; 0: none
	IdleTimeout   time.Duration // between requests; 0: none
	// ParkAfter is how long Serve waits for a request before it leaves the waiting
	// to its caller; 0: for ever.
	ParkAfter time.Duration
	MaxHeader int          // bytes of a head; 0: DefaultMaxHeader
	MaxFields int          // of a head, and of a trailer section; 0: DefaultMaxFields
	Log       *slog.Logger // panics that the handler lets pass; nil: none
}

// ServerConn is one connection. One goroutine at a time calls Serve.
type ServerConn struct {
	s        *Server
	c        netio.Conn
	ctx      context.Context
	draining *stream.Scope
	in       input
	life     atomic.Pointer[stream.Scope] // of the exchange in hand
	scope    stream.Scope                 // the first
	timer    wheel.Timer
	x        *exchange // the one in hand; nil while idle

	waiting waitingFor
	until   int64 // of the wait in hand: moment of the wheel; 0: for ever
	parkAt  int64
	now     int64 // moment of the wheel at which the exchange before ended; 0: not known
	far     bool  // the timer is set for later than watchEvery

	// exchange counts requests while one is being answered, else it is 0.
	exchange atomic.Uint32
	requests uint32
	watched  uint32 // the timer's own: the exchange that it saw last

	idle    atomic.Bool  // waits for a request
	parked  atomic.Int64 // left to Serve's caller until this moment of the wheel; 0: not
	drained atomic.Bool
	ended   atomic.Bool
}

// waitingFor is what a read of the connection waits for.
type waitingFor uint8

const (
	forRequest waitingFor = iota
	forHead
	forBody // or for a tunnel's bytes
	forRest // of a body that nobody reads
)

// Why a read of the connection was given up.
var (
	errParked  = errors.New("h1: nothing came")
	errIdle    = errors.New("h1: the connection was idle for too long")
	errDrained = errors.New("h1: the connection is drained")
	errEnded   = errors.New("h1: the connection was ended")
	errReset   = errors.New("h1: the client has reset the connection")
	errRest    = errors.New("h1: the rest of the request did not come in time")
)

// NewConn makes a connection ready to be served. When ctx ends the connection
// ends at once; when draining is over (nil: never) it ends after the request in
// hand.
func (s *Server) NewConn(ctx context.Context, c netio.Conn, draining *stream.Scope) *ServerConn {
	sc := &ServerConn{s: s, c: c, ctx: ctx, draining: draining}
	sc.in.c, sc.in.wait = c, sc
	sc.life.Store(&sc.scope)
	if s.Wheel != nil {
		sc.timer.Init(s.Wheel, sc.tick)
	}
	return sc
}

// Serve serves the connection until it is over and closed, and returns false;
// or, with ParkAfter, until nothing has come for so long, and returns true: then
// nothing is under way and no buffer is held, and Serve is to be called again
// when there is something to read, or the connection or draining has ended. A
// connection whose idle time ends meanwhile is closed.
// first is what was read ahead of the first call.
func (sc *ServerConn) Serve(first netio.Pending) (idle bool) {
	sc.parked.Store(0)
	sc.in.take(first)
	stop, ok := stream.OnCancel(sc.ctx, (*ender)(sc))
	if !ok {
		sc.ended.Store(true)
	}
	if sc.draining != nil && !sc.draining.Attach((*drainer)(sc)) {
		sc.drained.Store(true)
	}
	if !sc.in.empty() && sc.s.Wheel != nil {
		sc.timer.Set(watchEvery)
	}
	idle = sc.serve()
	if sc.draining != nil {
		sc.draining.Detach((*drainer)(sc))
	}
	stop.Stop()
	sc.in.release()
	if idle {
		sc.leave()
		return true
	}
	if sc.s.Wheel != nil {
		sc.timer.Remove()
	}
	_ = sc.c.Close()
	return false
}

// leave gives an idle connection to Serve's caller.
func (sc *ServerConn) leave() {
	if sc.until == 0 {
		sc.timer.Stop()
		return
	}
	sc.parked.Store(sc.until)
	sc.timer.SetAt(sc.until)
}

// Leave lets go of a connection that Serve has left idle: its caller bounds the
// idle time from here on, and may give the connection to [Server.NewConn] anew.
func (sc *ServerConn) Leave() {
	sc.parked.Store(0)
	if sc.s.Wheel != nil {
		sc.timer.Remove()
	}
}

// ender ends the connection with its context.
type ender ServerConn

func (e *ender) Cancelled(cause error) {
	sc := (*ServerConn)(e)
	sc.ended.Store(true)
	sc.life.Load().Cancel(cause)
	_ = sc.c.SetDeadline(past)
}

// drainer ends an idle connection at once, another after the request in hand.
type drainer ServerConn

func (d *drainer) Cancelled(error) {
	sc := (*ServerConn)(d)
	sc.drained.Store(true)
	if sc.idle.Load() {
		sc.wake()
	}
}

// reader ends reads of a request's body with the exchange's life.
type reader ServerConn

func (r *reader) Cancelled(error) { (*ServerConn)(r).wake() }

// wake makes a read that is under way, or the next one, ask woken. Any goroutine.
func (sc *ServerConn) wake() { _ = sc.c.SetReadDeadline(past) }

// tick is the timer's: a wait may be over, or an exchange lasts.
func (sc *ServerConn) tick() {
	if until := sc.parked.Load(); until != 0 {
		// Whoever takes the moment decides: a request that comes now, or the end.
		if sc.s.Wheel.Now() < until {
			sc.timer.SetAt(until)
		} else if sc.parked.CompareAndSwap(until, 0) {
			_ = sc.c.Close()
		}
		return
	}
	n := sc.exchange.Load()
	if n == 0 {
		sc.wake()
		return
	}
	if n == sc.watched && netio.Gone(sc.c) {
		sc.life.Load().Cancel(errReset)
		return
	}
	sc.watched = n
	sc.timer.Set(watchEvery)
}

// woken implements waiter. It looks at everything that may end the wait in
// hand: a deadline says only that something has changed.
func (sc *ServerConn) woken() error {
	_ = sc.c.SetReadDeadline(time.Time{}) // before the look: what changes after it sets the deadline again
	if sc.ended.Load() {
		return errEnded
	}
	late := sc.until != 0 && sc.s.Wheel.Now() >= sc.until
	switch sc.waiting {
	case forRequest:
		switch {
		case sc.drained.Load() && sc.quiet():
			return errDrained
		case late:
			return errIdle
		case sc.parkAt != 0 && sc.s.Wheel.Now() >= sc.parkAt:
			if !netio.Slow(sc.c) {
				return errParked
			}
			sc.parkAt += int64(sc.s.ParkAfter) // the last response is still being taken
		}
		sc.arm()
	case forHead:
		if late {
			return faultSlow
		}
		sc.arm()
	case forBody:
		if sc.x.body.closed.Load() {
			return errClosed
		}
		return sc.life.Load().Cause()
	case forRest:
		if late {
			return errRest
		}
		sc.arm()
	}
	return nil
}

// wait says what the next reads wait for, and for how long; 0: for ever.
func (sc *ServerConn) wait(w waitingFor, d time.Duration) {
	now := sc.now
	sc.waiting, sc.until, sc.parkAt, sc.now = w, 0, 0, 0
	if sc.s.Wheel == nil {
		return
	}
	if w == forBody { // the timer goes on ticking
		if sc.far {
			sc.far = false
			sc.timer.Set(watchEvery)
		}
		return
	}
	park := w == forRequest && sc.s.ParkAfter > 0
	if now == 0 || w != forRequest {
		now = sc.s.Wheel.Now()
	}
	if d > 0 {
		sc.until = now + int64(d)
	}
	if park {
		sc.parkAt = now + int64(sc.s.ParkAfter)
	}
	if w != forRequest {
		sc.arm()
		return
	}
	at := now + int64(watchEvery)
	if sc.until != 0 {
		at = min(at, sc.until)
	}
	if park {
		at = min(at, sc.parkAt)
	}
	sc.far = false
	sc.timer.SetAt(at)
}

// arm sets the timer for the end of the wait in hand alone.
func (sc *ServerConn) arm() {
	sc.far = true
	at := sc.until
	if sc.parkAt != 0 && (at == 0 || sc.parkAt < at) {
		at = sc.parkAt
	}
	if at == 0 {
		sc.timer.Stop()
		return
	}
	sc.timer.SetAt(at)
}

func (sc *ServerConn) serve() (idle bool) {
	for {
		if sc.in.empty() {
			switch err := sc.await(); err {
			case nil:
			case errParked:
				return true
			default:
				return false
			}
		}
		x := exchanges.Get().(*exchange)
		x.begin(sc)
		again, clean := sc.one(x)
		sc.x = nil
		if !clean {
			return false
		}
		x.end()
		exchanges.Put(x)
		if !again {
			return false
		}
		sc.in.next()
	}
}

// await waits for the first bytes of a request.
func (sc *ServerConn) await() error {
	sc.idle.Store(true)
	err := sc.awaitIdle()
	sc.idle.Store(false)
	return err
}

func (sc *ServerConn) awaitIdle() error {
	if sc.ended.Load() {
		return errEnded
	}
	if sc.drained.Load() && sc.quiet() {
		return errDrained
	}
	sc.wait(forRequest, sc.s.IdleTimeout)
	return sc.in.first()
}

// quiet says that a drained connection can end: its last response has left, for
// which a slow client has lingerTime, and no request has come, which would be
// served.
func (sc *ServerConn) quiet() bool {
	_ = sc.c.SetWriteDeadline(time.Now().Add(lingerTime))
	if netio.Settle(sc.c) != nil {
		return true
	}
	_ = sc.c.SetWriteDeadline(time.Time{})
	return netio.Alive(sc.c)
}

// begin ties a pooled exchange to a connection.
func (x *exchange) begin(sc *ServerConn) {
	x.sc, sc.x = sc, x
	x.body.in = &sc.in
	x.out.c = sc.c
}

// end lets go of everything that an exchange refers to.
func (x *exchange) end() {
	x.out.release()
	if cap(x.m.fields)-len(x.m.fields) < cap(x.room)/4 && cap(x.room) < 256 {
		x.room = make(stream.Header, 0, 2*cap(x.room)) // room for what the mesh adds
	}
	x.req = stream.Request{}
	x.sc, x.body.in, x.out.c = nil, nil, nil
	x.out.sent, x.out.err = false, nil
	x.progress = noHead
	x.interrupted.Store(false)
	x.expecting.Store(false)
}

// one reads and serves one request. again: the connection goes on. clean: nobody
// can still be using the exchange or the buffers.
func (sc *ServerConn) one(x *exchange) (again, clean bool) {
	if err := sc.head(x); err != nil {
		var f *fault
		if errors.As(err, &f) {
			return false, sc.refuse(x, f)
		}
		return false, true // there is nobody to be answered
	}
	sc.wait(forBody, 0)
	before := sc.life.Load()
	life := before.Renew()
	if life != before {
		sc.life.Store(life)
	}
	if sc.ended.Load() {
		return false, true
	}
	if x.req.Body != nil {
		life.Attach((*reader)(sc))
	}
	if sc.requests++; sc.requests == 0 {
		sc.requests = 1
	}
	sc.exchange.Store(sc.requests)
	ok := sc.handle(life, x)
	sc.exchange.Store(0)
	if !ok {
		life.Cancel(errEnded)
		return false, false
	}
	if x.progress == inBody {
		_ = x.Finish(nil)
	}
	_ = x.body.Close()
	sc.now = life.Marked()
	life.Retire()
	switch {
	case x.progress != finished:
		// Where the body has no other end, a FIN would look like it. Behind a client
		// that does not read, a FIN would not be seen, and what the kernel holds for
		// it would stay.
		if x.toEnd && x.progress == aborted || x.interrupted.Load() {
			_ = sc.c.Reset()
		}
		return false, true
	case x.interrupted.Load() || sc.ended.Load():
		return false, true
	case !x.keep || !sc.rest(x):
		sc.linger(x)
		return false, true
	}
	return true, true
}

// handle gives the handler a request and says that it did not panic.
func (sc *ServerConn) handle(life *stream.Scope, x *exchange) (ok bool) {
	defer sc.caught(&ok)
	sc.s.Handler.Exchange(life, &x.req, x)
	return true
}

// guard calls f and says that it did not panic.
func (sc *ServerConn) guard(f func()) (ok bool) {
	defer sc.caught(&ok)
	f()
	return true
}

// caught is deferred: a panic that the handler lets pass ends this connection
// alone.
func (sc *ServerConn) caught(ok *bool) {
	if p := recover(); p != nil {
		if sc.s.Log != nil {
			sc.s.Log.Error("a handler's panic ended a connection", telemetry.KeyError, p, telemetry.KeyStack, string(debug.Stack()))
		}
		*ok = false
	}
}
