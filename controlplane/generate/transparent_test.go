package generate

import (
	"net/netip"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestPermissiveChains: a service that lets callers outside of the mesh in, and
// whose protocol nobody declares, takes whatever they speak, and the mesh's own
// connections as the mesh's.
func TestPermissiveChains(t *testing.T) {
	d, err := meshtest.Read(`
default: deny
services:
- {name: db, port: 5432, connect: {sidecar_service: {port: 20000, proxy: {mode: transparent}}}}
entries:
- {kind: service-defaults, name: db, mutual_tls_mode: permissive}
- {kind: mesh, allow_enabling_permissive_mutual_tls: true}
`)
	if err != nil {
		t.Fatal(err)
	}
	m := build(d)
	r, _, ok := Resource(m, View{Workload: m.Workloads()[0]}, resource.TypeListener, InboundCapture)
	if !ok {
		t.Fatal("no listener for captured inbound connections")
	}
	l := r.(*resource.Listener)
	chains := decide.CompileListener(l)
	own := "db.default.dc1.internal.parrel.test"
	for _, c := range []struct {
		what string
		conn decide.Connection
		want string
	}{
		{"a client that says nothing", decide.Connection{TransportProtocol: "raw_buffer"}, "permissive|plaintext"},
		{"HTTP/1.1", decide.Connection{TransportProtocol: "raw_buffer", ALPN: []string{"http/1.1"}}, "permissive|http"},
		{"HTTP/2", decide.Connection{TransportProtocol: "raw_buffer", ALPN: []string{"h2c"}}, "permissive|http"},
		{"the application's own TLS", decide.Connection{TransportProtocol: "tls", ServerName: "db.example.com", ALPN: []string{"h2", "http/1.1"}}, "permissive"},
		{"the mesh's opaque bytes", decide.Connection{TransportProtocol: "tls", ServerName: own}, "inbound"},
		{"the mesh's HTTP", decide.Connection{TransportProtocol: "tls", ServerName: own, ALPN: []string{"h2", "http/1.1"}}, "inbound|http"},
	} {
		c.conn.Destination = netip.MustParseAddrPort("10.0.0.1:5432")
		fc, ok := chains.Match(c.conn, nil)
		if !ok || fc.Name != c.want {
			t.Errorf("%s takes %+v, not %s", c.what, fc, c.want)
		}
	}
	if fc, ok := chains.Match(decide.Connection{Destination: netip.MustParseAddrPort("10.0.0.1:22"), TransportProtocol: "raw_buffer"}, nil); ok {
		t.Errorf("another port takes %s", fc.Name)
	}
}
