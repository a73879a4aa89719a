package pool

import (
	"context"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// upgrade sends a request that asks for another protocol: as an extended CONNECT
// on a shared HTTP/2 connection where the endpoint allows that (RFC 8441), so
// that it needs no connection of its own; else by HTTP/1.1 Upgrade (RFC 9110,
// section 7.8) on a connection that is made for it, and closed after it whatever
// the answer was.
func (p *Pool) upgrade(ctx context.Context, req *stream.Request) (*stream.Response, Exchange, error) {
	l := &p.main
	if p.h2c != nil && req.Head.Protocol == stream.HTTP2 {
		l = p.h2c
	}
	if l.speak != onlyHTTP1 {
		if k := l.multiplexed(ctx); k != nil {
			resp, err := k.do(ctx, req)
			if err == nil {
				return resp, k.x, nil
			}
			if f := failureOf(err); f.Kind != stream.FailedGone {
				_, e := k.failed(req, err)
				return nil, k.x, e
			}
		}
	}
	p.mu.Lock()
	draining := p.draining
	p.mu.Unlock()
	if draining {
		return nil, Exchange{}, errGone
	}
	if err := p.room(ctx); err != nil {
		return nil, Exchange{}, err
	}
	raw, conn, x, _, err := p.open(ctx, p.upgradeTLS)
	if err != nil {
		p.give()
		return nil, x, err
	}
	k := l.link(raw, conn, x, false)
	if k == nil {
		return nil, x, errGone
	}
	k.single = true
	resp, err := k.do(ctx, req)
	if err != nil {
		_, e := k.failed(req, err)
		return nil, x, e
	}
	return resp, x, nil
}

// multiplexed finds an HTTP/2 connection; nil: there is none, or none can be
// opened, of which the connection that is opened instead will tell.
func (l *lane) multiplexed(ctx context.Context) *link {
	k, err := l.take(ctx, true, false)
	if err != nil {
		return nil
	}
	if k.h2 == nil {
		l.put(k)
		return nil
	}
	return k
}
