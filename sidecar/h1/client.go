package h1

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// maxInformational bounds the 1xx responses to one request.
const maxInformational = 64

// ClientOptions are those of one connection.
type ClientOptions struct {
	MaxHeader int // bytes of a head; 0: DefaultMaxHeader
	MaxFields int // of a head, and of a trailer section; 0: DefaultMaxFields
	// Ended is called once for each Do that did not return [stream.FailedGone],
	// when the exchange is over: before Do returns an error, else by the close of
	// the response's body or tunnel. reusable: another Do may follow at once, from
	// Ended too. Otherwise the connection is of no use any more, and whoever set
	// Ended closes it. nil: nobody asks, and such a connection is closed here.
	Ended func(c *ClientConn, reusable bool)
}

// ClientConn carries exchanges to a server, one at a time. It has no goroutine,
// and no buffer between two exchanges; whether the server has ended an idle
// connection, or sent something unasked, is its owner's to look for
// ([netio.Alive]) before each Do.
type ClientConn struct {
	c  netio.Conn
	o  ClientOptions
	in input

	mu        sync.Mutex      // held for a moment, and while deadlines are set
	ctx       context.Context // guarded by mu: of the exchange in hand
	busy      bool            // guarded by mu
	dead      bool            // guarded by mu
	cancelled bool            // guarded by mu: deadlines have been set for ctx
	attached  bool            // guarded by mu: hears of the end of ctx
	stop      stream.Stop     // guarded by mu: of that

	told bool // the connection says when it waits

	used bool // an exchange came to its end on it
}

// NewClientConn makes a connection ready for its first exchange.
func NewClientConn(c netio.Conn, o ClientOptions) *ClientConn {
	if o.MaxHeader <= 0 {
		o.MaxHeader = DefaultMaxHeader
	}
	if o.MaxFields <= 0 {
		o.MaxFields = DefaultMaxFields
	}
	cc := &ClientConn{c: c, o: o}
	cc.in.c = c
	cc.told = netio.BeforeWait(c, cc)
	return cc
}

// Conn is the connection below.
func (c *ClientConn) Conn() netio.Conn { return c.c }

// Close ends the connection; an exchange in hand fails. Any goroutine.
func (c *ClientConn) Close() error {
	c.mu.Lock()
	c.dead = true
	c.mu.Unlock()
	return c.c.Close()
}

// Do sends one request and returns when the response's head is there. Its error
// is a [*stream.Failure].
//
// What is ready of the request when Do is called leaves together with the head
// in one write. Of a longer body a goroutine sends the rest while Do waits for
// the response, so that a response is delivered that comes before the request's
// end; it uses req.Body until that is read to its end, and at the latest until
// the response's body is closed (which closes a req.Body that is left) or Do has
// returned an error. A connection on which one of both messages did not come to
// its end is not used again.
//
// The response and its strings are valid until its Body, or Tunnel, is closed,
// which must be done once.
func (c *ClientConn) Do(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	c.mu.Lock()
	if c.busy || c.dead {
		c.mu.Unlock()
		return nil, &stream.Failure{Kind: stream.FailedGone, Detail: "h1: the connection takes no further exchange"}
	}
	c.busy, c.ctx = true, ctx
	c.mu.Unlock()
	x := calls.Get().(*call)
	x.begin(c, req)
	if cause := stream.CauseOf(ctx); cause != nil {
		return nil, x.fail(cause)
	}
	if !c.told {
		c.Waits()
	}
	if err := x.head(); err != nil {
		return nil, x.fail(err)
	}
	if err := x.send(); err != nil {
		return nil, x.fail(err)
	}
	if err := x.response(); err != nil {
		return nil, x.fail(err)
	}
	return &x.resp, nil
}

// Waits implements [netio.Waiting]: the end of the exchange's context is of
// interest only to who waits.
func (c *ClientConn) Waits() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil || c.attached {
		return
	}
	var live bool
	c.stop, live = stream.OnCancel(c.ctx, c)
	c.attached = true
	if !live {
		c.cancel()
	}
}

// cancel makes everything that waits on the connection fail; the caller holds
// mu.
func (c *ClientConn) cancel() {
	c.cancelled = true
	_ = c.c.SetDeadline(past)
}

// part lets the exchange's context go. When it returns no end of it reaches the
// connection; the caller holds mu, which may be let go meanwhile.
func (c *ClientConn) part() {
	c.ctx = nil
	if !c.attached {
		return
	}
	stop := c.stop
	c.attached, c.stop = false, stream.Stop{}
	c.mu.Unlock()
	stop.Stop()
	c.mu.Lock()
}

// Cancelled implements [stream.Canceler]: everything that waits on the
// connection fails. One that comes late, for an exchange before, does nothing.
func (c *ClientConn) Cancelled(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx != nil && stream.CauseOf(c.ctx) != nil {
		c.cancel()
	}
}

// call is one exchange on the client's side; pooled.
type call struct {
	c    *ClientConn
	req  *stream.Request
	m    message
	room stream.Header
	out  output
	resp stream.Response
	body responseBody

	up   upload
	keep bool // the server's response lets the connection go on
}

var calls = sync.Pool{New: func() any {
	x := &call{room: make(stream.Header, 0, 32)}
	x.body.x, x.body.owner = x, x
	return x
}}

func (x *call) begin(c *ClientConn, req *stream.Request) {
	x.c, x.req = c, req
	x.out.c = c.c
	x.body.in = &c.in
	x.body.open = true
	x.body.start(noBody, 0, 0)
	c.in.wait = x
	c.in.came = false
}

// errRequest marks that the request could not be read to its end.
var errRequest = errors.New("h1: the request's body failed")

// woken implements waiter.
func (x *call) woken() error {
	c := x.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil || c.dead { // a tunnel that is closed while it is read
		return errEnded
	}
	if cause := stream.CauseOf(c.ctx); cause != nil {
		return cause
	}
	_ = c.c.SetReadDeadline(time.Time{})
	if x.up.failed.Load() {
		return errRequest
	}
	return nil
}

func (x *call) awaited() error { return nil }
func (x *call) wake()          { _ = x.c.c.SetReadDeadline(past) }

// broken implements bodyOwner.
func (x *call) broken(err error) error { return x.failure(err) }

// failure says what ended the exchange.
func (x *call) failure(err error) error {
	f := &stream.Failure{Sent: x.sent(), Err: err}
	var bad *fault
	cause := stream.CauseOf(x.c.ctx)
	switch {
	case cause != nil:
		f.Kind, f.Err, f.Detail = stream.FailedCancelled, cause, "h1: the exchange was given up"
	case x.up.failed.Load():
		f.Kind, f.Err, f.Detail = stream.FailedRequest, x.up.err, "h1: the request could not be read to its end"
	case errors.Is(err, errField):
		f.Kind, f.Detail = stream.FailedRequest, "h1: the request cannot be sent"
	case errors.As(err, &bad):
		f.Kind, f.Err, f.Detail = stream.FailedProtocol, nil, "h1: the response: "+bad.reason
	case errors.Is(err, errUnasked):
		f.Kind, f.Err, f.Detail = stream.FailedProtocol, nil, err.Error()
	case !x.c.in.came && x.c.used:
		f.Kind, f.Detail = stream.FailedStale, "h1: the server ended the connection between two requests"
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		f.Kind, f.Err, f.Detail = stream.FailedReset, io.ErrUnexpectedEOF, "h1: the server ended the connection before the end of its response"
	default:
		f.Kind, f.Detail = stream.FailedReset, "h1: the connection failed"
	}
	return f
}

// fail ends an exchange without a response.
func (x *call) fail(err error) error {
	f := x.failure(err) // before the sender is stopped: that looks like a failure of the request
	started := x.out.sent || x.up.done != nil || x.c.in.came
	x.stopUpload()
	// What the connection did to the exchange it would do to the next one too.
	var as *stream.Failure
	ours := errors.As(f, &as) && (as.Kind == stream.FailedCancelled || as.Kind == stream.FailedRequest)
	x.over(!started && ours)
	return f
}

// response reads heads until the final one.
func (x *call) response() error {
	in, m := &x.c.in, &x.m
	for n := 0; ; n++ {
		if err := x.readHead(); err != nil {
			return err
		}
		in.r += m.pos
		h := &x.resp.Head
		*h = stream.ResponseHead{Status: m.status, Header: m.fields, ContentLength: m.length, Protocol: stream.HTTP1}
		switch {
		case m.status >= 200:
			in.low = in.r
			x.accept()
			return nil
		case m.status == 101:
			return x.switched()
		case n == maxInformational:
			return errInformational
		case m.status != 100 && x.req.Informational != nil: // 100 is each hop's own
			h.ContentLength = -1
			x.req.Informational(h)
		}
	}
}

var (
	// errUnasked: see switched.
	errUnasked       = errors.New("h1: the server switched protocols without being asked for it")
	errInformational = &fault{502, stream.Malformed, "more informational responses than the limit"}
)

func (x *call) readHead() error {
	in, m := &x.c.in, &x.m
	limit := x.c.o.MaxHeader
	m.begin(aResponse, x.c.o.MaxFields, x.room)
	for {
		done, f := m.scan(in.b[in.r:in.w])
		switch {
		case f != nil:
			return f
		case done && m.pos > limit || !done && in.w-in.r >= limit:
			return faultHeadLarge
		case done:
			return nil
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

// accept makes the response of a complete final head (RFC 9112, section 6.3).
func (x *call) accept() {
	m, h := &x.m, &x.resp.Head
	x.keep = m.persistent() && x.req.Head.Upgrade == ""
	switch {
	case bodiless(x.req.Head.Method, m.status):
		x.body.start(noBody, 0, 0)
		if m.status == 204 {
			h.ContentLength = 0
		}
	case m.coded:
		x.body.start(chunked, 0, x.c.o.MaxFields)
	case m.length >= 0:
		x.body.start(counted, m.length, 0)
	default:
		x.body.start(toEnd, 0, 0)
		x.keep = false
	}
	x.resp.Body = &x.body
}

// switched takes a 101: bytes are a tunnel's only if the request asked for just
// this protocol.
func (x *call) switched() error {
	m, asked := &x.m, x.req.Head.Upgrade
	if asked == "" || !m.upgrading || m.upgrades != 1 || !strings.EqualFold(m.upgrade, asked) {
		return errUnasked
	}
	x.c.in.low = x.c.in.r
	x.resp.Head.ContentLength = -1
	x.keep = false
	x.resp.Tunnel = &tunnel{c: x.c.c, in: &x.c.in, over: x.leave}
	return nil
}

// responseBody is the body of the response in hand; its end is the exchange's.
type responseBody struct {
	body
	x    *call
	open bool
}

var _ stream.Chunks = (*responseBody)(nil)

// Close ends the exchange. It must not be called while the body is read, and
// once only: the next exchange has the same object.
func (b *responseBody) Close() error {
	if !b.open {
		if stream.Poison {
			panic("h1: a response's body was closed twice")
		}
		return nil
	}
	x := b.x
	whole := b.Ready() && b.complete() // the last chunk may be here already
	x.stopUpload()
	x.c.used = true
	x.over(whole && x.keep && x.up.complete && x.c.in.empty())
	return nil
}

// over ends the exchange; nobody else uses it.
func (x *call) over(reusable bool) {
	c := x.c
	c.mu.Lock()
	c.part()
	reusable = reusable && !c.cancelled && !c.dead
	c.busy = false
	c.dead = !reusable
	c.mu.Unlock()
	x.out.release()
	c.in.release()
	c.in.wait = nil
	if cap(x.m.fields)-len(x.m.fields) < cap(x.room)/4 && cap(x.room) < 256 {
		x.room = make(stream.Header, 0, 2*cap(x.room))
	}
	x.body.open = false
	x.c, x.req, x.body.in, x.out.c = nil, nil, nil, nil
	x.resp = stream.Response{}
	x.out.sent, x.out.err = false, nil
	x.keep = false
	x.up.reset()
	if !stream.Poison { // else a second Close is to be seen
		calls.Put(x)
	}
	switch {
	case c.o.Ended != nil:
		c.o.Ended(c, reusable)
	case !reusable:
		_ = c.c.Close()
	}
}

// leave ends an exchange that became a tunnel. Somebody may still be in one of
// its calls: nothing of it is used again.
func (x *call) leave() {
	c := x.c
	c.mu.Lock()
	c.part()
	c.busy, c.dead = false, true
	c.mu.Unlock()
	if c.o.Ended != nil {
		c.o.Ended(c, false)
	}
}
