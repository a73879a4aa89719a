package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/test/bufconn"
)

const (
	webID = "spiffe://mesh.test/ns/default/dc/dc1/svc/web"
	apiID = "spiffe://mesh.test/ns/default/dc/dc1/svc/api"
)

// result is how both sides saw a handshake and one byte each way.
type result struct {
	client, server    error
	clientCS, server_ tls.ConnectionState
}

// pipe is a connection in memory that buffers: a side that refuses writes its
// alert while the other one writes too.
func pipe() (client, server net.Conn) {
	l := bufconn.Listen(1 << 16)
	defer l.Close()
	got := make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		got <- c
	}()
	a, err := l.Dial()
	if err != nil {
		panic(err)
	}
	return a, <-got
}

// shake lets two sides meet on a pipe. A byte goes each way: with TLS 1.3 a
// client hears of its refusal with the first read only.
func shake(client, server *tls.Config) result {
	a, b := pipe()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := tls.Server(b, server)
		defer b.Close()
		if r.server = s.Handshake(); r.server != nil {
			return
		}
		r.server_ = s.ConnectionState()
		if _, r.server = io.ReadFull(s, make([]byte, 1)); r.server != nil {
			return
		}
		_, r.server = s.Write([]byte("s"))
	}()
	c := tls.Client(a, client)
	r.client = c.Handshake()
	if r.client == nil {
		r.clientCS = c.ConnectionState()
		if _, r.client = c.Write([]byte("c")); r.client == nil {
			_, r.client = io.ReadFull(c, make([]byte, 1))
		}
		r.clientCS = c.ConnectionState()
	}
	a.Close()
	<-done
	return r
}

func clientOf(src mtls.Source, edit ...func(*mtls.ClientParams)) *tls.Config {
	p := mtls.ClientParams{Params: mtls.Params{Identity: src, ALPN: []string{"h2", "http/1.1"}, Now: noon}, SNI: "api.test"}
	for _, e := range edit {
		e(&p)
	}
	return mtls.ClientConfig(p)
}

func serverOf(src mtls.Source, edit ...func(*mtls.ServerParams)) *tls.Config {
	p := mtls.ServerParams{Params: mtls.Params{Identity: src, ALPN: []string{"h2", "http/1.1"}, Now: noon}}
	for _, e := range edit {
		e(&p)
	}
	return mtls.ServerConfig(p)
}

func TestGoodHandshake(t *testing.T) {
	root := newAuthority(t, "root")
	sub := root.intermediate("issuing")
	set := setFor("mesh.test", root.cert)
	r := shake(
		clientOf(cell(sub.leaf(webID), set), func(p *mtls.ClientParams) { p.Authorise = mtls.Expect(spiffeid.RequireFromString(apiID)) }),
		serverOf(cell(sub.leaf(apiID), set), func(p *mtls.ServerParams) { p.Authorise = mtls.Expect(spiffeid.RequireFromString(webID)) }))
	if r.client != nil || r.server != nil {
		t.Fatalf("client: %v, server: %v", r.client, r.server)
	}
	if id, ok := mtls.PeerID(r.server_); !ok || id.String() != webID {
		t.Errorf("the server saw %v, %t", id, ok)
	}
	if id, ok := mtls.PeerID(r.clientCS); !ok || id.String() != apiID {
		t.Errorf("the client saw %v, %t", id, ok)
	}
	if r.clientCS.Version != tls.VersionTLS13 || r.clientCS.NegotiatedProtocol != "h2" || r.server_.ServerName != "api.test" {
		t.Errorf("version %x, ALPN %q, SNI %q", r.clientCS.Version, r.clientCS.NegotiatedProtocol, r.server_.ServerName)
	}
}

// TestRefused holds every bad certificate against both sides (ID2).
func TestRefused(t *testing.T) {
	root := newAuthority(t, "root")
	other := newAuthority(t, "root") // the same name, another key
	set := setFor("mesh.test", root.cert)
	twoURIs := func(c *x509.Certificate) {
		u, _ := url.Parse("spiffe://mesh.test/other")
		c.URIs = append(c.URIs, u)
	}
	ekuOf := func(e ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = e }
	}
	chainOf := func(svid *x509svid.SVID, n int) *x509svid.SVID {
		svid.Certificates = svid.Certificates[:n]
		return svid
	}
	long := "spiffe://mesh.test/" + strings.Repeat("a", 2048)
	for _, c := range []struct {
		name string
		svid *x509svid.SVID
		want mtls.Reason
	}{
		{"expired", root.leaf(webID, func(c *x509.Certificate) { c.NotAfter = noon().Add(-time.Second) }), mtls.Expired},
		{"not yet valid", root.leaf(webID, func(c *x509.Certificate) { c.NotBefore = noon().Add(time.Second) }), mtls.NotYetValid},
		{"other trust domain", root.leaf("spiffe://other.test/ns/default/dc/dc1/svc/web"), mtls.WrongTrustDomain},
		{"other root", other.leaf(webID), mtls.UnknownAuthority},
		{"two URI SANs", root.leaf(webID, twoURIs), mtls.SeveralURISANs},
		{"the same URI SAN twice", root.leaf("", rawSAN(webID, webID)), mtls.SeveralURISANs},
		{"no URI SAN", root.leaf("", func(c *x509.Certificate) { c.DNSNames = []string{"web.test"} }), mtls.NoURISAN},
		{"no SAN", root.leaf("", func(c *x509.Certificate) { c.Subject.CommonName = webID }), mtls.NoURISAN},
		{"CA flag", root.leaf(webID, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), mtls.CALeaf},
		{"may sign certificates", root.leaf(webID, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), mtls.CALeaf},
		{"may sign revocation lists", root.leaf(webID, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), mtls.CALeaf},
		{"no digital signature", root.leaf(webID, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), mtls.BadKeyUsage},
		{"no key usage", root.leaf(webID, func(c *x509.Certificate) { c.KeyUsage = 0 }), mtls.BadKeyUsage},
		{"extended key usage of neither role", root.leaf(webID, ekuOf(x509.ExtKeyUsageEmailProtection)), mtls.BadKeyUsage},
		{"NUL in the SAN", root.leaf("", rawSAN(webID+"\x00.evil")), mtls.BadSPIFFEID},
		{"escaped NUL in the SAN", root.leaf("", rawSAN(webID+"%00")), mtls.BadSPIFFEID},
		{"not ASCII", root.leaf("", rawSAN(webID+"\xff")), mtls.BadSPIFFEID},
		{"space", root.leaf("", rawSAN("spiffe://mesh.test/a b")), mtls.BadSPIFFEID},
		{"escaped slash", root.leaf("", rawSAN("spiffe://mesh.test/a%2fb")), mtls.BadSPIFFEID},
		{"query", root.leaf("", rawSAN(webID+"?x=1")), mtls.BadSPIFFEID},
		{"fragment", root.leaf("", rawSAN(webID+"#x")), mtls.BadSPIFFEID},
		{"dot segment", root.leaf("", rawSAN("spiffe://mesh.test/a/../web")), mtls.BadSPIFFEID},
		{"trailing slash", root.leaf("", rawSAN(webID+"/")), mtls.BadSPIFFEID},
		{"upper-case trust domain", root.leaf("", rawSAN("spiffe://MESH.test/web")), mtls.BadSPIFFEID},
		{"port", root.leaf("", rawSAN("spiffe://mesh.test:1/web")), mtls.BadSPIFFEID},
		{"user", root.leaf("", rawSAN("spiffe://u@mesh.test/web")), mtls.BadSPIFFEID},
		{"https", root.leaf("", rawSAN("https://mesh.test/web")), mtls.BadSPIFFEID},
		{"no path", root.leaf("", rawSAN("spiffe://mesh.test")), mtls.BadSPIFFEID},
		{"too long", root.leaf(long), mtls.BadSPIFFEID},
		{"expired intermediate", root.intermediate("sub", func(c *x509.Certificate) { c.NotAfter = noon().Add(-time.Minute) }).leaf(webID), mtls.Expired},
		{"intermediate not yet valid", root.intermediate("sub", func(c *x509.Certificate) { c.NotBefore = noon().Add(time.Minute) }).leaf(webID), mtls.NotYetValid},
		{"intermediate missing", chainOf(root.intermediate("sub").leaf(webID), 1), mtls.UnknownAuthority},
		{"intermediate is no CA", root.intermediate("sub", func(c *x509.Certificate) { c.IsCA = false }).leaf(webID), mtls.UnknownAuthority},
		{"name constraint", root.intermediate("sub", func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"other.test"}, true
		}).leaf(webID), mtls.BadChain},
		{"path length", root.intermediate("sub", func(c *x509.Certificate) { c.MaxPathLenZero = true }).intermediate("subsub").leaf(webID), mtls.BadChain},
		{"extended key usage of the intermediate", root.intermediate("sub", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
		}).leaf(webID), mtls.BadKeyUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The bad one believes itself good: only its peer can refuse. Its own
			// clock is right for its certificate.
			evil := &tls.Certificate{PrivateKey: c.svid.PrivateKey}
			for _, x := range c.svid.Certificates {
				evil.Certificate = append(evil.Certificate, x.Raw)
			}
			give := func() (*tls.Certificate, error) { return evil, nil }
			good := cell(root.leaf(apiID), set)
			asClient := shake(&tls.Config{InsecureSkipVerify: true, //nolint:gosec // the attacker's side
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return give() }}, serverOf(good))
			if got, _ := mtls.ReasonOf(asClient.server); got != c.want || asClient.client == nil {
				t.Errorf("the server said %q (%v), want %q; the client: %v", got, asClient.server, c.want, asClient.client)
			}
			asServer := shake(clientOf(good), &tls.Config{ClientAuth: tls.RequestClientCert,
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return give() }})
			if got, _ := mtls.ReasonOf(asServer.client); got != c.want || asServer.server == nil {
				t.Errorf("the client said %q (%v), want %q; the server: %v", got, asServer.client, c.want, asServer.server)
			}
		})
	}
}

// TestRoles: a certificate for one role only is refused in the other.
func TestRoles(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	only := func(e x509.ExtKeyUsage) *mtls.Cell {
		return cell(root.leaf(webID, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{e} }), set)
	}
	good := cell(root.leaf(apiID), set)
	if r := shake(clientOf(only(x509.ExtKeyUsageServerAuth)), serverOf(good)); reason(r.server) != mtls.BadKeyUsage {
		t.Errorf("server: %v", r.server)
	}
	if r := shake(clientOf(good), serverOf(only(x509.ExtKeyUsageClientAuth))); reason(r.client) != mtls.BadKeyUsage {
		t.Errorf("client: %v", r.client)
	}
	if r := shake(clientOf(only(x509.ExtKeyUsageClientAuth)), serverOf(only(x509.ExtKeyUsageServerAuth))); r.client != nil || r.server != nil {
		t.Errorf("each in its role: %v, %v", r.client, r.server)
	}
}

func reason(err error) mtls.Reason {
	r, _ := mtls.ReasonOf(err)
	return r
}

func TestUnexpectedPeer(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	web, api := cell(root.leaf(webID), set), cell(root.leaf(apiID), set)
	r := shake(clientOf(web, func(p *mtls.ClientParams) { p.Authorise = mtls.Expect(spiffeid.RequireFromString(webID)) }), serverOf(api))
	if reason(r.client) != mtls.UnexpectedID || !strings.Contains(r.client.Error(), apiID+" refused (unexpected_id): expected "+webID) {
		t.Errorf("client: %v", r.client)
	}
	r = shake(clientOf(web), serverOf(api, func(p *mtls.ServerParams) { p.Authorise = mtls.Expect() }))
	if reason(r.server) != mtls.UnexpectedID || r.client == nil {
		t.Errorf("server: %v, client: %v", r.server, r.client)
	}
}

func TestNoCertificate(t *testing.T) {
	root := newAuthority(t, "root")
	api := cell(root.leaf(apiID), setFor("mesh.test", root.cert))
	bare := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the attacker's side
	if r := shake(bare, serverOf(api)); reason(r.server) != mtls.NoCertificate || r.client == nil {
		t.Errorf("required: server %v, client %v", r.server, r.client)
	}
	optional := func(p *mtls.ServerParams) { p.OptionalClientCert = true }
	if r := shake(bare, serverOf(api, optional)); r.server != nil || r.client != nil {
		t.Errorf("optional: %v, %v", r.server, r.client)
	} else if id, ok := mtls.PeerID(r.server_); ok {
		t.Errorf("a client without certificate is %v", id)
	}
	// Optional means absent or good, never bad.
	bad := cell(root.leaf(webID, func(c *x509.Certificate) { c.NotAfter = noon().Add(-time.Second) }), setFor("mesh.test", root.cert))
	past := func(p *mtls.ClientParams) { p.Now = func() time.Time { return noon().Add(-time.Minute) } }
	if r := shake(clientOf(bad, past), serverOf(api, optional)); reason(r.server) != mtls.Expired {
		t.Errorf("optional and expired: %v", r.server)
	}
}

// TestOwnSide: without a usable identity of its own, or without trust, a side
// refuses and says why (ID3, ID8).
func TestOwnSide(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	why := errors.New("the token was refused")
	good := root.leaf(apiID)
	for _, c := range []struct {
		name string
		snap *mtls.Snapshot
		want mtls.Reason
		text string
	}{
		{"nothing yet", &mtls.Snapshot{Bundles: set, Err: why}, mtls.OwnMissing, "the token was refused"},
		{"expired", &mtls.Snapshot{SVID: root.leaf(apiID, func(c *x509.Certificate) { c.NotAfter = noon().Add(-time.Second) }), Bundles: set, Err: why},
			mtls.OwnExpired, "expired at 2030-05-01T11:59:59Z and was not renewed: the token was refused"},
		{"not yet valid", &mtls.Snapshot{SVID: root.leaf(apiID, func(c *x509.Certificate) { c.NotBefore = noon().Add(time.Hour) }), Bundles: set},
			mtls.OwnNotYetValid, "check this host's clock"},
		{"no bundles", &mtls.Snapshot{SVID: good}, mtls.NoTrust, "no trust bundle"},
		{"empty bundles", &mtls.Snapshot{SVID: good, Bundles: x509bundle.NewSet()}, mtls.NoTrust, "no trust bundle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer := cell(root.leaf(webID), set)
			r := shake(clientOf(mtls.NewCell(c.snap)), serverOf(peer))
			if reason(r.client) != c.want || !strings.Contains(r.client.Error(), c.text) {
				t.Errorf("as client: %v, want %s", r.client, c.want)
			}
			// A server that asks for no certificate does not let the side in without one.
			lax := shake(clientOf(mtls.NewCell(c.snap)), &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				s := peer.Current().SVID
				return &tls.Certificate{Certificate: [][]byte{s.Certificates[0].Raw}, PrivateKey: s.PrivateKey}, nil
			}})
			if reason(lax.client) != c.want {
				t.Errorf("as client of a lax server: %v, want %s", lax.client, c.want)
			}
			r = shake(clientOf(peer), serverOf(mtls.NewCell(c.snap)))
			if reason(r.server) != c.want || !strings.Contains(r.server.Error(), c.text) || r.client == nil {
				t.Errorf("as server: %v, want %s; the client: %v", r.server, c.want, r.client)
			}
		})
	}
}

func TestPlaintextIsRefused(t *testing.T) {
	root := newAuthority(t, "root")
	api := cell(root.leaf(apiID), setFor("mesh.test", root.cert))
	a, b := pipe()
	done := make(chan error, 1)
	go func() { done <- tls.Server(b, serverOf(api)).Handshake(); b.Close() }()
	go a.Write([]byte("GET / HTTP/1.1\r\nHost: api\r\n\r\n"))
	_, _ = io.Copy(io.Discard, a)
	a.Close()
	if err := <-done; err == nil {
		t.Error("plaintext was taken for a handshake")
	}
}

func TestOldVersionsAreRefused(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	web, api := cell(root.leaf(webID), set), cell(root.leaf(apiID), set)
	old := func(p *mtls.ClientParams) { p.MinVersion, p.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }
	if r := shake(clientOf(web, old), serverOf(api)); r.client == nil || r.server == nil {
		t.Error("TLS 1.2 was accepted")
	}
	if r := shake(clientOf(web, old), serverOf(api, func(p *mtls.ServerParams) { p.MinVersion = tls.VersionTLS12 })); r.client != nil || r.server != nil {
		t.Errorf("TLS 1.2, allowed on both sides: %v, %v", r.client, r.server)
	}
}

// TestResumption: tickets work, and outlive neither roots, certificates nor
// policy (ID7).
func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { testResumption(t, version) })
	}
}

func testResumption(t *testing.T, version uint16) {
	root, root2 := newAuthority(t, "root"), newAuthority(t, "root2")
	set, both := setFor("mesh.test", root.cert), setFor("mesh.test", root.cert, root2.cert)
	webSVID, apiSVID := root.leaf(webID), root.leaf(apiID)
	web, api := cell(webSVID, set), cell(apiSVID, set)
	allowed := true
	client := clientOf(web, func(p *mtls.ClientParams) { p.MinVersion, p.MaxVersion = version, version })
	server := serverOf(api, func(p *mtls.ServerParams) {
		p.MinVersion = version
		p.Authorise = func(spiffeid.ID) error {
			if !allowed {
				return errors.New("an intention denies it")
			}
			return nil
		}
	})
	step := func(what string, resumed bool) {
		t.Helper()
		r := shake(client, server)
		if r.client != nil || r.server != nil {
			t.Fatalf("%s: %v, %v", what, r.client, r.server)
		}
		if r.clientCS.DidResume != resumed || r.server_.DidResume != resumed {
			t.Fatalf("%s: resumed %t, want %t", what, r.clientCS.DidResume, resumed)
		}
	}
	step("first", false)
	step("again", true)
	allowed = false
	if r := shake(client, server); reason(r.server) != mtls.UnexpectedID {
		t.Fatalf("a ticket outlived the policy: %v", r.server)
	}
	allowed = true
	api.Set(&mtls.Snapshot{SVID: apiSVID, Bundles: both})
	step("after the server's roots changed", false)
	step("again", true)
	web.Set(&mtls.Snapshot{SVID: webSVID, Bundles: both})
	step("after the client's roots changed", false)
	web.Set(&mtls.Snapshot{SVID: root.leaf(webID), Bundles: both})
	step("after the client's certificate changed", false)
	api.Set(&mtls.Snapshot{SVID: root.leaf(apiID), Bundles: both})
	step("after the server's certificate changed", false)
	api.Set(&mtls.Snapshot{SVID: root2.leaf(apiID), Bundles: setFor("mesh.test", root2.cert)})
	if r := shake(client, server); reason(r.server) != mtls.UnknownAuthority {
		t.Fatalf("a ticket outlived its root: %v", r.server)
	}
}

// TestTicketsEnd: a ticket outlives neither the certificate that it was given
// for nor its key, and is of no use to another identity.
func TestTicketsEnd(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	now := noon()
	clock := func() time.Time { return now }
	long := func(c *x509.Certificate) { c.NotAfter = noon().Add(100 * time.Hour) }
	web, api := cell(root.leaf(webID, long), set), cell(root.leaf(apiID, long), set)
	client := clientOf(web, func(p *mtls.ClientParams) { p.Now = clock })
	server := serverOf(api, func(p *mtls.ServerParams) { p.Now = clock })
	resumes := func(what string, server *tls.Config, want bool) {
		t.Helper()
		if r := shake(client, server); r.client != nil || r.server != nil || r.clientCS.DidResume != want {
			t.Fatalf("%s: %v, %v, resumed %t, want %t", what, r.client, r.server, r.clientCS.DidResume, want)
		}
	}
	resumes("first", server, false)
	resumes("again", server, true)
	resumes("the same service's other listener", serverOf(api, func(p *mtls.ServerParams) { p.Now = clock }), false)
	resumes("back", server, false)
	other := cell(root.leaf(webID, long), set)
	if r := shake(clientOf(other, func(p *mtls.ClientParams) { p.Now = clock }), server); r.client != nil || r.clientCS.DidResume {
		t.Fatalf("another identity: %v, resumed %t", r.client, r.clientCS.DidResume)
	}
	ends := api.Current().SVID.Certificates[0].NotAfter
	now = now.Add(13 * time.Hour)
	resumes("with the key before", server, true)
	now = now.Add(25 * time.Hour)
	resumes("two keys later", server, false)
	now = ends.Add(-time.Second)
	resumes("before the end", server, false)
	resumes("again", server, true)
	now = ends.Add(time.Second)
	if r := shake(client, server); r.client == nil && r.server == nil {
		t.Fatal("a ticket outlived the certificates")
	}
}

// TestRotation: a new certificate serves from the next handshake on.
func TestRotation(t *testing.T) {
	root := newAuthority(t, "root")
	set := setFor("mesh.test", root.cert)
	web, api := cell(root.leaf(webID), set), cell(nil, set)
	client, server := clientOf(web), serverOf(api)
	if r := shake(client, server); reason(r.server) != mtls.OwnMissing {
		t.Fatalf("without a certificate: %v", r.server)
	}
	for range 5 {
		svid := root.leaf(apiID)
		api.Set(&mtls.Snapshot{SVID: svid, Bundles: set})
		r := shake(client, server)
		if r.client != nil || r.server != nil {
			t.Fatal(r.client, r.server)
		}
		if !r.clientCS.PeerCertificates[0].Equal(svid.Certificates[0]) {
			t.Fatal("an old certificate was presented")
		}
	}
}

// TestUnnamedBundle: a bundle without a trust domain vouches for every one
// that has none of its own.
func TestUnnamedBundle(t *testing.T) {
	root, foreign := newAuthority(t, "root"), newAuthority(t, "foreign")
	set := x509bundle.NewSet(x509bundle.FromX509Authorities(spiffeid.TrustDomain{}, []*x509.Certificate{foreign.cert}),
		x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("mesh.test"), []*x509.Certificate{root.cert}))
	api := cell(root.leaf(apiID), set)
	if r := shake(clientOf(cell(foreign.leaf("spiffe://other.test/web"), set)), serverOf(api)); r.server != nil {
		t.Errorf("foreign: %v", r.server)
	}
	if r := shake(clientOf(cell(foreign.leaf(webID), set)), serverOf(api)); reason(r.server) != mtls.UnknownAuthority {
		t.Errorf("a named bundle gave way to the unnamed one: %v", r.server)
	}
}
