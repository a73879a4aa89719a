package mtls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is when these tests take place.
func noon() time.Time { return time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC) }

// authority is a CA made for a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	over []*x509.Certificate // issuing certificates between it and the root
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: noon().Add(-time.Hour), NotAfter: noon().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
}

func newAuthority(t testing.TB, name string, edit ...func(*x509.Certificate)) *authority {
	tmpl := caTemplate(name)
	for _, e := range edit {
		e(tmpl)
	}
	key := newKey(t)
	return &authority{t: t, key: key, cert: create(t, tmpl, tmpl, key.Public(), key)}
}

func create(t testing.TB, tmpl, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		// A certificate that crypto/x509 refuses to read: handed on as bytes.
		return &x509.Certificate{Raw: der}
	}
	return c
}

// intermediate makes an issuing CA below a.
func (a *authority) intermediate(name string, edit ...func(*x509.Certificate)) *authority {
	tmpl := caTemplate(name)
	for _, e := range edit {
		e(tmpl)
	}
	key := newKey(a.t)
	c := create(a.t, tmpl, a.cert, key.Public(), a.key)
	return &authority{t: a.t, cert: c, key: key, over: append([]*x509.Certificate{c}, a.over...)}
}

// leaf makes an SVID, good unless edit spoils it.
func (a *authority) leaf(id string, edit ...func(*x509.Certificate)) *x509svid.SVID {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: noon().Add(-time.Hour), NotAfter: noon().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	for _, e := range edit {
		e(tmpl)
	}
	key := newKey(a.t)
	c := create(a.t, tmpl, a.cert, key.Public(), a.key)
	parsed, _ := spiffeid.FromString(id)
	return &x509svid.SVID{ID: parsed, Certificates: append([]*x509.Certificate{c}, a.over...), PrivateKey: key}
}

// rawSAN replaces the SAN by URIs of these bytes, whatever is in them.
func rawSAN(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		var names []asn1.RawValue
		for _, u := range uris {
			names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
		}
		der, err := asn1.Marshal(names)
		if err != nil {
			panic(err)
		}
		c.URIs = nil
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der})
	}
}

func setFor(td string, roots ...*x509.Certificate) *x509bundle.Set {
	return x509bundle.NewSet(x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(td), roots))
}

func cell(svid *x509svid.SVID, set *x509bundle.Set) *mtls.Cell {
	return mtls.NewCell(&mtls.Snapshot{SVID: svid, Bundles: set})
}

func mustEC(t testing.TB, k any) *ecdsa.PrivateKey {
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("%T is no ECDSA key", k)
	}
	return ec
}
