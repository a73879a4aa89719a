package pool

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Again is a request's body that can be sent from its beginning once more; the
// body before reads nothing any more.
type Again interface {
	Again() (again stream.Body, ok bool)
}

// maxReplays is how often a request is sent again because of the connection
// alone.
const maxReplays = 8

// Do implements [stream.Upstream].
func (p *Pool) Do(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	resp, _, err := p.RoundTrip(ctx, req)
	return resp, err
}

// RoundTrip sends a request and returns when the response's head is there. ctx
// bounds the whole exchange; the error is an [*Error]. The response is valid
// until its Body is closed, which its caller does exactly once; Body is nil only
// beside a Tunnel.
//
// A request that met a connection just as the endpoint closed it is sent again
// at once on another: where nothing of it was sent, where the endpoint said that
// it did not process it, where the method is idempotent and nothing came back, or
// where its TCP shows that the request reached nobody. Its body must be none, or one that can be sent [Again].
func (p *Pool) RoundTrip(ctx context.Context, req *stream.Request) (*stream.Response, Exchange, error) {
	if req.Head.Upgrade != "" {
		return p.upgrade(ctx, req)
	}
	l := &p.main
	if p.h2c != nil && req.Head.Protocol == stream.HTTP2 {
		l = p.h2c
	}
	once := !stream.Idempotent(req.Head.Method)
	checked := once
	for n := 0; ; n++ {
		k, err := l.take(ctx, checked, once)
		if err != nil {
			return nil, Exchange{}, err
		}
		resp, err := k.do(ctx, req)
		if err == nil {
			return resp, k.x, nil
		}
		next, e := k.failed(req, err)
		if next == nil || n == maxReplays {
			return nil, k.x, e
		}
		req, checked = next, true
	}
}

// closed says that a connection was ended by its endpoint, not by silence.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// failed ends the part of a link in a failed exchange. next is the request to be
// sent on another connection, nil where it must not be.
func (k *link) failed(req *stream.Request, err error) (next *stream.Request, e *Error) {
	f := failureOf(err)
	e = errorOf(f)
	again := false
	defer func() {
		switch {
		case k.h1 == nil:
		case k.spare && !k.single:
			k.l.put(k)
		default:
			k.close()
		}
	}()
	switch f.Kind {
	case stream.FailedGone:
		return req, e // nothing of it was touched
	case stream.FailedStale:
		if k.idled {
			k.l.p.observe(k)
		}
		again = !f.Sent || closed(f.Err) && stream.Idempotent(req.Head.Method) || k.untouched(f)
	case stream.FailedRefused:
		// Of a connection that is leaving, another takes it; an endpoint that
		// refuses one stream is for the owner to judge.
		again = k.h2 != nil && k.h2.Leaving()
		if again {
			e.Kind = Leaving
		}
	}
	if !again {
		return nil, e
	}
	if req.Body == nil {
		return req, e
	}
	b, ok := req.Body.(Again)
	if !ok {
		return nil, e
	}
	body, ok := b.Again()
	if !ok {
		return nil, e
	}
	copied := *req
	copied.Body = body
	return &copied, e
}
