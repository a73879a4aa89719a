package mtls

import (
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Params are common to both sides of a connection.
type Params struct {
	// Identity is our own; required.
	Identity Source
	// Trust gives the roots at each handshake; nil: Identity's bundles. It must
	// not block.
	Trust func() *x509bundle.Set
	// Authorise says whether a verified peer is one that we want to talk to;
	// nil accepts everybody whom Trust vouches for.
	Authorise func(spiffeid.ID) error
	ALPN      []string // in order of preference
	// MinVersion and MaxVersion are tls.VersionTLS12 or 13; 0: 1.3 is the
	// least, and there is no most.
	MinVersion, MaxVersion uint16
	Now                    func() time.Time // nil: time.Now
}

// ServerParams is what [ServerConfig] needs.
type ServerParams struct {
	Params
	// OptionalClientCert lets a client without a certificate in; one that it
	// does present is verified all the same. Zero: a certificate is required.
	OptionalClientCert bool
}

// ClientParams is what [ClientConfig] needs.
type ClientParams struct {
	Params
	SNI string // "": none is sent
}

// ServerConfig makes the TLS configuration of a listener: the certificate, the
// roots and the policy are read at each handshake. A side without identity or
// without roots refuses every handshake with an [*IdentityError]; a peer that
// is not accepted gets a [*PeerError]. There is no 0-RTT.
//
// Session tickets are encrypted with keys that are replaced every 12 hours and
// whenever our certificate or the roots change, and a resumed session is
// verified and authorised like a new one: a ticket outlives neither a root nor a
// certificate nor a policy.
func ServerConfig(p ServerParams) *tls.Config {
	s := &serverSide{p: p}
	return &tls.Config{
		MinVersion:         minVersion(p.Params),
		MaxVersion:         p.MaxVersion,
		NextProtos:         p.ALPN,
		Time:               p.Now,
		GetConfigForClient: s.configFor,
		// Never used while configFor answers; here so that the configuration is
		// safe whatever a caller does to it.
		ClientAuth:             tls.RequestClientCert,
		GetCertificate:         s.certificate,
		VerifyConnection:       s.verify,
		SessionTicketsDisabled: true,
	}
}

type serverSide struct {
	p      ServerParams
	epochs epochs

	turn sync.Mutex // held while new keys are made
	keys atomic.Pointer[ticketKeys]
}

// configFor returns the configuration of the present identity and roots. It is
// made once for each and for each ticket key, since the keys belong to it.
func (s *serverSide) configFor(*tls.ClientHelloInfo) (*tls.Config, error) {
	svid, set, err := s.p.own()
	if err != nil {
		return nil, err
	}
	e, now := s.epochs.of(svid, set), s.p.now()
	if k := s.keys.Load(); k.fresh(e, now) {
		return k.config, nil
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	old := s.keys.Load()
	if old.fresh(e, now) {
		return old.config, nil
	}
	k, err := old.next(e, now)
	if err != nil {
		return nil, err
	}
	k.config = &tls.Config{
		MinVersion:       minVersion(s.p.Params),
		MaxVersion:       s.p.MaxVersion,
		NextProtos:       s.p.ALPN,
		Time:             s.p.Now,
		ClientAuth:       tls.RequestClientCert, // verify refuses who has none, with a reason of ours
		GetCertificate:   s.certificate,
		VerifyConnection: s.verify,

		DynamicRecordSizingDisabled: true,
	}
	// crypto/tls takes the ticket keys of the configuration that
	// GetConfigForClient returned only if they were set by hand.
	k.config.SetSessionTicketKeys(k.keys)
	s.keys.Store(k)
	return k.config, nil
}

func (s *serverSide) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.p.certificate(&s.epochs)
}

func (s *serverSide) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 && s.p.OptionalClientCert {
		return nil
	}
	return s.p.verify(cs, Client)
}

// ClientConfig makes the TLS configuration of an outgoing connection, with the
// same rules as [ServerConfig]. Sessions are kept per certificate and roots.
func ClientConfig(p ClientParams) *tls.Config {
	made := new(epochs)
	return &tls.Config{
		ServerName: p.SNI,
		MinVersion: minVersion(p.Params),
		MaxVersion: p.MaxVersion,
		NextProtos: p.ALPN,
		Time:       p.Now,

		DynamicRecordSizingDisabled: true,
		// A SPIFFE peer is known by its URI SAN, not by a host name, so
		// crypto/tls's own check is replaced: VerifyConnection runs on every
		// handshake, resumed ones included, and verifies the whole chain.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return p.verify(cs, Server) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return p.certificate(made)
		},
		ClientSessionCache: &sessionCache{p: p.Params, epochs: made, inner: tls.NewLRUClientSessionCache(sessionsPerCluster)},
	}
}

// sessionsPerCluster bounds the session tickets that one client configuration
// keeps. A configuration has one SNI, so there is hardly ever more than one.
const sessionsPerCluster = 16

// sessionCache forgets sessions when identity or roots change: they are stored
// under both.
type sessionCache struct {
	p      Params
	epochs *epochs
	inner  tls.ClientSessionCache
}

func (c *sessionCache) key(k string) (string, bool) {
	svid, set, err := c.p.own()
	if err != nil {
		return "", false
	}
	return string(c.epochs.of(svid, set).sum[:]) + k, true
}

func (c *sessionCache) Get(k string) (*tls.ClientSessionState, bool) {
	if k, ok := c.key(k); ok {
		return c.inner.Get(k)
	}
	return nil, false
}

func (c *sessionCache) Put(k string, s *tls.ClientSessionState) {
	if k, ok := c.key(k); ok {
		c.inner.Put(k, s)
	}
}

func minVersion(p Params) uint16 {
	if p.MinVersion == 0 {
		return tls.VersionTLS13
	}
	return p.MinVersion
}

func (p Params) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// own returns our identity and the roots, if both can be used now.
func (p Params) own() (*x509svid.SVID, *x509bundle.Set, error) {
	var snap *Snapshot
	if p.Identity != nil {
		snap = p.Identity.Current()
	}
	svid, err := Usable(snap, p.now())
	if err != nil {
		return nil, nil, err
	}
	set := snap.Bundles
	if p.Trust != nil {
		set = p.Trust()
	}
	if set == nil || set.Len() == 0 {
		return nil, nil, &IdentityError{Reason: NoTrust, Detail: "there is no trust bundle yet to check peers against", Err: snap.Err}
	}
	return svid, set, nil
}

// Usable returns the snapshot's SVID if it can be presented at that time, or
// an [*IdentityError] that says why not.
func Usable(snap *Snapshot, now time.Time) (*x509svid.SVID, error) {
	if snap == nil || snap.SVID == nil || len(snap.SVID.Certificates) == 0 || snap.SVID.PrivateKey == nil {
		e := &IdentityError{Reason: OwnMissing, Detail: ErrNoIdentity.Error()}
		if snap != nil && snap.Err != nil {
			e.Err, e.Detail = snap.Err, snap.Err.Error()
		}
		return nil, e
	}
	leaf := snap.SVID.Certificates[0]
	because := ""
	if snap.Err != nil {
		because = ": " + snap.Err.Error()
	}
	switch {
	case now.After(leaf.NotAfter):
		return nil, &IdentityError{Reason: OwnExpired, Err: snap.Err,
			Detail: fmt.Sprintf("the certificate of %s expired at %s and was not renewed%s", snap.SVID.ID, stamp(leaf.NotAfter), because)}
	case now.Before(leaf.NotBefore):
		return nil, &IdentityError{Reason: OwnNotYetValid, Err: snap.Err,
			Detail: fmt.Sprintf("the certificate of %s is valid only from %s, and it is %s: check this host's clock", snap.SVID.ID, stamp(leaf.NotBefore), stamp(now))}
	}
	return snap.SVID, nil
}

func (p Params) certificate(made *epochs) (*tls.Certificate, error) {
	svid, set, err := p.own()
	if err != nil {
		return nil, err
	}
	return made.of(svid, set).cert, nil
}

// verify runs on every handshake. Our own side is checked too: a server that
// asks for no certificate must not let us in without an identity.
func (p Params) verify(cs tls.ConnectionState, role Role) error {
	_, set, err := p.own()
	if err != nil {
		return err
	}
	_, err = Verify(cs.PeerCertificates, Verification{Role: role, Trust: set, Now: p.now(), Authorise: p.Authorise})
	return err
}

// PeerID returns the identity of the peer of a connection that a configuration
// of this package made; false when it presented no certificate.
func PeerID(cs tls.ConnectionState) (spiffeid.ID, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return spiffeid.ID{}, false
	}
	id, perr := leafID(cs.PeerCertificates[0])
	return id, perr == nil
}

// Expect authorises exactly these identities.
func Expect(ids ...spiffeid.ID) func(spiffeid.ID) error {
	return func(got spiffeid.ID) error {
		for _, id := range ids {
			if id == got {
				return nil
			}
		}
		return fmt.Errorf("expected %s", list(ids))
	}
}

func list(ids []spiffeid.ID) string {
	switch len(ids) {
	case 0:
		return "nobody: no identity is allowed here"
	case 1:
		return ids[0].String()
	}
	return fmt.Sprintf("one of %v", ids)
}
