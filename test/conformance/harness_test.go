package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

var bins map[string]string // read-only after TestMain

func TestMain(m *testing.M) { procmesh.Main(m, &bins, "./cmd/parrel", "./examples/grpc-xds") }

// Methods of the example's service.
const (
	quoteMethod = "/pricing.Pricing/Quote"
	watchMethod = "/pricing.Pricing/Watch"
)

// newMesh is a control plane with the gRPC service pricing, which web may call
// and stranger may not. Both are connect-native.
func newMesh(t *testing.T) *procmesh.Mesh {
	t.Helper()
	m := procmesh.New(t, procmesh.Options{Bin: bins["parrel"]})
	m.Protocol("pricing", "grpc")
	m.Intentions("pricing", "web")
	m.Write("web-1.hcl", native("web", "web-1", ""))
	m.Write("stranger-1.hcl", native("stranger", "stranger-1", ""))
	return m
}

// native is the definition of a connect-native instance; addr may be "".
func native(service, id, addr string) string {
	where := ""
	if addr != "" {
		where = fmt.Sprintf("  address = \"127.0.0.1\"\n  port = %s\n", procmesh.Port(addr))
	}
	return fmt.Sprintf("service {\n  name = %q\n  id = %q\n%s  connect {\n    native = true\n  }\n}\n", service, id, where)
}

// proxied is the definition of an instance with a sidecar at proxy; upstreams
// are NAME, ADDRESS, ….
func proxied(service, id, app, proxy string, upstreams ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service {\n  name = %q\n  id = %q\n  address = \"127.0.0.1\"\n  port = %s\n  connect {\n    sidecar_service {\n      port = %s\n      proxy {\n        upstreams = [\n",
		service, id, procmesh.Port(app), procmesh.Port(proxy))
	for i := 0; i < len(upstreams); i += 2 {
		fmt.Fprintf(&b, "          { destination_name = %q, local_bind_port = %s },\n", upstreams[i], procmesh.Port(upstreams[i+1]))
	}
	b.WriteString("        ]\n      }\n    }\n  }\n}\n")
	return b.String()
}

// bootstrap is grpc-go's bootstrap file of a node with the certificate files in
// dir.
func bootstrap(m *procmesh.Mesh, node, dir string) string {
	files := fmt.Sprintf(`{"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q, "refresh_interval": "60s"}`,
		filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem"))
	return fmt.Sprintf(`{
 "xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "tls", "config": %s}], "server_features": ["xds_v3"]}],
 "node": {"id": %q},
 "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": %s}},
 "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%%s"
}`, m.XDS, files, node, files)
}

// startServer registers an instance of pricing and starts grpc-go's xDS server
// for it, with the certificate files in dir.
func startServer(t *testing.T, m *procmesh.Mesh, id, addr, dir string) *procmesh.Proc {
	t.Helper()
	m.Write(id+".hcl", native("pricing", id, addr))
	return runServer(m, id, addr, dir)
}

func runServer(m *procmesh.Mesh, id, addr, dir string) *procmesh.Proc {
	return m.Start(id, []string{"GRPC_XDS_BOOTSTRAP_CONFIG=" + bootstrap(m, id, dir)}, bins["grpc-xds"], "server", "-listen", addr, "-instance", id)
}

// client is a gRPC client of pricing.
type client struct{ *grpc.ClientConn }

// xdsClient is grpc-go's xDS client as a node.
func xdsClient(t *testing.T, m *procmesh.Mesh, node, dir string) client {
	t.Helper()
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(bootstrap(m, node, dir)))
	if err != nil {
		t.Fatal(err)
	}
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, "xds:///pricing", grpc.WithResolvers(resolver), grpc.WithTransportCredentials(creds))
}

func newClient(t *testing.T, target string, opts ...grpc.DialOption) client {
	t.Helper()
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client{conn}
}

// quote is one unary call. It does not wait for a connection, so that a failed
// one is seen.
func (c client) quote() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out wrapperspb.StringValue
	err := c.Invoke(ctx, quoteMethod, new(emptypb.Empty), &out)
	return out.Value, err
}

// watch is one streaming call with n messages each way.
func (c client) watch(n int) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, watchMethod)
	if err != nil {
		return nil, err
	}
	var all []string
	for range n {
		var out wrapperspb.StringValue
		_ = s.SendMsg(new(emptypb.Empty)) // RecvMsg has the reason
		if err := s.RecvMsg(&out); err != nil {
			return all, err
		}
		all = append(all, out.Value)
	}
	return all, s.CloseSend()
}

// answers makes n calls and counts who answered; any error is the result.
func (c client) answers(n int) (map[string]int, error) {
	by := map[string]int{}
	for range n {
		text, err := c.quote()
		if err != nil {
			return by, err
		}
		var price, instance, caller string
		if _, err := fmt.Sscanf(text, "%s from %s for %s", &price, &instance, &caller); err != nil {
			return by, fmt.Errorf("answer %q: %w", text, err)
		}
		by[instance]++
	}
	return by, nil
}

// spreads waits until calls reach exactly these instances, with no failure
// among them.
func (c client) spreads(t *testing.T, want ...string) {
	t.Helper()
	procmesh.Eventually(t, func() error {
		by, err := c.answers(10 * len(want))
		if err != nil {
			return err
		}
		for _, w := range want {
			if by[w] == 0 {
				return fmt.Errorf("no answer of %s: %v", w, by)
			}
		}
		if len(by) != len(want) {
			return fmt.Errorf("answers %v, want of %v only", by, want)
		}
		return nil
	})
}

// fails waits until calls fail with the code.
func (c client) fails(t *testing.T, want codes.Code) error {
	t.Helper()
	var last error
	procmesh.Eventually(t, func() error {
		text, err := c.quote()
		if last = err; status.Code(err) != want {
			return fmt.Errorf("quote: %q, %v; want %s", text, err, want)
		}
		return nil
	})
	return last
}

// files are the certificate files of `parrel svid`, as Go's TLS takes them.
func files(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("ca.pem holds no certificate")
	}
	return cert, pool
}

// plainTLS is a client's TLS configuration made of the files, which accepts the
// service named and nobody else. Go checks host names only, so that the SPIFFE
// id is checked by hand.
func plainTLS(t *testing.T, dir, service string, alpn ...string) *tls.Config {
	t.Helper()
	cert, pool := files(t, dir)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: alpn,
		InsecureSkipVerify: true, // verified here
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != procmesh.SPIFFEID(service) {
				return fmt.Errorf("the peer is %v, not %s", leaf.URIs, service)
			}
			return nil
		},
	}
}

// listen opens a server's address and closes it with the test.
func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
