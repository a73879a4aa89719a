package h2

import (
	"context"
	"errors"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// ClientOptions configure a client's connection.
type ClientOptions struct {
	Wheel        *wheel.Wheel
	MaxHeader    int           // bytes of a response's header list; 0: 60 kB
	MaxFields    int           // 0: 200
	PingAfter    time.Duration // of silence with streams open; 0: no PING
	PingTimeout  time.Duration // for its answer; 0: 10 s
	WriteTimeout time.Duration // that the server may let us wait for a window or the socket; 0: 30 s
	// Changed, where set, is told when Room has grown from nothing, when the
	// server's settings have come, before which Room is one, when the connection is
	// leaving and when it is over. It must not block.
	Changed func(c *ClientConn)
	Budget  Budget
}

// ClientConn is the client's side of one connection. Safe for concurrent use.
type ClientConn struct {
	conn
	changed func(*ClientConn)
	gone    bool   // takes no further stream; guarded by mu
	served  uint64 // exchanges that got a response; guarded by mu
	greeted bool   // the server's settings have come; guarded by mu
	told    bool   // Room is more than nothing, as far as Changed was told; guarded by mu
	news    bool   // Changed is to be called; guarded by mu
	// The reader's: what repeated header blocks say.
	memos [memos]responseMemo
}

type responseMemo struct {
	memo
	head stream.ResponseHead
}

var _ side = (*ClientConn)(nil)

// NewClientConn makes the client's side of a connection. It can be used at once;
// nothing moves before [ClientConn.Run] does.
func NewClientConn(c netio.Conn, o ClientOptions) *ClientConn {
	cc := &ClientConn{changed: o.Changed, told: true}
	cc.client = true
	cc.init(c, o.Wheel, cc, o.Budget, limits{o.MaxHeader, o.MaxFields}, nil)
	if o.WriteTimeout > 0 {
		cc.write = int64(o.WriteTimeout)
	}
	cc.pingAfter, cc.pingWithin = int64(o.PingAfter), int64(o.PingTimeout)
	if cc.pingWithin <= 0 {
		cc.pingWithin = int64(10 * time.Second)
	}
	cc.greet(0)
	return cc
}

// Run reads the connection until it and every exchange's own work on it are
// over, and closes it. ctx ends it at once.
func (cc *ClientConn) Run(ctx context.Context) {
	cc.serve(ctx, netio.Pending{})
}

// Conn is the connection below.
func (cc *ClientConn) Conn() netio.Conn { return cc.nc }

// Drain says GOAWAY: no further exchange is taken, and the connection ends with
// its last one.
func (cc *ClientConn) Drain() {
	cc.mu.Lock()
	cc.gone = true
	if cc.drain == drainNone && cc.err == nil {
		cc.now = cc.clock()
		cc.drained()
	}
	cc.mu.Unlock()
}

// Close ends the connection and every exchange on it.
func (cc *ClientConn) Close() { (*connLife)(&cc.conn).Cancelled(errClosed) }

// Room is how many exchanges can be begun now, 0 when the connection leaves.
func (cc *ClientConn) Room() int {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.room()
}

func (cc *ClientConn) room() int {
	if cc.gone || cc.err != nil || cc.nextID > maxInt31-2 {
		return 0
	}
	if !cc.peerSettings { // how many the server takes is not known yet
		return max(0, 1-cc.streams.n)
	}
	return max(0, int(min(cc.peerStreams, 1<<20))-cc.streams.n)
}

// Leaving says that the connection takes no further exchange, ever.
func (cc *ClientConn) Leaving() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.gone || cc.err != nil || cc.nextID > maxInt31-2
}

// Greeted says that the server's settings have come.
func (cc *ClientConn) Greeted() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.peerSettings
}

// Streams is how many exchanges are under way.
func (cc *ClientConn) Streams() int {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.streams.n
}

// Unused is since when nothing was under way, by the wheel's clock; 0 while
// something is.
func (cc *ClientConn) Unused() int64 {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.idleSince
}

// tell calls Changed where there is news.
func (cc *ClientConn) tell() {
	cc.mu.Lock()
	news := cc.news
	cc.news = false
	cc.mu.Unlock()
	if news && cc.changed != nil {
		cc.changed(cc)
	}
}

// noteRoom notes that Room grew from nothing; the caller holds mu and calls tell.
func (cc *ClientConn) noteRoom() {
	if !cc.told && cc.room() > 0 {
		cc.told, cc.news = true, true
	}
}

func (cc *ClientConn) settings() {
	if !cc.greeted { // from one to what the server takes
		cc.greeted, cc.told = true, false
	}
	cc.noteRoom()
}
func (cc *ClientConn) removed() { cc.noteRoom() }

// leaving takes the server's GOAWAY: streams above last were not processed (RFC
// 9113, section 6.8).
func (cc *ClientConn) leaving(last uint32, code ErrCode) {
	c := &cc.conn
	c.mu.Lock()
	cc.gone, cc.news = true, true
	if c.drain == drainNone {
		c.drain, c.drainLast = drainFinal, c.lastPeer
	}
	var ended []*strm
	for _, st := range c.streams.slots {
		if st != nil && st.id > last {
			st.pins++
			ended = append(ended, st)
		}
	}
	err := &stream.Failure{Kind: stream.FailedRefused, Sent: true, Detail: "the upstream goes away and did not take the request",
		Err: errors.New("h2: GOAWAY with " + code.String())}
	for _, st := range ended {
		st.end(err)
	}
	for _, st := range ended {
		st.unpin()
	}
	c.maybeDone()
	c.mu.Unlock()
	cc.tell()
}

func (cc *ClientConn) over(error) {
	cc.mu.Lock()
	cc.gone, cc.news = true, true
	cc.mu.Unlock()
	cc.tell()
}

// clientPart is what a client's stream has beside.
type clientPart struct {
	ctx     context.Context
	stop    stream.Stop
	resp    stream.Response
	method  string
	connect bool
	used    bool                   // the connection had served before
	body    stream.Body            // of the request
	chunks  stream.Chunks          // body, where it lends
	rest    []byte                 // lent by chunks, not yet sent
	restErr error                  // what came with rest
	sending bool                   // somebody sends the body; guarded by mu
	early   []*stream.ResponseHead // 1xx that nobody was told of; guarded by mu
}

// ErrNoConnect says that the server does not take extended CONNECT (RFC 8441):
// an upgrade needs HTTP/1.1. It is the Err of a [stream.FailedGone].
var ErrNoConnect = errors.New("h2: the server does not take extended CONNECT")

func failure(k stream.FailureKind, sent bool, detail string, err error) *stream.Failure {
	return &stream.Failure{Kind: k, Sent: sent, Detail: detail, Err: err}
}

// Do sends a request and returns when the response's head is there. ctx bounds
// the whole exchange. The error is a [*stream.Failure]. The response is the
// caller's until it closes Body (or Tunnel), which it must do.
func (cc *ClientConn) Do(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	c := &cc.conn
	c.mu.Lock()
	if f := cc.cannot(ctx, req); f != nil {
		c.mu.Unlock()
		return nil, f
	}
	st := c.newStream()
	id := c.nextID
	c.nextID += 2
	st.start(id)
	if cc.room() == 0 {
		cc.told = false
	}
	p := &st.client
	p.ctx, p.method, p.connect, p.used = ctx, req.Head.Method, req.Head.Upgrade != "", cc.served > 0
	p.body, p.chunks, p.sending = nil, nil, false
	st.appendRequest(&req.Head)
	gen := st.gen
	if req.Body != nil && !p.connect {
		if req.Head.ContentLength >= 0 {
			st.sendLeft = req.Head.ContentLength
		}
		p.body, p.sending = req.Body, true
		st.pins++ // until sent
		p.chunks, _ = req.Body.(stream.Chunks)
	} else if !p.connect {
		st.endSend()
		c.out.kick()
	} else {
		st.tailGen = ^uint64(0)
		c.out.kick()
	}
	c.mu.Unlock()

	stop, live := stream.OnCancel(ctx, st)
	p.stop = stop
	if !live {
		st.Cancelled(stream.CauseOf(ctx))
	}
	if p.body != nil && !st.sendReady() {
		c.mu.Lock()
		c.out.kick() // the head need not wait for the body
		c.runs.run(st)
		c.mu.Unlock()
	}
	return st.response(gen, req)
}

// cannot says why no exchange can begin; the caller holds mu.
func (cc *ClientConn) cannot(ctx context.Context, req *stream.Request) error {
	if req.Head.Upgrade != "" {
		for !cc.peerSettings && cc.err == nil { // whether it can is in its settings
			if err := cc.awaitSettings(ctx); err != nil {
				return failure(stream.FailedCancelled, false, "the exchange was given up", err)
			}
		}
		if cc.err == nil && !cc.peerConnect {
			return failure(stream.FailedGone, false, "the upstream does not take upgrades on HTTP/2", ErrNoConnect)
		}
	}
	if cc.room() > 0 {
		return nil
	}
	err := cc.err
	if err == nil {
		err = errors.New("h2: no room for a further stream")
	}
	return failure(stream.FailedGone, false, "the connection takes no further exchange", err)
}

// settingsWait is a wait for the server's settings.
type settingsWait struct {
	st    *strm
	cause error
}

func (w *settingsWait) Cancelled(cause error) {
	c := w.st.c
	c.mu.Lock()
	w.cause = cause
	w.st.wcond.Broadcast()
	c.mu.Unlock()
}

// awaitSettings waits for a change; the caller holds mu.
func (cc *ClientConn) awaitSettings(ctx context.Context) error {
	w := &settingsWait{st: cc.newStream()}
	cc.mu.Unlock()
	stop, live := stream.OnCancel(ctx, w)
	cc.mu.Lock()
	if !live {
		w.cause = stream.CauseOf(ctx)
	}
	for w.cause == nil && !cc.peerSettings && cc.err == nil {
		if !w.st.inWaiting {
			w.st.inWaiting = true
			cc.waiting = append(cc.waiting, w.st)
		}
		w.st.wcond.Wait()
	}
	cc.mu.Unlock()
	stop.Stop()
	cc.mu.Lock()
	return w.cause
}

// appendRequest appends a request's head; the caller holds mu.
func (st *strm) appendRequest(h *stream.RequestHead) {
	o, e := &st.c.out, &st.c.enc
	at := o.beginBlock(st.id, 0)
	st.tail, st.tailGen = at, o.gen
	b := o.buf
	method, plain := h.Method, h.Method == "CONNECT"
	if h.Upgrade != "" {
		method = "CONNECT"
	}
	switch method {
	case "GET":
		b = append(b, 0x82)
	case "POST":
		b = append(b, 0x83)
	default:
		b = e.field(b, ":method", method)
	}
	if !plain {
		switch h.Scheme {
		case "https":
			b = append(b, 0x87)
		case "http", "":
			b = append(b, 0x86)
		default:
			b = e.field(b, ":scheme", h.Scheme)
		}
		if h.Path == "/" {
			b = append(b, 0x84)
		} else {
			b = e.field(b, ":path", h.Path)
		}
	}
	if h.Authority != "" {
		b = e.field(b, ":authority", h.Authority)
	}
	length := int64(-1)
	if h.Upgrade != "" {
		b = e.field(b, ":protocol", h.Upgrade)
	} else if h.ContentLength > 0 {
		length = h.ContentLength
	} else if h.ContentLength == 0 {
		if _, said := h.Header.Lookup("content-length"); said {
			length = 0
		}
	}
	o.buf = appendFields(e, b, h.Header, length)
	o.endBlock(at)
}

// response waits for the response's head.
func (st *strm) response(gen uint64, req *stream.Request) (*stream.Response, error) {
	c, p := st.c, &st.client
	c.mu.Lock()
	for len(p.early) > 0 || !st.headDone && st.err == nil {
		if len(p.early) > 0 {
			h := p.early[0]
			p.early = p.early[1:]
			c.mu.Unlock()
			if req.Informational != nil {
				req.Informational(h)
			}
			c.mu.Lock()
			continue
		}
		st.rcond.Wait()
	}
	p.early = nil
	if !st.headDone {
		err := st.err
		c.mu.Unlock()
		_ = st.finishClient(gen)
		return nil, err
	}
	c.side.(*ClientConn).served++
	body := st.handle()
	p.resp.Body, p.resp.Tunnel = body, nil
	if p.connect && p.resp.Head.Status == 200 {
		p.resp.Body, p.resp.Tunnel = nil, &tunnel{body}
	}
	c.mu.Unlock()
	return &p.resp, nil
}

// Cancelled implements [stream.Canceler]: the exchange is given up. It may come
// late, when the stream carries another exchange: then that one's context lives.
func (st *strm) Cancelled(cause error) {
	c, cc := st.c, st.c.side.(*ClientConn)
	if cause == nil {
		cause = context.Canceled
	}
	c.mu.Lock()
	if st.client.ctx == nil || !st.open || stream.CauseOf(st.client.ctx) == nil {
		c.mu.Unlock()
		return
	}
	st.kill(Cancel, failure(stream.FailedCancelled, true, "the exchange was given up", cause))
	c.mu.Unlock()
	cc.tell()
}

// finishClient is the end of an exchange: its caller is done with the response.
func (st *strm) finishClient(gen uint64) error {
	c, cc := st.c, st.c.side.(*ClientConn)
	c.mu.Lock()
	if st.gen != gen || st.over {
		c.mu.Unlock()
		return nil
	}
	st.over, st.unread = true, true
	if st.open {
		code := Cancel
		if st.recvEnd {
			code = NoError
		}
		st.kill(code, errOver)
	} else if st.sendErr == nil {
		st.sendErr = errOver
		st.wcond.Broadcast()
	}
	st.pins++
	news := cc.news
	stop := st.client.stop
	c.mu.Unlock()
	stop.Stop()
	c.mu.Lock()
	st.client.stop, st.client.ctx = stream.Stop{}, nil
	if h := st.client.resp.Head.Header; cap(h) > cap(st.lists) {
		st.lists = h
	}
	st.unpin()
	c.mu.Unlock()
	if news {
		cc.tell()
	}
	return nil
}
