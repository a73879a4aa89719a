package listener

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// where says what the handler knows of a connection.
var where = HandlerFunc(func(_ context.Context, c *Conn) {
	_, _ = fmt.Fprintf(c, "%s %s %v", c.Chain, c.Destination, c.Redirected)
	_ = c.Close()
})

// capture is an outbound capture listener on 127.0.0.1:15001 with a chain for one
// virtual address, and, if wanted, passthrough.
func capture(passthrough bool) Config {
	tcp := &resource.TCPProxy{Cluster: "x"}
	l := &resource.Listener{Name: "outbound_listener", Direction: resource.Outbound, UseOriginalDst: true,
		Address: resource.Address{Host: "127.0.0.1", Port: 15001},
		Chains: []resource.FilterChain{{Name: "web", TCP: tcp, Match: resource.ChainMatch{DestinationPrefixes: []netip.Prefix{
			netip.MustParsePrefix("240.0.0.1/32"), netip.MustParsePrefix("fd70:6172:7265:6c::f000:1/128")}}}}}
	c := Config{Resource: l, Chains: map[string]*Chain{"web": {Resource: &l.Chains[0], Handler: where, Equal: "1"}}}
	if passthrough {
		l.Default = &resource.FilterChain{Name: "passthrough", TCP: tcp}
		c.Chains["passthrough"] = &Chain{Resource: l.Default, Handler: where, Equal: "1"}
	}
	return c
}

// to redirects everything to the capture port of its family, but what is for
// that itself.
func to(port uint16) func(netip.AddrPort) (netip.AddrPort, bool) {
	return func(dst netip.AddrPort) (netip.AddrPort, bool) {
		lo := netip.MustParseAddr("127.0.0.1")
		if dst.Addr().Is6() && !dst.Addr().Is4In6() {
			lo = netip.IPv6Loopback()
		}
		return netip.AddrPortFrom(lo, port), true
	}
}

// said dials and reads until the end.
func said(t *testing.T, n netio.Net, address string) (string, error) {
	t.Helper()
	c, err := n.Dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestCapture(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", capture(true))
		app := b.server.As(to(15001))
		for dst, want := range map[string]string{
			"240.0.0.1:80":                        "web 240.0.0.1:80 true",
			"[fd70:6172:7265:6c::f000:1]:5432":    "web [fd70:6172:7265:6c::f000:1]:5432 true",
			"[::ffff:240.0.0.1]:80":               "web 240.0.0.1:80 true",
			"10.9.9.9:15001":                      "passthrough 10.9.9.9:15001 true", // another host's
			"[2001:db8::1]:443":                   "passthrough [2001:db8::1]:443 true",
			"240.0.0.2:80":                        "passthrough 240.0.0.2:80 true",
			"[fd70:6172:7265:6c::f000:2]:5432":    "passthrough [fd70:6172:7265:6c::f000:2]:5432 true",
			"[::ffff:" + "192.0.2.7" + "]:" + "8": "passthrough 192.0.2.7:8 true",
		} {
			if got, err := said(t, app, dst); got != want || err != nil {
				t.Errorf("%s: %q %v, want %q", dst, got, err, want)
			}
		}
	})
}

// Nobody comes to a capture port by himself, and nothing goes round in circles.
func TestCaptureRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.set.OwnPort = func(port uint16) bool { return port == 15101 }
		b.update("1", capture(true))
		app := b.server.As(to(15001))
		for _, tt := range []struct {
			from   netio.Net
			dst    string
			code   telemetry.Code
			detail string
		}{
			{b.server, "127.0.0.1:15001", telemetry.NotRedirected, "capture port 127.0.0.1:15001 itself"},
			{b.server, "[::1]:15001", telemetry.NotRedirected, "capture port [::1]:15001 itself"},
			{app, "127.0.0.1:15001", telemetry.NotRedirected, "itself"},
			{app, "127.0.0.9:15001", telemetry.CaptureLoop, "127.0.0.9:15001, which is a capture port"},
			{app, "127.0.0.1:15101", telemetry.CaptureLoop, "127.0.0.1:15101, which is a capture port"},
			{app, "[::1]:15101", telemetry.CaptureLoop, "[::1]:15101, which is a capture port"},
		} {
			if got, err := said(t, tt.from, tt.dst); got != "" || err == nil {
				t.Errorf("%s: %q %v, want a reset", tt.dst, got, err)
			}
			b.oneRecord(tt.code, tt.detail)
		}
	})
}

// Without passthrough, what is no destination of the mesh is reset with a code
// that says so.
func TestCaptureOfTheMeshOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", capture(false))
		app := b.server.As(to(15001))
		if got, err := said(t, app, "240.0.0.1:80"); got != "web 240.0.0.1:80 true" {
			t.Errorf("%q %v", got, err)
		}
		if got, err := said(t, app, "192.0.2.7:443"); got != "" || err == nil {
			t.Errorf("%q %v, want a reset", got, err)
		}
		b.oneRecord(telemetry.OutsideMesh, "192.0.2.7:443 is no destination of the mesh")
		b.update("2", capture(true))
		if got, err := said(t, app, "192.0.2.7:443"); !strings.HasPrefix(got, "passthrough") {
			t.Errorf("%q %v", got, err)
		}
	})
}

// The configuration's address may be another workload's already: the listener is
// opened where it is told to be, and moves when it is told to.
func TestCaptureElsewhere(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		c := capture(true)
		for _, port := range []uint16{15101, 15101, 15102} {
			c.Bind = resource.Address{Host: "127.0.0.1", Port: port}
			b.update(fmt.Sprint(port), c)
			for _, dst := range []string{"240.0.0.1:80", "[fd70:6172:7265:6c::f000:1]:80"} {
				if got, err := said(t, b.server.As(to(port)), dst); !strings.HasPrefix(got, "web") {
					t.Errorf("%d: %q %v", port, got, err)
				}
			}
			if st := b.set.Status(); st[len(st)-1].Address != fmt.Sprintf("127.0.0.1:%d", port) {
				t.Errorf("%+v", st)
			}
		}
		if _, err := b.server.Dial(t.Context(), "tcp", "[::1]:15101"); err == nil {
			t.Error("the twin of the address before is open")
		}
	})
}
