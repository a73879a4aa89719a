package traffic

import (
	"testing"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

// TestTraffic: one mesh, all protocols.
func TestTraffic(t *testing.T) {
	t.Parallel()
	http, closing, calls := &app{seen: map[string]int{}}, &app{seen: map[string]int{}}, &grpcApp{}
	appAddr := serveHTTP(t, http)
	w := newWorld(t,
		service{name: "app", protocol: "http", apps: []string{appAddr}},
		service{name: "closing", protocol: "http", apps: []string{serveTCP(t, closingApp(closing))}},
		service{name: "tcp", protocol: "tcp", apps: []string{serveTCP(t, tcpApp)}},
		service{name: "grpc", protocol: "grpc", apps: []string{serveGRPC(t, calls)}},
		service{name: "denied", protocol: "http", apps: []string{appAddr}, denied: true},
		service{name: "deniedtcp", protocol: "tcp", apps: []string{appAddr}, denied: true},
		service{name: "deniedgrpc", protocol: "grpc", apps: []string{appAddr}, denied: true},
		service{name: "down", protocol: "http", apps: []string{procmesh.Addr(t)}},
		service{name: "none", protocol: "http"},
		service{name: "downtcp", protocol: "tcp", apps: []string{procmesh.Addr(t)}},
		service{name: "downgrpc", protocol: "grpc", apps: []string{procmesh.Addr(t)}},
	)
	t.Run("HTTP/1.1", func(t *testing.T) { testHTTP1(t, w, http) })
	t.Run("gRPC", func(t *testing.T) { testGRPC(t, w, calls) })
	t.Run("reuse", func(t *testing.T) { testReuse(t, w, closing) })
	t.Run("TCP", func(t *testing.T) { testTCP(t, w) })
	t.Run("faults", func(t *testing.T) { testFaults(t, w) })
	t.Run("plaintext", func(t *testing.T) { testPlaintext(t, w) })
	t.Run("counts", func(t *testing.T) { testCounts(t, w) })
	t.Run("leaks", func(t *testing.T) { testLeaks(t, w) })
}
