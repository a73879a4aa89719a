//go:build linux

package intercept

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// user is whom a socket is made as.
type user struct{ uid, gid uint32 }

var (
	root    = user{0, 0}
	app     = user{1001, 1001}
	other   = user{1002, 1002}
	nobody  = user{65534, 65534}
	sidecar = user{5005, 5005}
)

// The addresses, and the ports by convention.
const (
	host4, peer4 = "10.213.0.1", "10.213.0.2"
	host6, peer6 = "fd00:213::1", "fd00:213::2"
	virtual4     = "240.1.2.3"
	virtual6     = "fd70:6172:7265:6c::f001:203"
	outPort      = 15001
	inPort       = 15006
	dnsPort      = 15053
)

// families says which a world has.
type families struct {
	name   string
	v4, v6 bool
}

var (
	dual   = families{"dual", true, true}
	v4only = families{"v4", true, false}
	v6only = families{"v6", false, true}
)

// world is a host with its sidecar and applications, and a peer on the same cable.
type world struct {
	t          *testing.T
	host, peer string // namespaces
	f          families
}

var worlds atomic.Int32

func newWorld(t *testing.T, f families) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces and nftables rules needs root")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("looking at what the kernel has needs %s: apt install iproute2 nftables iptables", tool)
		}
	}
	id := fmt.Sprintf("parrel-i%d-%d", os.Getpid(), worlds.Add(1))
	w := &world{t, id + "-h", id + "-p", f}
	for _, ns := range []string{w.host, w.peer} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("this process may not make network namespaces: ip netns add: %v: %s", err, out)
		}
		t.Cleanup(func() { w.ip("netns", "del", ns) })
	}
	if out, err := exec.Command("ip", "netns", "exec", w.host, "nft", "list", "ruleset").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no nftables: %v: %s", err, out)
	}
	w.ip("-n", w.host, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", w.peer)
	enter(w.host, root, func() error { write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1"); return nil }) // for TPROXY
	for ns, addrs := range map[string][2]string{w.host: {host4, host6}, w.peer: {peer4, peer6}} {
		if !f.v6 {
			enter(ns, root, func() error { write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"); return nil })
		}
		w.ip("-n", ns, "link", "set", "lo", "up")
		w.ip("-n", ns, "link", "set", "v0", "addrgenmode", "none") // or a link-local address comes when it likes
		w.ip("-n", ns, "link", "set", "v0", "up")
		if f.v4 {
			w.ip("-n", ns, "addr", "add", addrs[0]+"/24", "dev", "v0")
		}
		if f.v6 {
			w.ip("-n", ns, "addr", "add", addrs[1]+"/64", "dev", "v0", "nodad")
		}
	}
	return w
}

// on is the world for a test within the test.
func (w *world) on(t *testing.T) *world { o := *w; o.t = t; return &o }

// each runs f for each family that the world has.
func (w *world) each(f func(t *testing.T, host, peer, virtual, loopback string)) {
	if w.f.v4 {
		w.t.Run("IPv4", func(t *testing.T) { f(t, host4, peer4, virtual4, "127.0.0.1") })
	}
	if w.f.v6 {
		w.t.Run("IPv6", func(t *testing.T) { f(t, host6, peer6, virtual6, "::1") })
	}
}

func (w *world) ip(args ...string) string { return w.tool("", "ip", args...) }

// in runs a tool in the host.
func (w *world) in(tool string, args ...string) string { return w.tool(w.host, tool, args...) }

func (w *world) tool(ns, tool string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command(tool, args...)
	if ns != "" {
		cmd = exec.Command("ip", append([]string{"netns", "exec", ns, tool}, args...)...)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Errorf("%s %s: %v: %s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// feed gives a tool something to read.
func (w *world) feed(ns, input, tool string, args ...string) {
	w.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, tool}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%s %s: %v: %s\n%s", tool, strings.Join(args, " "), err, out, input)
	}
}

// state is everything that redirection may change in the host.
func (w *world) state() string {
	w.t.Helper()
	s := w.in("nft", "-j", "-s", "list", "ruleset")
	for _, args := range [][]string{{"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}, {"-6", "rule"}} {
		s += "\n# ip " + strings.Join(args, " ") + "\n" + w.in("ip", args...)
	}
	return s
}

// rules is the same without what differs when the same is made again: handles.
func (w *world) rules() string {
	w.t.Helper()
	s := w.in("nft", "-s", "list", "ruleset")
	for _, args := range [][]string{{"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}, {"-6", "rule"}} {
		s += "\n# ip " + strings.Join(args, " ") + "\n" + w.in("ip", args...)
	}
	return s
}

func (w *world) manager() intercept.Manager {
	w.t.Helper()
	m, err := intercept.New(intercept.Options{NetNS: w.host})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// apply puts c in force in the host.
func (w *world) apply(c intercept.Config) intercept.Manager {
	w.t.Helper()
	m := w.manager()
	if err := m.Apply(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// config is the usual one: everybody but the sidecar is the workload.
func (w *world) config() intercept.Config {
	return intercept.Config{
		Outbound:    []intercept.Workload{{Name: "web", OutboundPort: outPort}},
		InboundPort: inPort, DNSPort: dnsPort, ProxyUID: &sidecar.uid, IPv6: w.f.v6,
	}
}

// enter runs f on a thread that is in the namespace, as the user, and ends with f.
// A socket belongs to the namespace, and to the user, of the thread that makes it.
func enter[T any](ns string, u user, f func() T) T {
	ch := make(chan T, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread must not be used again
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		for _, id := range []struct{ call, v uintptr }{{unix.SYS_SETRESGID, uintptr(u.gid)}, {unix.SYS_SETRESUID, uintptr(u.uid)}} {
			// This thread's alone, other than syscall.Setresuid.
			if _, _, errno := unix.RawSyscall(id.call, id.v, id.v, id.v); errno != 0 && err == nil {
				err = errno
			}
		}
		if err != nil {
			panic(err)
		}
		ch <- f()
	}()
	return <-ch
}

// serve accepts in the namespace on each address and says to each connection its
// own name, where the connection wanted to go and where it is from; then it
// repeats lines. An address of a family that the world has not is left out.
func (w *world) serve(ns, name string, addrs ...string) (stop func()) {
	w.t.Helper()
	var closers []io.Closer
	var wg sync.WaitGroup
	for _, a := range addrs {
		ap := netip.MustParseAddrPort(a)
		if ap.Addr().Is4() && !w.f.v4 && !ap.Addr().IsLoopback() && !ap.Addr().IsUnspecified() || ap.Addr().Is6() && !w.f.v6 {
			continue
		}
		type result struct {
			l   netio.Listener
			err error
		}
		r := enter(ns, root, func() result {
			l, err := netio.OS{}.Listen(context.Background(), "tcp", a)
			return result{l, err}
		})
		if r.err != nil {
			w.t.Fatal(r.err)
		}
		closers = append(closers, r.l)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				c, err := r.l.AcceptConn()
				if err != nil {
					return
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					defer c.Close()
					greet(name, c)
				}()
			}
		}()
	}
	w.serveUDP(ns, name, &closers, &wg, addrs)
	var once sync.Once
	stop = func() {
		once.Do(func() {
			for _, c := range closers {
				c.Close()
			}
		})
	}
	w.t.Cleanup(func() { stop(); wg.Wait() })
	return stop
}

func greet(name string, c netio.Conn) {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	dst, ok := c.OriginalDst()
	if !ok { // it was not redirected, or nobody tracks connections here
		local, _ := netip.ParseAddrPort(c.LocalAddr().String())
		dst = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	}
	from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	fmt.Fprintf(c, "%s %s from %s\n", name, dst, from.Addr().Unmap())
	_, _ = io.Copy(c, c)
}

func (w *world) serveUDP(ns, name string, closers *[]io.Closer, wg *sync.WaitGroup, addrs []string) {
	for _, a := range addrs {
		ap := netip.MustParseAddrPort(a)
		if ap.Addr().Is6() && !w.f.v6 || ap.Addr().Is4() && !w.f.v4 && !ap.Addr().IsLoopback() && !ap.Addr().IsUnspecified() {
			continue
		}
		type result struct {
			c   net.PacketConn
			err error
		}
		r := enter(ns, root, func() result {
			c, err := net.ListenPacket("udp", a)
			return result{c, err}
		})
		if r.err != nil {
			w.t.Fatal(r.err)
		}
		*closers = append(*closers, r.c)
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 2048)
			for {
				n, from, err := r.c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = r.c.WriteTo([]byte(name+" "+string(buf[:n])), from)
			}
		}()
	}
}

// any is every address that the world has.
func (w *world) any(port int) string {
	if w.f.v6 {
		return at("::", port)
	}
	return at("0.0.0.0", port)
}

// fakeSidecar listens where the rules lead.
func (w *world) fakeSidecar() (stop func()) {
	w.t.Helper()
	a := w.serve(w.host, "outbound", "127.0.0.1:15001", "[::1]:15001")
	b := w.serve(w.host, "inbound", w.any(15006))
	c := w.serve(w.host, "dns", "127.0.0.1:15053", "[::1]:15053")
	return func() { a(); b(); c() }
}

// within is how long a connection may take before it counts as hanging.
const within = 20 * time.Second

// dial says what comes of a connection, or of a packet, that the calling thread
// makes: what the other side says of it, or how it failed.
func dial(network, addr string) string {
	c, err := net.DialTimeout(network, addr, within)
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(within))
	if strings.HasPrefix(network, "udp") {
		buf := make([]byte, 2048)
		if _, err = c.Write([]byte("hello")); err == nil {
			var n int
			if n, err = c.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		return failure(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return failure(err)
	}
	return strings.TrimSpace(line)
}

func failure(err error) string {
	for errno, word := range map[error]string{unix.ECONNREFUSED: "refused", unix.ECONNRESET: "reset", unix.ENETUNREACH: "unreachable", unix.EHOSTUNREACH: "unreachable", unix.EADDRNOTAVAIL: "no address"} {
		if errors.Is(err, errno) {
			return word
		}
	}
	return err.Error()
}

// dial makes a connection in the namespace as the user.
func (w *world) dial(ns string, u user, network, addr string) string {
	return enter(ns, u, func() string { return dial(network, addr) })
}

// want dials and compares; "reset" and "refused" are the same to a client.
func (w *world) want(t *testing.T, ns string, u user, network, addr, want string) {
	t.Helper()
	got := w.dial(ns, u, network, addr)
	if strings.HasPrefix(want, "refused") && got == "reset" {
		got = "refused"
	}
	if got != want && !strings.HasPrefix(got, want+" from ") {
		t.Errorf("uid %d, %s %s: got %q, want %q", u.uid, network, addr, got, want)
	}
}

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// spawn runs the test binary as the child and returns what it printed and whether
// it was killed.
func spawn(t *testing.T, c child, with func(*exec.Cmd)) (out string, killed bool) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	if with != nil {
		with(cmd)
	}
	b, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), exit != nil && exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled()
}

// write sets a sysctl of the thread's namespace.
func write(path, value string) {
	fd, err := unix.Open(path, unix.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		panic(err)
	}
}
