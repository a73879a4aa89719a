package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	at       = "127.0.0.1:15053"
	resolver = "10.0.0.53"
)

// vip is a virtual IP.
func vip(n byte) netip.Addr { return netip.AddrFrom4([4]byte{240, 0, 0, n}) }

// filter answers for web and api in every form, and for zones of the mesh alone.
func filter() *resource.DNSFilter {
	f := &resource.DNSFilter{KnownSuffixes: []string{"mesh", "virtual.consul"}}
	for i, s := range []string{"web", "api"} {
		for _, name := range []string{s, s + ".mesh", s + ".service.consul", s + ".virtual.consul"} {
			f.Domains = append(f.Domains, resource.DNSDomain{Name: name, TTL: 30 * time.Second, Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{240, 0, 0, byte(i + 1)}),
				netip.AddrFrom16([16]byte{0xfd, 0x70, 0x61, 0x72, 0x72, 0x65, 0, 0x6c, 0, 0, 0, 0, 240, 0, 0, byte(i + 1)})}})
		}
	}
	return f
}

func listenerOf(f *resource.DNSFilter) *resource.Listener {
	return &resource.Listener{Name: "dns:" + at, Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: 15053},
		Additional: []resource.Address{{Host: "::1", Port: 15053}}, DNS: f}
}

// world is a host with a DNS server, an application, and resolvers elsewhere.
type world struct {
	t     *testing.T
	net   *netio.Memory
	host  *netio.Host
	set   *Set
	log   *bytes.Buffer
	conf  string // the path of its resolv.conf
	mu    sync.Mutex
	codes []telemetry.Code // guarded by mu
	rand  atomic.Pointer[func() uint64]
	end   []func()
	wg    sync.WaitGroup
}

// inWorld runs f in virtual time. The resolv.conf names 10.0.0.53 unless conf
// says otherwise.
func inWorld(t *testing.T, conf string, c Config, fs *resource.DNSFilter, f func(t *testing.T, w *world)) {
	t.Helper()
	if conf == "" {
		conf = "nameserver " + resolver + "\n"
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: netio.NewMemory(), log: &bytes.Buffer{}, conf: path}
		w.host = w.net.Host("host", "10.0.0.1")
		c.ResolvConf = path
		w.random(func() uint64 { return 0 })
		w.set = NewSet(c, Deps{Net: w.host, Log: slog.New(slog.NewTextHandler(w.log, nil)), Rand: func() uint64 { return (*w.rand.Load())() },
			Error: func(c telemetry.Code) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.codes = append(w.codes, c)
			}})
		ctx, cancel := context.WithCancel(t.Context())
		w.wg.Go(func() { _ = w.set.Run(ctx) })
		defer func() {
			cancel()
			for _, end := range slices.Backward(w.end) {
				end()
			}
			w.wg.Wait()
			if n := w.set.counts.flying.Load(); n != 0 {
				t.Errorf("%d queries are in flight after the end", n)
			}
			if n := w.set.counts.conns.Load(); n != 0 {
				t.Errorf("%d connections are open after the end", n)
			}
			if t.Failed() {
				t.Log(w.log.String())
			}
		}()
		if errs := w.set.Update("web", []*resource.Listener{listenerOf(fs)}); len(errs) > 0 {
			t.Fatal(errs)
		}
		f(t, w)
	})
}

func (w *world) random(f func() uint64) { w.rand.Store(&f) }

func (w *world) code(c telemetry.Code) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.codes, c)
}

// asked is a query that came to a fake resolver.
type asked struct {
	msg  []byte
	from net.Addr
	tcp  bool
	// reply sends one message back; by UDP from the resolver's own socket.
	reply func([]byte)
	pc    net.PacketConn // UDP
}

func (a *asked) parsed() *mdns.Msg {
	m := new(mdns.Msg)
	if err := m.Unpack(a.msg); err != nil {
		panic(err)
	}
	return m
}

// resolver makes a host that answers DNS with f, by UDP and TCP.
func (w *world) resolver(name, ip string, f func(*asked)) *netio.Host {
	h := w.host
	if !netip.MustParseAddr(ip).IsLoopback() {
		h = w.net.Host(name, ip)
	}
	w.serve(h, net.JoinHostPort(ip, "53"), f)
	return h
}

func (w *world) serve(n netio.Net, address string, f func(*asked)) {
	pc, err := n.ListenPacket(w.t.Context(), "udp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	ln, err := n.Listen(w.t.Context(), "tcp", pc.LocalAddr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.end = append(w.end, func() { pc.Close(); ln.Close() })
	w.wg.Go(func() {
		for {
			b := make([]byte, 65536)
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			w.wg.Go(func() {
				f(&asked{msg: b[:n], from: from, pc: pc, reply: func(m []byte) { _, _ = pc.WriteTo(m, from) }})
			})
		}
	})
	w.wg.Go(func() {
		for {
			c, err := ln.AcceptConn()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				defer c.Close()
				for {
					msg, err := readMessage(c, maxMessage)
					if err != nil {
						return
					}
					f(&asked{msg: msg, from: c.RemoteAddr(), tcp: true, reply: func(m []byte) { _, _ = c.Write(framed(m)) }})
				}
			})
		}
	})
}

func framed(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }

// ask sends bytes by UDP from a socket of its own and gives the first answer;
// nil where none comes within 10 s.
func (w *world) ask(msg []byte) []byte {
	w.t.Helper()
	pc, err := w.host.ListenPacket(w.t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer pc.Close()
	if _, err := pc.WriteTo(msg, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))); err != nil {
		w.t.Fatal(err)
	}
	_ = pc.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 65536)
	n, from, err := pc.ReadFrom(b)
	if err != nil {
		return nil
	}
	if from.String() != at {
		w.t.Errorf("the answer is from %s", from)
	}
	return b[:n]
}

// dial opens a TCP connection to the server.
func (w *world) dial() netio.Conn {
	w.t.Helper()
	c, err := w.host.Dial(w.t.Context(), "tcp", at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.end = append(w.end, func() { c.Close() })
	return c
}

// askTCP sends bytes on a connection of its own and gives the answer.
func (w *world) askTCP(msg []byte) []byte {
	w.t.Helper()
	c := w.dial()
	defer c.Close()
	if _, err := c.Write(framed(msg)); err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	out, err := readMessage(c, maxMessage)
	if err != nil && err != io.EOF {
		w.t.Logf("by TCP: %v", err)
	}
	return out
}

// question packs a query, as change leaves it.
func question(name string, qtype uint16, change ...func(*mdns.Msg)) []byte {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), qtype)
	m.Id = 0x1234
	for _, f := range change {
		f(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func edns(size uint16, do bool) func(*mdns.Msg) {
	return func(m *mdns.Msg) { m.SetEdns0(size, do) }
}

// answer unpacks what the server said.
func answer(t testing.TB, b []byte) *mdns.Msg {
	t.Helper()
	if b == nil {
		t.Fatal("there is no answer")
	}
	m := new(mdns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("the answer %x cannot be read: %v", b, err)
	}
	return m
}

// lookup asks for a name by UDP.
func (w *world) lookup(name string, qtype uint16, change ...func(*mdns.Msg)) *mdns.Msg {
	w.t.Helper()
	return answer(w.t, w.ask(question(name, qtype, change...)))
}

// addrs are the addresses of an answer.
func addrs(m *mdns.Msg) (out []string) {
	for _, r := range m.Answer {
		switch r := r.(type) {
		case *mdns.A:
			out = append(out, r.A.String())
		case *mdns.AAAA:
			out = append(out, r.AAAA.String())
		}
	}
	return out
}

// nobody is a resolver that knows no name.
func nobody(a *asked) { a.say(mdns.RcodeNameError) }

// say answers with a code and records.
func (a *asked) say(code int, rrs ...mdns.RR) {
	m := new(mdns.Msg)
	m.SetRcode(a.parsed(), code)
	m.Answer = rrs
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	a.reply(b)
}

func rr(s string) mdns.RR {
	r, err := mdns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

// count is a metric's value.
func (w *world) count(e event) uint64 { return w.set.counts.events[e].Load() }
