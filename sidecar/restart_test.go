package sidecar

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// plane is a control plane: the built-in CA, Sign and xDS on one port, serving
// each workload what the test says.
type plane struct {
	ca   *ca.CA
	stop func()
	all  map[string][]resource.Resource // by node id
}

func (p *plane) Authorise(_ context.Context, peer spiffeid.ID, node string, d server.Dialect) (server.Workload, error) {
	if want := mustID(p.ca, strings.TrimSuffix(node, "-sidecar-proxy")); peer != want {
		return server.Workload{}, fmt.Errorf("%s is not %s", peer, want)
	}
	return server.Workload{NodeID: node, ID: peer, Dialect: d}, nil
}

func mustID(c *ca.CA, service string) spiffeid.ID {
	id, err := mtls.ServiceID(c.TrustDomain(), "default", "dc1", service)
	if err != nil {
		panic(err)
	}
	return id
}

func (p *plane) Names(w server.Workload, t resource.Type) (out []string) {
	for _, r := range p.all[w.NodeID] {
		if r.ResourceType() == t {
			out = append(out, r.ResourceName())
		}
	}
	return out
}

func (p *plane) Resource(w server.Workload, t resource.Type, name string) (resource.Resource, bool, bool) {
	for _, r := range p.all[w.NodeID] {
		if r.ResourceType() == t && r.ResourceName() == name {
			return r, true, true
		}
	}
	return nil, false, false
}

// plane starts a control plane on a host's port 15012.
func (m *mesh) plane(h *netio.Host, dir string, resources func(trust *resource.Secret) map[string][]resource.Resource) *plane {
	m.t.Helper()
	fatal := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	a, err := ca.Open(dir, ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")})
	fatal(err)
	own, err := a.ControlPlaneCert(m.t.Context(), []string{"localhost"}, nil)
	fatal(err)
	bundles, err := a.Bundles()
	fatal(err)
	trust := func() *x509bundle.Set { return bundles }
	roots, err := a.Roots(m.t.Context())
	fatal(err)
	secret := &resource.Secret{Name: resource.SecretTrust, TrustPEM: []resource.TrustBundle{{TrustDomain: "mesh.test", RootsPEM: pemOf(roots[0].Raw)}}}
	p := &plane{ca: a, all: resources(secret)}
	sign, err := remote.NewServer(remote.ServerConfig{Issuer: a, Tokens: a, Trust: trust})
	fatal(err)
	xds := server.New(server.Config{Authoriser: p, Provider: p, Peer: func(ctx context.Context) (spiffeid.ID, error) {
		id, ok := remote.PeerFromContext(ctx)
		if !ok {
			return id, fmt.Errorf("no certificate")
		}
		return id, nil
	}})
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(remote.ServerTLS(mtls.Params{Identity: own, Trust: trust}))),
		grpc.UnaryInterceptor(remote.UnaryInterceptor()), grpc.StreamInterceptor(remote.StreamInterceptor()))
	remote.RegisterServer(g, sign)
	xds.Register(g)
	ln, err := h.Listen(m.t.Context(), "tcp", h.Addr().String()+":15012")
	fatal(err)
	m.wg.Go(func() { _ = g.Serve(onlyConns{ln}) })
	p.stop = func() { xds.Close(); g.Stop() }
	m.end = append(m.end, p.stop)
	return p
}

// joined changes a configuration to the real sources of identity and of
// configuration.
func joined(dir, token string) func(*Config, *Deps) {
	return func(c *Config, d *Deps) {
		c.ControlPlane, c.DataDir = "10.0.0.9:15012", dir
		for i := range c.Workloads {
			c.Workloads[i].Token = token
		}
		d.Identity, d.Source = nil, nil
	}
}

// TestRestartWithEverythingElseDead: a sidecar joins, serves, and ends; the
// control plane is gone for good; started again from its data directory alone
// the sidecar serves as before.
func TestRestartWithEverythingElseDead(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		planeHost, webHost, apiHost := m.net.Host("plane", "10.0.0.9"), m.net.Host("web", "10.0.0.1"), m.net.Host("api", "10.0.0.2")
		m.app(apiHost, 8080, func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "served") })
		p := m.plane(planeHost, t.TempDir(), func(trust *resource.Secret) map[string][]resource.Resource {
			return map[string][]resource.Resource{
				"web-sidecar-proxy": {trust, outbound("api", 1000, true), routeAll("api", "api"), upstream("api", true), at("api", "10.0.0.2:21000")},
				"api-sidecar-proxy": {trust, public("api", "10.0.0.2", 21000, true, "web"), local(8080)},
			}
		})
		token, err := p.ca.Mint(ca.TokenSpec{Services: []string{"web", "api"}, Datacenter: "dc1"})
		if err != nil {
			t.Fatal(err)
		}
		webDir, apiDir := t.TempDir(), t.TempDir()
		web, api := m.sidecar(webHost, joined(webDir, token), "web"), m.sidecar(apiHost, joined(apiDir, token), "api")
		serves := func(when string) {
			t.Helper()
			for _, x := range []*process{web, api} {
				within(t, 30*time.Second, when+": ready", func() bool { code, _ := x.get("/ready"); return code == 200 })
			}
			resp, err := httpOn(webHost).Get("http://127.0.0.1:1000/")
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if code, body := read(t, resp); code != 200 || body != "served" {
				t.Fatalf("%s: %d %s", when, code, body)
			}
		}
		serves("joined")
		time.Sleep(5 * time.Second) // the set is on disk within a second
		stopped(t, web)
		stopped(t, api)
		p.stop()
		if planeHost.Open() > 0 {
			t.Errorf("connections to the dead control plane are open")
		}

		t.Log("everything else is dead")
		start := time.Now()
		web, api = m.sidecar(webHost, joined(webDir, ""), "web"), m.sidecar(apiHost, joined(apiDir, ""), "api")
		serves("from disk")
		if d := time.Since(start); d > 300*time.Millisecond {
			t.Errorf("served only after %s", d)
		}
		if _, body := web.get("/server_info"); !strings.Contains(body, `"from_disk": true`) || !strings.Contains(body, `"connected": false`) {
			t.Errorf("/server_info: %s", body)
		}
		time.Sleep(24 * time.Hour)
		serves("a day later")
		stopped(t, web)
		stopped(t, api)
		modes(t, webDir)
	})
}

// modes: the data directory is its owner's alone.
func modes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || path == dir {
			return err
		}
		if p := info.Mode().Perm(); info.IsDir() && p != 0o700 || !info.IsDir() && p != 0o600 {
			t.Errorf("%s has mode %o", path, p)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestWrongPlaneIsRefused: with the identity on disk, a server that is not the
// control plane, though of the same trust domain, gives no configuration.
func TestWrongPlaneIsRefused(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		planeHost, webHost := m.net.Host("plane", "10.0.0.9"), m.net.Host("web", "10.0.0.1")
		ln, err := planeHost.Listen(t.Context(), "tcp", "10.0.0.9:15012")
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer(grpc.Creds(credentials.NewTLS(remote.ServerTLS(mtls.Params{Identity: m.pki.Identity("evil"), Trust: m.pki.Bundles}))))
		p := &plane{all: map[string][]resource.Resource{}}
		xds := server.New(server.Config{Authoriser: p, Provider: p})
		xds.Register(g)
		m.wg.Go(func() { _ = g.Serve(onlyConns{ln}) })
		m.end = append(m.end, func() { xds.Close(); g.Stop() })
		web := m.sidecar(webHost, func(c *Config, d *Deps) {
			c.ControlPlane, c.DataDir, d.Source = "10.0.0.9:15012", t.TempDir(), nil
		}, "web")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if code, body := web.get("/ready"); code != 503 || !strings.Contains(body, "svc/evil") {
			t.Errorf("/ready: %d %s", code, body)
		}
		stopped(t, web)
	})
}
