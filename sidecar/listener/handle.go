package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/certs"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// address fills in where the connection comes from and goes to. A listener with
// use_original_dst takes redirected connections only: the port that one arrives
// at says whose it is, so nobody may come there by himself.
func (t *tracked) address(a *active) *refusal {
	c := &t.c
	c.Source = addrPort(t.raw.RemoteAddr())
	c.Destination = addrPort(t.raw.LocalAddr())
	if !a.config.Resource.UseOriginalDst {
		return nil
	}
	c.Inbound = a.config.Resource.Direction == resource.Inbound
	local := c.Destination
	dst, ok := t.raw.OriginalDst()
	switch {
	case ok:
		c.Destination = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	case t.so.port == 0 || local.Port() == t.so.port:
		return &refusal{code: telemetry.NotRedirected, count: &t.so.counters.noChain, abrupt: true,
			detail: fmt.Sprintf("%s connected to the capture port %s itself", c.Source, local)}
	} // else: by TPROXY, which leaves the destination where it was
	c.Redirected = true
	if t.so.set.ownPort(t.so, c.Destination.Port()) && sameHost(c.Destination.Addr(), c.Source.Addr(), local.Addr()) {
		return &refusal{code: telemetry.CaptureLoop, count: &t.so.counters.noChain, abrupt: true,
			detail: fmt.Sprintf("the connection goes to %s, which is a capture port of this sidecar", c.Destination)}
	}
	return nil
}

// ownPort says whether a capture listener of this process has the port.
func (s *Set) ownPort(so *socket, port uint16) bool {
	return port == so.port || s.OwnPort != nil && s.OwnPort(port)
}

// sameHost says whether an address is this host's, as far as a connection tells:
// who calls its own host by another address than loopback's has that one too.
func sameHost(dst, source, local netip.Addr) bool {
	return dst.IsLoopback() || dst.IsUnspecified() || dst == source || dst == local
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
func (t *tracked) open(a *active) *refusal {
	so, c := t.so, &t.c
	wire := t.raw
	if a.ambiguous(t.seen()) {
		var err error
		if wire, err = t.detect(a); err != nil {
			return &refusal{code: telemetry.DownstreamTLSFailure, count: &so.counters.sniff, quiet: gone(err),
				detail: "no complete ClientHello: " + err.Error()}
		}
	}
	chain, ok := a.chain(t.seen())
	if !ok {
		return t.noChain()
	}
	t.chain = chain
	t.describe(a, chain)
	c.Conn = wire
	if conf := a.tls[chain]; conf != nil {
		if r := t.handshake(conf, wire, c); r != nil {
			return r
		}
	}
	facts := t.facts(t.start)
	if allowed, why := authorise(chain.Authorise, &facts); !allowed {
		return &refusal{code: telemetry.RBACDenied, count: &so.counters.rbac, detail: why, abrupt: true}
	}
	return nil
}

// noChain refuses what no filter chain takes. What was redirected is reset: its
// client does not know of the sidecar, and hears what a closed port says.
func (t *tracked) noChain() *refusal {
	r := &refusal{code: telemetry.NoFilterChain, count: &t.so.counters.noChain, abrupt: t.c.Redirected,
		detail: fmt.Sprintf("no filter chain of the listener takes a %s connection to %s", t.seen().TransportProtocol, t.c.Destination)}
	if t.c.Redirected && !t.c.Inbound {
		r.code = telemetry.OutsideMesh
		r.detail = fmt.Sprintf("%s is no destination of the mesh", t.c.Destination)
	}
	return r
}

// describe fills in where the connection goes.
func (t *tracked) describe(a *active, chain *Chain) {
	c := &t.c
	c.Listener, c.Chain, c.Version = t.so.name, chain.Resource.Name, a.version
	c.Inbound = a.config.Resource.Direction == resource.Inbound
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
	tc := netio.ServerTLS(wire, conf)
	if err := tc.HandshakeBefore(time.Now().Add(limit)); err != nil { // a stop resets the connection
		r := &refusal{code: telemetry.DownstreamTLSFailure, count: &t.so.counters.tls, detail: err.Error(), pending: err}
		var plain tls.RecordHeaderError
		var own *mtls.IdentityError
		switch {
		case errors.As(err, &plain):
			r.detail = "plaintext: the first bytes are not TLS, and this listener takes TLS only"
			r.abrupt = true
		case errors.As(err, &own):
			r.code = telemetry.NoIdentity
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.detail = fmt.Sprintf("TLS handshake not complete after %s", limit)
		default:
			r.quiet = gone(err)
		}
		return r
	}
	state := tc.ConnectionState()
	c.Conn = tc
	c.TLS, c.ALPN, c.ServerName = true, state.NegotiatedProtocol, state.ServerName
	if own := t.chain.Own; own != nil {
		// Only a verified certificate says who the peer is.
		if own.Verify == nil || len(state.PeerCertificates) == 0 {
			return nil
		}
		t.certs = state.PeerCertificates
		c.Principal = certs.Principal(t.certs[0])
	}
	if id, ok := mtls.PeerID(state); ok {
		c.Peer, t.certs = id, state.PeerCertificates
	}
	return nil
}

// gone says that the client went away by itself, without a word.
func gone(err error) bool {
	return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

func (t *tracked) refuse(a *active, r *refusal) {
	so := t.so
	if o := t.c.Opening; o != nil {
		o.Abandon()
	}
	r.count.Add(1)
	reason, hasReason := mtls.ReasonOf(r.pending)
	rec := &telemetry.Record{
		Start: t.start, Duration: so.set.Now().Sub(t.start), Inbound: a.config.Resource.Direction == resource.Inbound,
		Listener: so.name, Version: a.version, DownstreamRemote: t.c.Source, DownstreamLocal: t.c.Destination,
		SourcePrincipal: t.c.PeerName(), Protocol: "tcp", GRPCStatus: -1, Code: r.code, Detail: r.detail,
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
		log("listener: connection refused", "listener", so.name, "chain", rec.Chain, "source", t.c.Source.String(),
			"peer", t.c.PeerName(), "code", r.code.String(), "reason", string(reason), "err", r.detail)
	}
	if r.abrupt {
		_ = t.raw.Reset()
	}
}
