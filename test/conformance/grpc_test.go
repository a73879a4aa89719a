package conformance

import (
	"crypto/tls"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

// TestReachesAllInstances: xds:///pricing reaches every instance, unary and
// streaming, and follows the catalogue; a dead instance is passed over.
func TestReachesAllInstances(t *testing.T) {
	m := newMesh(t)
	pricing := m.SVID("pricing")
	one, two, three := procmesh.Addr(t), procmesh.Addr(t), procmesh.Addr(t)
	startServer(t, m, "pricing-1", one, pricing)
	startServer(t, m, "pricing-2", two, pricing)
	c := xdsClient(t, m, "web-1", m.SVID("web"))
	c.spreads(t, "pricing-1", "pricing-2")

	all, err := c.watch(5)
	if err != nil || len(all) != 5 {
		t.Fatalf("stream: %q, %v", all, err)
	}
	for _, text := range all {
		if !strings.HasSuffix(text, " for "+procmesh.SPIFFEID("web")) {
			t.Errorf("the server did not see who called: %q", text)
		}
	}

	// In the catalogue and out of it.
	third := startServer(t, m, "pricing-3", three, pricing)
	c.spreads(t, "pricing-1", "pricing-2", "pricing-3")
	m.Remove("pricing-1.hcl")
	c.spreads(t, "pricing-2", "pricing-3")

	// Dead, though still in the catalogue, and back.
	third.Kill()
	c.spreads(t, "pricing-2")
	runServer(m, "pricing-3", three, pricing)
	c.spreads(t, "pricing-2", "pricing-3")

	inSync(t, m, "web-1", "pricing-2", "pricing-3")
	shows(t, m, "listeners", "web-1", "pricing")
	shows(t, m, "clusters", "web-1", "pricing.default.dc1.internal."+procmesh.TrustDomain)
	shows(t, m, "listeners", "pricing-2", "grpc/server?xds.resource.listening_address="+two)
}

// shows checks that `parrel config` shows the one resource that a gRPC process
// is served of a type.
func shows(t *testing.T, m *procmesh.Mesh, kind, node, want string) {
	t.Helper()
	var d struct {
		Dialect   string
		Resources []struct{ Name string }
	}
	if err := m.Get("/v1/config/"+kind+"/"+node, &d); err != nil {
		t.Fatal(err)
	}
	if d.Dialect != "grpc" || len(d.Resources) != 1 || d.Resources[0].Name != want {
		t.Errorf("%s of %s: %+v, want %s", kind, node, d, want)
	}
}

// TestHealthAndOutage: an instance whose check fails gets no call although it
// answers; without the control plane both sides keep what they have, for open
// connections and for new ones.
func TestHealthAndOutage(t *testing.T) {
	m := newMesh(t)
	pricing, web := m.SVID("pricing"), m.SVID("web")
	one, two, probe := procmesh.Addr(t), procmesh.Addr(t), procmesh.Addr(t)
	startServer(t, m, "pricing-1", one, pricing)
	startServer(t, m, "pricing-2", two, pricing)
	m.Write("pricing-2.hcl", strings.Replace(native("pricing", "pricing-2", two), "  connect {",
		"  check {\n    id = \"probe\"\n    tcp = \""+probe+"\"\n    interval = \"200ms\"\n    timeout = \"1s\"\n  }\n  connect {", 1))
	c := xdsClient(t, m, "web-1", web)
	c.spreads(t, "pricing-1")
	l := listen(t, probe)
	c.spreads(t, "pricing-1", "pricing-2")
	l.Close()
	c.spreads(t, "pricing-1")
	listen(t, probe)
	c.spreads(t, "pricing-1", "pricing-2")

	m.ControlPlane.Kill()
	c.spreads(t, "pricing-1", "pricing-2")
	fresh := credentials.NewTLS(plainTLS(t, web, "pricing", "h2"))
	newClient(t, "passthrough:///"+two, grpc.WithTransportCredentials(fresh)).spreads(t, "pricing-2")
}

// inSync waits until the streams of these nodes have acknowledged everything,
// and none ever refused anything.
func inSync(t *testing.T, m *procmesh.Mesh, nodes ...string) {
	t.Helper()
	procmesh.Eventually(t, func() error {
		var s struct {
			Sidecars []struct {
				Node, Dialect string
				InSync        bool `json:"in_sync"`
				Types         []struct {
					Type     string
					NACKs    int
					LastNACK *struct{ Text string } `json:"last_nack"`
				}
			}
		}
		if err := m.Get("/v1/status", &s); err != nil {
			return err
		}
		found := map[string]bool{}
		for _, sc := range s.Sidecars {
			for _, ty := range sc.Types {
				if ty.NACKs > 0 {
					t.Fatalf("%s refused %s: %+v", sc.Node, ty.Type, ty.LastNACK)
				}
			}
			found[sc.Node] = sc.InSync && sc.Dialect == "grpc"
		}
		for _, n := range nodes {
			if !found[n] {
				return errorf("%s is not in sync as a gRPC stream: %+v", n, s.Sidecars)
			}
		}
		return nil
	})
}

// TestServerEnforces: the server's mTLS and the intentions, each beside a
// control that passes.
func TestServerEnforces(t *testing.T) {
	m := newMesh(t)
	addr := procmesh.Addr(t)
	startServer(t, m, "pricing-1", addr, m.SVID("pricing"))
	webDir, strangerDir := m.SVID("web"), m.SVID("stranger")
	web, stranger := xdsClient(t, m, "web-1", webDir), xdsClient(t, m, "stranger-1", strangerDir)
	web.spreads(t, "pricing-1")
	stranger.fails(t, codes.PermissionDenied)
	if _, err := stranger.watch(1); !permissionDenied(err) {
		t.Errorf("stranger's stream: %v, want PermissionDenied", err)
	}

	// Clients without xDS, straight at the server: the files alone do not let
	// anybody in whom no intention names.
	direct := func(creds credentials.TransportCredentials) client {
		return newClient(t, "passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	}
	direct(credentials.NewTLS(plainTLS(t, webDir, "pricing", "h2"))).spreads(t, "pricing-1")
	direct(credentials.NewTLS(plainTLS(t, strangerDir, "pricing", "h2"))).fails(t, codes.PermissionDenied)
	anonymous := plainTLS(t, webDir, "pricing", "h2")
	anonymous.Certificates = nil
	direct(credentials.NewTLS(anonymous)).fails(t, codes.Unavailable)
	direct(insecure.NewCredentials()).fails(t, codes.Unavailable)

	// Intentions change while everything is open.
	m.Intentions("pricing", "stranger")
	web.fails(t, codes.PermissionDenied)
	stranger.spreads(t, "pricing-1")
	inSync(t, m, "web-1", "stranger-1", "pricing-1")
}

// TestServerCannotBeImpersonated: at the address of an instance of pricing
// somebody listens with a valid certificate of another service. The control is
// the same server with pricing's certificate.
func TestServerCannotBeImpersonated(t *testing.T) {
	m := newMesh(t)
	good, bad := m.SVID("pricing"), m.SVID("stranger")
	addr := procmesh.Addr(t)
	m.Write("pricing-1.hcl", native("pricing", "pricing-1", addr))
	c := xdsClient(t, m, "web-1", m.SVID("web"))

	stop := serveTLS(t, addr, bad)
	err := c.fails(t, codes.Unavailable)
	procmesh.Eventually(t, func() error { // until then nobody listened, perhaps
		if _, err = c.quote(); err == nil || !strings.Contains(err.Error(), "SAN") {
			return errorf("quote: %v; want a word of the SANs that do not match", err)
		}
		return nil
	})
	stop()
	serveTLS(t, addr, good)
	c.spreads(t, "plain")
}

// serveTLS serves pricing with gRPC over TLS and no xDS.
func serveTLS(t *testing.T, addr, dir string) (stop func()) {
	t.Helper()
	cert, pool := files(t, dir)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12,
	})))
	return servePricing(t, srv, addr)
}
