package dns

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestOwnNames: names of the mesh have their virtual IP and its twin, by UDP and
// by TCP, and no resolver hears of them.
func TestOwnNames(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) { t.Errorf("a resolver was asked for %s", a.parsed().Question[0].Name) })
		for _, name := range []string{"web.virtual.consul", "web.service.consul", "web.mesh", "web", "WeB.mEsH", "web.mesh."} {
			for _, do := range []func([]byte) []byte{w.ask, w.askTCP} {
				m := answer(t, do(question(name, mdns.TypeA)))
				if got := addrs(m); !slices.Equal(got, []string{"240.0.0.1"}) || m.Answer[0].Header().Ttl != 30 {
					t.Errorf("%s A: %v", name, m)
				}
				if !m.Response || !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.Id != 0x1234 || m.Truncated {
					t.Errorf("%s: %v", name, m.MsgHdr)
				}
				m = answer(t, do(question(name, mdns.TypeAAAA)))
				if got := addrs(m); !slices.Equal(got, []string{"fd70:6172:7265:6c::f000:1"}) {
					t.Errorf("%s AAAA: %v", name, m)
				}
				// Letter case is the client's own, in the question and in the answer.
				if want := mdns.Fqdn(name); m.Question[0].Name != want || m.Answer[0].Header().Name != want {
					t.Errorf("%s came back as %s and %s", name, m.Question[0].Name, m.Answer[0].Header().Name)
				}
			}
		}
	})
}

// TestNXDOMAINAgainstNODATA: a name that exists has no data of other types; one
// that does not exist is denied in zones that are the mesh's alone, and the
// resolver's business elsewhere.
func TestNXDOMAINAgainstNODATA(t *testing.T) {
	f := filter()
	f.Domains = append(f.Domains, resource.DNSDomain{Name: "db.ns1.virtual.consul", Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.9")}})
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		var heard []string
		w.resolver("resolver", resolver, func(a *asked) {
			heard = append(heard, a.parsed().Question[0].Name)
			a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.7"))
		})
		for _, c := range []struct {
			name  string
			qtype uint16
			code  int
			zone  string // of the SOA record; "": the resolver was asked
		}{
			{"web.mesh", mdns.TypeTXT, mdns.RcodeSuccess, "mesh."},
			{"web.mesh", mdns.TypeHTTPS, mdns.RcodeSuccess, "mesh."},
			{"web.mesh", mdns.TypeSRV, mdns.RcodeSuccess, "mesh."},
			{"web.mesh", mdns.TypeSOA, mdns.RcodeSuccess, "mesh."},
			{"web", mdns.TypeMX, mdns.RcodeSuccess, "web."},
			{"web.service.consul", mdns.TypeTXT, mdns.RcodeSuccess, "web.service.consul."},
			{"db.ns1.virtual.consul", mdns.TypeAAAA, mdns.RcodeSuccess, "virtual.consul."},
			{"ns1.virtual.consul", mdns.TypeA, mdns.RcodeSuccess, "virtual.consul."}, // RFC 8020: there are names below it
			{"mesh", mdns.TypeA, mdns.RcodeSuccess, "mesh."},
			{"nobody.mesh", mdns.TypeA, mdns.RcodeNameError, "mesh."},
			{"a.web.mesh", mdns.TypeA, mdns.RcodeNameError, "mesh."},
			{"nobody.virtual.consul", mdns.TypeAAAA, mdns.RcodeNameError, "virtual.consul."},
			{"nobody.service.consul", mdns.TypeA, mdns.RcodeSuccess, ""},
			{"nobody", mdns.TypeA, mdns.RcodeSuccess, ""},
			{"consul", mdns.TypeA, mdns.RcodeSuccess, ""},
			{"mesh.example.com", mdns.TypeA, mdns.RcodeSuccess, ""},
			{"xmesh", mdns.TypeA, mdns.RcodeSuccess, ""},
		} {
			heard = nil
			m := w.lookup(c.name, c.qtype)
			if c.zone == "" {
				if !slices.Equal(heard, []string{mdns.Fqdn(c.name)}) || len(m.Answer) != 1 {
					t.Errorf("%s: the resolver heard %v, the client %v", c.name, heard, m)
				}
				continue
			}
			if len(heard) > 0 || m.Rcode != c.code || len(m.Answer) != 0 || len(m.Ns) != 1 {
				t.Errorf("%s %s: %v", c.name, mdns.TypeToString[c.qtype], m)
				continue
			}
			soa, ok := m.Ns[0].(*mdns.SOA)
			if !ok || soa.Hdr.Name != c.zone || soa.Ns != "ns."+c.zone || soa.Hdr.Ttl != 5 || soa.Minttl != 5 {
				t.Errorf("%s: %v", c.name, m.Ns[0])
			}
		}
		if m := w.lookup("mesh", mdns.TypeSOA); len(m.Answer) != 1 || m.Answer[0].Header().Rrtype != mdns.TypeSOA {
			t.Errorf("SOA of the zone: %v", m)
		}
	})
}

// TestTruncation: an own answer that does not fit is cut where a record ends and
// says so; by TCP it is whole.
func TestTruncation(t *testing.T) {
	f := &resource.DNSFilter{KnownSuffixes: []string{"mesh"}, Domains: []resource.DNSDomain{{Name: "many.mesh"}}}
	for i := range 200 {
		f.Domains[0].Addrs = append(f.Domains[0].Addrs, netip.AddrFrom4([4]byte{240, 0, 1, byte(i)}))
	}
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		for _, c := range []struct {
			size  uint16 // of EDNS; 0: none
			limit int
			cut   bool
		}{{0, 512, true}, {100, 512, true}, {512, 512, true}, {1232, 1232, true}, {4096, 4096, false}, {65535, 65535, false}} {
			q := question("many.mesh", mdns.TypeA)
			if c.size > 0 {
				q = question("many.mesh", mdns.TypeA, edns(c.size, false))
			}
			b := w.ask(q)
			m := answer(t, b)
			if m.Truncated != c.cut || len(b) > c.limit || c.cut && len(b) < c.limit-16 {
				t.Errorf("EDNS %d: %d bytes with %d addresses, TC %t", c.size, len(b), len(m.Answer), m.Truncated)
			}
			if !c.cut && len(m.Answer) != 200 {
				t.Errorf("EDNS %d: %d addresses", c.size, len(m.Answer))
			}
		}
		if m := answer(t, w.askTCP(question("many.mesh", mdns.TypeA))); len(m.Answer) != 200 || m.Truncated {
			t.Errorf("by TCP there are %d addresses, TC %t", len(m.Answer), m.Truncated)
		}
		if w.count(ownTruncated) != 4 {
			t.Errorf("%d truncated answers were counted", w.count(ownTruncated))
		}
	})
}

// TestRotation: the addresses of one name come in turn.
func TestRotation(t *testing.T) {
	f := &resource.DNSFilter{Domains: []resource.DNSDomain{{Name: "many", Addrs: []netip.Addr{vip(1), vip(2), vip(3)}}}}
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		var n uint64
		w.random(func() uint64 { n++; return n })
		first := map[string]bool{}
		for range 3 {
			first[addrs(w.lookup("many", mdns.TypeA))[0]] = true
		}
		if len(first) != 3 {
			t.Errorf("first are %v", first)
		}
	})
}

// TestEDNS: an own answer has an OPT record where, and only where, the query has
// one; an unknown version is refused as RFC 6891 says.
func TestEDNS(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		if m := w.lookup("web.mesh", mdns.TypeA); m.IsEdns0() != nil || len(m.Extra) > 0 {
			t.Errorf("without EDNS: %v", m)
		}
		m := w.lookup("web.mesh", mdns.TypeA, edns(4096, true))
		if o := m.IsEdns0(); o == nil || !o.Do() || o.UDPSize() != 1232 || o.Version() != 0 || len(m.Answer) != 1 {
			t.Errorf("with EDNS and DO: %v", m)
		}
		m = w.lookup("web.mesh", mdns.TypeA, edns(4096, false), func(m *mdns.Msg) { m.IsEdns0().SetVersion(1); m.CheckingDisabled = true })
		if m.Rcode != mdns.RcodeBadVers || len(m.Answer) != 0 || !m.CheckingDisabled {
			t.Errorf("EDNS version 1: %v", m)
		}
		two := question("web.mesh", mdns.TypeA, edns(4096, false), func(m *mdns.Msg) { m.Extra = append(m.Extra, mdns.Copy(m.Extra[0])) })
		if m := answer(t, w.ask(two)); m.Rcode != mdns.RcodeFormatError {
			t.Errorf("two OPT records: %v", m)
		}
	})
}

// TestANYIsRefused: ANY, which is asked for amplification, and zone transfers are
// refused for names of the mesh.
func TestANYIsRefused(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		for _, name := range []string{"web.mesh", "web", "web.service.consul", "nobody.mesh", "mesh", "1.0.0.240.in-addr.arpa"} {
			for _, qtype := range []uint16{mdns.TypeANY, mdns.TypeAXFR, mdns.TypeIXFR} {
				for _, do := range []func([]byte) []byte{w.ask, w.askTCP} {
					q := question(name, qtype)
					b := do(q)
					m := answer(t, b)
					if m.Rcode != mdns.RcodeRefused || len(m.Answer)+len(m.Ns)+len(m.Extra) > 0 || len(b) > len(q) {
						t.Errorf("%s %s: %v", name, mdns.TypeToString[qtype], m)
					}
				}
			}
		}
		m := w.lookup("web.mesh", mdns.TypeANY, edns(1232, false))
		if o := m.IsEdns0(); o == nil || len(o.Option) != 1 || o.Option[0].(*mdns.EDNS0_EDE).InfoCode != mdns.ExtendedErrorCodeNotSupported {
			t.Errorf("where the client reads EDNS, it is told why: %v", m)
		}
	})
}

// TestPointer: an address of the mesh has the name NAME.mesh; others are the
// resolver's.
func TestPointer(t *testing.T) {
	f := filter()
	f.Domains = append(f.Domains,
		resource.DNSDomain{Name: "real.mesh", Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}},
		resource.DNSDomain{Name: "*.wild.mesh", Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.77")}})
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, nobody)
		for _, ip := range []string{"240.0.0.1", "fd70:6172:7265:6c::f000:1"} {
			name, _ := mdns.ReverseAddr(ip)
			m := w.lookup(strings.ToUpper(name), mdns.TypePTR)
			if len(m.Answer) != 1 || m.Answer[0].(*mdns.PTR).Ptr != "web.mesh." || m.Answer[0].Header().Ttl != 30 {
				t.Errorf("%s: %v", ip, m)
			}
			if m := w.lookup(name, mdns.TypeA); m.Rcode != mdns.RcodeSuccess || len(m.Answer) > 0 || len(m.Ns) != 1 {
				t.Errorf("%s A: %v", ip, m)
			}
		}
		for _, ip := range []string{"10.1.2.3", "240.0.0.77", "240.9.9.9", "192.0.2.1"} {
			name, _ := mdns.ReverseAddr(ip)
			if m := w.lookup(name, mdns.TypePTR); m.Rcode != mdns.RcodeNameError || m.Authoritative {
				t.Errorf("%s: %v", ip, m)
			}
		}
	})
}

// TestWildcards: the exact name first, then the longest wildcard, on any level.
func TestWildcards(t *testing.T) {
	f := &resource.DNSFilter{Domains: []resource.DNSDomain{
		{Name: "*.example", Addrs: []netip.Addr{vip(1)}}, {Name: "*.a.example", Addrs: []netip.Addr{vip(2)}}, {Name: "b.example", Addrs: []netip.Addr{vip(3)}}}}
	inWorld(t, "", Config{}, f, func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, nobody)
		for name, want := range map[string]string{"x.example": "240.0.0.1", "x.y.example": "240.0.0.1", "x.a.example": "240.0.0.2", "x.y.a.example": "240.0.0.2",
			"a.example": "240.0.0.1", "b.example": "240.0.0.3", "x.b.example": "240.0.0.1", "example": ""} {
			if got := strings.Join(addrs(w.lookup(name, mdns.TypeA)), " "); got != want {
				t.Errorf("%s has %q, want %q", name, got, want)
			}
		}
	})
}

// TestOwnAnswersAreLimited: beyond its rate a source is told to come by TCP, in
// as many bytes as it sent, and there refused; a second later it is served again.
// Others are not touched, and forwarding is not.
func TestOwnAnswersAreLimited(t *testing.T) {
	inWorld(t, "", Config{Rate: 10}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, func(a *asked) { a.say(mdns.RcodeSuccess, rr("x. 60 IN A 192.0.2.7")) })
		q := question("web.mesh", mdns.TypeA)
		for i := range 10 {
			if m := answer(t, w.ask(q)); len(m.Answer) != 1 {
				t.Fatalf("answer %d: %v", i, m)
			}
		}
		b := w.ask(q)
		if m := answer(t, b); !m.Truncated || len(m.Answer) > 0 || len(b) > len(q) {
			t.Errorf("beyond the rate: %v", m)
		}
		if m := answer(t, w.askTCP(q)); m.Rcode != mdns.RcodeRefused {
			t.Errorf("by TCP beyond the rate: %v", m)
		}
		neighbour, err := w.host.ListenPacket(t.Context(), "udp", "127.0.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		defer neighbour.Close()
		send(t, neighbour, q)
		_ = neighbour.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 512)
		if n, _, err := neighbour.ReadFrom(buf); err != nil || len(answer(t, buf[:n]).Answer) != 1 {
			t.Errorf("another source: %x, %v", buf[:n], err)
		}
		if m := w.lookup("nobody.mesh", mdns.TypeA); !m.Truncated {
			t.Errorf("what does not exist is limited too: %v", m)
		}
		if m := w.lookup("example.com", mdns.TypeA); len(m.Answer) != 1 {
			t.Errorf("what is forwarded is not: %v", m)
		}
		if w.count(ownLimited) != 3 || !w.code(telemetry.Overload) {
			t.Errorf("%d limited answers were counted, codes %v", w.count(ownLimited), w.codes)
		}
		time.Sleep(100 * time.Millisecond)
		if m := answer(t, w.ask(q)); len(m.Answer) != 1 {
			t.Errorf("a tenth of a second later: %v", m)
		}
		if m := answer(t, w.ask(q)); !m.Truncated {
			t.Errorf("there was room for one: %v", m)
		}
		time.Sleep(time.Minute)
		for i := range 10 {
			if m := answer(t, w.ask(q)); len(m.Answer) != 1 {
				t.Fatalf("a minute later, answer %d: %v", i, m)
			}
		}
	})
}

// TestLimiterIsBounded: sources without number share one budget.
func TestLimiterIsBounded(t *testing.T) {
	l := newLimiter(1)
	now := time.Now()
	for i := range maxSources {
		if !l.allow(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now) {
			t.Fatal("a first query is refused")
		}
	}
	if a, b := l.allow(netip.MustParseAddr("10.9.0.1"), now), l.allow(netip.MustParseAddr("10.9.0.2"), now); !a || b {
		t.Errorf("beyond the cap: %t, %t", a, b)
	}
	if len(l.buckets) != maxSources {
		t.Errorf("%d buckets", len(l.buckets))
	}
	if !l.allow(netip.MustParseAddr("10.9.0.2"), now.Add(time.Second)) || len(l.buckets) != 1 {
		t.Errorf("when budgets are full again they are forgotten; %d are left", len(l.buckets))
	}
}

// TestMalformed: what is no query is dropped, what cannot be read is a format
// error, and nothing harms the server.
func TestMalformed(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		good := question("web.mesh", mdns.TypeA)
		reply := slices.Clone(good)
		reply[2] |= 0x80
		for _, b := range [][]byte{{}, {1}, good[:11], reply} {
			if got := w.ask(b); got != nil {
				t.Errorf("%x was answered with %x", b, got)
			}
		}
		if w.count(dropNoQuery) != 4 {
			t.Errorf("%d were counted", w.count(dropNoQuery))
		}
		for _, b := range [][]byte{good[:12], good[:len(good)-1], good[:15], append(slices.Clone(good[:12]), bytes.Repeat([]byte{63}, 300)...)} {
			if m := w.ask(b); len(m) < headerSize || codeOf(m) != formatError || m[0] != 0x12 || len(m) > len(b) {
				t.Errorf("%x was answered with %x", b, m)
			}
		}
		if m := answer(t, w.ask(good)); len(m.Answer) != 1 {
			t.Error("the server does not answer any more")
		}
	})
}

// TestUnion: workloads that bring one address share a server with the names of
// both; a name of both has the addresses of both. What goes, goes.
func TestUnion(t *testing.T) {
	inWorld(t, "", Config{}, filter(), func(t *testing.T, w *world) {
		w.resolver("resolver", resolver, nobody)
		other := &resource.DNSFilter{KnownSuffixes: []string{"lan"}, Domains: []resource.DNSDomain{
			{Name: "db.mesh", Addrs: []netip.Addr{vip(9)}},
			{Name: "web", TTL: time.Minute, Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("240.0.0.5")}}}}
		if errs := w.set.Update("db", []*resource.Listener{listenerOf(other)}); len(errs) > 0 {
			t.Fatal(errs)
		}
		got := func(name string) string { return strings.Join(addrs(w.lookup(name, mdns.TypeA)), " ") }
		if a, b, c := got("web.mesh"), got("db.mesh"), got("web"); a != "240.0.0.1" || b != "240.0.0.9" || c != "240.0.0.5 240.0.0.1" && c != "240.0.0.1 240.0.0.5" {
			t.Errorf("web.mesh %s, db.mesh %s, web %s", a, b, c)
		}
		if m := w.lookup("web", mdns.TypeA); m.Answer[0].Header().Ttl != 30 {
			t.Errorf("the shorter TTL counts: %v", m.Answer[0])
		}
		if m := w.lookup("x.lan", mdns.TypeA); m.Rcode != mdns.RcodeNameError || !m.Authoritative {
			t.Errorf("the other's zone: %v", m)
		}
		w.set.Update("web", nil)
		if m := w.lookup("web.virtual.consul", mdns.TypeA); m.Authoritative {
			t.Errorf("a name that went away: %v", m)
		}
		if got("db.mesh") != "240.0.0.9" {
			t.Error("the other's names are gone too")
		}
		w.set.Update("db", nil)
		if b := w.ask(question("db.mesh", mdns.TypeA)); b != nil {
			t.Errorf("nobody listens any more, and yet there is %x", b)
		}
		synctest.Wait()
		if s := w.set.Status("db"); len(s) != 0 {
			t.Errorf("status %v", s)
		}
	})
}

// TestOrderOfNames: a PTR name is the mesh's, then the shortest, whatever the order.
func TestOrderOfNames(t *testing.T) {
	a := []netip.Addr{netip.MustParseAddr("240.0.0.1")}
	names := []string{"web", "web.mesh", "web.virtual.consul", "shop.mesh", "aweb.mesh"}
	for i := range names {
		var f resource.DNSFilter
		for j := range names {
			f.Domains = append(f.Domains, resource.DNSDomain{Name: names[(i+j)%len(names)], Addrs: a})
		}
		if got := union([]*resource.DNSFilter{&f}).exact["1.0.0.240.in-addr.arpa"].ptr; got != "web.mesh" {
			t.Errorf("order %d: %s", i, got)
		}
	}
}

// TestThousandNames: the table says of each name what a plain list says.
func TestThousandNames(t *testing.T) {
	f := &resource.DNSFilter{KnownSuffixes: []string{"mesh", "virtual.consul"}}
	for i := range 1000 {
		f.Domains = append(f.Domains, resource.DNSDomain{Name: fmt.Sprintf("s%d.mesh", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{244, 0, byte(i >> 8), byte(i)})}})
	}
	table := union([]*resource.DNSFilter{f})
	for i := range 1000 {
		got := table.find(fmt.Appendf(nil, "s%d.mesh", i))
		if got.entry == nil || got.entry.v4[0] != f.Domains[i].Addrs[0] {
			t.Fatalf("s%d.mesh: %v", i, got)
		}
	}
	if got := table.find([]byte("s1000.mesh")); got.exists || !got.ours {
		t.Errorf("%v", got)
	}
}
