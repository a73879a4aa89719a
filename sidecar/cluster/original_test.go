package cluster

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func original(change ...func(*resource.Cluster)) Spec {
	c := &resource.Cluster{Name: "web", Discovery: resource.DiscoveryOriginalDst, Protocol: resource.ProtocolHTTP1, ConnectTimeout: time.Second}
	for _, f := range change {
		f(c)
	}
	return Spec{Cluster: c}
}

func toward(hostport string) Options { return Options{Destination: netip.MustParseAddrPort(hostport)} }

// Requests go where their connections meant to go, on connections that are kept
// for each destination.
func TestOriginalDestination(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.serve(1, name("b"))
		b.Update([]Spec{original()})
		for range 3 {
			for dst, want := range map[string]string{"10.0.1.1:80": "a", "10.0.1.2:80": "b"} {
				status, body, a, err := b.call("GET", nil, toward(dst))
				if status != 200 || body != want || a.Host != dst || a.Tries != 1 || err != nil {
					t.Errorf("%s: %d %q %+v %v", dst, status, body, a, err)
				}
			}
		}
		if n := b.caller.Open(); n != 2 {
			t.Errorf("%d connections, want one for each destination", n)
		}
		if s := b.web().Status(); len(s.Endpoints) != 2 || s.Endpoints[0].Address != "10.0.1.1:80" || s.Endpoints[0].Requests != 3 || !s.Endpoints[0].Usable {
			t.Errorf("%+v", s)
		}
		if _, _, _, err := b.call("GET", nil, toward("10.0.1.1:81")); codeOf(err) != telemetry.UpstreamConnectFailure {
			t.Error(err)
		}
		if _, _, _, err := b.call("GET", nil, toward("10.0.1.9:80")); codeOf(err) != telemetry.UpstreamConnectTimeout {
			t.Error(err)
		}
		// Opaque bytes, which are never tried elsewhere.
		c, a, err := b.web().Connect(t.Context(), toward("10.0.1.2:80"))
		if err != nil || a.Host != "10.0.1.2:80" || a.Tries != 1 {
			t.Fatalf("%+v %v", a, err)
		}
		c.Close()
		if _, a, err := b.web().Connect(t.Context(), toward("10.0.1.2:81")); codeOf(err) != telemetry.UpstreamConnectFailure || a.Tries != 1 {
			t.Errorf("%+v %v", a, err)
		}
	})
}

// Destinations that are not used any more go, with their connections; those with
// work in hand stay.
func TestOriginalDestinationsExpire(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.Update([]Spec{original()})
		b.call("GET", nil, toward("10.0.1.1:80"))
		l, _ := b.hosts[1].Listen(t.Context(), "tcp", ":80")
		defer l.Close()
		c, _, err := b.web().Connect(t.Context(), toward("10.0.1.2:80"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(maxUnused + 2*expireEvery)
		if s := b.web().Status(); len(s.Endpoints) != 1 || s.Endpoints[0].Address != "10.0.1.2:80" {
			t.Errorf("%+v", s)
		}
		if n := b.caller.Open(); n != 1 {
			t.Errorf("%d connections, want the one in use", n)
		}
		c.Close()
		time.Sleep(maxUnused + 2*expireEvery)
		if s := b.web().Status(); len(s.Endpoints) != 0 || len(b.web().retiring) != 0 || b.web().expires {
			t.Errorf("%+v, %d retiring, timer set: %v", s, len(b.web().retiring), b.web().expires)
		}
		if status, _, _, err := b.call("GET", nil, toward("10.0.1.1:80")); status != 200 {
			t.Error(err)
		}
	})
}

// There are never more unused destinations than the bound, and which go first is
// by use.
func TestOriginalDestinationsAreBounded(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		b.Update([]Spec{original()})
		l, _ := b.hosts[0].Listen(t.Context(), "tcp", ":80")
		defer l.Close()
		c, _, err := b.web().Connect(t.Context(), toward("10.0.1.1:80")) // the oldest, and in use
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range maxDestinations + 50 {
			time.Sleep(time.Millisecond)
			_, _, _ = b.web().Connect(t.Context(), toward(fmt.Sprintf("10.0.1.1:%d", 1000+i)))
		}
		b.web().mu.Lock()
		defer b.web().mu.Unlock()
		if n := len(b.web().pools); n != maxDestinations {
			t.Errorf("%d destinations, at most %d expected", n, maxDestinations)
		}
		if b.web().pools["10.0.1.1:80"] == nil || b.web().pools["10.0.1.1:1000"] != nil || b.web().pools["10.0.1.1:1500"] == nil {
			t.Error("not the longest unused ones went")
		}
	})
}

// Instances that are dialled directly prove the identity that the cluster
// expects, or get nothing.
func TestOriginalDestinationWithTLS(t *testing.T) {
	a := newAuthority(t, "mesh.test")
	inBubbleWith(t, 2, mtls.NewCell(a.identity(t, "caller")), nil, func(t *testing.T, b *bench) {
		for i, service := range []string{"web", "evil"} {
			cell := mtls.NewCell(a.identity(t, service))
			b.serve(i, name(service), func(s *http.Server) {
				s.TLSConfig = mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: cell, Trust: a.bundle, ALPN: []string{"h2", "http/1.1"}}})
			})
		}
		b.Update([]Spec{original(withTLS("spiffe://mesh.test/ns/default/dc/dc1/svc/web"))})
		_, body, at, err := b.call("GET", nil, toward("10.0.1.1:80"))
		if body != "web" || at.Peer != "spiffe://mesh.test/ns/default/dc/dc1/svc/web" || !at.TLS || err != nil {
			t.Errorf("%q %+v %v", body, at, err)
		}
		if _, _, _, err := b.call("GET", nil, toward("10.0.1.2:80")); codeOf(err) != telemetry.UpstreamTLSFailure {
			t.Errorf("another's identity: %v", err)
		}
		if _, at, err := b.web().Connect(t.Context(), toward("10.0.1.2:80")); codeOf(err) != telemetry.UpstreamTLSFailure {
			t.Errorf("another's identity: %+v %v", at, err)
		}
	})
}

// A change of the transport drains, one of nothing else does not; the end of the
// cluster ends everything.
func TestOriginalDestinationsAndUpdates(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, b *bench) {
		b.serve(0, name("a"))
		b.Update([]Spec{original()})
		b.call("GET", nil, toward("10.0.1.1:80"))
		limit := uint32(100)
		b.Update([]Spec{original(func(c *resource.Cluster) { c.Breakers = &resource.Breakers{MaxConnections: &limit} })})
		if n := len(b.web().Status().Endpoints); n != 1 {
			t.Errorf("%d endpoints after a change of limits", n)
		}
		b.Update([]Spec{original(func(c *resource.Cluster) { c.IdleTimeout = time.Minute })})
		synctest.Wait()
		if n := len(b.web().Status().Endpoints); n != 0 || b.caller.Open() != 0 {
			t.Errorf("%d endpoints, %d connections after a change of the transport", n, b.caller.Open())
		}
		b.call("GET", nil, toward("10.0.1.1:80"))
		c := b.web()
		b.Update(nil)
		synctest.Wait()
		if b.caller.Open() != 0 {
			t.Errorf("%d connections after the end", b.caller.Open())
		}
		if _, _, err := c.RoundTrip(t.Context(), request("GET", nil), toward("10.0.1.1:80")); codeOf(err) != telemetry.NoHealthyUpstream {
			t.Error(err)
		}
		// From a list to original destinations, and back.
		b.Update([]Spec{b.spec(1)})
		b.Update([]Spec{original()})
		if status, _, _, err := b.call("GET", nil, toward("10.0.1.1:80")); status != 200 {
			t.Error(err)
		}
		b.Update([]Spec{b.spec(1)})
		if status, _, a, err := b.call("GET", nil, toward("10.9.9.9:80")); status != 200 || a.Instance != "web-1" {
			t.Errorf("%+v %v", a, err)
		}
	})
}
