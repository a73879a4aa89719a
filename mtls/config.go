package mtls

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
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
// Session tickets are encrypted with keys that live as long as our certificate
// and the roots stay the same, and a resumed session is verified and
// authorised like a new one: a ticket outlives neither a root nor a policy.
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
	p ServerParams

	mu     sync.Mutex // guards what follows
	epoch  [32]byte
	config *tls.Config
}

// configFor returns the configuration of the present identity and roots. It is
// made once for each, since session ticket keys belong to it.
func (s *serverSide) configFor(*tls.ClientHelloInfo) (*tls.Config, error) {
	svid, set, err := s.p.own()
	if err != nil {
		return nil, err
	}
	epoch := epochOf(svid, set)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config != nil && s.epoch == epoch {
		return s.config, nil
	}
	c := &tls.Config{
		MinVersion:       minVersion(s.p.Params),
		MaxVersion:       s.p.MaxVersion,
		NextProtos:       s.p.ALPN,
		Time:             s.p.Now,
		ClientAuth:       tls.RequestClientCert, // verify refuses who has none, with a reason of ours
		GetCertificate:   s.certificate,
		VerifyConnection: s.verify,
	}
	// crypto/tls takes the ticket keys of the configuration that
	// GetConfigForClient returned only if they were set by hand.
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, fmt.Errorf("mtls: session ticket key: %w", err)
	}
	c.SetSessionTicketKeys([][32]byte{key})
	s.config, s.epoch = c, epoch
	return c, nil
}

func (s *serverSide) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.p.certificate()
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
	return &tls.Config{
		ServerName: p.SNI,
		MinVersion: minVersion(p.Params),
		MaxVersion: p.MaxVersion,
		NextProtos: p.ALPN,
		Time:       p.Now,
		// A SPIFFE peer is known by its URI SAN, not by a host name, so
		// crypto/tls's own check is replaced: VerifyConnection runs on every
		// handshake, resumed ones included, and verifies the whole chain.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return p.verify(cs, Server) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return p.certificate()
		},
		ClientSessionCache: &sessionCache{p: p.Params, inner: tls.NewLRUClientSessionCache(sessionsPerCluster)},
	}
}

// sessionsPerCluster bounds the session tickets that one client configuration
// keeps. A configuration has one SNI, so there is hardly ever more than one.
const sessionsPerCluster = 16

// sessionCache forgets sessions when identity or roots change: they are stored
// under both.
type sessionCache struct {
	p     Params
	inner tls.ClientSessionCache
}

func (c *sessionCache) key(k string) (string, bool) {
	svid, set, err := c.p.own()
	if err != nil {
		return "", false
	}
	e := epochOf(svid, set)
	return string(e[:]) + k, true
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

func (p Params) certificate() (*tls.Certificate, error) {
	svid, _, err := p.own()
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, x := range svid.Certificates {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
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

// epochOf is a digest of what session tickets are bound to.
func epochOf(svid *x509svid.SVID, set *x509bundle.Set) [32]byte {
	h := sha256.New()
	sum := func(certs []*x509.Certificate) {
		for _, c := range certs {
			d := sha256.Sum256(c.Raw)
			h.Write(d[:])
		}
	}
	sum(svid.Certificates[:1])
	for _, b := range set.Bundles() { // sorted by trust domain
		d := sha256.Sum256([]byte(b.TrustDomain().Name()))
		h.Write(d[:])
		sum(b.X509Authorities())
	}
	return [32]byte(h.Sum(nil))
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
