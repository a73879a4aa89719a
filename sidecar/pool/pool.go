package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Defaults.
const (
	defaultConnectTimeout = 5 * time.Second
	defaultIdleTimeout    = time.Hour
	maxIdle               = 1024      // HTTP/1.1 connections kept for reuse
	maxResponseHeader     = 256 << 10 // bytes
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

// Deps are what a pool uses. Net is required.
type Deps struct {
	Net    netio.Net
	Wheel  *wheel.Wheel // nil: one of its own
	Limits Limits       // nil: none
	// Connected is told how opening a connection came out: err is nil or an
	// *Error. It must not block. nil: nobody is told.
	Connected func(err error)
}

// Limits bound connections and the requests that wait for one. No method
// blocks.
type Limits interface {
	// Take takes room for a connection, if there is any; Give gives it back.
	Take() bool
	Give()
	// Enter is asked before a request waits for room, Leave ends the wait. Its
	// error is the request's.
	Enter() error
	Leave()
	// Freed is closed when there may be room. Ask for it before Take.
	Freed() <-chan struct{}
}

// Pool is the connections to one endpoint. Safe for concurrent use.
type Pool struct {
	c    Config
	d    Deps
	main lane
	h2c  *lane // for requests that came by HTTP/2, where the endpoint is spoken to as the client spoke; else nil
	// TLS of connections for upgrades and for opaque bytes.
	upgradeTLS, opaqueTLS *tls.Config

	ctx  context.Context // of dials and of HTTP/2's readers; ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // goroutines

	timer wheel.Timer // of sweep

	mu       sync.Mutex
	draining bool // no further requests
	closed   bool
	links    map[*link]struct{}  // open, for requests
	given    map[*given]struct{} // open, given away by Connect
	armed    bool                // timer is set
	slow     bool                // … for later than sweepMin
	epoch    uint32              // counts sweeps and starts: what became idle in this one did so just now
	epochAt  int64               // when it began, by the wheel's clock
	learned  learned
}

// New makes a pool; it opens nothing.
func New(c Config, d Deps) *Pool {
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = defaultConnectTimeout
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if d.Wheel == nil {
		d.Wheel = wheel.New()
	}
	p := &Pool{c: c, d: d, links: map[*link]struct{}{}, given: map[*given]struct{}{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.timer.Init(d.Wheel, p.sweep)
	p.main.init(p, c.speaks())
	if c.Protocol == resource.ProtocolDownstream {
		p.h2c = new(lane)
		p.h2c.init(p, onlyHTTP2)
	}
	p.upgradeTLS = p.offering("http/1.1")
	// No ALPN: what is inside is opaque, and a server that knows only HTTP names
	// must not refuse it.
	p.opaqueTLS = p.offering()
	return p
}

// speaks says which versions may be used for ordinary requests.
func (c *Config) speaks() versions {
	switch c.Protocol {
	case resource.ProtocolHTTP2:
		return onlyHTTP2
	case resource.ProtocolAuto:
		if c.TLS != nil { // without ALPN there is nothing to choose by
			return byALPN
		}
	}
	return onlyHTTP1
}

// offering is the TLS configuration with these names for ALPN.
func (p *Pool) offering(alpn ...string) *tls.Config {
	if p.c.TLS == nil {
		return nil
	}
	conf := p.c.TLS.Clone()
	conf.NextProtos = alpn
	return conf
}

func (p *Pool) connected(err error) {
	if p.d.Connected != nil {
		p.d.Connected(err)
	}
}

// Conns is the number of open connections.
func (p *Pool) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links) + len(p.given)
}

// lanes are the pool's.
func (p *Pool) lanes() []*lane {
	if p.h2c != nil {
		return []*lane{&p.main, p.h2c}
	}
	return []*lane{&p.main}
}

// Drain refuses further requests, closes what is idle, and lets each open
// connection end with its last stream. A request for which a connection is being
// opened still gets it. Connections that Connect gave away are their owners'. It
// does not wait.
func (p *Pool) Drain() {
	p.mu.Lock()
	p.draining = true
	var idle, shared []*link
	var left []*waiter
	for _, l := range p.lanes() {
		l.current.Store(nil)
		idle = append(idle, l.idle...)
		l.idle = nil
		for _, k := range l.shared {
			if len(l.waiters) > 0 && !k.greeted && !k.h2.Greeted() { // they wait for it
				k.due.Store(int64(k.h2.Streams()))
				k.last.Store(true)
				continue
			}
			shared = append(shared, k)
		}
		left = append(left, l.abandon()...)
	}
	p.mu.Unlock()
	answer(left)
	for _, k := range idle {
		k.close()
	}
	for _, k := range shared {
		k.h2.Drain()
	}
}

// Close ends everything at once and waits for the pool's goroutines.
func (p *Pool) Close() {
	p.mu.Lock()
	p.draining, p.closed = true, true
	links, lent := make([]*link, 0, len(p.links)), make([]*given, 0, len(p.given))
	for k := range p.links {
		links = append(links, k)
	}
	for c := range p.given {
		lent = append(lent, c)
	}
	var left []*waiter
	for _, l := range p.lanes() {
		l.current.Store(nil)
		ws := l.first(len(l.waiters))
		for _, w := range ws {
			w.err = errGone
		}
		left = append(left, ws...)
	}
	p.mu.Unlock()
	answer(left)
	p.stop()
	for _, k := range links {
		k.reset()
	}
	for _, c := range lent {
		_ = c.Reset()
	}
	p.wg.Wait()
	p.timer.Remove()
}

// given is a connection that belongs to the caller of Connect.
type given struct {
	netio.Conn
	p    *Pool
	once sync.Once
}

func (c *given) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

func (c *given) Reset() error {
	c.once.Do(c.gone)
	return c.Conn.Reset()
}

// Unwrap gives the connection below, so that netio.Copy can splice.
func (c *given) Unwrap() netio.Conn { return c.Conn }

func (c *given) gone() {
	c.p.mu.Lock()
	delete(c.p.given, c)
	c.p.mu.Unlock()
	c.p.give()
}

// Connect opens a connection for opaque bytes that belongs to the caller; peer
// is the SPIFFE id that the endpoint proved, "" without TLS. The error is an
// [*Error].
func (p *Pool) Connect(ctx context.Context) (c netio.Conn, peer string, err error) {
	p.mu.Lock()
	draining := p.draining
	p.mu.Unlock()
	if draining {
		return nil, "", errGone
	}
	if err := p.room(ctx); err != nil {
		return nil, "", err
	}
	raw, conn, x, _, err := p.open(ctx, p.opaqueTLS)
	if err != nil {
		p.give()
		return nil, "", err
	}
	// The pool counts raw; TLS, where there is any, ends through it.
	g := &given{Conn: conn, p: p}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.given[g] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		_ = raw.Reset()
		p.give()
		return nil, "", errGone
	}
	return g, x.Peer, nil
}

var errGone = &Error{Kind: Gone, Detail: "the endpoint is being removed"}

// room takes room for a connection, waiting as a pending request where there is
// none.
func (p *Pool) room(ctx context.Context) error {
	if p.take() {
		return nil
	}
	lim := p.d.Limits
	if err := lim.Enter(); err != nil {
		return err
	}
	defer lim.Leave()
	for {
		freed := lim.Freed()
		if lim.Take() {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return errWaiting(stream.CauseOf(ctx))
		}
	}
}

func (p *Pool) take() bool { return p.d.Limits == nil || p.d.Limits.Take() }

func (p *Pool) give() {
	if p.d.Limits != nil {
		p.d.Limits.Give()
	}
}

func errWaiting(cause error) *Error {
	if cause == nil {
		cause = errors.New("unknown")
	}
	return &Error{Kind: Cancelled, Err: cause, Detail: "the caller gave up while waiting for a connection: " + cause.Error()}
}
