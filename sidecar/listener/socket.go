package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// active is what a socket's connections are decided by. Immutable.
type active struct {
	version string
	config  Config
	chains  *decide.Chains
	sniff   bool                   // some chain matches on what only a ClientHello says
	detect  bool                   // some chain matches on what a client in plaintext speaks
	tls     map[*Chain]*tls.Config // chains with TLS
}

// newActive compiles c. The TLS configuration of a chain that is the same as in
// before is carried over: session tickets live in it.
func newActive(s *Set, version string, c Config, before *active) *active {
	a := &active{version: version, config: c, chains: decide.CompileListener(c.Resource), tls: make(map[*Chain]*tls.Config)}
	for i := range c.Resource.Chains {
		a.sniff = a.sniff || listens(&c.Resource.Chains[i])
		a.detect = a.detect || detects(&c.Resource.Chains[i])
	}
	for name, ch := range c.Chains {
		if ch.Resource.TLS == nil {
			continue
		}
		if before != nil {
			if old := before.config.Chains[name]; old != nil && old.Equal == ch.Equal && before.tls[old] != nil {
				a.tls[ch] = before.tls[old]
				continue
			}
		}
		a.tls[ch] = s.tlsConfig(ch)
	}
	return a
}

func (s *Set) tlsConfig(ch *Chain) *tls.Config {
	t := ch.Resource.TLS
	if ch.Own != nil {
		return ch.Own.Config
	}
	p := mtls.ServerParams{
		Params: mtls.Params{
			Identity: s.Identity, Trust: ch.Trust, Authorise: ch.PeerAllowed, ALPN: t.ALPN,
			MinVersion: tlsVersion(t.MinVersion), MaxVersion: tlsVersion(t.MaxVersion), Now: s.Now,
		},
		OptionalClientCert: !t.RequireClientCert,
	}
	return mtls.ServerConfig(p)
}

func tlsVersion(v string) uint16 {
	switch v {
	case "1.2":
		return tls.VersionTLS12
	case "1.3":
		return tls.VersionTLS13
	}
	return 0
}

// chain gives the chain that a connection takes.
func (a *active) chain(c decide.Connection) (*Chain, bool) {
	fc, ok := a.chains.Match(c, nil)
	if !ok {
		return nil, false
	}
	ch := a.config.Chains[fc.Name]
	return ch, ch != nil
}

// socket is one open listener.
type socket struct {
	set      *Set
	name     string
	address  resource.Address
	ln       netio.Listener
	twin     netio.Listener         // on the other family's loopback address; nil: none
	port     uint16                 // of ln; 0: it has none
	active   atomic.Pointer[active] // nil: removed
	stopped  atomic.Bool            // no longer accepting
	counters counters
	quiet    quiet
	learned  learned

	mu       sync.Mutex
	conns    map[*tracked]struct{} // guarded by mu
	draining string                // guarded by mu: why, "" where not
	empty    chan struct{}         // guarded by mu: closed when conns gets empty; nil: nobody waits
}

// leftOut says how many refusals the log does not have.
func (so *socket) leftOut(n int) {
	so.set.Log.Warn("listener: more connections refused", "listener", so.name, "count", n, "within", refusalWindow.String())
}

// close stops accepting.
func (so *socket) close() {
	_ = so.ln.Close()
	if so.twin != nil {
		_ = so.twin.Close()
	}
}

// accept takes connections until the socket is closed. An error that may pass
// (no descriptors left) makes it pause, longer each time.
func (so *socket) accept(ln netio.Listener) {
	pause := time.Duration(0)
	for {
		if !so.set.Overload.Await(so.set.ctx.Done()) {
			return
		}
		c, err := ln.AcceptConn()
		if err == nil {
			pause = 0
			so.counters.accepted.Add(1)
			ticket, code := so.set.Overload.Admit(so.name, int(so.counters.active.Load()), addrPort(c.RemoteAddr()).Addr())
			if code != telemetry.OK {
				so.turnAway(c, code)
				continue
			}
			so.counters.active.Add(1)
			so.set.wg.Add(1)
			go so.handle(c, ticket)
			continue
		}
		if errors.Is(err, net.ErrClosed) || so.set.ctx.Err() != nil {
			return
		}
		so.counters.acceptErrors.Add(1)
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		so.set.Log.Warn("listener: cannot accept; trying again after a pause",
			"listener", so.name, "pause", pause.String(), "err", err)
		select {
		case <-time.After(pause):
		case <-so.set.ctx.Done():
			return
		}
	}
}

// drain asks every connection, now and to come, to end after the work in hand.
func (so *socket) drain(reason string) {
	so.mu.Lock()
	so.draining = reason
	conns := so.copyLocked()
	so.mu.Unlock()
	for _, t := range conns {
		t.askToEnd()
	}
}

// finish waits until no connection is left or ctx has ended; it then cuts what
// is left and says how many that were.
func (so *socket) finish(ctx context.Context) int {
	for {
		so.mu.Lock()
		if len(so.conns) == 0 {
			so.mu.Unlock()
			return 0
		}
		if so.empty == nil {
			so.empty = make(chan struct{})
		}
		empty := so.empty
		so.mu.Unlock()
		select {
		case <-empty:
		case <-ctx.Done():
			return so.cut(telemetry.DrainTimeout, "the connection had not ended when the time for draining was over")
		}
	}
}

func (so *socket) cut(code telemetry.Code, reason string) int {
	so.mu.Lock()
	conns := so.copyLocked()
	so.mu.Unlock()
	for _, t := range conns {
		t.end(code, reason)
	}
	return len(conns)
}

func (so *socket) copyLocked() []*tracked {
	out := make([]*tracked, 0, len(so.conns))
	for t := range so.conns {
		out = append(out, t)
	}
	return out
}

// Counts of one listener since it was opened.
type Counts struct {
	Accepted, Active                                                  uint64
	AcceptErrors, NoChain, SniffFailures, TLSFailures, RBACDenied     uint64
	Reauthorised /* ended because permission was withdrawn */, Panics uint64
	Limited                                                           uint64 // closed at once because of a limit of connections or of memory
	// Of connections whose protocol nobody declared, what was found. ServerFirst
	// is the part of NotHTTP whose upstream spoke before the client.
	HTTP10, HTTP11, HTTP2, NotHTTP, ServerFirst uint64
}

type counters struct {
	accepted, active                                              atomic.Uint64
	acceptErrors, noChain, sniff, tls, rbac, reauthorised, panics atomic.Uint64
	limited, http10, http11, http2, notHTTP, serverFirst          atomic.Uint64
}

// found counts what a connection whose protocol nobody declared turned out to be.
func (c *counters) found(s speech, serverFirst bool) {
	switch s {
	case http10:
		c.http10.Add(1)
	case http11:
		c.http11.Add(1)
	case h2c:
		c.http2.Add(1)
	default:
		c.notHTTP.Add(1)
		if serverFirst {
			c.serverFirst.Add(1)
		}
	}
}

func (c *counters) read() Counts {
	return Counts{
		Accepted: c.accepted.Load(), Active: c.active.Load(),
		AcceptErrors: c.acceptErrors.Load(), NoChain: c.noChain.Load(), SniffFailures: c.sniff.Load(),
		TLSFailures: c.tls.Load(), RBACDenied: c.rbac.Load(), Reauthorised: c.reauthorised.Load(), Panics: c.panics.Load(), Limited: c.limited.Load(),
		HTTP10: c.http10.Load(), HTTP11: c.http11.Load(), HTTP2: c.http2.Load(), NotHTTP: c.notHTTP.Load(), ServerFirst: c.serverFirst.Load(),
	}
}
