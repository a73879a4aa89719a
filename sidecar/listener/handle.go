package listener

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// tracked is one connection from accept to end.
type tracked struct {
	so    *socket
	raw   netio.Conn
	start time.Time
	conn  atomic.Pointer[Conn] // nil before the engine has it

	drainOnce sync.Once
	draining  chan struct{}
	done      chan struct{} // closed when the connection is over

	// Set before the connection enters the live index, read-only from then on.
	seen    decide.Connection
	facts   decide.Facts
	peer    spiffeid.ID
	certs   []*x509.Certificate
	version string
	chain   *Chain
}

func (t *tracked) askToEnd() { t.drainOnce.Do(func() { close(t.draining) }) }

// end closes the connection at once. It never blocks.
func (t *tracked) end(code telemetry.Code, reason string) {
	if c := t.conn.Load(); c != nil {
		c.End(code, reason)
		return
	}
	_ = t.raw.Reset()
}

// handle owns one accepted connection.
func (so *socket) handle(raw netio.Conn) {
	t := &tracked{so: so, raw: raw, start: so.set.Now(), draining: make(chan struct{}), done: make(chan struct{})}
	so.counters.active.Add(1)
	so.mu.Lock()
	so.conns[t] = struct{}{}
	if so.draining != "" {
		t.askToEnd()
	}
	so.mu.Unlock()
	defer func() {
		_ = raw.Close()
		so.mu.Lock()
		delete(so.conns, t)
		so.mu.Unlock()
		so.counters.active.Add(^uint64(0))
		close(t.done)
	}()
	a := so.active.Load() // the one configuration that this connection sees
	if a == nil {
		return
	}
	t.version = a.version
	t.address(a)
	conn, refused := t.open(a)
	if refused != nil {
		t.refuse(a, refused)
		return
	}
	t.serve(a, conn)
}

// address fills in where the connection comes from and goes to.
func (t *tracked) address(a *active) {
	t.seen.Source = addrPort(t.raw.RemoteAddr())
	t.seen.Destination = addrPort(t.raw.LocalAddr())
	if a.config.Resource.UseOriginalDst {
		if dst, ok := t.raw.OriginalDst(); ok {
			t.seen.Destination = dst
		}
	}
	t.seen.TransportProtocol = "raw_buffer"
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	if a == nil {
		return netip.AddrPort{}
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// refusal is why a connection does not reach its engine.
type refusal struct {
	code    telemetry.Code
	detail  string
	count   *atomic.Uint64
	quiet   bool // the client simply went away: nothing to warn of
	abrupt  bool // end with a reset: not one byte of an answer
	pending error
}

// open takes a connection up to the point where an engine may have it.
func (t *tracked) open(a *active) (*Conn, *refusal) {
	so := t.so
	wire := t.raw
	var first *hello
	if a.sniff {
		var err error
		first, wire, err = sniff(t.raw, so.set.Limits)
		if err != nil {
			return nil, &refusal{code: telemetry.DownstreamTLSFailure, count: &so.counters.sniff, quiet: gone(err),
				detail: "no complete ClientHello: " + err.Error()}
		}
		if first != nil {
			t.seen.TransportProtocol, t.seen.ServerName, t.seen.ALPN = "tls", first.serverName, first.alpn
		}
	}
	chain, ok := a.chain(t.seen)
	if !ok {
		return nil, &refusal{code: telemetry.NoFilterChain, count: &so.counters.noChain,
			detail: fmt.Sprintf("no filter chain of the listener takes a %s connection to %s", t.seen.TransportProtocol, t.seen.Destination)}
	}
	t.chain = chain
	c := &Conn{
		Conn: wire, ServerName: t.seen.ServerName, Source: t.seen.Source, Destination: t.seen.Destination,
		Listener: so.name, Chain: chain.Resource.Name, Version: a.version,
		Inbound:  a.config.Resource.Direction == resource.Inbound,
		Draining: func() <-chan struct{} { return t.draining },
	}
	if conf := a.tls[chain]; conf != nil {
		if r := t.handshake(conf, wire, c); r != nil {
			return nil, r
		}
	}
	t.facts = decide.Facts{Source: c.Source, Destination: c.Destination, ServerName: c.ServerName, Now: t.start}
	if !c.Peer.IsZero() {
		t.facts.PeerID = c.Peer.String()
	}
	if allowed, why := authorise(chain.Authorise, &t.facts); !allowed {
		return nil, &refusal{code: telemetry.RBACDenied, count: &so.counters.rbac, detail: why, abrupt: true}
	}
	return c, nil
}

// authorise asks every rule set; all must allow.
func authorise(rules []*decide.RBAC, f *decide.Facts) (bool, string) {
	for _, r := range rules {
		if v := r.Authorise(nil, f, nil); !v.Allowed {
			who := f.PeerID
			if who == "" {
				who = "a peer without identity"
			}
			if v.Policy == "" {
				return false, "no policy allows " + who
			}
			return false, fmt.Sprintf("policy %q denies %s", v.Policy, who)
		}
	}
	return true, ""
}

func (t *tracked) handshake(conf *tls.Config, wire netio.Conn, c *Conn) *refusal {
	limit := t.chain.Resource.HandshakeTimeout
	if limit <= 0 {
		limit = t.so.set.Limits.Handshake
	}
	ctx, cancel := context.WithTimeout(t.so.set.ctx, limit)
	defer cancel()
	tc := tls.Server(wire, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		r := &refusal{code: telemetry.DownstreamTLSFailure, count: &t.so.counters.tls, detail: err.Error(), pending: err}
		var plain tls.RecordHeaderError
		var own *mtls.IdentityError
		switch {
		case errors.As(err, &plain):
			r.detail = "plaintext: the first bytes are not TLS, and this listener takes mutual TLS only"
			r.abrupt = true
		case errors.As(err, &own):
			r.code = telemetry.NoIdentity
		case ctx.Err() != nil && t.so.set.ctx.Err() == nil:
			r.detail = fmt.Sprintf("TLS handshake not complete after %s", limit)
		default:
			r.quiet = gone(err)
		}
		return r
	}
	state := tc.ConnectionState()
	c.Conn = netio.TLS(tc, wire)
	c.TLS, c.ALPN, c.ServerName = true, state.NegotiatedProtocol, state.ServerName
	t.seen.ServerName = state.ServerName
	if id, ok := mtls.PeerID(state); ok {
		c.Peer, t.peer, t.certs = id, id, state.PeerCertificates
	}
	return nil
}

// gone says that the client went away by itself, without a word.
func gone(err error) bool {
	return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

func (t *tracked) refuse(a *active, r *refusal) {
	so := t.so
	r.count.Add(1)
	reason, hasReason := mtls.ReasonOf(r.pending)
	rec := &telemetry.Record{
		Start: t.start, Duration: so.set.Now().Sub(t.start), Inbound: a.config.Resource.Direction == resource.Inbound,
		Listener: so.name, Version: a.version, DownstreamRemote: t.seen.Source, DownstreamLocal: t.seen.Destination,
		SourcePrincipal: t.facts.PeerID, Protocol: "tcp", GRPCStatus: -1, Code: r.code, Detail: r.detail,
	}
	if hasReason {
		rec.Detail = string(reason) + ": " + r.detail
	}
	if t.chain != nil {
		rec.Chain = t.chain.Resource.Name
		rec.TLS = t.chain.Resource.TLS != nil
	}
	if rec.Inbound {
		rec.DestinationService = a.config.Resource.Metadata[resource.MetaService]
	}
	if so.set.Record != nil && !r.quiet {
		so.set.Record.ConnClosed(rec)
	}
	log := so.set.Log.Warn
	if r.quiet {
		log = so.set.Log.Debug
	}
	if r.quiet || so.quiet.allow() {
		log("listener: connection refused", "listener", so.name, "chain", rec.Chain, "source", t.seen.Source.String(),
			"peer", t.facts.PeerID, "code", r.code.String(), "reason", string(reason), "err", r.detail)
	}
	if r.abrupt {
		_ = t.raw.Reset()
	}
}

// serve gives the connection to its engine, in the sight of the live index.
func (t *tracked) serve(a *active, c *Conn) {
	so := t.so
	t.conn.Store(c)
	remove := so.set.Live.Add(live.Entry{
		Listener: so.name, Chain: c.Chain, Peer: c.Peer, Recheck: t.recheck, End: t.endLive,
	})
	defer remove()
	// Between the decision and Add the configuration may have changed; from
	// here on a Recheck sees this connection.
	if so.active.Load() != a {
		if v, reason := t.recheck(); v != live.Keep {
			t.endLive(v, reason)
		}
	}
	defer func() {
		_ = c.Close()
		if p := recover(); p != nil {
			so.counters.panics.Add(1)
			so.set.Log.Error("listener: panic in an engine; this connection ends, the others go on",
				"listener", so.name, "chain", c.Chain, "code", telemetry.LocalPanic.String(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	t.chain.Handler.Serve(so.set.ctx, c)
}

func (t *tracked) endLive(v live.Verdict, reason string) {
	switch v {
	case live.Keep:
	case live.CloseAfterRequest:
		t.askToEnd()
	default:
		t.so.counters.reauthorised.Add(1)
		t.so.set.Log.Warn("listener: open connection ended", "listener", t.so.name, "source", t.seen.Source.String(),
			"peer", t.facts.PeerID, "code", telemetry.ReauthorisedDenied.String(), "err", reason)
		t.end(telemetry.ReauthorisedDenied, reason)
	}
}

// recheck decides again about an open connection, by the configuration in
// force now.
func (t *tracked) recheck() (live.Verdict, string) {
	a := t.so.active.Load()
	if a == nil {
		return live.CloseAfterRequest, "the listener was removed"
	}
	chain, ok := a.chain(t.seen)
	if !ok {
		return live.CloseAfterRequest, "no filter chain of the listener takes this connection any more"
	}
	if conf := chain.Resource.TLS; conf != nil && conf.RequireClientCert && t.peer.IsZero() {
		return live.CloseNow, "the listener now requires a client certificate, and this connection has none"
	}
	facts := t.facts
	facts.Now = t.so.set.Now()
	if allowed, why := authorise(chain.Authorise, &facts); !allowed {
		return live.CloseNow, why
	}
	if allowed, why := authorise(chain.Reauthorise, &facts); !allowed {
		return live.CloseNow, why
	}
	if len(t.certs) > 0 && chain.Trust != nil {
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
