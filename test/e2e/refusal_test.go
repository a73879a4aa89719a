package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// TestInboundRefusals comes to a public listener with every wrong identity. It
// is refused, and the log of the sidecar gives the reason.
func TestInboundRefusals(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{agent: `default_intention_policy = "deny"`})
	api := m.apis["api-1"]
	hits := func() int64 { return api.app.Hits.Load() }
	ours := m.Authority()
	web, orders := []string{principal("web")}, []string{principal("orders")}

	m.Step("the right identity is answered: what is refused below is refused for its reason")
	cert := ours.Leaf(web, nil)
	if status, err := request(api.addr(), &cert); err != nil || status != http.StatusOK {
		t.Fatalf("answered with %d (%v)", status, err)
	}
	foreign := m.Foreign("other.parrel")
	impostor := m.Foreign(rig.TrustDomain)
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	future := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}
	isCA := func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	}
	cases := []struct {
		name   string
		cert   tls.Certificate
		code   string
		reason string // beginning of the access log's detail
	}{
		{"an identity that no intention names", ours.Leaf(orders, nil), "rbac_denied", ""},
		{"an id of this mesh that is no service's", ours.Leaf([]string{"spiffe://" + rig.TrustDomain + "/ops/web"}, nil), "rbac_denied", ""},
		{"a wrong trust domain", foreign.Leaf([]string{strings.Replace(web[0], rig.TrustDomain, "other.parrel", 1)}, nil), "downstream_tls_failure", "wrong_trust_domain"},
		{"our trust domain, signed by somebody else", impostor.Leaf(web, nil), "downstream_tls_failure", "unknown_authority"},
		{"expired", ours.Leaf(web, past), "downstream_tls_failure", "expired"},
		{"not yet valid", ours.Leaf(web, future), "downstream_tls_failure", "not_yet_valid"},
		{"several URI SANs", ours.Leaf([]string{web[0], orders[0]}, nil), "downstream_tls_failure", "several_uri_sans"},
		{"no URI SAN", ours.Leaf(nil, func(c *x509.Certificate) { c.DNSNames = []string{"web." + rig.TrustDomain} }), "downstream_tls_failure", "no_uri_san"},
		{"a certificate that may sign others", ours.Leaf(web, isCA), "downstream_tls_failure", "ca_leaf"},
		{"no client certificate", tls.Certificate{}, "downstream_tls_failure", "no_certificate"},
	}
	for _, c := range cases {
		before, lines := hits(), len(api.sidecar.Access())
		status, err := request(api.addr(), &c.cert)
		if err == nil && (c.code != "rbac_denied" || status != http.StatusForbidden) {
			t.Errorf("%s: answered with %d", c.name, status)
		}
		if hits() != before {
			t.Errorf("%s: the application was reached", c.name)
		}
		m.Eventually(soon, c.name+" is in the access log", func() error {
			for _, a := range api.sidecar.Access()[lines:] {
				if a.Direction == "inbound" && a.Code == c.code && strings.HasPrefix(a.Detail, c.reason) {
					return nil
				}
			}
			return fmt.Errorf("%+v", api.sidecar.Access()[lines:])
		})
		if c.reason != "" {
			api.sidecar.Logged(soon, "connection refused", c.reason, c.code)
		}
	}

	m.Step("plaintext")
	before := hits()
	conn, err := net.DialTimeout("tcp", api.addr(), soon)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status, err := exchange(conn); err == nil {
		t.Errorf("plaintext is answered with %d", status)
	}
	if hits() != before {
		t.Error("plaintext reached the application")
	}
	api.sidecar.Logged(soon, "connection refused", "plaintext")
	api.sidecar.Accessed(soon, "plaintext", func(a rig.AccessLine) bool {
		return a.Code == "downstream_tls_failure" && strings.HasPrefix(a.Detail, "plaintext")
	})
	m.Only(soon, m.api, "api-1") // and it still serves
}

// request sends one request with a client certificate. The server is not
// verified: it is the one that refuses here.
func request(addr string, cert *tls.Certificate) (int, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: soon}, Config: &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return exchange(conn)
}

func exchange(conn net.Conn) (int, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// impostor listens where an instance is registered.
type impostor struct {
	port int
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	cert  *tls.Certificate // guarded by mu; nil: it speaks plaintext
	heard bytes.Buffer     // guarded by mu: of the application's data
	came  int              // guarded by mu
}

func newImpostor(t *testing.T) *impostor {
	t.Helper()
	i := &impostor{}
	i.l, i.port = rig.Listen(t)
	i.wg.Go(func() {
		for {
			c, err := i.l.Accept()
			if err != nil {
				return
			}
			i.wg.Go(func() { i.take(c) })
		}
	})
	t.Cleanup(func() { i.l.Close(); i.wg.Wait() })
	return i
}

func (i *impostor) take(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second)) // a fresh connection
	i.mu.Lock()
	cert := i.cert
	i.came++
	i.mu.Unlock()
	if cert == nil {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}") // it may have gone
		return
	}
	tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}})
	b := make([]byte, 4096)
	n, _ := tc.Read(b) // handshakes; ends in an error where the client is right
	i.mu.Lock()
	defer i.mu.Unlock()
	i.heard.Write(b[:n])
}

func (i *impostor) become(cert *tls.Certificate) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cert = cert
}

func (i *impostor) visits() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.came
}

// TestImpostor: whoever listens where bank is registered, but is not bank, gets
// no request.
func TestImpostor(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	imp := newImpostor(t)
	ours := m.Authority()
	bank := rig.Port(t)
	m.agent.Entry(rig.Protocol("bank", "http"))
	m.agent.Entry(rig.Intentions("bank", "web", "allow"))
	m.agent.Register(rig.Define("bank", "bank-1", rig.Port(t), imp.port))
	m.call("bank", bank)
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	leaf := func(c tls.Certificate) *tls.Certificate { return &c }
	name := []string{principal("bank")}
	for _, c := range []struct {
		name   string
		cert   *tls.Certificate
		reason string
	}{
		{"another service's identity", leaf(ours.Leaf([]string{principal("orders")}, nil)), "unexpected_id"},
		{"the caller's own identity", leaf(ours.Leaf([]string{principal("web")}, nil)), "unexpected_id"},
		{"the right name, signed by somebody else", leaf(m.Foreign(rig.TrustDomain).Leaf(name, nil)), "unknown_authority"},
		{"another trust domain", leaf(m.Foreign("other.parrel").Leaf([]string{strings.Replace(name[0], rig.TrustDomain, "other.parrel", 1)}, nil)), "wrong_trust_domain"},
		{"expired", leaf(ours.Leaf(name, past)), "expired"},
		{"several URI SANs", leaf(ours.Leaf([]string{name[0], principal("orders")}, nil)), "several_uri_sans"},
		{"plaintext", nil, ""},
	} {
		imp.become(c.cert)
		before, lines := imp.visits(), len(m.web.Access())
		m.refusedWith(soon, bank, http.StatusServiceUnavailable, "upstream_tls_failure")
		if imp.visits() == before {
			t.Errorf("%s: the impostor was not asked at all", c.name)
		}
		m.Eventually(soon, c.name+" is in the access log", func() error {
			for _, a := range m.web.Access()[lines:] {
				if a.Direction == "outbound" && a.Code == "upstream_tls_failure" && a.Flags == "UF" && strings.Contains(a.Detail, c.reason) {
					return nil
				}
			}
			return fmt.Errorf("%+v", m.web.Access()[lines:])
		})
	}
	imp.mu.Lock()
	heard := imp.heard.String()
	imp.mu.Unlock()
	if heard != "" {
		t.Errorf("an impostor heard %q", heard)
	}
	m.Step("bank itself is answered, at the same address")
	right := ours.Leaf(name, nil)
	imp.become(&right)
	m.Eventually(soon, "the request reaches bank", func() error {
		_, _, _ = rig.Status(bank) // bank says nothing: only that it was asked counts
		imp.mu.Lock()
		defer imp.mu.Unlock()
		if imp.heard.Len() == 0 {
			return fmt.Errorf("nothing came")
		}
		return nil
	})
}
