package h1

import (
	"io"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// head reads a request's head. The error is a *fault, or why nothing came.
func (sc *ServerConn) head(x *exchange) error {
	in, m := &sc.in, &x.m
	limit := sc.s.MaxHeader
	if limit <= 0 {
		limit = DefaultMaxHeader
	}
	fields := sc.s.MaxFields
	if fields <= 0 {
		fields = DefaultMaxFields
	}
	m.begin(aRequest, fields, x.room)
	for slow := false; ; {
		done, f := m.scan(in.b[in.r:in.w])
		switch {
		case f != nil:
			return f
		case done && m.pos > limit || !done && in.w-in.r >= limit:
			return m.tooLarge(limit)
		case done:
			return sc.accept(x, fields)
		}
		if !slow {
			slow = true
			sc.wait(forHead, sc.s.HeaderTimeout)
		}
		moved, err := in.head(limit)
		if moved {
			m.restart()
		}
		if err != nil {
			return err
		}
	}
}

// tooLarge says which limit a head met.
func (m *message) tooLarge(limit int) *fault {
	if m.phase <= inVersion || m.line > limit {
		return faultTargetLarge
	}
	return faultHeadLarge
}

// accept makes the request of a complete head.
func (sc *ServerConn) accept(x *exchange, fields int) error {
	in, m := &sc.in, &x.m
	in.r += m.pos
	in.low = in.r
	if f := m.request(&x.req.Head); f != nil {
		return f
	}
	x.keep = m.persistent() && m.method != "CONNECT"
	switch {
	case m.coded:
		x.body.start(chunked, 0, fields)
		x.req.Body = &x.body
	case m.length > 0:
		x.body.start(counted, m.length, fields)
		x.req.Body = &x.body
	default:
		x.body.start(noBody, 0, 0)
	}
	x.expecting.Store(m.expect && m.minor == 1 && x.req.Body != nil)
	return nil
}

// rest reads what the handler has left of a short request, and says whether it
// came.
func (sc *ServerConn) rest(x *exchange) bool {
	b := &x.body
	if b.complete() {
		return true
	}
	if b.err != nil {
		return false
	}
	b.closed.Store(false)
	sc.wait(forRest, lingerTime)
	for {
		if _, err := b.Next(); err != nil {
			return err == io.EOF
		}
	}
}

// refuse answers a request that is none with the handler's words.
func (sc *ServerConn) refuse(x *exchange, f *fault) (clean bool) {
	m := &x.m
	if f == faultVersion && sc.requests == 0 && m.foreign() {
		f = faultNotHTTP
	}
	if m.phase <= inVersion {
		m.minor = 1
	}
	x.keep = false
	x.req.Head.Method = m.method
	x.body.start(toEnd, 0, 0) // never read to its end
	_ = sc.c.SetWriteDeadline(time.Now().Add(lingerTime))
	ok := sc.guard(func() {
		resp := sc.s.Handler.Refused(stream.Refusal{Protocol: stream.HTTP1, Status: f.status, Kind: f.kind,
			Reason: f.reason, Method: begin(m.method), Path: begin(m.target), Authority: begin(m.host)})
		if f.status == 0 {
			resp.End()
			return
		}
		if resp == nil {
			resp = &stream.Response{Head: stream.ResponseHead{Status: f.status}}
		}
		defer resp.End()
		x.answer(resp)
	})
	if !ok {
		return false
	}
	sc.linger(x)
	return true
}

// begin is as much of a refused text as records should have to carry.
func begin(s string) string { return s[:min(len(s), 1<<10)] }

// answer sends a response that the mesh made.
func (x *exchange) answer(r *stream.Response) {
	if x.Head(&r.Head, r.Body == nil) != nil || r.Body == nil {
		return
	}
	buf := netio.GetBuf()
	defer netio.PutBuf(buf)
	for {
		n, err := r.Body.Read(buf[:])
		if n > 0 {
			if _, werr := x.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			_ = x.Finish(nil)
			return
		}
	}
}

// linger ends a connection whose client may still be sending: closing it with
// unread bytes would make the kernel send an RST, which can overtake the
// response.
func (sc *ServerConn) linger(x *exchange) {
	in := &sc.in
	if x.body.complete() && in.empty() && netio.Alive(sc.c) {
		return
	}
	if sc.c.CloseWrite() != nil {
		return
	}
	_ = sc.c.SetReadDeadline(time.Now().Add(lingerTime))
	if sc.ended.Load() || in.b == nil {
		return
	}
	for left := lingerBytes; left > 0; {
		n, err := sc.c.Read(in.b)
		left -= n
		if err != nil {
			return
		}
	}
}
