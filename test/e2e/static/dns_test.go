package static

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// TestDNS: names of the file are answered, by UDP and by TCP; others go to the
// resolver that it names, and where that is gone the client has SERVFAIL.
func TestDNS(t *testing.T) {
	ln, port := rig.Listen(t) // a port that is free for UDP too
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		a, _ := mdns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
		m.Answer = append(m.Answer, a)
		_ = w.WriteMsg(m)
	})
	var ends []func()
	for _, srv := range []*mdns.Server{{PacketConn: pc, Handler: handler}, {Listener: ln, Handler: handler}} {
		done, started := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		ends = append(ends, func() { _ = srv.Shutdown(); <-done })
	}
	end := func() {
		for _, f := range ends {
			f()
		}
		ends = nil
	}
	defer end()

	r := rig.New(t, parrel)
	p := start(r, "dns.yaml", map[int]int{5300: port})
	ask := func(network, name string, qtype uint16) (*mdns.Msg, string) {
		t.Helper()
		c := &mdns.Client{Net: network, Timeout: soon}
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion(mdns.Fqdn(name), qtype), p.at(15053))
		if err != nil {
			t.Fatalf("%s by %s: %v", name, network, err)
		}
		var all []string
		for _, r := range m.Answer {
			_, data, _ := strings.Cut(r.String(), mdns.TypeToString[r.Header().Rrtype]+"\t")
			all = append(all, data)
		}
		return m, strings.Join(all, " ")
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name, want string
			qtype      uint16
		}{
			{"api.mesh", "240.0.0.1", mdns.TypeA}, {"api.mesh", "fd70:6172:7265:6c::f000:1", mdns.TypeAAAA}, {"one.db.mesh", "10.0.0.7", mdns.TypeA},
			{"example.com", "192.0.2.1", mdns.TypeA}, {"1.0.0.240.in-addr.arpa", "api.mesh.", mdns.TypePTR},
		} {
			if m, got := ask(network, c.name, c.qtype); got != c.want {
				t.Errorf("%s by %s: %q, want %q\n%v", c.name, network, got, c.want, m)
			}
		}
		if m, _ := ask(network, "nobody.mesh", mdns.TypeA); m.Rcode != mdns.RcodeNameError {
			t.Errorf("nobody by %s: %v", network, m)
		}
		if m, _ := ask(network, "api.mesh", mdns.TypeANY); m.Rcode != mdns.RcodeRefused {
			t.Errorf("ANY by %s: %v", network, m)
		}
	}
	if body, err := rig.Fetch(p.admin() + "/listeners"); err != nil || !strings.Contains(body, "dns::"+p.at(15053)) {
		t.Errorf("/listeners: %s, %v", body, err)
	}
	end()
	begin := time.Now()
	if m, _ := ask("udp", "example.com", mdns.TypeA); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("the resolver is gone: %v", m)
	}
	t.Logf("SERVFAIL after %s", time.Since(begin))
	r.Eventually(soon, "the log says why", func() error {
		if !strings.Contains(p.Log(), "dns_error") {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	if a := netip.MustParseAddrPort(p.at(15053)); !a.Addr().IsLoopback() {
		t.Errorf("it listens on %s", a)
	}
}
