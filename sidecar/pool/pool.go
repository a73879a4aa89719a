package pool

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Defaults.
const (
	defaultConnectTimeout = 5 * time.Second
	defaultIdleTimeout    = time.Hour
	maxIdle               = 1024      // HTTP/1.1 connections kept for reuse
	maxResponseHeader     = 256 << 10 // bytes
	streamWindow          = 256 << 10 // bytes received ahead per HTTP/2 stream
	connWindow            = 1 << 20   // … and per connection
	// A silent HTTP/2 connection is asked whether its peer still lives, and ended
	// with every request on it when there is no answer.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// Config is one endpoint as a pool sees it. Read-only.
type Config struct {
	Network, Address string // "tcp" or "unix"
	Protocol         resource.Protocol
	// TLS opens TLS to the endpoint, ALPN left to the pool; nil: plaintext.
	TLS            *tls.Config
	ConnectTimeout time.Duration // TCP and TLS together; 0: 5 s
	IdleTimeout    time.Duration // 0: 1 h
	Keepalive      *resource.TCPKeepalive
}

// Hooks are what a pool tells and asks its owner; nil fields do nothing. They
// must not block unless they say so.
type Hooks struct {
	// Slot is asked before a connection is opened and may block until there is
	// room. release is called when the connection is closed.
	Slot func(ctx context.Context) (release func(), err error)
	// Connected is told how opening came out: err is nil or an *Error.
	Connected func(err error)
}

// Pool is the connections to one endpoint. Safe for concurrent use.
type Pool struct {
	c       Config
	network netio.Net
	hooks   Hooks
	main    *http.Transport
	h2c     *http.Transport // for requests that came by HTTP/2, where the endpoint speaks what the client does in plaintext; else nil

	mu       sync.Mutex
	inUse    int            // requests whose response is not over
	draining bool           // no further requests
	conns    map[*conn]bool // open; true: given away by Connect
	closed   bool
}

// New makes a pool; it opens nothing.
func New(c Config, n netio.Net, h Hooks) *Pool {
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = defaultConnectTimeout
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	p := &Pool{c: c, network: n, hooks: h, conns: map[*conn]bool{}}
	h1, h2 := c.speaks()
	p.main = p.transport(h1, h2)
	if c.Protocol == resource.ProtocolDownstream && c.TLS == nil {
		p.h2c = p.transport(false, true)
	}
	return p
}

// speaks says which versions may be used for ordinary requests.
func (c Config) speaks() (h1, h2 bool) {
	switch c.Protocol {
	case resource.ProtocolHTTP2:
		return false, true
	case resource.ProtocolAuto, resource.ProtocolDownstream:
		return true, c.TLS != nil // without ALPN there is nothing to choose by
	}
	return true, false
}

func (p *Pool) transport(h1, h2 bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(h1)
	if p.c.TLS != nil {
		protocols.SetHTTP2(h2)
	} else {
		protocols.SetUnencryptedHTTP2(h2)
	}
	var alpn []string
	if h2 {
		alpn = append(alpn, "h2")
	}
	if h1 {
		alpn = append(alpn, "http/1.1")
	}
	t := &http.Transport{
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        p.c.IdleTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := p.open(ctx, false)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			tc, _, err := p.openTLS(ctx, alpn, false)
			if err != nil {
				return nil, err
			}
			if got := tc.ConnectionState().NegotiatedProtocol; !h1 && got != "h2" {
				tc.Close()
				return nil, &Error{Kind: Protocol, Detail: "the endpoint does not offer HTTP/2 (ALPN h2), which the cluster demands"}
			}
			return tc, nil
		},
	}
	return t
}

// conn is an open connection that its pool counts.
type conn struct {
	netio.Conn
	p       *Pool
	release func()
	once    sync.Once
}

func (c *conn) Close() error {
	c.gone()
	return c.Conn.Close()
}

func (c *conn) Reset() error {
	c.gone()
	return c.Conn.Reset()
}

// Unwrap gives the connection below, so that netio.Copy can splice.
func (c *conn) Unwrap() netio.Conn { return c.Conn }

func (c *conn) gone() {
	c.once.Do(func() {
		c.p.mu.Lock()
		delete(c.p.conns, c)
		c.p.mu.Unlock()
		if c.release != nil {
			c.release()
		}
	})
}

// open opens a TCP connection.
func (p *Pool) open(ctx context.Context, given bool) (*conn, error) {
	release, err := p.slot(ctx)
	if err != nil {
		return nil, err
	}
	c, err := p.dial(ctx)
	p.connected(err)
	if err != nil {
		release()
		return nil, err
	}
	return p.adopt(c, release, given)
}

// slot asks the owner for room; release is never nil where err is nil.
func (p *Pool) slot(ctx context.Context) (release func(), err error) {
	if p.hooks.Slot == nil {
		return func() {}, nil
	}
	return p.hooks.Slot(waiting(ctx))
}

func (p *Pool) connected(err error) {
	if p.hooks.Connected != nil {
		p.hooks.Connected(err)
	}
}

func (p *Pool) dial(ctx context.Context) (netio.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, p.c.ConnectTimeout)
	defer cancel()
	c, err := p.network.Dial(dctx, p.c.Network, p.c.Address)
	if err != nil {
		return nil, connectError(ctx, dctx, err, p.c.ConnectTimeout)
	}
	return c, nil
}

// adopt puts a connection on the pool's list; given: it will be a caller's.
func (p *Pool) adopt(nc netio.Conn, release func(), given bool) (*conn, error) {
	c := &conn{Conn: nc, p: p, release: release}
	if k := p.c.Keepalive; k != nil {
		netio.SetKeepAlive(nc, k.Probes, k.Time, k.Interval)
	}
	p.mu.Lock()
	closed := p.closed || p.draining && p.inUse == 0 && !given
	if !closed {
		p.conns[c] = given
	}
	p.mu.Unlock()
	if closed {
		c.Close()
		return nil, &Error{Kind: Gone, Detail: "the pool was closed"}
	}
	return c, nil
}

// identity asks for our own certificate before anybody is dialled: the other
// side's refusal of us, or its own end, would hide that we have none.
func (p *Pool) identity(ctx context.Context) error {
	if p.c.TLS.GetClientCertificate == nil {
		return nil
	}
	if _, err := p.c.TLS.GetClientCertificate(&tls.CertificateRequestInfo{}); err != nil {
		return handshakeError(ctx, ctx, err, p.c.ConnectTimeout)
	}
	return nil
}

// openTLS opens a connection and its TLS. ctx bounds both.
func (p *Pool) openTLS(ctx context.Context, alpn []string, given bool) (*tls.Conn, *conn, error) {
	if err := p.identity(ctx); err != nil {
		return nil, nil, err
	}
	release, err := p.slot(ctx)
	if err != nil {
		return nil, nil, err
	}
	start := time.Now()
	nc, err := p.dial(ctx)
	if err != nil {
		p.connected(err)
		release()
		return nil, nil, err
	}
	c, err := p.adopt(nc, release, given)
	if err != nil {
		return nil, nil, err
	}
	conf := p.c.TLS.Clone()
	conf.NextProtos = alpn
	tc := tls.Client(c, conf)
	hctx, cancel := context.WithDeadline(ctx, start.Add(p.c.ConnectTimeout))
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		c.Reset()
		err = handshakeError(ctx, hctx, err, p.c.ConnectTimeout)
		p.connected(err)
		return nil, nil, err
	}
	p.connected(nil)
	return tc, c, nil
}

// Connect opens a connection for opaque bytes that belongs to the caller; peer
// is the SPIFFE id that the endpoint proved, "" without TLS. The error is an
// [*Error].
func (p *Pool) Connect(ctx context.Context) (c netio.Conn, peer string, err error) {
	p.mu.Lock()
	draining := p.draining
	p.mu.Unlock()
	if draining {
		return nil, "", &Error{Kind: Gone, Detail: "the endpoint is being removed"}
	}
	if p.c.TLS == nil {
		pc, err := p.open(ctx, true)
		if err != nil {
			return nil, "", asError(ctx, err)
		}
		return pc, "", nil
	}
	// No ALPN: what is inside is opaque, and a server that knows only HTTP
	// names must not refuse it.
	tc, raw, err := p.openTLS(ctx, nil, true)
	if err != nil {
		return nil, "", asError(ctx, err)
	}
	return netio.TLS(tc, raw), peerOf(tc.ConnectionState()), nil
}

func peerOf(cs tls.ConnectionState) string {
	if id, ok := mtls.PeerID(cs); ok {
		return id.String()
	}
	return ""
}

// Conns is the number of open connections.
func (p *Pool) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Drain refuses further requests, closes what is idle, and lets each open
// connection end with its last stream. Connections that Connect gave away are
// their owners'. It does not wait.
func (p *Pool) Drain() {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	p.closeIdle()
	p.closeUnused()
}

func (p *Pool) closeIdle() {
	p.main.CloseIdleConnections()
	if p.h2c != nil {
		p.h2c.CloseIdleConnections()
	}
}

// closeUnused closes the connections of a drained pool without requests.
// net/http alone would keep one whose last stream it has not cleaned up yet,
// for as long as the idle time-out.
func (p *Pool) closeUnused() {
	p.mu.Lock()
	var unused []*conn
	if p.draining && p.inUse == 0 {
		for c, given := range p.conns {
			if !given {
				unused = append(unused, c)
			}
		}
	}
	p.mu.Unlock()
	for _, c := range unused {
		_ = c.Close()
	}
}

// Close ends everything at once.
func (p *Pool) Close() {
	p.mu.Lock()
	p.draining, p.closed = true, true
	all := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	p.closeIdle()
	for _, c := range all {
		c.Reset()
	}
}

// begin counts a request in.
func (p *Pool) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.inUse++
	return true
}

// end counts it out; the last one of a drained pool closes the connections.
func (p *Pool) end() {
	p.mu.Lock()
	p.inUse--
	last := p.draining && p.inUse == 0
	p.mu.Unlock()
	if last {
		p.closeUnused()
	}
}

var _ stream.Upstream = (*Pool)(nil)
