//go:build linux

package netns

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/dns"
	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// The users of a captured host.
const (
	appUID     = 1001
	sidecarUID = 5005
)

// as runs f on a thread in the namespace that is of the user, and ends with f. A
// socket belongs to the user of the thread that makes it.
func as[T any](ns string, uid uint32, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	ch := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread must not be used again
		var r result
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil { // this thread's alone, other than syscall.Setresuid
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				err = errno
			}
		}
		if r.err = err; err == nil {
			r.v, r.err = f()
		}
		ch <- r
	}()
	r := <-ch
	return r.v, r.err
}

// hostNet is the network of a namespace as a user has it.
type hostNet struct {
	ns  string
	uid uint32
}

func (h hostNet) Listen(ctx context.Context, network, address string) (netio.Listener, error) {
	return as(h.ns, h.uid, func() (netio.Listener, error) { return netio.OS{}.Listen(ctx, network, address) })
}

func (h hostNet) Dial(ctx context.Context, network, address string) (netio.Conn, error) {
	return as(h.ns, h.uid, func() (netio.Conn, error) { return netio.OS{}.Dial(ctx, network, address) })
}

func (h hostNet) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	return as(h.ns, h.uid, func() (net.PacketConn, error) { return netio.OS{}.ListenPacket(ctx, network, address) })
}

const thereAddr6 = "fd00:213::2"

// dnsHost is a pair whose peer is a resolver, with a DNS server of the mesh here.
type dnsHost struct {
	*pair
	log *locked
}

type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newDNSHost(t *testing.T, nameservers ...string) *dnsHost {
	p := newPair(t)
	if out, err := exec.Command("ip", "netns", "exec", p.here, "cat", "/proc/net/if_inet6").CombinedOutput(); err != nil {
		t.Skipf("the test captures IPv6 too, and this kernel has none: %v: %s", err, out)
	}
	for ns, a := range map[string]string{p.here: "fd00:213::1", p.there: thereAddr6} {
		p.ip("-n", ns, "addr", "add", a+"/64", "dev", "v0", "nodad")
	}
	h := &dnsHost{p, &locked{}}
	for _, a := range []string{thereAddr, thereAddr6} {
		h.resolver(p.there, a, func(q *mdns.Msg, m *mdns.Msg) {
			a, _ := mdns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.1")
			m.Answer = append(m.Answer, a)
		})
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+strings.Join(nameservers, "\nnameserver ")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := dns.NewSet(dns.Config{ResolvConf: conf}, dns.Deps{Net: hostNet{p.here, sidecarUID}, Log: slog.New(slog.NewTextHandler(h.log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	l := &resource.Listener{Name: "dns", Address: resource.Address{Host: "127.0.0.1", Port: 15053}, Additional: []resource.Address{{Host: "::1", Port: 15053}},
		DNS: &resource.DNSFilter{KnownSuffixes: []string{"mesh"}, Domains: []resource.DNSDomain{
			{Name: "web.mesh", Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.1")}}, {Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("240.0.0.1")}}}}}
	if errs := s.Update("web", []*resource.Listener{l}); len(errs) > 0 {
		t.Fatal(errs)
	}
	return h
}

// resolver serves DNS in a namespace, UDP and TCP.
func (h *dnsHost) resolver(ns, addr string, f func(q, m *mdns.Msg)) {
	h.t.Helper()
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		f(q, m)
		_ = w.WriteMsg(m)
	})
	n := hostNet{ns, 0}
	pc, err := n.ListenPacket(context.Background(), "udp", net.JoinHostPort(addr, "53"))
	if err != nil {
		h.t.Fatal(err)
	}
	ln, err := n.Listen(context.Background(), "tcp", net.JoinHostPort(addr, "53"))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, srv := range []*mdns.Server{{PacketConn: pc, Handler: handler}, {Listener: ln, Handler: handler}} {
		started, done := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		h.t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	}
}

// capture applies redirection: everybody but the proxy's user is the workload.
func (h *dnsHost) capture(proxy uint32) {
	h.t.Helper()
	m, err := intercept.New(intercept.Options{NetNS: h.here})
	if err == nil {
		err = m.Apply(h.t.Context(), intercept.Config{Outbound: []intercept.Workload{{Name: "web", OutboundPort: 15001}}, DNSPort: 15053, ProxyUID: &proxy, IPv6: true})
	}
	if err != nil && strings.Contains(err.Error(), "nftables") {
		h.t.Skipf("redirection needs nftables in the kernel: %v", err)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// ask queries a resolver as a user, whose socket takes answers from there alone.
func (h *dnsHost) ask(uid uint32, network, server, name string) string {
	h.t.Helper()
	address := net.JoinHostPort(server, "53")
	m, err := as(h.here, uid, func() (*mdns.Msg, error) {
		// The library dials in this goroutine, and so on this thread.
		c := &mdns.Client{Net: network, Timeout: 30 * time.Second}
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion(mdns.Fqdn(name), mdns.TypeA), address)
		return m, err
	})
	switch {
	case err != nil:
		return err.Error()
	case m.Rcode != mdns.RcodeSuccess || len(m.Answer) != 1:
		return mdns.RcodeToString[m.Rcode]
	}
	return m.Answer[0].(*mdns.A).A.String()
}

// TestCapturedDNS: what a captured application asks any resolver, by UDP or TCP,
// over IPv4 or IPv6, is answered by the mesh or by the host's resolver, as if the
// resolver that it meant had answered. The sidecar's own queries are not captured.
func TestCapturedDNS(t *testing.T) {
	t.Parallel()
	h := newDNSHost(t, thereAddr, thereAddr6)
	h.capture(sidecarUID)
	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{thereAddr, thereAddr6, "10.213.0.99", "fd00:213::99", "127.0.0.11", "127.0.0.53", "::1"} {
			for name, want := range map[string]string{"web.mesh": "240.0.0.1", "web": "240.0.0.1", "example.com": "192.0.2.1", "nobody.mesh": "NXDOMAIN"} {
				if got := h.ask(appUID, network, server, name); got != want {
					t.Errorf("%s of %s by %s: %s, want %s", name, server, network, got, want)
				}
			}
		}
		if got := h.ask(sidecarUID, network, thereAddr, "web.mesh"); got != "192.0.2.1" {
			t.Errorf("the sidecar's own query was captured: %s", got)
		}
	}
	if t.Failed() {
		t.Log(h.log)
	}
}

// TestDNSLoop: where redirection captures the sidecar's own queries, they are known
// when they come back: the application has SERVFAIL, and the log says what to do.
func TestDNSLoop(t *testing.T) {
	t.Parallel()
	h := newDNSHost(t, thereAddr)
	h.capture(sidecarUID + 1)
	for _, network := range []string{"udp", "tcp"} {
		if got := h.ask(appUID, network, thereAddr, "example.com"); got != "SERVFAIL" {
			t.Errorf("by %s: %s", network, got)
		}
	}
	if got := h.ask(appUID, "udp", thereAddr, "web.mesh"); got != "240.0.0.1" {
		t.Errorf("own names: %s", got)
	}
	if !strings.Contains(h.log.String(), "--proxy-uid") {
		t.Errorf("the log does not say why: %s", h.log)
	}
	if n := strings.Count(h.log.String(), "come back"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}
