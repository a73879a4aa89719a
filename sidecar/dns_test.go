package sidecar

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// dnsListener answers for the names given, each with its address.
func dnsListener(names ...string) *resource.Listener {
	l := &resource.Listener{Name: "dns:127.0.0.1:15053", Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: 15053},
		DNS: &resource.DNSFilter{KnownSuffixes: []string{"mesh"}}}
	for i := 0; i < len(names); i += 2 {
		l.DNS.Domains = append(l.DNS.Domains, resource.DNSDomain{Name: names[i], Addrs: []netip.Addr{netip.MustParseAddr(names[i+1])}})
	}
	return resource.Normalise(l)
}

// resolve asks a host's server on loopback for the IPv4 addresses of a name.
func resolve(t *testing.T, h *netio.Host, name string) (code int, addrs []string) {
	t.Helper()
	pc, err := h.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	q, err := new(mdns.Msg).SetQuestion(mdns.Fqdn(name), mdns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pc.WriteTo(q, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:15053"))); err != nil {
		t.Fatal(err)
	}
	_ = pc.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4096)
	n, _, err := pc.ReadFrom(b)
	if err != nil {
		return -1, nil
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b[:n]); err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Answer {
		addrs = append(addrs, r.(*mdns.A).A.String())
	}
	return m.Rcode, addrs
}

// TestDNSOfAProcess: workloads of one process share the server of an address,
// which answers with what both bring and follows their changes.
func TestDNSOfAProcess(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.0.0.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("host", "10.0.0.1")
		p := m.sidecar(h, func(c *Config, _ *Deps) { c.ResolvConf = conf }, "web", "orders")
		pc, err := m.net.Host("resolver", "10.0.0.53").ListenPacket(t.Context(), "udp", "10.0.0.53:53")
		if err != nil {
			t.Fatal(err)
		}
		m.end = append(m.end, func() { pc.Close() })
		m.wg.Go(func() {
			b := make([]byte, 512)
			for {
				n, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				b[2] |= 0x80
				b[3] |= mdns.RcodeNotAuth
				_, _ = pc.WriteTo(b[:n], from)
			}
		})
		p.feeds["web"].up(local(8080), dnsListener("api", "240.0.0.1", "api.mesh", "240.0.0.1"))
		p.feeds["orders"].up(local(8080), dnsListener("ledger", "240.0.0.2", "ledger.mesh", "240.0.0.2"))
		synctest.Wait()
		for name, want := range map[string]string{"api": "240.0.0.1", "API.mesh": "240.0.0.1", "ledger.mesh": "240.0.0.2", "nobody.mesh": ""} {
			if _, got := resolve(t, h, name); strings.Join(got, "") != want {
				t.Errorf("%s: %v", name, got)
			}
		}
		if code, _ := resolve(t, h, "example.com"); code != mdns.RcodeNotAuth {
			t.Errorf("what is forwarded came back with code %d", code)
		}
		if _, body := p.get("/listeners?workload=web-sidecar-proxy"); !strings.Contains(body, "dns:127.0.0.1:15053::127.0.0.1:15053") {
			t.Errorf("/listeners: %s", body)
		}
		if _, body := p.get("/stats/prometheus"); !strings.Contains(body, `parrel_dns_names 4`) || !strings.Contains(body, `parrel_dns_queries_total{transport="udp"} 5`) {
			t.Errorf("/stats/prometheus lacks DNS's counters: %s", body)
		}

		t.Log("the address of a name moves, and a workload's listener goes")
		p.feeds["web"].up(dnsListener("api", "240.0.0.7"))
		p.feeds["orders"].down(resource.TypeListener, "dns:127.0.0.1:15053")
		synctest.Wait()
		if _, got := resolve(t, h, "api"); !slices.Equal(got, []string{"240.0.0.7"}) {
			t.Errorf("api: %v", got)
		}
		if code, got := resolve(t, h, "ledger.mesh"); code != mdns.RcodeNameError {
			t.Errorf("ledger.mesh: %d %v", code, got)
		}
		p.feeds["web"].down(resource.TypeListener, "dns:127.0.0.1:15053")
		synctest.Wait()
		if code, _ := resolve(t, h, "api"); code != -1 {
			t.Errorf("nobody is to answer: %d", code)
		}
	})
}

// TestDNSOutlivesDraining: an application that ends goes on resolving names until
// its sidecar has ended.
func TestDNSOutlivesDraining(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("host", "10.0.0.1")
		p := m.sidecar(h, nil, "web")
		p.feeds["web"].up(local(8080), dnsListener("api", "240.0.0.1"), testpki.Trust(m.pki), outbound("api", 1000, false), upstream("api", false), at("api", "10.0.0.2:21000"))
		synctest.Wait()
		c, err := h.Dial(t.Context(), "tcp", "127.0.0.1:1000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		synctest.Wait()
		p.stop()
		time.Sleep(time.Second)
		if _, got := resolve(t, h, "api"); len(got) != 1 {
			t.Errorf("while it drains: %v", got)
		}
	})
}

// TestDNSPortTaken: the workload is not ready, and says why.
func TestDNSPortTaken(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("host", "10.0.0.1")
		other, err := h.ListenPacket(t.Context(), "udp", "127.0.0.1:15053")
		if err != nil {
			t.Fatal(err)
		}
		p := m.sidecar(h, nil, "web")
		p.feeds["web"].up(local(8080), dnsListener("api", "240.0.0.1"))
		synctest.Wait()
		if code, body := p.get("/ready"); code != 503 || !strings.Contains(body, "15053") || !strings.Contains(body, "another process") {
			t.Errorf("/ready: %d %s", code, body)
		}
		other.Close()
		time.Sleep(2 * time.Second)
		if code, body := p.get("/ready"); code != 200 {
			t.Errorf("/ready: %d %s", code, body)
		}
		if _, got := resolve(t, h, "api"); len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
}
