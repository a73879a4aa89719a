package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/lb"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// RoundTrip sends one request with retries as the policy allows and returns
// when the head of the response that counts is there. The error is an [*Error].
// ctx bounds everything, the response's body included. The request's body is
// closed when it is over, if the request got that far; its caller closes it
// too.
//
// The response's Body is not nil unless it has a Tunnel, and its caller closes
// it exactly once. Until then the response and the Attempt are valid; beside an
// error the Attempt stays valid.
func (c *Cluster) RoundTrip(ctx context.Context, req *stream.Request, o Options) (*stream.Response, *Attempt, error) {
	t := trips.Get().(*trip)
	t.c, t.req, t.o, t.p = c, req, o, policyOf(&o)
	if req.Body != nil {
		t.replay.begin(req.Body)
	}
	if !c.breakers.requests.take() {
		return nil, &t.a, c.fail(telemetry.UpstreamOverflow, "the limit of requests is reached", nil)
	}
	resp, err := t.run(ctx)
	t.replay.final()
	if err != nil {
		c.breakers.requests.give()
		return nil, &t.a, err // t is the caller's, by its Attempt
	}
	if resp.Tunnel != nil {
		resp.Tunnel = &watchedTunnel{Tunnel: resp.Tunnel, t: t}
		return resp, &t.a, nil
	}
	t.body = resp.Body
	t.chunks, _ = resp.Body.(stream.Chunks)
	resp.Body = t
	return resp, &t.a, nil
}

// trips are those that nobody holds a part of.
var trips = sync.Pool{New: func() any { return new(trip) }}

// trip is one request's way through its attempts, and then the body of its
// response. It belongs to one goroutine at a time.
type trip struct {
	c     *Cluster
	req   *stream.Request
	o     Options
	p     policy
	a     Attempt
	ep    *endpoint // counts the attempt whose response is being read
	tried []*lb.Endpoint
	try   *try // bounds the attempt; nil: nothing does

	replay replay
	sub    stream.Request // req with the replay in the place of its body

	body   stream.Body   // of the response; nil: empty
	chunks stream.Chunks // body, where it lends
}

var _ stream.Chunks = (*trip)(nil)

// Next implements [stream.Chunks].
func (t *trip) Next() ([]byte, error) {
	if t.chunks == nil {
		return t.nextRead()
	}
	return t.chunks.Next()
}

// nextRead lends what a body that only reads gives.
func (t *trip) nextRead() ([]byte, error) {
	if t.body == nil {
		return nil, io.EOF
	}
	p := make([]byte, netio.BufSize)
	n, err := t.body.Read(p)
	return p[:n], err
}

// Ready implements [stream.Chunks].
func (t *trip) Ready() bool {
	if t.chunks == nil {
		return t.body == nil
	}
	return t.chunks.Ready()
}

// Read implements [stream.Body].
func (t *trip) Read(p []byte) (int, error) {
	if t.body == nil {
		return 0, io.EOF
	}
	return t.body.Read(p)
}

// Trailers implements [stream.Body].
func (t *trip) Trailers() stream.Header {
	if t.body == nil {
		return nil
	}
	return t.body.Trailers()
}

// Close implements [stream.Body]: the request is over, and t may serve another.
func (t *trip) Close() error {
	var err error
	if t.body != nil {
		err = t.body.Close()
	}
	t.over()
	if t.replay.release() && !stream.Poison {
		*t = trip{}
		trips.Put(t)
	}
	return err
}

// over counts the request out.
func (t *trip) over() {
	if t.ep == nil {
		if stream.Poison {
			panic("cluster: a response was closed twice")
		}
		return
	}
	t.settle()
	t.c.breakers.requests.give()
}

// settle ends the attempt.
func (t *trip) settle() {
	t.ep.lb.End()
	t.ep = nil
	if t.try != nil {
		t.try.end()
		t.try = nil
	}
}

// drop ends an attempt whose response does not count.
func (t *trip) drop(resp *stream.Response) {
	if resp != nil {
		resp.End()
		t.settle()
	}
}

func (t *trip) run(ctx context.Context) (*stream.Response, error) {
	ep := t.c.pick(&t.o, nil)
	if ep == nil {
		return nil, t.c.none()
	}
	resp, err := t.attempt(ctx, ep)
	if err == nil && (resp.Tunnel != nil || !t.p.afterResponse(&resp.Head)) {
		return resp, nil
	}
	return t.further(ctx, ep, resp, err)
}

// further goes on after an attempt that does not count as it is.
func (t *trip) further(ctx context.Context, ep *endpoint, resp *stream.Response, err error) (*stream.Response, error) {
	gone, left := 0, false
	budgeted := false // the attempt to come takes room in the retry budget
	for retry := 0; ; {
		if err != nil && ctx.Err() != nil {
			return nil, t.c.failure(ctx, ep, err)
		}
		again, unprocessed, wait := t.verdict(resp, err)
		var pe *pool.Error
		exhausted := retry >= int(t.p.retries)
		switch {
		case errors.As(err, &pe) && pe.Kind == pool.Gone && gone < maxAttempts: // replaced under our hands: no attempt was made
			gone++
			t.a.Tries--
		case pe != nil && pe.Kind == pool.Leaving && !left && t.replay.again():
			left = true
		case !again || exhausted || !t.replay.again():
			if err == nil {
				return resp, nil
			}
			e := t.c.failure(ctx, ep, err)
			if again && exhausted && retry > 0 && !t.p.standard() {
				e = t.c.fail(telemetry.RetryLimit, fmt.Sprintf("%d attempts failed, the last: %s", t.a.Tries, e.Detail), e)
			}
			return nil, e
		default:
			retry++
			budgeted = !unprocessed || t.c.breakers.retries.limit.Load() >= 0
			t.tried = append(t.tried, &ep.lb)
			paused := unprocessed && retry == 1 || t.c.pause(ctx, &t.p, retry, wait)
			t.drop(resp)
			if !paused {
				return nil, t.c.failure(ctx, ep, context.Cause(ctx))
			}
		}
		if ep = t.c.pick(&t.o, t.tried); ep == nil {
			return nil, t.c.none()
		}
		if budgeted && !t.c.roomForRetry(ctx) {
			return nil, t.c.fail(telemetry.UpstreamOverflow, "the retry budget is used up", nil)
		}
		resp, err = t.attempt(ctx, ep)
		if budgeted {
			t.c.breakers.retries.give()
		}
	}
}

// verdict says whether the outcome calls for another attempt.
func (t *trip) verdict(resp *stream.Response, err error) (again, unprocessed bool, wait time.Duration) {
	var pe *pool.Error
	switch {
	case err == nil:
		if resp.Tunnel == nil && t.p.afterResponse(&resp.Head) {
			return true, false, retryAfter(&resp.Head)
		}
	case errors.Is(err, errPerTry):
		return t.p.afterTimeout(), false, 0
	case errors.As(err, &pe):
		again, unprocessed = t.p.afterError(t.req.Head.Method, pe)
	}
	return again, unprocessed, 0
}

// attempt sends the request to one endpoint. With a response, t.ep is set and
// settle is due.
func (t *trip) attempt(ctx context.Context, ep *endpoint) (*stream.Response, error) {
	t.a.Tries++
	t.a.Host, t.a.Instance, t.a.Peer = ep.lb.Address, *ep.instance.Load(), ""
	ep.lb.Begin()
	t.ep = ep
	req, actx := t.req, ctx
	if b := t.replay.view(); b != nil {
		t.sub = *t.req
		t.sub.Body = b
		req = &t.sub
	}
	if t.p.perTry > 0 {
		t.try = newTry(ctx, t.c.m.d.Wheel, t.o.Now, t.p.perTry)
		t.o.Now = time.Time{} // it is the first attempt's
		actx = t.try.scope
	}
	resp, x, err := ep.pool.Load().RoundTrip(actx, req)
	if t.try != nil && !t.try.answered() && ctx.Err() == nil {
		resp.End()
		resp, err = nil, fmt.Errorf("%w: no response within %s", errPerTry, t.p.perTry)
	}
	t.a.TLS, t.a.Peer = x.TLS, x.Peer
	if t.try != nil && (err != nil || resp.Tunnel != nil) {
		t.try.once = true
	}
	if err != nil {
		ep.failures.Add(1)
		t.settle()
		return nil, err
	}
	return resp, nil
}

type watchedTunnel struct {
	stream.Tunnel
	t    *trip
	once sync.Once
}

func (w *watchedTunnel) Close() error {
	err := w.Tunnel.Close()
	w.once.Do(w.t.over)
	return err
}

// Connect opens a connection for opaque bytes, trying other endpoints where one
// refuses or does not answer. The error is an [*Error].
func (c *Cluster) Connect(ctx context.Context, o Options) (netio.Conn, *Attempt, error) {
	a := &Attempt{}
	var tried []*lb.Endpoint
	var last *Error
	limit, gone := c.connectAttempts(), 0
	for len(tried) < limit {
		ep := c.pick(&o, tried)
		if ep == nil {
			break
		}
		a.Tries++
		a.Host, a.Instance = ep.lb.Address, *ep.instance.Load()
		ep.lb.Begin()
		conn, peer, err := ep.pool.Load().Connect(ctx)
		if err == nil {
			a.Peer, a.TLS = peer, c.Resource().TLS != nil
			return &countedConn{Conn: conn, end: sync.OnceFunc(ep.lb.End)}, a, nil
		}
		ep.lb.End()
		var pe *pool.Error
		if errors.As(err, &pe) && pe.Kind == pool.Gone && gone < maxAttempts {
			gone++
			a.Tries--
			continue
		}
		ep.failures.Add(1)
		last = c.failure(ctx, ep, err)
		if ctx.Err() != nil || pe != nil && (pe.Kind == pool.Overflow || pe.Kind == pool.NoIdentity) {
			return nil, a, last
		}
		tried = append(tried, &ep.lb)
	}
	if last == nil {
		last = c.none()
	}
	return nil, a, last
}

// connectAttempts is one more than there are usable endpoints, at most 5 (as
// resource.TCPProxy says).
func (c *Cluster) connectAttempts() int {
	n := 1
	for _, s := range c.state.Load().states {
		if s.Usable {
			n++
		}
	}
	return min(n, 5)
}

// countedConn counts as a request in hand until it is closed.
type countedConn struct {
	netio.Conn
	end func()
}

func (c *countedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *countedConn) Reset() error {
	c.end()
	return c.Conn.Reset()
}

// Unwrap gives the connection below, so that netio.Copy can splice.
func (c *countedConn) Unwrap() netio.Conn { return c.Conn }

func (c *Cluster) fail(code telemetry.Code, detail string, err error) *Error {
	return &Error{Code: code, Detail: detail, Err: err}
}

// failure turns what an endpoint did into the mesh's error.
func (c *Cluster) failure(ctx context.Context, ep *endpoint, err error) *Error {
	var pe *pool.Error
	detail := fmt.Sprintf("endpoint %s of cluster %s: %v", ep.lb.Address, c.name, err)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, errPerTry):
		return c.fail(telemetry.UpstreamRequestTimeout, detail, err)
	case ctx.Err() != nil:
		return c.fail(telemetry.DownstreamReset, detail, err)
	case !errors.As(err, &pe):
		return c.fail(telemetry.UpstreamReset, detail, err)
	}
	detail = fmt.Sprintf("endpoint %s of cluster %s: %s", ep.lb.Address, c.name, pe.Detail)
	return c.fail(codes[pe.Kind], detail, err)
}

var codes = map[pool.Kind]telemetry.Code{
	pool.Connect:        telemetry.UpstreamConnectFailure,
	pool.ConnectTimeout: telemetry.UpstreamConnectTimeout,
	pool.TLS:            telemetry.UpstreamTLSFailure,
	pool.NoIdentity:     telemetry.NoIdentity,
	pool.Refused:        telemetry.UpstreamReset,
	pool.Reset:          telemetry.UpstreamReset,
	pool.Protocol:       telemetry.UpstreamProtocolError,
	pool.Overflow:       telemetry.UpstreamOverflow,
	pool.Cancelled:      telemetry.DownstreamReset,
	pool.Gone:           telemetry.NoHealthyUpstream,
	pool.Leaving:        telemetry.UpstreamReset,
}
