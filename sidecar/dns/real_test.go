package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// real is a server on the kernel's sockets. It gives the server's address.
func real(t testing.TB, f *resource.DNSFilter) (*Set, string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\nsearch corp.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := NewSet(Config{ResolvConf: conf, Rate: 1e9}, Deps{Net: netio.OS{}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	var errs []error
	for range 20 { // somebody else may be quicker
		a := resource.Address{Host: "127.0.0.1", Port: uint16(consultest.Port(t))}
		if errs = s.Update("web", []*resource.Listener{{Name: "dns", Address: a, DNS: f}}); len(errs) == 0 {
			return s, net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
		}
	}
	t.Fatal(errs)
	return nil, ""
}

// realResolver is a DNS server of another make on the kernel's sockets.
func realResolver(t testing.TB, h mdns.HandlerFunc) resource.Address {
	t.Helper()
	pc, ln := both(t)
	for _, srv := range []*mdns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	}
	return resource.Address{Host: "127.0.0.1", Port: uint16(pc.LocalAddr().(*net.UDPAddr).Port)}
}

// both opens one port for UDP and TCP.
func both(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 { // somebody else may be quicker
		at := net.JoinHostPort("127.0.0.1", strconv.Itoa(consultest.Port(t)))
		pc, err := netio.OS{}.ListenPacket(context.Background(), "udp4", at)
		if err != nil {
			continue
		}
		if ln, err := (netio.OS{}).Listen(context.Background(), "tcp4", at); err == nil {
			return pc, ln
		}
		pc.Close()
	}
	t.Fatal("no free port")
	return nil, nil
}

// TestRealSockets: clients and a resolver of other makes on the kernel's sockets.
func TestRealSockets(t *testing.T) {
	f := filter()
	many := resource.DNSDomain{Name: "many.mesh"}
	for i := range 100 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{240, 0, 1, byte(i)}))
	}
	f.Domains = append(f.Domains, many)
	f.Resolvers = []resource.Address{realResolver(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		switch name := q.Question[0].Name; {
		case strings.HasSuffix(name, ".corp.example."):
			m.Rcode = mdns.RcodeNameError
		case name == "big.example." && w.RemoteAddr().Network() == "udp":
			m.Truncated = true
		case name == "big.example.":
			for range 45 {
				m.Answer = append(m.Answer, rr("big.example. 60 IN TXT "+strings.Repeat("x", 250)))
			}
		default:
			m.Answer = append(m.Answer, rr(name+" 60 IN A 192.0.2.1"))
		}
		_ = w.WriteMsg(m)
	})}
	_, address := real(t, f)
	for _, network := range []string{"udp", "tcp"} {
		c := &mdns.Client{Net: network, Timeout: 20 * time.Second}
		for name, want := range map[string]string{"web.mesh": "240.0.0.1", "api": "240.0.0.2", "example.com": "192.0.2.1", "api.corp.example": "240.0.0.2"} {
			m, _, err := c.Exchange(new(mdns.Msg).SetQuestion(mdns.Fqdn(name), mdns.TypeA), address)
			if err != nil || strings.Join(addrs(m), " ") != want {
				t.Errorf("%s by %s: %v, %v", name, network, m, err)
			}
		}
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("big.example.", mdns.TypeTXT), address)
		if err != nil || m.Truncated != (network == "udp") || network == "tcp" && (len(m.Answer) != 45 || m.Len() < 10_000) {
			t.Errorf("by %s: %v", network, err)
		}
	}
	// Go's own resolver, which follows TC to TCP.
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network[:3], address)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if all, err := r.LookupNetIP(ctx, "ip4", "many.mesh."); err != nil || len(all) != 100 {
		t.Errorf("%d addresses of 100, %v", len(all), err)
	}
	if all, err := r.LookupNetIP(ctx, "ip", "web.mesh."); err != nil || len(all) != 2 {
		t.Errorf("both families: %v, %v", all, err)
	}
	if names, err := r.LookupAddr(ctx, "240.0.0.2"); err != nil || !slices.Equal(names, []string{"api.mesh."}) {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := r.LookupHost(ctx, "nobody.mesh."); err == nil || !err.(*net.DNSError).IsNotFound {
		t.Errorf("nobody: %v", err)
	}
}

// TestRealFailure: a resolver that is not there is known at once, by what the
// kernel says of the connected socket.
func TestRealFailure(t *testing.T) {
	gone, err := netio.OS{}.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := filter()
	f.Resolvers, f.Timeout = []resource.Address{{Host: "127.0.0.1", Port: uint16(gone.LocalAddr().(*net.UDPAddr).Port)}}, time.Minute
	gone.Close()
	s, address := real(t, f)
	c := &mdns.Client{Timeout: 30 * time.Second} // before which a time-out would not answer
	m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("example.com.", mdns.TypeA), address)
	if err != nil || m.Rcode != mdns.RcodeServerFailure || s.counts.events[forwardFailed].Load() != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

// TestRealForgery: on the kernel's sockets too, what comes from elsewhere, or does
// not match, is never an answer.
func TestRealForgery(t *testing.T) {
	pc, err := netio.OS{}.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	evil, err := netio.OS{}.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer pc.Close()
	defer evil.Close()
	wg.Go(func() {
		b := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			q := new(mdns.Msg)
			_ = q.Unpack(b[:n])
			reply := func(by net.PacketConn, ip string, id uint16) {
				m := new(mdns.Msg)
				m.SetReply(q)
				m.Id = id
				m.Answer = []mdns.RR{rr("bank.example. 60 IN A " + ip)}
				out, _ := m.Pack()
				_, _ = by.WriteTo(out, from)
			}
			reply(evil, "6.6.6.6", q.Id)
			reply(pc, "6.6.6.7", q.Id+1)
			reply(pc, "192.0.2.1", q.Id)
		}
	})
	f := filter()
	f.Resolvers = []resource.Address{{Host: "127.0.0.1", Port: uint16(pc.LocalAddr().(*net.UDPAddr).Port)}}
	s, address := real(t, f)
	c := &mdns.Client{Timeout: 20 * time.Second}
	for range 50 {
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("bank.example.", mdns.TypeA), address)
		if err != nil || !slices.Equal(addrs(m), []string{"192.0.2.1"}) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if n := s.counts.events[dropMismatch].Load(); n != 50 {
		t.Errorf("%d answers with another id were counted", n)
	}
}
