package compile

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// gateway is a listener and a cluster with certificates of the configuration.
func gateway() (*resource.Listener, *resource.Cluster) {
	cert := resource.CertFiles{Cert: "c", Key: "k"}
	l := &resource.Listener{Name: "gw", Address: resource.Address{Host: "127.0.0.1", Port: 1}, Chains: []resource.FilterChain{{
		Name: "c", TCP: &resource.TCPProxy{Cluster: "app"},
		TLS: &resource.DownstreamTLS{RequireClientCert: true, TLSParams: resource.TLSParams{
			Certificate: resource.CertSource{Files: &cert}, Trust: resource.CertSource{Files: &resource.CertFiles{CA: "ca"}},
			PeerDNS: []resource.StringMatch{{Value: "client"}}, Curves: []string{"X25519"}, MinVersion: "1.2"}},
	}}}
	c := &resource.Cluster{Name: "app", Discovery: resource.DiscoveryStatic, Endpoints: &resource.Endpoints{Cluster: "app"},
		TLS: &resource.UpstreamTLS{SNI: "app", TLSParams: resource.TLSParams{Certificate: resource.CertSource{Files: &cert},
			Trust: resource.CertSource{Files: &resource.CertFiles{CA: "ca"}}}}}
	return l, c
}

func certificate(pki *testpki.PKI) *resource.Secret {
	chain, key := pki.Leaf([]string{"gw"})
	return &resource.Secret{Name: resource.FileSecret(resource.CertFiles{Cert: "c", Key: "k"}), ChainPEM: chain, KeyPEM: key}
}

func roots(pki *testpki.PKI) *resource.Secret {
	return &resource.Secret{Name: resource.FileSecret(resource.CertFiles{CA: "ca"}), TrustPEM: []resource.TrustBundle{{RootsPEM: pki.RootPEM()}}}
}

// TestStaticCertificates: TLS configurations stay while certificates and roots
// change under them.
func TestStaticCertificates(t *testing.T) {
	pki, other := testpki.New(t, "ours"), testpki.New(t, "other")
	w := &world{t: t, pki: pki}
	d := w.deps()
	d.Static = true
	l, c := gateway()
	set := func(secrets ...*resource.Secret) *warm.Set {
		s := &warm.Set{Version: "v", Listeners: map[string]*resource.Listener{"gw": l}, Clusters: map[string]*resource.Cluster{"app": c},
			Secrets: map[string]*resource.Secret{}}
		for _, x := range secrets {
			s.Secrets[x.Name] = x
		}
		return s
	}
	compiled := func(s *warm.Set) *Snapshot {
		t.Helper()
		next, errs := Compile(s, w.current, d)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		w.current = next
		return next
	}
	first, second := certificate(pki), certificate(pki)
	one := compiled(set(first, roots(pki)))
	own := one.Listeners[0].Chains["c"].Own
	if own == nil || own.Verify == nil || own.Config.MinVersion != tls.VersionTLS12 || own.Config.CurvePreferences[0] != tls.X25519 {
		t.Fatalf("the listener's TLS is %+v", own)
	}
	presented := func() string {
		got, err := own.Config.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return got.Leaf.SerialNumber.String()
	}
	before := presented()
	two := compiled(set(second, roots(other)))
	if presented() == before {
		t.Error("the new certificate is not presented")
	}
	if one.Upstreams[0].TLS == nil || one.Upstreams[0].TLS != two.Upstreams[0].TLS {
		t.Error("the cluster's TLS configuration was made again, and its sessions are gone")
	}
	client, _ := tls.X509KeyPair(pki.Leaf([]string{"client"}))
	if err := own.Verify(chainOf(t, client), time.Now()); err == nil {
		t.Error("a client whose root was taken away is still trusted")
	}
	compiled(set(second, roots(pki)))
	if err := own.Verify(chainOf(t, client), time.Now()); err != nil {
		t.Error(err)
	}
	stranger, _ := tls.X509KeyPair(pki.Leaf([]string{"stranger"}))
	if err := own.Verify(chainOf(t, stranger), time.Now()); err == nil {
		t.Error("a client with another name is taken")
	}
}

// TestNotStatic: a control plane cannot name certificates.
func TestNotStatic(t *testing.T) {
	w := &world{t: t, pki: testpki.New(t, "ours")}
	l, c := gateway()
	for _, r := range []resource.Resource{l, c} {
		if err := Check(r, w.deps()); err == nil || !strings.Contains(err.Error(), "transport_socket") {
			t.Errorf("%s: %v", r.ResourceName(), err)
		}
	}
}

// TestCheckAll: what cannot be executed is said, each with its resource.
func TestCheckAll(t *testing.T) {
	pki := testpki.New(t, "ours")
	w := &world{t: t, pki: pki}
	d := w.deps()
	d.Static = true
	l, c := gateway()
	if errs := CheckAll([]resource.Resource{l, c, certificate(pki), roots(pki)}, d); len(errs) > 0 {
		t.Errorf("what is good is refused: %v", errs)
	}
	mixed := certificate(pki)
	mixed.KeyPEM = certificate(pki).KeyPEM
	errs := CheckAll([]resource.Resource{l, c, mixed, roots(pki)}, d)
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), `SDS file:c,k refused`) {
		t.Errorf("a key of another certificate: %v", errs)
	}
}

func chainOf(t *testing.T, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{leaf}
}
