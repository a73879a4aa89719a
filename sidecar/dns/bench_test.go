package dns

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// echoing is a resolver that answers each query with one address, and allocates
// nothing.
func echoing(tb testing.TB) netip.AddrPort {
	tb.Helper()
	pc, err := netio.OS{}.ListenPacket(tb.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	tb.Cleanup(func() { pc.Close(); <-done })
	tail := []byte{0xc0, 0x0c, 0, typeA, 0, classIN, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1}
	go func() {
		defer close(done)
		b := make([]byte, 512, 1024)
		for {
			n, from, err := readFrom(pc, b)
			if err != nil {
				return
			}
			b[2], b[7] = b[2]|0x80, 1
			_ = writeTo(pc, append(b[:n], tail...), from)
		}
	}()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// asker asks and waits for the answer; it allocates nothing.
type asker struct {
	tb  testing.TB
	pc  net.PacketConn
	buf [1024]byte
}

func newAsker(tb testing.TB) *asker {
	pc, err := netio.OS{}.ListenPacket(tb.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { pc.Close() })
	return &asker{tb: tb, pc: pc}
}

func (a *asker) ask(q []byte, to netip.AddrPort) {
	if err := writeTo(a.pc, q, to); err != nil {
		a.tb.Fatal(err)
	}
	if n, _, err := readFrom(a.pc, a.buf[:]); err != nil || n < headerSize || a.buf[7] != 1 {
		a.tb.Fatalf("%x, %v", a.buf[:n], err)
	}
}

// TestAllocations: what a query costs the heap. A forwarded one has a socket of
// its own, which is all but a few of them.
func TestAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates; the gate is held without it")
	}
	upstream := echoing(t)
	f := filter()
	f.Resolvers = []resource.Address{{Host: upstream.Addr().String(), Port: upstream.Port()}}
	_, address := real(t, f)
	server := netip.MustParseAddrPort(address)
	a := newAsker(t)
	own, other := question("web.mesh", mdns.TypeA), question("example.com", mdns.TypeA)
	for _, c := range []struct {
		name string
		q    []byte
		most float64
	}{{"own", own, 0}, {"forwarded", other, 22}} {
		if n := testing.AllocsPerRun(500, func() { a.ask(c.q, server) }); n > c.most {
			t.Errorf("%s: %.0f allocations, at most %.0f are expected", c.name, n, c.most)
		} else {
			t.Logf("%s: %.0f allocations", c.name, n)
		}
	}
}

// BenchmarkForwarding asks a resolver on this host directly, through the server,
// and the server itself, in turns, and compares the medians.
func BenchmarkForwarding(b *testing.B) {
	upstream := echoing(b)
	f := filter()
	f.Resolvers = []resource.Address{{Host: upstream.Addr().String(), Port: upstream.Port()}}
	_, address := real(b, f)
	server := netip.MustParseAddrPort(address)
	a := newAsker(b)
	own, other := question("web.mesh", mdns.TypeA), question("example.com", mdns.TypeA)
	var direct, forwarded, answered []time.Duration
	timed := func(q []byte, to netip.AddrPort, all *[]time.Duration) {
		start := time.Now()
		a.ask(q, to)
		*all = append(*all, time.Since(start))
	}
	for b.Loop() {
		timed(other, upstream, &direct)
		timed(other, server, &forwarded)
		timed(own, server, &answered)
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)/2]) / 1e3
	}
	d, w, o := median(direct), median(forwarded), median(answered)
	b.ReportMetric(d, "direct-µs")
	b.ReportMetric(w, "forwarded-µs")
	b.ReportMetric(w/d, "forwarded/direct")
	b.ReportMetric(o/d, "own/direct")
	b.ReportMetric(0, "ns/op")
}
