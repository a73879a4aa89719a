package rig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs what a test needs, good and bad.
type Authority struct {
	t    testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Authority is the mesh's own CA: its key, read from its directory as only its
// owner can. It exists once a control plane has run.
func (r *Rig) Authority() *Authority {
	r.T.Helper()
	var state struct {
		Roots []struct{ Certificate, Key string }
	}
	data, err := os.ReadFile(filepath.Join(r.CADir(), "ca.json"))
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err != nil {
		r.T.Fatal(err)
	}
	last := state.Roots[len(state.Roots)-1]
	decode := func(text string) []byte {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			r.T.Fatal("ca.json holds no PEM")
		}
		return block.Bytes
	}
	cert, err := x509.ParseCertificate(decode(last.Certificate))
	if err != nil {
		r.T.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(decode(last.Key))
	if err != nil {
		r.T.Fatal(err)
	}
	return &Authority{r.T, cert, key.(*ecdsa.PrivateKey)}
}

// Foreign makes an authority that nobody knows, for a trust domain.
func (r *Rig) Foreign(domain string) *Authority {
	r.T.Helper()
	key := newKey(r.T)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "foreign"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	a := &Authority{t: r.T, key: key}
	a.Cert = a.sign(tmpl, tmpl, key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *Authority) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Leaf makes a certificate for the SPIFFE ids given, spoiled by edit where that
// is not nil.
func (a *Authority) Leaf(ids []string, edit func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if edit != nil {
		edit(tmpl)
	}
	key := newKey(a.t)
	c := a.sign(tmpl, a.Cert, key)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}
