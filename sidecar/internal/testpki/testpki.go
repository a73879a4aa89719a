// Package testpki makes identities for tests: a root per trust domain, leaves
// with Consul's SPIFFE ids, valid by the clock of whoever asks (a synctest
// bubble's, too).
package testpki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// PKI is one trust domain.
type PKI struct {
	t    testing.TB
	TD   spiffeid.TrustDomain
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes a trust domain.
func New(t testing.TB, td string) *PKI {
	t.Helper()
	key := must(t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p := &PKI{t: t, TD: spiffeid.RequireTrustDomainFromString(td), key: key}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root of " + td}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * 365 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{p.TD.ID().URL()}}
	p.root = p.sign(tmpl, tmpl, &key.PublicKey)
	return p
}

func must(t testing.TB) func(*ecdsa.PrivateKey, error) *ecdsa.PrivateKey {
	return func(k *ecdsa.PrivateKey, err error) *ecdsa.PrivateKey {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

func (p *PKI) sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	p.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// ID is the SPIFFE id of a service in datacenter dc1.
func (p *PKI) ID(service string) spiffeid.ID {
	return spiffeid.RequireFromPathf(p.TD, "/ns/default/dc/dc1/svc/%s", service)
}

// SVID is an identity of a service, valid from an hour ago for ttl from now.
func (p *PKI) SVID(service string, ttl time.Duration) *x509svid.SVID {
	p.t.Helper()
	key := must(p.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	id := p.ID(service)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		p.t.Fatal(err)
	}
	leaf := p.sign(&x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(ttl), URIs: []*url.URL{id.URL()},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, p.root, &key.PublicKey)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
}

// Leaf is a certificate and its key as PEM, for these DNS names and URIs.
func (p *PKI) Leaf(dns []string, uris ...string) (chainPEM, keyPEM []byte) {
	p.t.Helper()
	key := must(p.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "leaf"}, DNSNames: dns,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			p.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	leaf := p.sign(tmpl, p.root, &key.PublicKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Bundles are the trust domain's roots.
func (p *PKI) Bundles() *x509bundle.Set {
	return x509bundle.NewSet(x509bundle.FromX509Authorities(p.TD, []*x509.Certificate{p.root}))
}

// Identity is a source of one service's identity, valid for a day.
func (p *PKI) Identity(service string) *mtls.Cell {
	p.t.Helper()
	return mtls.NewCell(&mtls.Snapshot{SVID: p.SVID(service, 24*time.Hour), Bundles: p.Bundles()})
}

// RootPEM is the root certificate.
func (p *PKI) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.root.Raw})
}

// Trust is the SDS secret with the roots of the given trust domains.
func Trust(ps ...*PKI) *resource.Secret {
	s := &resource.Secret{Name: resource.SecretTrust}
	for _, p := range ps {
		s.TrustPEM = append(s.TrustPEM, resource.TrustBundle{TrustDomain: p.TD.Name(), RootsPEM: p.RootPEM()})
	}
	return s
}
