package listener

import (
	"crypto/x509"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// tracked is one connection from accept to end. It is most of what an idle
// connection costs, so it holds nothing twice.
type tracked struct {
	c      Conn // the engine's, once served is set
	so     *socket
	raw    netio.Conn
	ticket overload.Ticket
	serial uint64 // order of acceptance within the Set
	start  time.Time
	served atomic.Bool // the engine has, or had, c
	waits  atomic.Bool // idle, and cannot be parked: it waits on its goroutine

	// asked: to end after the work in hand. draining says so to the engine, and is
	// there while the engine has the connection.
	asked    atomic.Bool
	draining atomic.Pointer[stream.Scope]

	// Set before the connection enters the live index, read-only from then on.
	hello  *hello // nil: the connection was not sniffed, or is not TLS
	certs  []*x509.Certificate
	chain  *Chain
	spoken speech      // 0: not asked, or none that chains are chosen by
	life   *time.Timer // nil: no bound
}

var errDraining = errors.New("listener: the connection is to end after the work in hand")

// askToEnd tells the engine; one that has left the connection to the listener
// is called.
func (t *tracked) askToEnd() {
	t.asked.Store(true)
	if d := t.draining.Load(); d != nil {
		d.Cancel(errDraining)
	}
	t.so.set.idle.Wake(t.raw)
	if t.waits.Load() {
		_ = t.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// end closes the connection at once. It never blocks.
func (t *tracked) end(code telemetry.Code, reason string) {
	if t.served.Load() {
		t.c.End(code, reason)
		return
	}
	_ = t.raw.Reset()
}

// seen is what the choice of a chain goes by.
func (t *tracked) seen() decide.Connection {
	c := decide.Connection{Source: t.c.Source, Destination: t.c.Destination, ServerName: t.c.ServerName, TransportProtocol: "raw_buffer"}
	if t.hello != nil {
		c.TransportProtocol, c.ALPN = "tls", t.hello.alpn
	}
	if t.spoken != 0 {
		c.ALPN = t.spoken.protocols()
	}
	return c
}

// facts is what authorisation goes by.
func (t *tracked) facts(now time.Time) decide.Facts {
	return decide.Facts{Source: t.c.Source, Destination: t.c.Destination, ServerName: t.c.ServerName, PeerID: t.c.PeerName(), Now: now}
}

// handle begins one accepted connection. The Set waits for it until over.
func (so *socket) handle(raw netio.Conn, ticket overload.Ticket) {
	t := &tracked{so: so, raw: raw, ticket: ticket, serial: so.set.serial.Add(1), start: so.set.Now()}
	so.mu.Lock()
	so.conns[t] = struct{}{}
	if so.draining != "" {
		t.asked.Store(true)
	}
	so.mu.Unlock()
	a := so.active.Load() // the one configuration that this connection sees
	if a == nil {
		t.over()
		return
	}
	refused := t.address(a)
	if refused == nil {
		refused = t.open(a)
	}
	if refused != nil {
		t.refuse(a, refused)
		t.over()
		return
	}
	t.served.Store(true)
	so.set.Live.Add(t)
	// Between the decision and Add the configuration may have changed; from
	// here on a Recheck sees this connection.
	if so.active.Load() != a {
		if v, reason := t.Recheck(); v != live.Keep {
			t.End(v, reason)
		}
	}
	if m := t.chain.Resource.HTTP; m != nil && m.MaxConnection > 0 {
		t.life = time.AfterFunc(m.MaxConnection, t.askToEnd)
	}
	t.run()
}

// over is the end of a connection.
func (t *tracked) over() {
	so := t.so
	if t.life != nil {
		t.life.Stop()
	}
	_ = t.raw.Close()
	so.set.Live.Remove(t)
	so.mu.Lock()
	delete(so.conns, t)
	if len(so.conns) == 0 && so.empty != nil {
		close(so.empty)
		so.empty = nil
	}
	so.mu.Unlock()
	so.counters.active.Add(^uint64(0))
	t.ticket.Release()
	so.set.wg.Done()
}

// run gives the connection to its engine, until it is over or idle. An idle one
// has no goroutine: it is parked, and what happens to it starts one.
func (t *tracked) run() {
	if t.serve() {
		set := t.so.set
		if set.idle.Park(t.c.Conn, t) {
			// From here on another goroutine may have the connection.
			if t.asked.Load() {
				set.idle.Wake(t.raw)
			}
			return
		}
		for idle := true; idle; { // no descriptor left for an epoll, or none on this system
			t.waits.Store(true)
			if !t.asked.Load() {
				_ = t.c.WaitReadable()
			}
			t.waits.Store(false)
			_ = t.raw.SetReadDeadline(time.Time{})
			idle = t.serve()
		}
	}
	t.over()
}

// Wake implements [netio.Waker].
func (t *tracked) Wake() { go t.run() }

// serve calls the engine and says whether it left the connection idle.
func (t *tracked) serve() (idle bool) {
	so := t.so
	draining := new(stream.Scope)
	t.c.Draining = draining
	t.draining.Store(draining)
	if t.asked.Load() {
		draining.Cancel(errDraining)
	}
	defer func() {
		if idle {
			t.draining.Store(nil) // who asks from here on is seen by run
			t.c.Draining = nil
			return
		}
		_ = t.c.Close()
		if p := recover(); p != nil {
			so.counters.panics.Add(1)
			so.set.Log.Error("listener: panic in an engine; this connection ends, the others go on",
				"listener", so.name, "chain", t.c.Chain, "code", telemetry.LocalPanic.String(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	if p, ok := t.chain.Handler.(Parker); ok {
		return p.ServeUntilIdle(so.set.ctx, &t.c)
	}
	t.chain.Handler.Serve(so.set.ctx, &t.c)
	return false
}

// End implements [live.Entry]. It never blocks.
func (t *tracked) End(v live.Verdict, reason string) {
	switch v {
	case live.Keep:
	case live.CloseAfterRequest:
		t.askToEnd()
	default:
		t.so.counters.reauthorised.Add(1)
		t.so.set.Log.Warn("listener: open connection ended", "listener", t.so.name, "source", t.c.Source.String(),
			"peer", t.c.PeerName(), "code", telemetry.ReauthorisedDenied.String(), "err", reason)
		t.end(telemetry.ReauthorisedDenied, reason)
	}
}

// Recheck implements [live.Entry]: it decides again about an open connection, by
// the configuration in force now.
func (t *tracked) Recheck() (live.Verdict, string) {
	a := t.so.active.Load()
	if a == nil {
		return live.CloseAfterRequest, "the listener was removed"
	}
	chain, ok := a.chain(t.seen())
	if !ok {
		return live.CloseAfterRequest, "no filter chain of the listener takes this connection any more"
	}
	if conf := chain.Resource.TLS; conf != nil && conf.RequireClientCert && len(t.certs) == 0 {
		return live.CloseNow, "the listener now requires a client certificate, and this connection has none"
	}
	facts := t.facts(t.so.set.Now())
	if allowed, why := authorise(chain.Authorise, &facts); !allowed {
		return live.CloseNow, why
	}
	if allowed, why := authorise(chain.Reauthorise, &facts); !allowed {
		return live.CloseNow, why
	}
	if len(t.certs) > 0 && chain.Own != nil && chain.Own.Verify != nil {
		if err := chain.Own.Verify(t.certs, t.start); err != nil {
			return live.CloseNow, "the client's certificate is no longer trusted: " + err.Error()
		}
	}
	if len(t.certs) > 0 && chain.Own == nil && chain.Trust != nil {
		// By the clock of the handshake: a certificate may run out while its
		// connection lives; a root that is taken away ends it.
		_, err := mtls.Verify(t.certs, mtls.Verification{Role: mtls.Client, Trust: chain.Trust(), Now: t.start, Authorise: chain.PeerAllowed})
		if err != nil {
			return live.CloseNow, "the peer's certificate is no longer trusted: " + err.Error()
		}
	}
	if chain.Equal != t.chain.Equal {
		return live.CloseAfterRequest, "the filter chain changed"
	}
	return live.Keep, ""
}
