package decide

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/resource/resourcetest"
)

func chains(ms ...resource.ChainMatch) *resource.Listener {
	l := &resource.Listener{Name: "l"}
	for i, m := range ms {
		l.Chains = append(l.Chains, resource.FilterChain{Name: fmt.Sprint(i), Match: m})
	}
	return l
}

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func conn(f func(*Connection)) Connection {
	c := Connection{Destination: netip.MustParseAddrPort("10.1.2.3:80"), Source: netip.MustParseAddrPort("10.9.0.1:5000"), TransportProtocol: "tls", ServerName: "web.api.example", ALPN: []string{"h2", "http/1.1"}}
	if f != nil {
		f(&c)
	}
	return c
}

func TestChainMatch(t *testing.T) {
	dst := func(ps ...string) resource.ChainMatch {
		return resource.ChainMatch{DestinationPrefixes: prefixes(ps...)}
	}
	sni := func(ns ...string) resource.ChainMatch { return resource.ChainMatch{ServerNames: ns} }
	alpn := func(ps ...string) resource.ChainMatch { return resource.ChainMatch{ApplicationProtocols: ps} }
	src := func(ps ...string) resource.ChainMatch { return resource.ChainMatch{SourcePrefixes: prefixes(ps...)} }
	rest := resource.ChainMatch{}
	for _, tc := range []struct {
		name string
		ms   []resource.ChainMatch
		c    Connection
		want string
	}{
		{"port", []resource.ChainMatch{rest, {DestinationPort: 80}}, conn(nil), "1"},
		{"other port", []resource.ChainMatch{rest, {DestinationPort: 81}}, conn(nil), "0"},
		{"no way back from the port", []resource.ChainMatch{rest, {DestinationPort: 80, TransportProtocol: "raw_buffer"}}, conn(nil), "default"},
		{"longest prefix", []resource.ChainMatch{dst("10.0.0.0/8"), dst("10.1.0.0/16"), dst("0.0.0.0/0"), rest}, conn(nil), "1"},
		{"any prefix", []resource.ChainMatch{dst("11.0.0.0/8"), rest}, conn(nil), "1"},
		{"no way back from the prefix", []resource.ChainMatch{{DestinationPrefixes: prefixes("10.1.2.3/32"), ServerNames: []string{"x"}}, rest}, conn(nil), "default"},
		{"one prefix of two", []resource.ChainMatch{dst("10.0.0.0/8"), dst("12.0.0.0/8", "10.1.2.0/24")}, conn(nil), "1"},
		{"IPv4 in IPv6 form", []resource.ChainMatch{dst("10.0.0.0/8")}, conn(func(c *Connection) { c.Destination = netip.MustParseAddrPort("[::ffff:10.1.2.3]:80") }), "0"},
		{"IPv6", []resource.ChainMatch{dst("0.0.0.0/0"), dst("2001:db8::/32")}, conn(func(c *Connection) { c.Destination = netip.MustParseAddrPort("[2001:db8::1]:80") }), "1"},
		{"exact name", []resource.ChainMatch{sni("*.api.example"), sni("web.api.example"), rest}, conn(nil), "1"},
		{"longest wildcard", []resource.ChainMatch{sni("*.example"), sni("*.api.example"), rest}, conn(nil), "1"},
		{"no name", []resource.ChainMatch{sni("*.org"), rest}, conn(nil), "1"},
		{"a wildcard is not its own suffix", []resource.ChainMatch{sni("*.web.api.example"), rest}, conn(nil), "1"},
		{"names have no case", []resource.ChainMatch{sni("web.api.example"), rest}, conn(func(c *Connection) { c.ServerName = "WEB.api.example" }), "0"},
		{"name before ALPN", []resource.ChainMatch{alpn("h2"), sni("*.example")}, conn(nil), "1"},
		{"transport protocol", []resource.ChainMatch{{TransportProtocol: "raw_buffer"}, {TransportProtocol: "tls"}, rest}, conn(nil), "1"},
		{"plaintext", []resource.ChainMatch{{TransportProtocol: "raw_buffer"}, {TransportProtocol: "tls"}}, conn(func(c *Connection) { c.TransportProtocol = "raw_buffer" }), "0"},
		{"the first ALPN offered", []resource.ChainMatch{alpn("http/1.1"), alpn("h2"), rest}, conn(nil), "1"},
		{"the second ALPN offered", []resource.ChainMatch{alpn("http/1.1"), alpn("h3"), rest}, conn(nil), "0"},
		{"no ALPN", []resource.ChainMatch{alpn("h3"), rest}, conn(nil), "1"},
		{"source", []resource.ChainMatch{src("10.0.0.0/8"), src("10.9.0.0/16"), rest}, conn(nil), "1"},
		{"other source", []resource.ChainMatch{src("11.0.0.0/8"), rest}, conn(nil), "1"},
		{"nothing", []resource.ChainMatch{src("11.0.0.0/8")}, conn(nil), "default"},
		{"no destination", []resource.ChainMatch{dst("0.0.0.0/0"), rest}, conn(func(c *Connection) { c.Destination = netip.AddrPort{} }), "1"},
	} {
		l := chains(tc.ms...)
		l.Default = &resource.FilterChain{Name: "default"}
		tr := &Trace{}
		fc, ok := CompileListener(l).Match(tc.c, nil)
		traced, _ := CompileListener(l).Match(tc.c, tr)
		if !ok || fc.Name != tc.want || traced != fc {
			t.Errorf("%s: chain %q, want %q", tc.name, fc.Name, tc.want)
		}
		if n := len(tr.Steps); n == 0 || !tr.Steps[n-1].Matched || tr.Steps[n-1].Reason == "" {
			t.Errorf("%s: trace %+v", tc.name, tr.Steps)
		}
		l.Default = nil
		if fc, ok := CompileListener(l).Match(tc.c, nil); ok != (tc.want != "default") {
			t.Errorf("%s: without a default chain %v", tc.name, fc)
		}
	}
}

// TestCaptureChains: what a transparent proxy's listener for captured connections
// decides by: virtual addresses in both families and in the mapped form, what a
// connection turned out to be, and what is left for other addresses.
func TestCaptureChains(t *testing.T) {
	match := func(alpn []string, ps ...string) resource.ChainMatch {
		return resource.ChainMatch{DestinationPrefixes: prefixes(ps...), ApplicationProtocols: alpn}
	}
	http := []string{"http/1.0", "http/1.1", "h2c"}
	l := &resource.Listener{
		Name: "outbound_listener:127.0.0.1:15001", UseOriginalDst: true,
		Chains: []resource.FilterChain{
			{Name: "api", Match: match(nil, "240.0.0.1/32", "fd70:6172:7265:6c::f000:1/128", "10.96.0.1/32")},
			{Name: "db", Match: match(nil, "240.0.0.2/32", "fd70:6172:7265:6c::f000:2/128")},
			{Name: "db|http", Match: match(http, "240.0.0.2/32", "fd70:6172:7265:6c::f000:2/128")},
			{Name: "passthrough~cache", Match: match(nil, "10.0.0.9/32")},
			{Name: "not callable", Match: match(nil, "240.0.0.0/4", "fd70:6172:7265:6c::/96")},
		},
		Default: &resource.FilterChain{Name: "original-destination"},
	}
	for _, c := range []struct{ to, alpn, want string }{
		{"240.0.0.1:80", "", "api"},
		{"240.0.0.1:443", "http/1.1", "api"}, // any port, and what is declared is not asked for
		{"[::ffff:240.0.0.1]:80", "", "api"},
		{"[fd70:6172:7265:6c::f000:1]:80", "", "api"},
		{"10.96.0.1:80", "", "api"},
		{"240.0.0.2:5432", "", "db"},
		{"240.0.0.2:5432", "http/1.1", "db|http"},
		{"240.0.0.2:5432", "http/1.0", "db|http"},
		{"240.0.0.2:5432", "h2c", "db|http"},
		{"240.0.0.2:5432", "h2", "db"}, // TLS of the application's own
		{"[::ffff:240.0.0.2]:5432", "h2c", "db|http"},
		{"[fd70:6172:7265:6c::f000:2]:5432", "h2c", "db|http"},
		{"[fd70:6172:7265:6c::f000:2]:5432", "", "db"},
		{"10.0.0.9:6379", "", "passthrough~cache"},
		{"10.0.0.9:22", "http/1.1", "passthrough~cache"},
		{"240.0.0.3:80", "", "not callable"},
		{"247.1.2.3:80", "http/1.1", "not callable"},
		{"[::ffff:240.0.0.3]:80", "", "not callable"},
		{"[fd70:6172:7265:6c::f000:3]:80", "", "not callable"},
		{"[fd70:6172:7265:6d::f000:3]:80", "", "original-destination"},
		{"239.255.255.255:80", "", "original-destination"},
		{"10.0.0.8:80", "h2c", "original-destination"},
		{"[2001:db8::1]:80", "", "original-destination"},
	} {
		conn := Connection{Destination: netip.MustParseAddrPort(c.to), Source: netip.MustParseAddrPort("10.0.0.1:40000"), TransportProtocol: "raw_buffer"}
		if c.alpn != "" {
			conn.ALPN = []string{c.alpn}
		}
		for _, only := range []bool{false, true} { // MeshDestinationsOnly: nothing is left for the rest
			x := *l
			want := c.want
			if only {
				x.Default = nil
				if want == "original-destination" {
					want = ""
				}
			}
			got := ""
			if fc, ok := CompileListener(&x).Match(conn, nil); ok {
				got = fc.Name
			}
			if got != want {
				t.Errorf("%s %q: chain %q, want %q", c.to, c.alpn, got, want)
			}
		}
		conn.Destination = netip.AddrPortFrom(conn.Destination.Addr().Unmap(), conn.Destination.Port())
		if fc := envoyChain(l, conn); fc.Name != c.want {
			t.Errorf("%s %q: by Envoy's rules, read a second time, %q", c.to, c.alpn, fc.Name)
		}
	}
}

// envoyChain is a second reading of Envoy's rules: nested narrowing of the list.
func envoyChain(l *resource.Listener, c Connection) *resource.FilterChain {
	var in []*resource.FilterChain
	for i := range l.Chains {
		in = append(in, &l.Chains[i])
	}
	keep := func(score func(m *resource.ChainMatch) int) {
		best := -1
		for _, fc := range in {
			best = max(best, score(&fc.Match))
		}
		in = slices.DeleteFunc(in, func(fc *resource.FilterChain) bool { return best < 0 || score(&fc.Match) != best })
	}
	longest := func(ps []netip.Prefix, a netip.Addr) int {
		if len(ps) == 0 {
			return 0
		}
		best := -1
		for _, p := range ps {
			if p.Contains(a) {
				best = max(best, 1+p.Bits())
			}
		}
		return best
	}
	keep(func(m *resource.ChainMatch) int {
		switch m.DestinationPort {
		case c.Destination.Port():
			return 1
		case 0:
			return 0
		}
		return -1
	})
	keep(func(m *resource.ChainMatch) int { return longest(m.DestinationPrefixes, c.Destination.Addr()) })
	keep(func(m *resource.ChainMatch) int {
		best := -1
		for _, n := range m.ServerNames {
			if n == c.ServerName {
				best = 1000
			} else if n[0] == '*' && strings.HasSuffix(c.ServerName, n[1:]) {
				best = max(best, len(n))
			}
		}
		if len(m.ServerNames) == 0 {
			return 0
		}
		return best
	})
	keep(func(m *resource.ChainMatch) int {
		return map[bool]int{true: map[bool]int{true: 0, false: 1}[m.TransportProtocol == ""], false: -1}[m.TransportProtocol == "" || m.TransportProtocol == c.TransportProtocol]
	})
	keep(func(m *resource.ChainMatch) int {
		if len(m.ApplicationProtocols) == 0 {
			return 0
		}
		for i, p := range c.ALPN {
			if slices.Contains(m.ApplicationProtocols, p) {
				return 100 - i
			}
		}
		return -1
	})
	keep(func(m *resource.ChainMatch) int { return longest(m.SourcePrefixes, c.Source.Addr()) })
	if len(in) == 0 {
		return l.Default
	}
	return in[0]
}

func TestChainsAgainstNarrowing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &resource.Listener{}
		for i := range rapid.IntRange(0, 6).Draw(t, "chains") {
			l.Chains = append(l.Chains, resource.FilterChain{Name: fmt.Sprint(i), Match: resourcetest.ChainMatch(t)})
		}
		c := Connection{
			Destination:       netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.1.2.3", "192.168.7.9", "2001:db8::1"}).Draw(t, "dst")), rapid.SampledFrom([]uint16{80, 443, 9}).Draw(t, "port")),
			Source:            netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom([]string{"10.1.2.3", "127.0.0.1", "fe80::1"}).Draw(t, "src")), 1),
			ServerName:        rapid.SampledFrom([]string{"", "web.example", "x.api.example", "api.example"}).Draw(t, "sni"),
			TransportProtocol: rapid.SampledFrom([]string{"tls", "raw_buffer"}).Draw(t, "transport"),
			ALPN:              rapid.SampledFrom([][]string{nil, {"h2"}, {"http/1.1", "h2"}}).Draw(t, "alpn"),
		}
		want := envoyChain(l, c)
		got, ok := CompileListener(l).Match(c, nil)
		if got != want || ok != (want != nil) {
			t.Fatalf("%+v\ngot %+v\nwant %+v", c, got, want)
		}
		if traced, _ := CompileListener(l).Match(c, &Trace{}); traced != got {
			t.Fatal("with a trace the chain is another")
		}
	})
}

func outbound(n int) *resource.Listener {
	l := &resource.Listener{Default: &resource.FilterChain{Name: "rest"}}
	for i := range n {
		l.Chains = append(l.Chains, resource.FilterChain{Name: fmt.Sprint(i), Match: resource.ChainMatch{
			DestinationPrefixes: prefixes(fmt.Sprintf("240.0.%d.%d/32", i/256, i%256)), DestinationPort: uint16(80 + i%2)}})
	}
	return l
}

func TestMatchDoesNotAllocate(t *testing.T) {
	c := CompileListener(outbound(1000))
	k := conn(func(k *Connection) { k.Destination = netip.MustParseAddrPort("240.0.3.1:81") })
	var fc *resource.FilterChain
	if n := testing.AllocsPerRun(200, func() { fc, _ = c.Match(k, nil) }); n != 0 || fc.Name != "769" {
		t.Errorf("%v allocations, chain %s", n, fc.Name)
	}
}

func BenchmarkMatch1k(b *testing.B) {
	c := CompileListener(outbound(1000))
	k := conn(func(k *Connection) { k.Destination = netip.MustParseAddrPort("240.0.3.1:81") })
	b.ReportAllocs()
	for b.Loop() {
		c.Match(k, nil)
	}
}
