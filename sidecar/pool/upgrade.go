package pool

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// upgrade sends a request that asks for another protocol, on a connection of
// its own that offers only http/1.1: HTTP/1.1 Upgrade (RFC 9110, 7.8) has no
// meaning on HTTP/2, and with one connection for each tunnel either end can
// close its half.
func (p *Pool) upgrade(hreq *http.Request, over func()) (*stream.Response, Exchange, error) {
	ctx := hreq.Context()
	var x Exchange
	c, err := p.upgradeConn(ctx, &x)
	if err != nil {
		over()
		return nil, x, asError(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Reset() })
	end := sync.OnceFunc(func() {
		stop()
		c.Close()
		over()
	})
	br := bufio.NewReader(c)
	hresp, err := exchange(c, br, hreq)
	if err != nil {
		end()
		e := *asError(ctx, err)
		e.Sent = true
		return nil, x, &e
	}
	if hresp.StatusCode == http.StatusSwitchingProtocols {
		r := &stream.Response{Head: stream.ResponseHead{
			Status: hresp.StatusCode, Header: header(hresp.Header), ContentLength: -1, Protocol: stream.HTTP1,
		}}
		r.Tunnel = &tunnel{c: c, r: br, end: end}
		return r, x, nil
	}
	r, err := response(hresp, end)
	if err != nil {
		end()
	}
	return r, x, err
}

func (p *Pool) upgradeConn(ctx context.Context, x *Exchange) (netio.Conn, error) {
	if p.c.TLS == nil {
		return p.open(ctx, false)
	}
	tc, raw, err := p.openTLS(ctx, []string{"http/1.1"}, false)
	if err != nil {
		return nil, err
	}
	x.TLS, x.Peer = true, peerOf(tc.ConnectionState())
	return netio.TLS(tc, raw), nil
}

// exchange writes the request and reads the response's head, skipping interim
// ones (RFC 9110, 15.2).
func exchange(w io.Writer, br *bufio.Reader, hreq *http.Request) (*http.Response, error) {
	if err := hreq.Write(w); err != nil {
		return nil, err
	}
	for {
		r, err := http.ReadResponse(br, hreq)
		if err != nil {
			return nil, err
		}
		if r.StatusCode >= 200 || r.StatusCode == http.StatusSwitchingProtocols {
			return r, nil
		}
	}
}

// tunnel is an accepted upgrade.
type tunnel struct {
	c   netio.Conn
	r   io.Reader
	end func()
}

func (t *tunnel) Read(p []byte) (int, error)  { return t.r.Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.c.Write(p) }
func (t *tunnel) CloseWrite() error           { return t.c.CloseWrite() }

func (t *tunnel) Close() error {
	t.end()
	return nil
}
