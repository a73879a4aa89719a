package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/lb"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

var errPerTry = errors.New("cluster: the attempt ran out of its time")

// RoundTrip sends one request with retries as the policy allows and returns
// when the head of the response that counts is there. The error is an [*Error].
// ctx bounds everything, the response's body included. The request's body is
// closed when it is over, if the request got that far; its caller closes it
// too.
func (c *Cluster) RoundTrip(ctx context.Context, req *stream.Request, o Options) (*stream.Response, *Attempt, error) {
	a := &Attempt{}
	if !c.breakers.requests.take() {
		return nil, a, c.fail(telemetry.UpstreamOverflow, "the limit of requests is reached", nil)
	}
	over := sync.OnceFunc(c.breakers.requests.give)
	t := &trip{c: c, req: req, o: o, p: policyOf(o), a: a, body: newReplay(req.Body)}
	resp, err := t.run(ctx)
	t.body.final()
	if err != nil {
		over()
		return nil, a, err
	}
	switch {
	case resp.Tunnel != nil:
		resp.Tunnel.(*watchedTunnel).over = over
	case resp.Body != nil:
		resp.Body.(*watchedBody).over = over
	default:
		over()
	}
	return resp, a, nil
}

// trip is one request's way through its attempts. It belongs to one goroutine.
type trip struct {
	c     *Cluster
	req   *stream.Request
	o     Options
	p     policy
	a     *Attempt
	body  *replay
	tried []*lb.Endpoint
}

func (t *trip) run(ctx context.Context) (*stream.Response, error) {
	gone, left := 0, false
	budgeted := false // the attempt to come takes room in the retry budget
	for retry := 0; ; {
		ep := t.c.pick(t.o, t.tried)
		if ep == nil {
			return nil, t.c.fail(telemetry.NoHealthyUpstream, t.c.unusable(), nil)
		}
		if budgeted && !t.c.roomForRetry(ctx) {
			return nil, t.c.fail(telemetry.UpstreamOverflow, "the retry budget is used up", nil)
		}
		resp, err := t.attempt(ctx, ep)
		if budgeted {
			t.c.breakers.retries.give()
		}
		if err != nil && ctx.Err() != nil {
			return nil, t.c.failure(ctx, ep, err)
		}
		again, unprocessed, wait := t.verdict(resp, err)
		var pe *pool.Error
		if errors.As(err, &pe) && pe.Kind == pool.Gone && gone < maxAttempts { // replaced under our hands: no attempt was made
			gone++
			t.a.Tries--
			continue
		}
		if pe != nil && pe.Kind == pool.Leaving && !left && t.body.again() {
			left = true
			continue
		}
		exhausted := retry >= int(t.p.retries)
		if !again || exhausted || !t.body.again() {
			if err == nil {
				return resp, nil
			}
			e := t.c.failure(ctx, ep, err)
			if again && exhausted && retry > 0 && !t.p.standard {
				e = t.c.fail(telemetry.RetryLimit, fmt.Sprintf("%d attempts failed, the last: %s", t.a.Tries, e.Detail), e)
			}
			return nil, e
		}
		retry++
		budgeted = !unprocessed || t.c.breakers.retries.limit.Load() >= 0
		t.tried = append(t.tried, &ep.lb)
		if (!unprocessed || retry > 1) && !t.c.pause(ctx, &t.p, retry, wait) {
			discard(resp)
			return nil, t.c.failure(ctx, ep, context.Cause(ctx))
		}
		discard(resp)
	}
}

func discard(r *stream.Response) {
	switch {
	case r == nil:
	case r.Tunnel != nil:
		r.Tunnel.Close()
	case r.Body != nil:
		r.Body.Close()
	}
}

// verdict says whether the outcome calls for another attempt.
func (t *trip) verdict(resp *stream.Response, err error) (again, unprocessed bool, wait time.Duration) {
	var pe *pool.Error
	switch {
	case err == nil:
		return resp.Tunnel == nil && t.p.afterResponse(&resp.Head), false, retryAfter(&resp.Head)
	case errors.Is(err, errPerTry):
		return t.p.afterTimeout(), false, 0
	case errors.As(err, &pe):
		again, unprocessed = t.p.afterError(t.req.Head.Method, pe)
	}
	return again, unprocessed, 0
}

// attempt sends the request to one endpoint.
func (t *trip) attempt(ctx context.Context, ep *endpoint) (*stream.Response, error) {
	t.a.Tries++
	t.a.Host, t.a.Instance, t.a.Peer = ep.lb.Address, *ep.instance.Load(), ""
	ep.requests.Add(1)
	ep.lb.Begin()
	done := sync.OnceFunc(ep.lb.End)
	actx, cancel := ctx, func(error) {}
	var timer *time.Timer
	if t.p.perTry > 0 { // only then: see pool.RoundTrip
		actx, cancel = context.WithCancelCause(ctx)
		timer = time.AfterFunc(t.p.perTry, func() { cancel(errPerTry) })
	}
	req := *t.req
	if b := t.body.view(); b != nil {
		req.Body = b
	}
	resp, x, err := ep.pool.Load().RoundTrip(actx, &req)
	if timer != nil && !timer.Stop() && ctx.Err() == nil && errors.Is(context.Cause(actx), errPerTry) {
		discard(resp)
		resp, err = nil, fmt.Errorf("%w: no response within %s", errPerTry, t.p.perTry)
	}
	t.a.TLS, t.a.Peer = x.TLS, x.Peer
	if err != nil {
		ep.failures.Add(1)
		cancel(nil)
		done()
		return nil, err
	}
	watch(resp, done, func() { cancel(nil) })
	return resp, nil
}

// watch makes the endpoint's counters go down when the response ends; cancel
// is called when it is closed.
func watch(resp *stream.Response, done, cancel func()) {
	switch {
	case resp.Tunnel != nil:
		resp.Tunnel = &watchedTunnel{Tunnel: resp.Tunnel, done: done, cancel: cancel}
	case resp.Body != nil:
		resp.Body = &watchedBody{Body: resp.Body, done: done, cancel: cancel}
	default:
		done()
		cancel()
	}
}

// watchedBody ends an attempt, and with over the request, when it ends.
type watchedBody struct {
	stream.Body
	done, over, cancel func() // over is nil until the response was accepted
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.Body.Close()
	b.end()
	b.cancel()
	return err
}

func (b *watchedBody) end() {
	b.done()
	if b.over != nil {
		b.over()
	}
}

type watchedTunnel struct {
	stream.Tunnel
	done, over, cancel func()
}

func (t *watchedTunnel) Close() error {
	err := t.Tunnel.Close()
	t.done()
	t.cancel()
	if t.over != nil {
		t.over()
	}
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
		ep := c.pick(o, tried)
		if ep == nil {
			break
		}
		a.Tries++
		a.Host, a.Instance = ep.lb.Address, *ep.instance.Load()
		ep.requests.Add(1)
		ep.lb.Begin()
		conn, peer, err := ep.pool.Load().Connect(ctx)
		if err == nil {
			a.Peer, a.TLS = peer, peer != ""
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
		last = c.fail(telemetry.NoHealthyUpstream, c.unusable(), nil)
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
