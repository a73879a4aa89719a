//go:build linux

package intercept

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ping sends an echo request from the host as the application's user would: ICMP
// is not touched.
func ping(t *testing.T, w *world, to string) {
	t.Helper()
	network, any, typ, proto := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), 1
	if netip.MustParseAddr(to).Is6() {
		network, any, typ, proto = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, 58
	}
	err := enter(w.host, root, func() error {
		c, err := icmp.ListenPacket(network, any)
		if err != nil {
			return err
		}
		defer c.Close()
		m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: 4711, Seq: 1, Data: []byte("parrel")}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(within))
		buf := make([]byte, 1500)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return err
			}
			if a, err := icmp.ParseMessage(proto, buf[:n]); err == nil && (a.Type == ipv4.ICMPTypeEchoReply || a.Type == ipv6.ICMPTypeEchoReply) {
				return nil
			}
		}
	})
	if err != nil {
		t.Errorf("ping %s: %v", to, err)
	}
}
