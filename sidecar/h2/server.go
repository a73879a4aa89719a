package h2

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// Server is what connections have in common. Read-only after it is first used.
type Server struct {
	Handler       stream.Handler
	Wheel         *wheel.Wheel  // nil: one of each connection's own
	IdleTimeout   time.Duration // without a stream; 0: none
	HeaderTimeout time.Duration // for the first settings and for a header block to come to its end; 0: 10 s
	WriteTimeout  time.Duration // that the client may let us wait for a window or the socket; 0: 30 s
	MaxHeader     int           // bytes of a header list, counted as RFC 9113, section 6.5.2, does; 0: 60 kB
	MaxFields     int           // in a header list; 0: 200
	MaxStreams    uint32        // at once; 0: 250
	Budget        Budget
	Log           *slog.Logger // nil: none
}

// serverConn is one connection.
type serverConn struct {
	conn
	handler    stream.Handler
	maxStreams int
	running    int // exchanges at work; guarded by mu
	// The reader's: what repeated header blocks say.
	memos [memos]requestMemo
}

type requestMemo struct {
	memo
	head  stream.RequestHead
	check requestParse
}

var _ side = (*serverConn)(nil)

// Serve serves one connection until it and every exchange on it are over, and
// closes it. When ctx ends the connection is closed at once; when draining is
// over no new stream is taken and the connection ends with its last one. first
// is what was read of it before.
func (s *Server) Serve(ctx context.Context, c netio.Conn, first netio.Pending, draining *stream.Scope) {
	sc := &serverConn{handler: s.Handler, maxStreams: int(s.MaxStreams)}
	if sc.maxStreams == 0 {
		sc.maxStreams = defaultMaxStreams
	}
	sc.init(c, s.Wheel, sc, s.Budget, limits{s.MaxHeader, s.MaxFields}, s.Log)
	sc.idle = int64(s.IdleTimeout)
	if s.HeaderTimeout > 0 {
		sc.headers = int64(s.HeaderTimeout)
	}
	if s.WriteTimeout > 0 {
		sc.write = int64(s.WriteTimeout)
	}
	sc.greet(uint32(sc.maxStreams))
	if draining != nil {
		if !draining.Attach((*drainer)(sc)) {
			sc.startDrain()
		}
		defer draining.Detach((*drainer)(sc))
	}
	sc.serve(ctx, first)
}

// drainer hears of the drain.
type drainer serverConn

func (d *drainer) Cancelled(error) { (*serverConn)(d).startDrain() }

func (s *serverConn) settings()               {}
func (s *serverConn) removed()                {}
func (s *serverConn) tell()                   {}
func (s *serverConn) leaving(uint32, ErrCode) {}

// over counts what the connection was ended for.
func (s *serverConn) over(cause error) {
	var b *connError
	if errors.As(cause, &b) && b.kind != 0 {
		s.handler.Refused(stream.Refusal{Protocol: stream.HTTP2, Kind: b.kind, Reason: b.reason})
	}
}

// serverPart is what a server's stream has beside.
type serverPart struct {
	req     stream.Request
	life    *stream.Scope
	expect  bool    // the client waits for 100; guarded by mu
	aborted bool    // guarded by mu
	code    ErrCode // of the reset that Abort makes; guarded by mu
	method  string
	connect bool // extended CONNECT
}

// message takes a header block: a request or its trailers.
func (s *serverConn) message(id uint32, endStream bool, block []byte) *connError {
	c := &s.conn
	if id&1 == 0 {
		return broken(ProtocolError, "HEADERS on a stream that is ours to open (RFC 9113, section 5.1.1)")
	}
	c.mu.Lock()
	if id <= c.lastPeer {
		st := c.streams.get(id)
		if st != nil {
			st.pins++
		}
		found, ours := c.closed.find(id)
		c.mu.Unlock()
		if st != nil {
			return s.trailers(st, endStream, block)
		}
		if _, _, _, err := c.fields(block, nil); err != nil {
			return err
		}
		switch {
		case ours:
			return nil // on its way when we reset the stream
		case found:
			return broken(StreamClosed, "HEADERS on a stream that is over (RFC 9113, section 5.1)")
		}
		return broken(ProtocolError, "a stream with a lower id than one before (RFC 9113, section 5.1.1)")
	}
	c.lastPeer = id
	refuse := c.streams.n >= s.maxStreams || s.running >= 2*s.maxStreams
	ignore := c.drain == drainFinal || c.err != nil
	var st *strm
	if !refuse && !ignore {
		st = c.newStream()
	}
	c.mu.Unlock()
	if st == nil {
		if _, _, _, err := c.fields(block, nil); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if ignore {
			c.closed.add(id, true)
			return nil
		}
		c.out.reset(id, RefusedStream)
		c.closed.add(id, true)
		return c.charge(costRefused, "streams beyond SETTINGS_MAX_CONCURRENT_STREAMS")
	}
	check, err := s.request(st, endStream, block)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.err != nil { // a write failed meanwhile: all streams were ended, and nobody would end this one
		c.mu.Unlock()
		return nil
	}
	st.start(id)
	st.recvEnd = endStream
	p := &st.server
	p.expect, p.aborted, p.code, p.method = check.expect, false, InternalError, p.req.Head.Method
	p.connect = check.protocol != ""
	if check.length >= 0 && !p.connect {
		st.left = check.length
	}
	if check.refusal != "" {
		c.mu.Unlock()
		return s.refuse(st, check)
	}
	p.req.Body = nil
	if !endStream && !p.connect { // what follows a CONNECT is the tunnel's, once it is accepted
		p.req.Body = st.handle()
	}
	s.running++
	c.runs.run(st)
	c.mu.Unlock()
	return nil
}

// trailers takes a request's trailer section. st is pinned.
func (s *serverConn) trailers(st *strm, endStream bool, block []byte) *connError {
	c := &s.conn
	fields, _, over, err := c.fields(block, nil)
	reason := ""
	var h stream.Header
	switch {
	case err != nil:
	case over:
		reason = "a trailer section beyond the limit"
	case !endStream:
		reason = "a second head (RFC 9113, section 8.1)"
	default:
		h, reason = trailerFields(fields)
	}
	c.mu.Lock()
	id := st.id
	code := ProtocolError
	switch {
	case err != nil || !st.open:
		reason = ""
	case st.recvEnd:
		code, reason = StreamClosed, "HEADERS after the end of the stream (RFC 9113, section 5.1)"
	case reason != "":
	case st.left > 0:
		reason = "DATA that is not as long as its content-length (RFC 9113, section 8.1.1)"
	default:
		st.trailers = h
		st.closeRecv()
	}
	st.unpin()
	c.mu.Unlock()
	if err == nil && reason != "" {
		err = c.streamBroken(id, code, reason)
	}
	return err
}

// trailerFields makes a trailer section of fields; its strings are its own.
func trailerFields(fields []hfield) (h stream.Header, refusal string) {
	for _, f := range fields {
		switch f.kind {
		case kindBad:
			return nil, badField(f)
		case kindMethod, kindScheme, kindAuthority, kindPath, kindProtocol, kindStatus:
			return nil, "a pseudo-header in a trailer section (RFC 9113, section 8.1)"
		}
		s := f.name + f.value
		h = append(h, stream.Field{Name: s[:len(f.name)], Value: s[len(f.name):]})
	}
	h.StripTrailers()
	return h, ""
}

// refuse answers a request that is none, as far as there is something to say,
// and resets its stream. The stream has no worker.
func (s *serverConn) refuse(st *strm, check requestParse) *connError {
	c := &s.conn
	h := &st.server.req.Head
	r := stream.Refusal{Protocol: stream.HTTP2, Status: check.status, Kind: check.kind, Reason: check.refusal,
		Method: h.Method, Path: h.Path, Authority: h.Authority}
	resp := s.handler.Refused(r)
	var body []byte
	if resp != nil && resp.Body != nil {
		buf := netio.GetBuf()
		defer netio.PutBuf(buf)
		n := 0
		for n < len(buf) {
			m, err := resp.Body.Read(buf[n:])
			if n += m; err != nil {
				break
			}
		}
		body = buf[:n]
		_ = resp.Body.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.charge(costMalformed, "malformed requests")
	st.unread = true
	answered := false
	if st.open && resp != nil && (len(body) == 0 || st.room(len(body)) == len(body)) {
		answered = true
		st.appendHead(&resp.Head, int64(len(body)))
		if len(body) > 0 {
			st.data(body, false)
		}
		c.out.buf[st.tail+4] |= flagEndStream
	}
	if st.open {
		code := ProtocolError
		if check.kind == stream.TooLarge && answered {
			code = NoError // the answer is complete (RFC 9113, section 8.1)
			if st.recvEnd {
				c.remove(st, false)
			}
		}
		if st.open {
			c.out.reset(st.id, code)
			c.remove(st, true)
		}
	}
	st.over = true
	st.release()
	return err
}

// resetBy says what the peer's RST_STREAM means; the caller holds mu.
func (c *conn) resetBy(st *strm, code ErrCode) error {
	if c.client {
		return st.refusedBy(code)
	}
	return &ResetError{code}
}

// misdeed says what a stream is reset for; the caller holds mu.
func (c *conn) misdeed(code ErrCode, reason string) error {
	err := errors.New("h2: " + code.String() + ": " + reason)
	if c.client {
		return &stream.Failure{Kind: stream.FailedProtocol, Sent: true, Detail: "what the upstream sent is not HTTP/2", Err: err}
	}
	return err
}

// exchange runs the handler; it is a worker's.
func (st *strm) exchange() {
	s := st.c.side.(*serverConn)
	p := &st.server
	s.call(st)
	// Whoever still waits on behalf of the exchange does so in vain.
	p.life.Cancel(nil)
	c := st.c
	c.mu.Lock()
	s.running--
	st.unread = true
	if st.open {
		st.finishServer()
	}
	c.out.kick()
	st.over = true
	if h := p.req.Head.Header; cap(h) > cap(st.lists) { // it grew: keep the room
		st.lists = h
	}
	p.req = stream.Request{}
	st.release()
	c.mu.Unlock()
}

// call guards the process against the handler's panics.
func (s *serverConn) call(st *strm) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("an HTTP/2 exchange's handler panicked", "error", p, "stack", string(debug.Stack()))
			(*responder)(st).Abort()
		}
	}()
	s.handler.Exchange(st.server.life, &st.server.req, (*responder)(st))
}

// finishServer ends what the handler left open; the caller holds mu.
func (st *strm) finishServer() {
	c := st.c
	switch {
	case st.server.aborted:
		c.out.reset(st.id, st.server.code)
		c.remove(st, true)
		return
	case st.sendEnd:
	case !st.headSent || st.sendErr != nil || st.sendLeft > 0:
		code := InternalError
		if st.sendErr == errStuck {
			code = Cancel
		}
		c.out.reset(st.id, code)
		c.remove(st, true)
		return
	default:
		st.endSend()
	}
	if st.open { // the rest of the request is not wanted (RFC 9113, section 8.1)
		c.out.reset(st.id, NoError)
		c.remove(st, true)
	}
}

// responder is a stream as its handler answers it.
type responder strm

var _ stream.Responder = (*responder)(nil)

// Informational sends a 1xx head. 100 is each hop's own and 101 is Accept.
func (w *responder) Informational(h *stream.ResponseHead) error {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if err := st.canSend(); err != nil {
		return err
	}
	if h.Status < 102 || h.Status > 199 || st.headSent {
		return nil
	}
	st.appendHead(h, -1)
	st.c.out.kick()
	return nil
}

// sayContinue asks for the body that a client holds back until then (RFC 9110,
// section 10.1.1); the caller holds mu.
func (st *strm) sayContinue() {
	if !st.server.expect || st.headSent || !st.open || st.sendErr != nil {
		return
	}
	st.server.expect = false
	st.appendHead(&stream.ResponseHead{Status: 100}, -1)
}

// appendHead appends a response's head; length below 0 is not said. The caller
// holds mu.
func (st *strm) appendHead(h *stream.ResponseHead, length int64) {
	o, e := &st.c.out, &st.c.enc
	at := o.beginBlock(st.id, 0)
	st.tail, st.tailGen = at, o.gen
	b := o.buf
	switch h.Status {
	case 200:
		b = append(b, 0x88)
	case 204:
		b = append(b, 0x89)
	case 206:
		b = append(b, 0x8a)
	case 304:
		b = append(b, 0x8b)
	case 400:
		b = append(b, 0x8c)
	case 404:
		b = append(b, 0x8d)
	case 500:
		b = append(b, 0x8e)
	default:
		var d [8]byte
		b = e.field(b, ":status", borrow(strconv.AppendInt(d[:0], int64(h.Status), 10)))
	}
	o.buf = appendFields(e, b, h.Header, length)
	o.endBlock(at)
}

// appendFields appends a head's fields but the length, which is said as a number.
func appendFields(e *encoder, b []byte, h stream.Header, length int64) []byte {
	for i := range h {
		f := &h[i]
		switch {
		case len(f.Name) == 0 || f.Name[0] == ':':
		case len(f.Name) == len("content-length") && f.Name == "content-length":
		default:
			b = e.field(b, f.Name, f.Value)
		}
	}
	if length >= 0 {
		var d [20]byte
		b = e.field(b, "content-length", borrow(strconv.AppendInt(d[:0], length, 10)))
	}
	return b
}

// bodiless says that a response of that status has no content (RFC 9110,
// sections 6.4.1 and 15).
func bodiless(status int) bool { return status < 200 || status == 204 || status == 304 }

// Head implements stream.Responder. It leaves with the next Flush or Finish.
func (w *responder) Head(h *stream.ResponseHead, end bool) error {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if err := st.canSend(); err != nil {
		return err
	}
	if st.headSent {
		return errors.New("h2: a second response head")
	}
	head := st.server.method == "HEAD"
	st.noBody = head || bodiless(h.Status)
	length := h.ContentLength
	if length >= 0 && st.noBody {
		// What a GET would have: said only where it was, not where it is unknown.
		if _, said := h.Header.Lookup("content-length"); !said && length == 0 || h.Status == 204 {
			length = -1
		}
	}
	if end && length == 0 {
		if _, said := h.Header.Lookup("content-length"); !said {
			length = -1 // the end of the stream says it (gRPC's Trailers-Only has none)
		}
	}
	if !st.noBody && !end {
		st.sendLeft = h.ContentLength
	} else if end && !st.noBody && length > 0 {
		return errTooShort
	}
	st.headSent = true
	st.appendHead(h, length)
	if end {
		st.endSend()
		st.c.out.kick()
	}
	return nil
}

// Write implements stream.Responder.
func (w *responder) Write(p []byte) (int, error) {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if err := st.canSend(); err != nil {
		return 0, err
	}
	if !st.headSent {
		return 0, errors.New("h2: a body before its head")
	}
	if st.noBody {
		return len(p), nil
	}
	return st.write(p)
}

// Flush implements stream.Responder.
func (w *responder) Flush() error {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.c.out.kick()
	return st.sendErr
}

// Finish implements stream.Responder.
func (w *responder) Finish(trailers stream.Header) error {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if err := st.canSend(); err != nil {
		if err == errSendClosed && len(trailers) == 0 {
			return nil
		}
		return err
	}
	switch {
	case !st.headSent:
		return errors.New("h2: the end of a response without a head")
	case st.sendLeft > 0:
		st.server.aborted = true
		return errTooShort
	case len(trailers) > 0:
		st.sendTrailers(trailers)
	default:
		st.endSend()
	}
	st.c.out.kick()
	return nil
}

// Accept implements stream.Responder: 200 accepts an extended CONNECT (RFC 8441,
// section 5).
func (w *responder) Accept(h *stream.ResponseHead) (stream.Tunnel, error) {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if err := st.canSend(); err != nil {
		return nil, err
	}
	if !st.server.connect || st.headSent {
		return nil, errors.New("h2: an upgrade that was not asked for")
	}
	st.headSent = true
	st.appendHead(&stream.ResponseHead{Status: 200, Header: h.Header}, -1)
	st.tailGen = ^uint64(0) // the tunnel's end is a frame of its own
	st.c.out.kick()
	return &tunnel{st.handle()}, nil
}

// Abort implements stream.Responder.
func (w *responder) Abort() {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.server.aborted = true
}

// AbortWith is Abort with a code of its own: what an upstream's reset means to
// the client where the difference matters (gRPC: CANCEL after a deadline).
func (w *responder) AbortWith(code ErrCode) {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	st.server.aborted, st.server.code = true, code
}

// Interrupt implements stream.Responder.
func (w *responder) Interrupt() {
	st := (*strm)(w)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.sendErr == nil {
		st.sendErr = errInterrupted
	}
	st.wcond.Broadcast()
}
