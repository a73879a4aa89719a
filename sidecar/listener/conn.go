package listener

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Handler is an engine. It owns the connection from Serve's start, closes it,
// and returns when it is over. ctx ends when the process gives up on draining;
// a connection that is to end earlier is closed under the handler's feet (its
// Read fails, [Conn.Ended] says why) or asked by Conn.Draining.
type Handler interface {
	Serve(ctx context.Context, c *Conn)
}

// HandlerFunc makes a Handler of a function.
type HandlerFunc func(ctx context.Context, c *Conn)

func (f HandlerFunc) Serve(ctx context.Context, c *Conn) { f(ctx, c) }

// Parker is a Handler whose connections may be left to the listener while they
// are idle, so that they cost no goroutine. ServeUntilIdle is called instead of
// Serve. It returns idle where nothing is under way and no buffer is held, and
// is called again with the same c when there is something to read, when
// Draining is over, or when the connection has ended (its Read then fails);
// state that it needs then is in c.State. Where it returns false the connection
// is over, as after Serve.
type Parker interface {
	Handler
	ServeUntilIdle(ctx context.Context, c *Conn) (idle bool)
}

// Conn is an accepted connection after TLS and authorisation. Its fields are
// read-only.
type Conn struct {
	netio.Conn // the plaintext side: TLS, if any, is below

	Peer spiffeid.ID // zero without mTLS
	// Principal is the name of a peer that certificates of the configuration
	// ([Chain.Own]) verified: its first URI, DNS name or its subject; else "".
	Principal  string
	ALPN       string // negotiated protocol, "" without TLS or ALPN
	TLS        bool
	ServerName string // of the ClientHello

	// Source and Destination are the connection's ends as decisions see them:
	// Destination is the original one where the connection was redirected.
	Source, Destination netip.AddrPort
	// Redirected: the client did not connect to the listener; Destination is where
	// it meant to go.
	Redirected bool

	Listener, Chain string // names
	Inbound         bool   // the listener's direction
	Version         string // of the snapshot that accepted it

	// Draining is over when the connection should end after the work in hand
	// (HTTP/1.1: Connection: close; HTTP/2: GOAWAY). Nil means never. It is
	// another one in each call of ServeUntilIdle.
	Draining *stream.Scope

	// Opening is what the handler's Open gave, where it was asked to begin before
	// the client spoke; else nil.
	Opening Opening

	// State is the handler's own, kept from one call of ServeUntilIdle to the
	// next; the listener never looks at it.
	State any

	ended atomic.Pointer[ending]
}

type ending struct {
	code   telemetry.Code
	reason string
}

// PeerName is the verified peer's name for policies and records; "" where none
// was verified.
func (c *Conn) PeerName() string {
	if c.Principal == "" && !c.Peer.IsZero() {
		return c.Peer.String()
	}
	return c.Principal
}

// End closes the connection at once and keeps why, for the engine's record.
// Safe to call at any time; the first reason stays.
func (c *Conn) End(code telemetry.Code, reason string) {
	c.ended.CompareAndSwap(nil, &ending{code, reason})
	_ = c.Conn.Reset()
}

// Ended says why the connection was ended from outside the engine; OK and ""
// where it was not.
func (c *Conn) Ended() (telemetry.Code, string) {
	if e := c.ended.Load(); e != nil {
		return e.code, e.reason
	}
	return telemetry.OK, ""
}

// Config is one listener of a compiled snapshot. Read-only.
type Config struct {
	Resource *resource.Listener
	// Bind is where the listener is opened instead of Resource.Address; zero:
	// there. Several workloads of one host have capture listeners of one address.
	Bind   resource.Address
	Chains map[string]*Chain // by FilterChain.Name, the default chain's included
}

// address is where the listener is opened.
func (c *Config) address() resource.Address {
	if c.Bind != (resource.Address{}) {
		return c.Bind
	}
	return c.Resource.Address
}

// Chain is one compiled filter chain. Read-only.
type Chain struct {
	Resource *resource.FilterChain
	Handler  Handler
	// Trust gives the roots that client certificates are checked against; it is
	// asked at each handshake, and an empty set refuses every one. Nil: the
	// identity's own bundles.
	Trust func() *x509bundle.Set
	// Own replaces mTLS with the workload's identity by TLS with certificates of
	// the configuration; nil: the identity. Trust and PeerAllowed are then not asked.
	Own *OwnTLS
	// PeerAllowed says whether a verified peer is one that the chain takes
	// (match_typed_subject_alt_names); nil: every verified peer.
	PeerAllowed func(spiffeid.ID) error
	// Authorise are the network RBAC filters: asked, in order, before the
	// engine sees a byte, and again after each change of configuration.
	Authorise []*decide.RBAC
	// Reauthorise are rules of the engine's own filters that depend on the
	// connection alone: the engine asks them at each request, and here they end
	// open connections whose peer they no longer allow.
	Reauthorise []*decide.RBAC
	// Equal identifies what a connection lives by (everything but the network
	// RBAC rules): where it changes, connections end after the request in hand.
	Equal string
}

// OwnTLS is TLS with certificates of the configuration.
type OwnTLS struct {
	// Config is kept over changes that leave Chain.Equal as it is: it asks for
	// certificates and roots at each handshake.
	Config *tls.Config
	// Verify checks an open connection's client certificate again, as of a time;
	// nil: clients present none.
	Verify func(chain []*x509.Certificate, at time.Time) error
}
