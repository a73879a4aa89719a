package attack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of a test for something that comes, on a machine
// that has other things to do. late bounds what a promise says comes at once, or
// after a part of a second.
const (
	patience = 30 * time.Second
	late     = 10 * time.Second
)

// identity is one of the test's own trust domain.
type identity struct {
	*mtls.Cell
	trust *resource.Secret // its roots
}

func (identity) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func newIdentity() (identity, error) {
	td := spiffeid.RequireTrustDomainFromString("mesh.test")
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{td.ID().URL()}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return identity{}, err
	}
	id := spiffeid.RequireFromPath(td, "/ns/default/dc/dc1/svc/edge")
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), URIs: []*url.URL{id.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return identity{}, err
	}
	root, err := x509.ParseCertificate(caDER)
	if err != nil {
		return identity{}, err
	}
	cert, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return identity{}, err
	}
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{root})
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return identity{mtls.NewCell(&mtls.Snapshot{SVID: &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key},
		Bundles: x509bundle.NewSet(bundle)}),
		&resource.Secret{Name: resource.SecretTrust, TrustPEM: []resource.TrustBundle{{TrustDomain: td.Name(), RootsPEM: roots}}}}, nil
}

// feed is a source that gives fixed resources.
type feed struct {
	h  client.Handler
	rs []resource.Resource
}

func (f *feed) Subscribe(resource.Type, []string) {}
func (f *feed) Status() client.Status             { return client.Status{} }
func (f *feed) Held() []client.Held               { return nil }

func (f *feed) Run(ctx context.Context) error {
	// Each type in one delivery, what is referred to first.
	for _, t := range []resource.Type{resource.TypeSecret, resource.TypeCluster, resource.TypeListener} {
		u := client.Update{Type: t}
		for _, r := range f.rs {
			if r.ResourceType() == t {
				u.Upserted = append(u.Upserted, r)
			}
		}
		f.h.Apply(u)
	}
	<-ctx.Done()
	return ctx.Err()
}

// log is the sidecar's, shown where a test fails.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// config is what the tests' sidecars run with.
func config(admin string, rs []resource.Resource, id identity, l *slog.Logger) (sidecar.Config, sidecar.Deps) {
	return sidecar.Config{Admin: admin, Version: "test", Drain: time.Second, Leave: -1,
			Workloads: []sidecar.Workload{{Service: "edge", Proxy: "edge-sidecar-proxy"}}},
		sidecar.Deps{Net: netio.OS{}, Log: l,
			Identity: func(sidecar.Workload) (sidecar.Identity, error) { return id, nil },
			Source: func(_ sidecar.Workload, h client.Handler) (sidecar.Source, error) {
				return &feed{h: h, rs: append([]resource.Resource{id.trust}, rs...)}, nil
			}}
}

// edge is a running sidecar in this process.
type edge struct {
	t     testing.TB
	admin string
	log   *log
}

// start runs a sidecar with the resources until the test ends.
func start(t testing.TB, change func(*sidecar.Config), rs ...resource.Resource) *edge {
	t.Helper()
	id, err := newIdentity()
	if err != nil {
		t.Fatal(err)
	}
	e := &edge{t: t, admin: freeAddress(t), log: &log{}}
	c, d := config(e.admin, rs, id, slog.New(slog.NewTextHandler(e.log, nil)))
	if change != nil {
		change(&c)
	}
	s, err := sidecar.New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("sidecar: %v", err)
		}
		if t.Failed() {
			t.Logf("sidecar's log:\n%.8000s", e.log.String())
		}
	})
	e.ready()
	return e
}

func (e *edge) ready() {
	e.t.Helper()
	eventually(e.t, "the sidecar is ready", func() error {
		status, body, err := get(e.admin, "/ready")
		if err == nil && status != 200 {
			err = errors.New(body)
		}
		return err
	})
}

// stat is the sum of the samples in /stats whose line begins so.
func (e *edge) stat(prefix string) float64 {
	e.t.Helper()
	v, err := stat(e.admin, prefix)
	if err != nil {
		e.t.Fatal(err)
	}
	return v
}

func stat(admin, prefix string) (sum float64, err error) {
	_, body, err := get(admin, "/stats")
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(body, "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(name, prefix) {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				return 0, fmt.Errorf("%s: %w", line, err)
			}
			sum += v
		}
	}
	return sum, nil
}

// errorsOf is how often the code was counted.
func (e *edge) errorsOf(code string) float64 {
	return e.stat(fmt.Sprintf("parrel_errors_total{code=%q", code))
}

// get asks an admin page on a connection of its own.
func get(address, path string) (int, string, error) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + address + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// eventually waits until ok returns nil.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("not within %s: %s: %v", patience, what, err)
}

// freeAddress is a loopback address that nobody listens on, nor will: outgoing
// connections, of which there are thousands here, get none of these ports.
func freeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", consultest.Port(t))
}

// listen listens at such an address.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// at makes a resource's address of host:port.
func at(address string) resource.Address {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		panic(err)
	}
	return resource.Address{Host: a.IP.String(), Port: uint16(a.Port)}
}

// cluster is one whose only endpoint is there.
func cluster(name, address string, p resource.Protocol) *resource.Cluster {
	return &resource.Cluster{Name: name, Discovery: resource.DiscoveryStatic, Protocol: p,
		Endpoints: &resource.Endpoints{Cluster: name, Localities: []resource.Locality{{Endpoints: []resource.Endpoint{{Address: at(address)}}}}}}
}

// manager sends everything to the cluster.
func manager(name string, filters ...resource.HTTPFilter) *resource.HTTPManager {
	return &resource.HTTPManager{StatPrefix: name,
		Route: &resource.RouteConfig{Name: name, VirtualHosts: []resource.VirtualHost{{Name: name, Domains: []string{"*"},
			Routes: []resource.Route{{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: name}}}}}},
		Filters: append(filters, resource.HTTPFilter{Name: "router", Router: &resource.Router{}})}
}

// inbound is a listener for clients that nobody vouches for.
func inbound(name, address string, m *resource.HTTPManager) *resource.Listener {
	return &resource.Listener{Name: name, Direction: resource.Inbound, Address: at(address),
		Chains: []resource.FilterChain{{Name: name, HTTP: m}}}
}

// lane is one listener of the sidecar with a backend of its own behind it.
type lane struct {
	address string
	b       *backend
}

// lanes starts a sidecar with n of them. The manager of each may be changed.
func lanes(t *testing.T, n int, change func(*resource.HTTPManager)) (*edge, chan *lane) {
	t.Helper()
	var rs []resource.Resource
	free := make(chan *lane, n)
	for i := range n {
		l, name := &lane{address: freeAddress(t), b: newBackend(t)}, fmt.Sprint("lane", i)
		m := manager(name)
		if change != nil {
			change(m)
		}
		rs = append(rs, cluster(name, l.b.address(), resource.ProtocolHTTP1), inbound(name, l.address, m))
		free <- l
	}
	return start(t, nil, rs...), free
}

// smuggled is what no backend may ever see: the leftover bytes of an attempt.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n"
