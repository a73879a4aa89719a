package certs

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// side is what one end has.
type side struct {
	pki    *testpki.PKI
	dns    []string
	uris   []string
	nobody bool // presents nothing
	trusts *testpki.PKI
	peer   func(*x509.Certificate) error
}

func (s side) params(t *testing.T) Params {
	t.Helper()
	p := Params{Peer: s.peer, MinVersion: tls.VersionTLS12}
	if !s.nobody {
		chain, key := s.pki.Leaf(s.dns, s.uris...)
		c, err := tls.X509KeyPair(chain, key)
		if err != nil {
			t.Fatal(err)
		}
		p.Certificate = func() *tls.Certificate { return &c }
	}
	if s.trusts != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.trusts.RootPEM())
		p.Roots = func() *x509.CertPool { return pool }
	}
	return p
}

// handshake makes a connection of the two configurations over a socket and
// sends a byte each way, so that both sides have judged.
func handshake(t *testing.T, server, client *tls.Config) (cs tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		tc := tls.Server(c, server)
		_ = tc.SetDeadline(time.Now().Add(5 * time.Second))
		if err = tc.Handshake(); err == nil {
			_, err = tc.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tc := tls.Client(c, client)
	_ = tc.SetDeadline(time.Now().Add(5 * time.Second))
	if clientErr = tc.Handshake(); clientErr == nil {
		_, clientErr = tc.Read(make([]byte, 1))
	}
	if clientErr != nil {
		c.Close()
	}
	return tc.ConnectionState(), <-done, clientErr
}

func exact(s string) func(string) bool { return func(x string) bool { return x == s } }

// TestPeers: who is accepted, on both sides.
func TestPeers(t *testing.T) {
	ours, foreign := testpki.New(t, "ours"), testpki.New(t, "foreign")
	web := side{pki: ours, dns: []string{"*.example.com"}, uris: []string{"spiffe://ours/web"}}
	for name, c := range map[string]struct {
		server, client side
		sni            string
		require        bool
		serverErr      string // "": accepted
		clientErr      string
	}{
		"a gateway asks for nothing":       {server: web, client: side{nobody: true, trusts: ours}, sni: "www.example.com"},
		"the name must be the server's":    {server: web, client: side{nobody: true, trusts: ours}, sni: "www.example.org", clientErr: "not www.example.org"},
		"no name: the roots alone":         {server: web, client: side{nobody: true, trusts: ours}},
		"foreign roots":                    {server: web, client: side{nobody: true, trusts: foreign}, sni: "www.example.com", clientErr: "is not trusted"},
		"whoever answers":                  {server: web, client: side{nobody: true}, sni: "nobody.example"},
		"a URI instead of the name":        {server: web, client: side{nobody: true, trusts: ours, peer: Match([]func(string) bool{exact("spiffe://ours/web")}, nil, nil)}, sni: "else"},
		"another URI":                      {server: web, client: side{nobody: true, trusts: ours, peer: Match([]func(string) bool{exact("spiffe://ours/api")}, nil, nil)}, clientErr: "none of the names"},
		"a wildcard covers an exact name":  {server: web, client: side{nobody: true, trusts: ours, peer: Match(nil, nil, []string{"a.example.com"})}},
		"a wildcard covers one label only": {server: web, client: side{nobody: true, trusts: ours, peer: Match(nil, nil, []string{"a.b.example.com"})}, clientErr: "none of the names"},
		"a client that must show itself": {server: side{pki: ours, dns: []string{"s"}, trusts: ours}, client: side{nobody: true, trusts: ours}, require: true,
			serverErr: "presented no certificate", clientErr: "bad certificate"},
		"a client that may stay unknown": {server: side{pki: ours, dns: []string{"s"}, trusts: ours}, client: side{nobody: true, trusts: ours}},
		"a client of foreign roots": {server: side{pki: ours, dns: []string{"s"}, trusts: ours}, client: side{pki: foreign, dns: []string{"c"}, trusts: ours},
			serverErr: "is not trusted", clientErr: "bad certificate"},
		"a client with another name": {server: side{pki: ours, dns: []string{"s"}, trusts: ours, peer: Match(nil, nil, []string{"c"})},
			client: side{pki: ours, dns: []string{"d"}, trusts: ours}, serverErr: "none of the names", clientErr: "bad certificate"},
		"a client as wanted": {server: side{pki: ours, dns: []string{"s"}, trusts: ours, peer: Match(nil, nil, []string{"c"})}, client: side{pki: ours, dns: []string{"c"}, trusts: ours}, require: true},
	} {
		t.Run(name, func(t *testing.T) {
			_, serverErr, clientErr := handshake(t, Server(c.server.params(t), c.require), Client(c.client.params(t), c.sni))
			if !says(clientErr, c.clientErr) {
				t.Errorf("the client says %v; want %q", clientErr, c.clientErr)
			}
			if c.serverErr != "" && !says(serverErr, c.serverErr) {
				t.Errorf("the server says %v; want %q", serverErr, c.serverErr)
			}
		})
	}
}

func says(err error, want string) bool {
	if want == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), want)
}

// TestResumption: sessions are resumed, and a resumed one is judged like a new one.
func TestResumption(t *testing.T) {
	ours := testpki.New(t, "ours")
	wanted := true
	s := side{pki: ours, dns: []string{"s"}, trusts: ours, peer: func(*x509.Certificate) error {
		if !wanted {
			return x509.CertificateInvalidError{}
		}
		return nil
	}}
	server := Server(s.params(t), true)
	client := Client(side{pki: ours, dns: []string{"c"}, trusts: ours}.params(t), "s")
	for i, resumed := range []bool{false, true} {
		cs, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil || cs.DidResume != resumed {
			t.Fatalf("connection %d: %v, %v, resumed %v", i, serverErr, clientErr, cs.DidResume)
		}
	}
	wanted = false
	if _, serverErr, _ := handshake(t, server, client); serverErr == nil {
		t.Error("a resumed session of a client that is no longer wanted is accepted")
	}
}

// TestRotation: a new certificate is presented without a new configuration.
func TestRotation(t *testing.T) {
	ours := testpki.New(t, "ours")
	p := side{pki: ours, dns: []string{"one"}}.params(t)
	now := p.Certificate
	p.Certificate = func() *tls.Certificate { return now() }
	server := Server(p, false)
	for _, name := range []string{"one", "two"} {
		now = side{pki: ours, dns: []string{name}}.params(t).Certificate
		client := Client(side{nobody: true, trusts: ours}.params(t), name)
		if _, _, err := handshake(t, server, client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	now = func() *tls.Certificate { return nil }
	if _, err, _ := handshake(t, server, Client(side{nobody: true}.params(t), "x")); !says(err, "no certificate to present") {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestPrincipal(t *testing.T) {
	ours := testpki.New(t, "ours")
	leaf := func(s side) *x509.Certificate { return s.params(t).Certificate().Leaf }
	for want, s := range map[string]side{
		"spiffe://ours/a": {pki: ours, dns: []string{"b"}, uris: []string{"spiffe://ours/a"}},
		"b":               {pki: ours, dns: []string{"b", "c"}},
		"CN=leaf":         {pki: ours},
	} {
		if got := Principal(leaf(s)); got != want {
			t.Errorf("the principal is %q, want %q", got, want)
		}
	}
}
