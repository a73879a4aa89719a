//go:build linux

package netns

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // the tests wait, they do not compute
		fmt.Fprintln(os.Stderr, "netns:", err)
		os.Exit(1)
	}
	before := sockets()
	code := m.Run()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "netns:", err)
		code = 1
	}
	if after := sockets(); after > before {
		fmt.Fprintf(os.Stderr, "netns: %d sockets are left open\n", after-before)
		code = 1
	}
	os.Exit(code)
}

// sockets counts this process's.
func sockets() (n int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// pair is two hosts on one cable: here is the one under test, there its peer.
type pair struct {
	t           *testing.T
	here, there string // namespaces
}

const (
	hereAddr  = "10.213.0.1"
	thereAddr = "10.213.0.2"
)

var pairs atomic.Int32

func newPair(t *testing.T) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("making network namespaces needs ip of iproute2")
	}
	id := fmt.Sprintf("parrel-%d-%d", os.Getpid(), pairs.Add(1))
	p := &pair{t, id + "-a", id + "-b"}
	for _, ns := range []string{p.here, p.there} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Skipf("this process may not make network namespaces: ip netns add: %v: %s", err, out)
		}
		t.Cleanup(func() { p.ip("netns", "del", ns) })
	}
	p.ip("-n", p.here, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", p.there)
	for ns, addr := range map[string]string{p.here: hereAddr, p.there: thereAddr} {
		p.ip("-n", ns, "addr", "add", addr+"/24", "dev", "v0")
		p.ip("-n", ns, "link", "set", "v0", "up")
		p.ip("-n", ns, "link", "set", "lo", "up")
	}
	return p
}

func (p *pair) ip(args ...string) {
	p.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		p.t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// unplug takes the cable out of the peer.
func (p *pair) unplug() { p.ip("-n", p.there, "link", "set", "v0", "down") }

// vanish leaves the cable and takes the peer's address away: what is sent there
// is dropped without a word.
func (p *pair) vanish() { p.ip("-n", p.there, "addr", "flush", "dev", "v0") }

// in runs f on a thread that is in the namespace and ends with f. A socket
// belongs to the namespace of the thread that makes it.
func in[T any](t *testing.T, ns string, f func() (T, error)) T {
	t.Helper()
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
		if r.err = err; err == nil {
			r.v, r.err = f()
		}
		ch <- r
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}

// dialled is a connection that here dialled, with the peer's end. The peer sends
// no keep-alive, so that nothing but its answers speaks for it.
func (p *pair) dialled() (netio.Conn, *net.TCPConn) {
	p.t.Helper()
	l := in(p.t, p.there, func() (net.Listener, error) {
		lc := net.ListenConfig{KeepAlive: -1}
		return lc.Listen(context.Background(), "tcp", thereAddr+":0")
	})
	defer l.Close()
	c := in(p.t, p.here, func() (netio.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return netio.OS{}.Dial(ctx, "tcp", l.Addr().String())
	})
	p.t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { s.Close() })
	return c, s.(*net.TCPConn)
}

// accepted is a connection that here accepted, with the peer's end.
func (p *pair) accepted() (netio.Conn, *net.TCPConn) {
	p.t.Helper()
	l := in(p.t, p.here, func() (netio.Listener, error) {
		return netio.OS{}.Listen(context.Background(), "tcp", hereAddr+":0")
	})
	defer l.Close()
	s := in(p.t, p.there, func() (net.Conn, error) {
		d := net.Dialer{KeepAlive: -1, Timeout: 5 * time.Second}
		return d.Dial("tcp", l.Addr().String())
	})
	p.t.Cleanup(func() { s.Close() })
	c, err := l.AcceptConn()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c, s.(*net.TCPConn)
}
