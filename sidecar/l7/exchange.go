package l7

import (
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// exchange is one request on its way. Exchanges are pooled: an object serves one
// request after another, and what only one request may have stands in begin.
// It belongs to the goroutine of the codec that called Exchange; watch is the
// one part that another goroutine touches.
type exchange struct {
	x    *connection
	e    *Engine
	life *stream.Scope // ends when the client has gone, and with a time-out
	req  *stream.Request
	w    stream.Responder
	resp *stream.Response // to be ended with the exchange; nil: none

	run     filter.Run
	watch   watch
	began   int64        // in the wheel's time
	body    *requestBody // nil: the request has none
	cookie  string       // set-cookie of a hash policy, "" where none is due
	grpc    bool
	started bool // the response's head is under way
	// answered says that the response is the mesh's own: a time-out that made it
	// does not end it.
	answered bool

	path    decide.Path
	fx      filter.Exchange
	facts   decide.Facts
	verdict decide.RouteVerdict
	rec     telemetry.Record

	// Kept from one exchange to the next: what is the same in most.
	inform   func(*stream.ResponseHead) // informational, made once
	id       [36]byte                   // the request id that is in use
	timeout  time.Duration              // whose text is timeoutText
	timeText string
	peer     string // whose service is peerService
	peerDst  Service
}

// newExchange makes the object; e's pool calls it.
func newExchange(e *Engine) *exchange {
	s := &exchange{e: e}
	s.inform = s.informational
	s.watch.init(e.d.Wheel, s.timedOut)
	s.fx.Facts, s.fx.Record = &s.facts, &s.rec
	return s
}

// Exchange implements stream.Handler.
func (x *connection) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	s := x.e.exchanges.Get().(*exchange)
	s.begin(x, life, req, w)
	defer s.end()
	s.serve()
}

func (s *exchange) serve() {
	resp, err := s.respond()
	s.resp = resp
	if err != nil {
		s.resp = s.fail(err)
	} else if !s.run.Over() {
		if err := s.run.Response(s.life, &s.fx, resp); err != nil {
			s.resp.End()
			s.resp = s.fail(err)
		}
	}
	if s.resp == nil { // nobody is left to answer
		s.w.Abort()
		return
	}
	s.send(s.resp)
}

// begin fills what is known before anything is decided.
func (s *exchange) begin(x *connection, life *stream.Scope, req *stream.Request, w stream.Responder) {
	e, h := x.e, &req.Head
	s.x, s.life, s.req, s.w, s.resp, s.body = x, life, req, w, nil, nil
	s.cookie, s.grpc, s.started, s.answered = "", false, false, false
	now, began := e.now()
	s.path = decide.Path{}
	s.began = began
	s.rec = e.record
	x.describe(&s.rec)
	r := &s.rec
	r.Start, r.HTTP, r.Method, r.Path, r.Received, r.Authority = now, h.Protocol.String(), h.Method, h.Path, h.Path, h.Authority
	a, b := e.d.Rand(), e.d.Rand()
	f := &s.facts
	f.PeerID, f.Source, f.Destination, f.ServerName = x.peer, x.c.Source, x.c.Destination, x.c.ServerName
	f.Draws = [4]uint32{draw(uint32(a)), draw(uint32(a >> 32)), draw(uint32(b)), draw(uint32(b >> 32))}
	f.Now, f.Claims, f.Metadata = now, nil, nil
	s.fx.Reset()
	s.fx.Local, s.fx.Remote = x.c.Destination, x.c.Source
	s.watch.start(began, e.streamIdle)
	if req.Body != nil {
		s.receive()
	}
}

// draw scales a random number to [0, 1 000 000).
func draw(r uint32) uint32 { return uint32(uint64(r) * 1_000_000 >> 32) }

// timedOut ends what the exchange waits for. The wheel calls it, once.
func (s *exchange) timedOut() {
	s.life.Cancel(errTimeout) // waits of the upstream fail
	if s.body != nil {
		_ = s.body.Body.Close() // a read that waits for the client fails
	}
	if s.watch.isWriting() {
		s.w.Interrupt()
	}
}

var errTimeout = errors.New("l7: a time-out ended the exchange")

// respond carries the request as far as it comes: to a refusal, a filter's
// answer, the route's own answer or an upstream's response.
func (s *exchange) respond() (*stream.Response, error) {
	if s.e.d.Overload.Refuse() {
		return nil, &filter.Abort{Code: telemetry.Overload, Detail: "the process's memory is used up"}
	}
	if err := s.accept(); err != nil {
		return nil, err
	}
	if resp, err := s.normalise(); resp != nil || err != nil {
		return resp, err
	}
	routes := s.e.c.Routes() // once: a request sees one configuration
	if chain := s.e.c.Filters(); chain.Len() != 0 {
		chain.Start(&s.run)
		resp, err := s.run.Request(s.life, &s.fx, s.req)
		if resp != nil || err != nil {
			return resp, err
		}
	}
	if s.fx.Route == nil {
		if routes == nil {
			return nil, &filter.Abort{Status: http.StatusServiceUnavailable, Code: telemetry.NoRoute, Detail: "the route configuration has not arrived yet"}
		}
		routes.Route(s.fx.Head(s.req), &s.facts, nil, &s.verdict)
		s.fx.Route = &s.verdict
	}
	return s.follow(s.fx.Route)
}

// follow does what the route says.
func (s *exchange) follow(v *decide.RouteVerdict) (*stream.Response, error) {
	s.rec.Route = v.RouteName
	if err := s.permit(v); err != nil {
		return nil, err
	}
	switch {
	case v.NotFound:
		return nil, &filter.Abort{Code: telemetry.NoRoute, Detail: "no route matches"}
	case v.Redirect != "":
		return s.routed(v, &stream.Response{Head: stream.ResponseHead{
			Status: v.Status, Header: stream.Header{{Name: "location", Value: v.Redirect}}, ContentLength: 0,
		}}), nil
	case v.Direct != nil:
		return s.routed(v, s.direct(v)), nil
	}
	resp, err := s.forward(v)
	if err != nil {
		return nil, err
	}
	return s.routed(v, resp), nil
}

// direct is a route's own response; to a gRPC request it is a status. One with
// the status of an error is the mesh's, and says so.
func (s *exchange) direct(v *decide.RouteVerdict) *stream.Response {
	var h stream.Header
	if v.Status >= 400 {
		s.rec.Code = telemetry.DirectResponse
		h = append(h, s.e.proxyStatus(telemetry.DirectResponse))
	}
	if s.grpc {
		return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1, Header: append(h,
			stream.Field{Name: hContentType, Value: "application/grpc"},
			stream.Field{Name: hGRPCStatus, Value: strconv.Itoa(grpcOf(v.Status))},
			stream.Field{Name: hGRPCMessage, Value: grpcMessage(v.Direct.Body)},
		)}}
	}
	if v.Direct.Body != "" {
		h = append(h, stream.Field{Name: hContentType, Value: "text/plain"})
	}
	return &stream.Response{
		Head: stream.ResponseHead{Status: v.Status, Header: h, ContentLength: int64(len(v.Direct.Body))},
		Body: newText(v.Direct.Body),
	}
}

// fail turns an error into the mesh's answer and keeps its code; nil where the
// client has gone.
func (s *exchange) fail(err error) *stream.Response {
	a := s.abort(err)
	s.rec.Code, s.rec.Detail = a.Code, a.Detail
	if a.Code == telemetry.DownstreamReset {
		return nil
	}
	s.answered = true
	if s.watch.fired() != telemetry.OK {
		s.watch.restart() // over the answer
	}
	if s.rec.RequestID == "" { // refused before the head was looked through
		s.describe(s.req.Head.Header.Get(hContentType), s.req.Head.Header.Get("user-agent"))
	}
	return s.e.answer(a, s.grpc)
}

// abort says what an error is, by what the mesh knows best: that it ended the
// exchange itself, that the client went away, or what the upstream says.
func (s *exchange) abort(err error) *filter.Abort {
	if code := s.watch.fired(); code != telemetry.OK {
		return &filter.Abort{Code: code, Detail: "time-out of " + s.watch.limit(code).String()}
	}
	if code, reason := s.x.c.Ended(); code != telemetry.OK {
		return &filter.Abort{Code: code, Detail: reason}
	}
	if s.life.Cause() != nil {
		return &filter.Abort{Code: telemetry.DownstreamReset, Detail: "the client went away before the response"}
	}
	var a *filter.Abort
	if errors.As(err, &a) {
		return a
	}
	var ce *cluster.Error
	if errors.As(err, &ce) {
		detail := ce.Detail
		if ce.Err != nil {
			if detail != "" {
				detail += ": "
			}
			detail += ce.Err.Error()
		}
		return &filter.Abort{Code: ce.Code, Detail: detail}
	}
	return &filter.Abort{Code: telemetry.UpstreamReset, Detail: err.Error()}
}

// end records the exchange and gives back what it held. It is deferred: a panic
// of whatever the exchange called ends this request and no other.
func (s *exchange) end() {
	p := recover()
	if p != nil {
		s.panicked(p)
	}
	s.watch.stop()
	for sound := true; !s.run.Over(); {
		if sound = s.done(); !sound {
			p = errPanic
		}
	}
	r := &s.rec
	now := s.e.d.Wheel.Now()
	s.life.Mark(now)
	r.Duration = s.watch.since(now)
	if b := s.body; b != nil {
		r.BytesIn, r.RequestEnd = b.detach(r.BytesIn)
	}
	if r.FirstByte == 0 && s.started {
		r.FirstByte = r.Duration // head and body came in one
	}
	r.Request = s.req.Head.Header
	s.e.rec.Request(r)
	s.resp.End() // its strings were borrowed until here
	e := s.e
	s.x, s.life, s.req, s.w, s.resp, s.body = nil, nil, nil, nil, nil, nil
	if p == nil { // else nobody knows who holds what of it
		e.exchanges.Put(s)
	}
}

var errPanic = errors.New("l7: a filter panicked at the end of an exchange")

// done calls the filters' Done; false where one of them panicked.
func (s *exchange) done() (sound bool) {
	defer func() {
		if p := recover(); p != nil {
			s.note(p)
		}
	}()
	s.run.Done(&s.fx)
	return true
}

// panicked answers in the place of what panicked.
func (s *exchange) panicked(p any) {
	s.note(p)
	if s.started {
		s.w.Abort()
		return
	}
	defer func() {
		if p := recover(); p != nil { // the codec itself: the connection cannot be used
			s.note(p)
			s.w.Abort()
		}
	}()
	s.resp.End()
	s.answered = true
	s.resp = s.e.answer(&filter.Abort{Code: telemetry.LocalPanic}, s.grpc)
	s.send(s.resp)
}

// note writes a panic down.
func (s *exchange) note(p any) {
	s.e.d.Log.Error("a request's handler panicked", telemetry.KeyCode, telemetry.LocalPanic.String(),
		telemetry.KeyError, p, telemetry.KeyStack, string(debug.Stack()), telemetry.KeyListener, s.x.c.Listener)
	s.rec.Code, s.rec.Detail = telemetry.LocalPanic, "a handler panicked"
}

// receive puts the body that counts the request in the place of the codec's.
func (s *exchange) receive() {
	b := &requestBody{Body: s.req.Body, s: s, length: s.req.Head.ContentLength}
	s.body = b
	if c, ok := s.req.Body.(stream.Chunks); ok {
		b.chunks = c
		s.req.Body = (*requestChunks)(b)
	} else {
		s.req.Body = b
	}
	s.watch.requestBy(s.e.c.Manager.RequestTimeout)
}

// requestBody counts the request and says when it is complete. It is not
// pooled: whoever sends the request may hold it for longer than the exchange.
type requestBody struct {
	stream.Body
	chunks stream.Chunks // Body, where it lends
	length int64         // as announced; -1: unknown

	mu      sync.Mutex
	s       *exchange     // guarded by mu; nil: the exchange is over
	n       int64         // guarded by mu: bytes
	ended   int64         // guarded by mu: moment of the wheel; 0: not yet
	timeout time.Duration // guarded by mu: of the response, from the request's end
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	b.got(n, err != nil && isEOF(err))
	return n, err
}

// got notes what was read.
func (b *requestBody) got(n int, eof bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s == nil {
		return
	}
	b.n += int64(n)
	now := b.s.watch.touch()
	// A known length is complete with its last byte: not every sender reads on.
	if b.ended == 0 && (eof || b.length > 0 && b.n >= b.length) {
		b.ended = max(now, 1)
		b.s.watch.requestDone()
		b.s.watch.responseBy(now, b.timeout)
	}
}

// responseBy bounds the response from the request's end on; false where the
// request has ended already.
func (b *requestBody) responseBy(d time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timeout = d
	return b.ended == 0
}

// detach ends the accounting: the bytes, and the time from the exchange's begin
// to the request's end, 0 where it did not come.
func (b *requestBody) detach(more int64) (n int64, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != 0 {
		took = max(b.s.watch.since(b.ended), 1)
	}
	b.s = nil
	return b.n + more, took
}

// requestChunks is a requestBody that lends its bytes. It is the same object.
type requestChunks requestBody

var _ stream.Chunks = (*requestChunks)(nil)

func (b *requestChunks) Read(p []byte) (int, error) { return (*requestBody)(b).Read(p) }

func (b *requestChunks) Next() ([]byte, error) {
	p, err := b.chunks.Next()
	(*requestBody)(b).got(len(p), err != nil && isEOF(err))
	return p, err
}

func (b *requestChunks) Ready() bool { return b.chunks.Ready() }
