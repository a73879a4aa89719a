package l7

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// exchange is one request on its way. All of it is one allocation.
type exchange struct {
	x      *connection
	e      *Engine
	client context.Context // ends when the client has gone
	ctx    context.Context // ends also with a time-out
	req    *stream.Request
	w      stream.Responder

	fx      filter.Exchange
	facts   decide.Facts
	verdict decide.RouteVerdict
	rec     telemetry.Record
	run     filter.Run
	watch   watch
	grpc    bool
	cookie  string // set-cookie of a hash policy, "" where none is due

	bytesIn    atomic.Int64
	requestEnd atomic.Int64 // nanoseconds from start; 0: not yet
	headSent   bool
	answered   bool        // the response is the mesh's own: a time-out that made it does not end it
	writing    atomic.Bool // a part of the body is being written: it may block
}

// Exchange implements stream.Handler.
func (x *connection) Exchange(client context.Context, req *stream.Request, w stream.Responder) {
	s := &exchange{x: x, e: x.e, client: client, req: req, w: w}
	ctx, cancel := context.WithCancel(client)
	defer cancel()
	s.ctx = ctx
	s.begin(cancel)
	defer s.end()
	defer s.recover()

	resp, err := s.respond()
	if err != nil {
		resp = s.fail(err)
	}
	if resp == nil { // nobody is left to answer
		w.Abort()
		return
	}
	if err := s.run.Response(ctx, &s.fx, resp); err != nil {
		if resp.Body != nil {
			_ = resp.Body.Close()
		}
		if resp = s.fail(err); resp == nil {
			w.Abort()
			return
		}
	}
	s.send(resp)
}

// begin fills what is known before anything is decided.
func (s *exchange) begin(cancel context.CancelFunc) {
	x, e, h := s.x, s.e, &s.req.Head
	s.grpc = h.Method == http.MethodPost && stream.GRPC(h.Header.Get(hContentType))
	s.rec = telemetry.Record{
		Start: e.d.Now(), Protocol: "http", HTTP: h.Protocol.String(),
		Method: h.Method, Path: h.Path, Authority: h.Authority,
		UserAgent: h.Header.Get("user-agent"), GRPCStatus: -1,
	}
	if s.grpc {
		s.rec.Protocol = "grpc"
	}
	x.describe(&s.rec)
	a, b := e.d.Rand(), e.d.Rand()
	s.facts = decide.Facts{
		PeerID: x.peer, Source: x.c.Source, Destination: x.c.Destination, ServerName: x.c.ServerName,
		Draws: [4]uint32{draw(uint32(a)), draw(uint32(a >> 32)), draw(uint32(b)), draw(uint32(b >> 32))},
		Now:   s.rec.Start,
	}
	s.fx = filter.Exchange{Facts: &s.facts, Local: x.c.Destination, Remote: x.c.Source, Record: &s.rec}
	s.run = e.chain.Start()
	received := s.req.Body
	s.watch.start(or(e.c.Manager.StreamIdleTimeout, DefaultStreamIdle), func() {
		cancel()
		if received != nil {
			_ = received.Close() // a Read that waits for the client fails
		}
		if s.writing.Load() {
			s.w.Interrupt()
		}
	})
	if s.req.Body != nil {
		s.req.Body = &requestBody{Body: s.req.Body, s: s}
		s.watch.requestBy(e.c.Manager.RequestTimeout)
	} else {
		s.requestEnd.Store(1)
	}
}

// draw scales a random number to [0, 1 000 000).
func draw(r uint32) uint32 { return uint32(uint64(r) * 1_000_000 >> 32) }

// respond carries the request as far as it comes: to a refusal, a filter's
// answer, the route's own answer or an upstream's response.
func (s *exchange) respond() (*stream.Response, error) {
	if err := s.accept(); err != nil {
		return nil, err
	}
	routes := s.e.c.Routes() // once: a request sees one configuration
	resp, err := s.run.Request(s.ctx, &s.fx, s.req)
	if resp != nil || err != nil {
		return resp, err
	}
	if s.fx.Route == nil {
		if routes == nil {
			return nil, &filter.Abort{Status: http.StatusServiceUnavailable, Code: telemetry.NoRoute, Detail: "the route configuration has not arrived yet"}
		}
		routes.Route(filter.Head{RequestHead: &s.req.Head}, &s.facts, nil, &s.verdict)
		s.fx.Route = &s.verdict
	}
	return s.follow(s.fx.Route)
}

// accept checks the request, brings its head into its one form and takes off
// what the sender may not say.
func (s *exchange) accept() error {
	x, h := s.x, &s.req.Head
	if h.Method == http.MethodConnect {
		return &filter.Abort{Status: http.StatusNotImplemented, Code: telemetry.DownstreamProtocolError, Detail: "CONNECT is not served here"}
	}
	if err := checkAuthority(h.Authority); err != nil {
		return err
	}
	if host, ok := h.Header.Lookup("host"); ok { // HTTP/2 only: the codecs take HTTP/1's off
		if filter.NormaliseAuthority(host) != filter.NormaliseAuthority(h.Authority) {
			return refuse("the fields host and :authority disagree")
		}
		h.Header.Del("host")
	}
	if h.Path != "*" || h.Method != http.MethodOptions {
		p, err := NormalisePath(h.Path)
		if err != nil {
			return err
		}
		h.Path = p
	}
	if h.Upgrade != "" && !s.e.allows(h.Upgrade) {
		if h.Protocol == stream.HTTP2 {
			return &filter.Abort{Status: http.StatusNotImplemented, Code: telemetry.DownstreamProtocolError, Detail: "extended CONNECT for a protocol that is not allowed: " + h.Upgrade}
		}
		h.Upgrade = "" // a server may ignore an upgrade (RFC 9110, section 7.8)
	}
	h.Scheme = x.scheme()
	x.sanitise(&h.Header)
	s.rec.RequestID = x.requestID(&h.Header)
	return nil
}

// follow does what the route says.
func (s *exchange) follow(v *decide.RouteVerdict) (*stream.Response, error) {
	s.rec.Route = v.RouteName
	switch {
	case v.NotFound:
		return nil, &filter.Abort{Code: telemetry.NoRoute, Detail: "no route matches"}
	case v.Redirect != "":
		h := stream.Header{{Name: "location", Value: v.Redirect}}
		return s.routed(v, &stream.Response{Head: stream.ResponseHead{Status: v.Status, Header: h, ContentLength: 0}}), nil
	case v.Direct != nil:
		return s.routed(v, s.direct(v)), nil
	}
	resp, err := s.forward(v)
	if err != nil {
		return nil, err
	}
	return s.routed(v, resp), nil
}

// direct is a route's own response; to a gRPC request it is a status.
func (s *exchange) direct(v *decide.RouteVerdict) *stream.Response {
	if s.grpc {
		return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1, Header: stream.Header{
			{Name: hContentType, Value: "application/grpc"},
			{Name: hGRPCStatus, Value: strconv.Itoa(grpcOf(v.Status))},
			{Name: hGRPCMessage, Value: grpcMessage(v.Direct.Body)},
		}}}
	}
	var h stream.Header
	if v.Direct.Body != "" {
		h = stream.Header{{Name: hContentType, Value: "text/plain"}}
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
	if s.client.Err() != nil {
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

// recover makes a panic end this request and no other.
func (s *exchange) recover() {
	p := recover()
	if p == nil {
		return
	}
	s.e.d.Log.Error("a request's handler panicked", telemetry.KeyCode, telemetry.LocalPanic.String(),
		telemetry.KeyError, p, telemetry.KeyStack, string(debug.Stack()), telemetry.KeyListener, s.x.c.Listener)
	a := &filter.Abort{Code: telemetry.LocalPanic, Detail: "a handler panicked"}
	s.rec.Code, s.rec.Detail = a.Code, a.Detail
	if s.headSent {
		s.w.Abort()
		return
	}
	s.answered = true
	s.send(s.e.answer(a, s.grpc))
}

// end records the exchange.
func (s *exchange) end() {
	s.watch.stop()
	func() { // a filter's Done may panic, too
		defer s.recover()
		s.run.Done(&s.fx)
	}()
	s.rec.Duration = s.e.d.Now().Sub(s.rec.Start)
	s.rec.BytesIn = s.bytesIn.Load()
	if s.req.Body != nil {
		s.rec.RequestEnd = time.Duration(s.requestEnd.Load())
	}
	s.rec.Request = s.req.Head.Header
	s.e.rec.Request(&s.rec)
}
