//go:build linux

// Command intercept measures what redirection costs the application and the
// kernel: a connection, a round trip and a byte, on loopback of a network namespace of
// its own, to the very same listener: directly where there are no rules, beside rules
// that do not capture it, and captured. CPU time of the whole process is counted, which
// other work on the machine disturbs less than the clock. It needs root and no
// program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

var (
	rounds = flag.Int("rounds", 15, "rounds, of which the best counts: other work only adds")
	conns  = flag.Int("connections", 1000, "connections a round")
	trips  = flag.Int("trips", 5000, "round trips of 64 bytes a round")
	megs   = flag.Int("megabytes", 64, "megabytes a round")
)

const workload, sidecar = 1001, 5005

// series is one way to the listener.
type series struct {
	name           string
	addr           string
	config         *intercept.Config // nil: no rules
	conn, trip, kb []float64         // microseconds of CPU
}

func main() {
	flag.Parse()
	runtime.LockOSThread() // and not unlocked: it is in the namespace, as the workload's user
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/intercept:", err)
		os.Exit(1)
	}
}

func run() error {
	manager, err := enter()
	if err != nil {
		return err
	}
	stop, err := serve("127.0.0.1:15001", "[::1]:15001", "127.0.0.1:9000")
	if err != nil {
		return err
	}
	defer stop()
	all := []*series{
		{name: "no rules", addr: "127.0.0.1:9000"},
		{name: "rules, not captured", addr: "127.0.0.1:9000", config: config(1)},
		{name: "captured", addr: "240.1.2.3:80", config: config(1)},
		{name: "captured, the last of 50 workloads", addr: "240.1.2.3:80", config: config(50)},
		{name: "captured, IPv6", addr: "[fd70:6172:7265:6c::f001:203]:80", config: config(1)},
	}
	for range *rounds {
		for _, s := range all {
			if s.config == nil {
				err = manager(func(m intercept.Manager) error { return m.Clean(context.Background()) })
			} else {
				err = manager(func(m intercept.Manager) error { return m.Apply(context.Background(), *s.config) })
			}
			if err == nil {
				err = s.measure()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	base := all[0]
	fmt.Println("| way to the same listener | a connection | | a round trip of 64 B | | 1 KiB in bulk | |\n|---|--:|--:|--:|--:|--:|--:|")
	for _, s := range all {
		fmt.Printf("| %s | %.1f µs | %.2f× | %.2f µs | %.2f× | %.3f µs | %.2f× |\n", s.name,
			slices.Min(s.conn), slices.Min(s.conn)/slices.Min(base.conn), slices.Min(s.trip), slices.Min(s.trip)/slices.Min(base.trip), slices.Min(s.kb), slices.Min(s.kb)/slices.Min(base.kb))
	}
	return nil
}

// enter puts this thread into a namespace of its own, as the workload's user, and
// returns what calls a Manager there, on a thread that kept its rights.
func enter() (func(func(intercept.Manager) error) error, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("making a network namespace and rules needs root")
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("a network namespace: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return nil, fmt.Errorf("lo up: %w", err)
	}
	m, err := intercept.New(intercept.Options{NetNS: fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())})
	if err != nil {
		return nil, err
	}
	// This thread's alone, other than syscall.Setresuid.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, workload, workload, workload); errno != 0 {
		return nil, errno
	}
	return func(f func(intercept.Manager) error) error {
		done := make(chan error)
		go func() { done <- f(m) }()
		return <-done
	}, nil
}

func config(workloads int) *intercept.Config {
	uid := uint32(sidecar)
	c := intercept.Config{ProxyUID: &uid, InboundPort: 15006, DNSPort: 15053, IPv6: true}
	for i := range workloads - 1 {
		u := uint32(2000 + i)
		c.Outbound = append(c.Outbound, intercept.Workload{Name: fmt.Sprint("other", i), UID: &u, OutboundPort: uint16(16000 + i)})
	}
	u := uint32(workload)
	c.Outbound = append(c.Outbound, intercept.Workload{Name: "web", UID: &u, OutboundPort: 15001})
	return &c
}

// serve listens in the namespace; what it accepts it repeats, or swallows when the
// first byte says so.
func serve(addrs ...string) (func(), error) {
	var all []net.Listener
	for _, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c)
			}
		}()
	}
	return func() {
		for _, l := range all {
			l.Close()
		}
	}, nil
}

func answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 256<<10)
	first := true
	swallow := false
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if first {
			first, swallow = false, buf[0] == 's'
		}
		if swallow {
			if buf[n-1] == 'e' {
				_, _ = c.Write([]byte("k"))
			}
			continue
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cpu is what the process has used, in microseconds.
func cpu() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1000
}

func (s *series) measure() error {
	start := cpu()
	for range *conns {
		c, err := dial(s.addr)
		if err != nil {
			return err
		}
		c.Close()
	}
	s.conn = append(s.conn, (cpu()-start)/float64(*conns))

	c, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	buf[0] = 'p'
	start = cpu()
	for range *trips {
		if _, err := c.Write(buf[:64]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf[:64]); err != nil {
			return err
		}
	}
	s.trip = append(s.trip, (cpu()-start)/float64(*trips))

	c2, err := dial(s.addr)
	if err != nil {
		return err
	}
	defer c2.Close()
	for i := range buf {
		buf[i] = 's'
	}
	start = cpu()
	for sent := 0; sent < *megs<<20; sent += len(buf) {
		if sent+len(buf) >= *megs<<20 {
			buf[len(buf)-1] = 'e'
		}
		if _, err := c2.Write(buf); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(c2, buf[:1]); err != nil {
		return err
	}
	s.kb = append(s.kb, (cpu()-start)/float64(*megs<<10))
	return nil
}

// dial connects, and closing resets: no port waits in TIME_WAIT.
func dial(addr string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	t := c.(*net.TCPConn)
	return t, t.SetLinger(0)
}
