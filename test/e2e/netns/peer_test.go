//go:build linux

package netns

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

const (
	bound = 30 * time.Second // in which a peer that vanished is found
	pause = 35 * time.Second
	late  = 42 * time.Second // more than any wait here takes
)

// TestPausedReaderStays: a reader that takes nothing for longer than a dead peer
// is given keeps its connection and then gets every byte.
func TestPausedReaderStays(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c, peer := p.dialled()
	data := random(24 << 20)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		written <- errors.Join(err, c.CloseWrite())
	}()
	select {
	case err := <-written:
		t.Fatalf("the write ended (%v) though nobody reads: the buffers took %d bytes", err, len(data))
	case <-time.After(pause):
	}
	h := sha256.New()
	if n, err := io.Copy(h, peer); err != nil || n != int64(len(data)) {
		t.Fatalf("got %d of %d bytes after the pause, %v", n, len(data), err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Fatal("the bytes changed on their way")
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

// TestVanishedPeerIsFound: whatever a connection does when its peer vanishes,
// what waits on it ends within 30 s.
func TestVanishedPeerIsFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		peer   func(*pair) (netio.Conn, *net.TCPConn)
		vanish func(*pair)
		work   func(t *testing.T, c netio.Conn) <-chan error // ends with the connection
		after  time.Duration                                 // of work, before the peer vanishes
		silent bool                                          // found by the watch, else by keep-alive
	}{
		{"dialled, data unacknowledged, unplugged", (*pair).dialled, (*pair).unplug, writes, 0, true},
		{"dialled, data unacknowledged, dropped", (*pair).dialled, (*pair).vanish, writes, 0, true},
		{"accepted and copied by the kernel, dropped", (*pair).accepted, (*pair).vanish, copies, 0, true},
		{"shut window, dropped", (*pair).dialled, (*pair).vanish, fills, 8 * time.Second, true},
		{"idle, unplugged", (*pair).accepted, (*pair).unplug, reads, 0, false},
		{"idle, dropped", (*pair).dialled, (*pair).vanish, reads, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			c, peer := tt.peer(p)
			if tt.after > 0 && !boundsProbes(t, c) {
				t.Skip("before Linux 6.15 nothing bounds the time between the probes of a shut window")
			}
			// The handshake is over, and one byte more has gone both ways.
			c.Write([]byte("x"))
			peer.Read(make([]byte, 1))
			var ended <-chan error
			if tt.after > 0 {
				ended = tt.work(t, c)
				time.Sleep(tt.after)
			}
			start := time.Now()
			tt.vanish(p)
			if ended == nil {
				ended = tt.work(t, c)
			}
			var err error
			select {
			case err = <-ended:
			case <-time.After(late - tt.after):
				t.Fatalf("nothing ended within %s", late-tt.after)
			}
			took := time.Since(start)
			t.Logf("found after %s: %v", took.Round(10*time.Millisecond), err)
			// Without a route the kernel may say so itself at the same time.
			if !errors.Is(err, syscall.ETIMEDOUT) && !(errors.Is(err, syscall.EHOSTUNREACH) && !tt.silent) {
				t.Errorf("ended with %v, want a time-out", err)
			}
			if said := strings.Contains(err.Error(), "acknowledged nothing"); said != tt.silent {
				t.Errorf("%v: by the watch %t, want %t", err, said, tt.silent)
			}
			if took > bound || took < 5*time.Second {
				t.Errorf("found after %s, want within %s and not at once", took, bound)
			}
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// boundsProbes says whether the kernel knows TCP_RTO_MAX_MS.
func boundsProbes(t *testing.T, c netio.Conn) (ok bool) {
	t.Helper()
	rc, _ := c.Raw()
	if err := rc.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, 44)
		ok = err == nil
	}); err != nil {
		t.Fatal(err)
	}
	return ok
}

func reads(_ *testing.T, c netio.Conn) <-chan error {
	ch := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ch <- err
	}()
	return ch
}

// writes leaves little unacknowledged and waits for the answer.
func writes(t *testing.T, c netio.Conn) <-chan error {
	if _, err := c.Write([]byte("is anybody there?")); err != nil {
		t.Fatal(err)
	}
	return reads(t, c)
}

// fills writes until the connection ends.
func fills(_ *testing.T, c netio.Conn) <-chan error {
	ch := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<20))
		ch <- err
	}()
	return ch
}

// copies feeds c from another connection through netio.Copy until it ends.
func copies(t *testing.T, c netio.Conn) <-chan error {
	l, err := netio.OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	feed, err := netio.OS{}.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	src, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	fed := fills(t, feed)
	ch := make(chan error, 1)
	go func() {
		_, err := netio.Copy(c, src)
		ch <- err
	}()
	t.Cleanup(func() { src.Close(); feed.Close(); <-fed })
	return ch
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
