//go:build linux

package intercept

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// TestOriginalDestination: of ten thousand connections in each family every one has
// its original address and port, with connection tracking idle and with it full
// of other entries.
func TestOriginalDestination(t *testing.T) {
	const connections = 10000
	for _, pressed := range []bool{false, true} {
		name := "idle"
		if pressed {
			name = "under pressure"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, dual)
			w.apply(w.config())
			if pressed {
				w.press(t)
			}
			w.each(func(t *testing.T, _, _, virtual, loopback string) {
				w.on(t).original(t, connections, netip.MustParseAddr(virtual), at(loopback, outPort))
			})
		})
	}
}

// patience is for ten thousand connections on a busy machine: how long each takes is
// not what is tested.
const patience = 2 * time.Minute

// original makes n connections, each to another address and port of a virtual range,
// and compares what the accepting side learns with where each client went.
func (w *world) original(t *testing.T, n int, first netip.Addr, capture string) {
	t.Helper()
	l := enter(w.host, root, func() netio.Listener {
		l, err := netio.OS{}.Listen(t.Context(), "tcp", capture)
		if err != nil {
			panic(err)
		}
		return l
	})
	defer l.Close()
	want := func(i int) netip.AddrPort {
		b := first.AsSlice()
		b[len(b)-1], b[len(b)-2] = byte(i), byte(i>>8)
		a, _ := netip.AddrFromSlice(b)
		return netip.AddrPortFrom(a, uint16(1024+i%50000))
	}
	var right atomic.Int64
	var serving, dialling sync.WaitGroup
	serving.Add(1)
	go func() {
		defer serving.Done()
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return
			}
			serving.Add(1)
			go func() {
				defer serving.Done()
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				dst, ok := c.OriginalDst()
				fmt.Fprintln(c, dst, ok)
				_, _ = c.Read(make([]byte, 1)) // until the client resets it
			}()
		}
	}()
	const workers = 8
	for k := range workers {
		dialling.Add(1)
		go func() {
			defer dialling.Done()
			if err := enter(w.host, app, func() error {
				for i := k; i < n; i += workers {
					c, err := net.DialTimeout("tcp", want(i).String(), patience)
					if err != nil {
						return fmt.Errorf("connection %d to %s: %w", i, want(i), err)
					}
					_ = c.SetReadDeadline(time.Now().Add(patience))
					got, err := bufio.NewReader(c).ReadString('\n')
					_ = c.(*net.TCPConn).SetLinger(0) // no port waits in TIME_WAIT
					c.Close()
					if expect := fmt.Sprintln(want(i), true); err != nil || got != expect {
						return fmt.Errorf("connection %d: the other side learnt %q, want %q (%v)", i, got, expect, err)
					}
					right.Add(1)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}()
	}
	dialling.Wait()
	l.Close()
	serving.Wait()
	if right.Load() != int64(n) {
		t.Errorf("of %d connections %d had their original destination", n, right.Load())
	}
}

// press gives connection tracking a fifty thousand entries that wait for an answer,
// or half of its limit where that is less: a table that is full refuses connections,
// and the limit is the machine's and not the namespace's, so it is left as it is.
func (w *world) press(t *testing.T) {
	t.Helper()
	limit := 50000
	if b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			limit = min(limit, n/2)
		}
	}
	err := enter(w.host, sidecar, func() error {
		fd := -1
		defer func() { unix.Close(fd) }()
		for i := range limit {
			if i%50000 == 0 { // from another port, once the destination's are used up
				unix.Close(fd)
				var err error
				if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
					return err
				}
			}
			to := &unix.SockaddrInet4{Addr: [4]byte{10, 213, 0, 2}, Port: 1024 + i%50000}
			for {
				err := unix.Sendto(fd, []byte("x"), 0, to)
				if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOBUFS) {
					continue // the answer to one before
				}
				if err != nil {
					return err
				}
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count := enter(w.host, root, func() string {
		b, _ := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		return strings.TrimSpace(string(b))
	})
	if n, _ := strconv.Atoi(count); n < limit/10 { // those that got no answer are forgotten after 30 s: a busy machine may be slower
		t.Fatalf("connection tracking holds %s entries, want about %d", count, limit)
	}
	t.Logf("connection tracking holds %s entries", count)
}
