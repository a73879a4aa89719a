package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Params are common to both sides.
type Params struct {
	// Certificate is our own; nil: we have none. It is called at each handshake
	// and must not block; a nil answer fails the handshake.
	Certificate func() *tls.Certificate
	// Roots that peers are verified against; nil: peers are not verified. Called
	// at each handshake; a nil answer trusts nobody.
	Roots func() *x509.CertPool
	// Peer says whether a verified peer is one that is wanted; nil: all are.
	Peer func(leaf *x509.Certificate) error
	ALPN []string
	// MinVersion and MaxVersion are tls.VersionTLS12 or 13; 0: 1.3 is the least,
	// and there is no most.
	MinVersion, MaxVersion uint16
	Curves                 []tls.CurveID    // in order of preference; none: Go's own
	Now                    func() time.Time // nil: time.Now
}

// Server makes the TLS configuration of a listener. requireClientCert refuses
// clients without a certificate; one that is presented is verified wherever
// there are Roots, and not asked for where there are none.
func Server(p Params, requireClientCert bool) *tls.Config {
	c := p.config()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.own() }
	if p.Roots == nil {
		return c
	}
	// VerifyConnection refuses who has none, with a reason of ours.
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			if requireClientCert {
				return errors.New("certs: the client presented no certificate, and this listener requires one")
			}
			return nil
		}
		return p.Verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, p.now())
	}
	return c
}

// Client makes the TLS configuration of connections to a server. With Roots and
// without Peer the server's certificate must be valid for sni, if there is one.
func Client(p Params, sni string) *tls.Config {
	if p.Peer == nil && sni != "" {
		p.Peer = func(leaf *x509.Certificate) error { return leaf.VerifyHostname(sni) }
	}
	c := p.config()
	c.ServerName = sni
	c.InsecureSkipVerify = true // VerifyConnection does it, for resumed sessions too
	if p.Roots != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("certs: the server presented no certificate")
			}
			return p.Verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, p.now())
		}
	}
	if p.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.own() }
	}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(sessions)
	return c
}

// sessions bounds the session tickets that one client configuration keeps; it
// has one server's name.
const sessions = 16

func (p Params) config() *tls.Config {
	c := &tls.Config{MinVersion: p.MinVersion, MaxVersion: p.MaxVersion, NextProtos: p.ALPN, CurvePreferences: p.Curves, Time: p.Now,
		DynamicRecordSizingDisabled: true} // several records go in one system call: small ones save nothing
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS13
	}
	return c
}

func (p Params) own() (*tls.Certificate, error) {
	if c := p.Certificate(); c != nil {
		return c, nil
	}
	return nil, errors.New("certs: there is no certificate to present")
}

func (p Params) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// Verify checks a peer's chain, leaf first, as of a time (RFC 5280, section 6).
func (p Params) Verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, at time.Time) error {
	o := x509.VerifyOptions{Roots: p.Roots(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: at}
	if o.Roots == nil { // nil would be the system's
		return errors.New("certs: there are no roots to check the peer against")
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return fmt.Errorf("certs: the certificate of %s is not trusted: %w", name(chain[0]), err)
	}
	if p.Peer == nil {
		return nil
	}
	if err := p.Peer(chain[0]); err != nil {
		return fmt.Errorf("certs: the peer is not one that is wanted: %w", err)
	}
	return nil
}

// Principal is the name by which policies know the bearer of a verified
// certificate, as Envoy has it: its first URI, else its first DNS name, else its
// subject.
func Principal(leaf *x509.Certificate) string {
	switch {
	case len(leaf.URIs) > 0:
		return leaf.URIs[0].String()
	case len(leaf.DNSNames) > 0:
		return leaf.DNSNames[0]
	}
	return leaf.Subject.String()
}

func name(leaf *x509.Certificate) string {
	if n := Principal(leaf); n != "" {
		return n
	}
	return "serial number " + leaf.SerialNumber.String()
}

// Match accepts certificates of which a URI matches one of uris or a DNS name
// one of dns; nil where neither is given. A matcher of dns that is an exact name
// should be one of exact instead, which also match wildcards of certificates.
func Match(uris, dns []func(string) bool, exact []string) func(*x509.Certificate) error {
	if len(uris)+len(dns)+len(exact) == 0 {
		return nil
	}
	return func(leaf *x509.Certificate) error {
		for _, u := range leaf.URIs {
			text := u.String()
			for _, m := range uris {
				if m(text) {
					return nil
				}
			}
		}
		for _, n := range leaf.DNSNames {
			for _, m := range dns {
				if m(strings.ToLower(n)) {
					return nil
				}
			}
		}
		for _, n := range exact {
			if len(leaf.DNSNames) > 0 && leaf.VerifyHostname(n) == nil {
				return nil
			}
		}
		return fmt.Errorf("%s is none of the names that are accepted here", name(leaf))
	}
}

// CurveID is the key exchange of one of Envoy's names; 0 where it is unknown.
func CurveID(name string) tls.CurveID {
	switch name {
	case "X25519MLKEM768":
		return tls.X25519MLKEM768
	case "X25519":
		return tls.X25519
	case "P-256":
		return tls.CurveP256
	case "P-384":
		return tls.CurveP384
	case "P-521":
		return tls.CurveP521
	}
	return 0
}
