package l7

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/h1"
	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// parkAfter is how long a connection keeps its goroutine while nothing comes,
// where the listener can wait for it without one.
const parkAfter = 200 * time.Millisecond

// session is what is kept of a connection from its first to its last byte; it is
// in listener.Conn.State. One goroutine at a time has it, none while it is
// parked: then it is all that the engine holds, so what can be made anew for the
// next request is not in it.
type session struct {
	e     *Engine
	c     *listener.Conn
	http1 bool // known to be spoken

	// While parked there is no codec: this one ends the connection.
	timer wheel.Timer
	state atomic.Uint32
}

// States of a session.
const (
	running uint32 = iota
	parked
	expired
)

var _ listener.Parker = (*Engine)(nil)

// Serve serves one connection, HTTP/1.1 or HTTP/2, until it is over.
func (e *Engine) Serve(ctx context.Context, c *listener.Conn) { e.serve(ctx, c, 0) }

// ServeUntilIdle serves one connection until it is over, or, where HTTP/1.1 may
// still come, until it is idle.
func (e *Engine) ServeUntilIdle(ctx context.Context, c *listener.Conn) (idle bool) {
	return e.serve(ctx, c, parkAfter)
}

func (e *Engine) serve(ctx context.Context, c *listener.Conn, park time.Duration) (idle bool) {
	s, again := c.State.(*session)
	if !again {
		s = &session{e: e, c: c}
		s.timer.Init(e.d.Wheel, s.expire)
		c.State = s
	} else if !s.state.CompareAndSwap(parked, running) {
		_ = c.Close() // its idle time was over before anything came
		return false
	}
	s.timer.Remove()
	x := newConnection(e, c)
	if s.http1 {
		idle = x.serveHTTP1(ctx, park, netio.Pending{})
	} else {
		idle = s.first(ctx, x, park)
	}
	if !idle {
		_ = c.Close()
		return false
	}
	s.state.Store(parked)
	s.timer.Set(e.idle - park)
	return true
}

// first finds out what the connection speaks and serves it.
func (s *session) first(ctx context.Context, x *connection, park time.Duration) (idle bool) {
	e, c := s.e, s.c
	var ahead netio.Pending
	v := e.told(c)
	if v != speaksHTTP2 {
		wait := e.idle
		if park > 0 {
			wait = min(park, wait)
		}
		ahead, v = e.sniff(ctx, c, wait, v == unknownVersion)
	}
	switch v {
	case speaksHTTP1:
		s.http1 = true
		return x.serveHTTP1(ctx, park, ahead)
	case speaksHTTP2:
		x.serveHTTP2(ctx, ahead)
	case slowHead:
		x.Refused(stream.Refusal{Kind: stream.TooSlow, Reason: "the first bytes of a connection stopped coming"})
	case saysNothing:
		return park > 0
	}
	return false
}

func (x *connection) serveHTTP1(ctx context.Context, park time.Duration, ahead netio.Pending) (idle bool) {
	e := x.e
	srv := &h1.Server{Handler: x, Wheel: e.d.Wheel, HeaderTimeout: e.headerTimeout, IdleTimeout: e.idle, ParkAfter: park,
		MaxHeader: e.maxHeader, MaxFields: int(e.c.Manager.MaxHeaders), Log: e.d.Log}
	sc := srv.NewConn(ctx, x.c.Conn, x.c.Draining)
	if !sc.Serve(ahead) {
		return false
	}
	sc.Leave()
	return true
}

func (x *connection) serveHTTP2(ctx context.Context, ahead netio.Pending) {
	e, c := x.e, x.c
	srv := h2.Server{Handler: x, Wheel: e.d.Wheel, IdleTimeout: e.idle, HeaderTimeout: e.headerTimeout, MaxHeader: e.maxHeader, Log: e.d.Log,
		MaxFields: int(e.c.Manager.MaxHeaders), MaxStreams: e.c.Manager.MaxStreams}
	srv.Serve(ctx, c.Conn, ahead, c.Draining)
}

// expire ends the connection that nobody used for too long.
func (s *session) expire() {
	if !s.state.CompareAndSwap(parked, expired) {
		return
	}
	if s.c.TLS { // whose Close may wait for the peer
		_ = s.c.Reset()
		return
	}
	_ = s.c.Close()
}
