package netio

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is one implementation under the conformance test.
type world struct {
	name          string
	server        Net
	client        Net
	network, addr string // to listen on
}

// conformance is what every Net must do.
var conformance = []struct {
	name string
	test func(t *testing.T, w world)
}{
	{"echo with half-close", testHalfClose},
	{"reset is seen as ECONNRESET after the data", testReset},
	{"close with unread bytes resets", testCloseUnread},
	{"read deadline", testReadDeadline},
	{"write deadline under back-pressure", testWriteDeadline},
	{"refused", testRefused},
	{"dial with an ended context", testDialCancelled},
	{"wait readable takes nothing", testWaitReadable},
	{"copy moves everything", testCopy},
	{"listener close ends accept", testListenerClose},
	{"address in use", testInUse},
	{"close unblocks read and write", testCloseUnblocks},
	{"no original destination", testNoOriginal},
	{"write after peer closed fails in the end", testWriteAfterClose},
}

func TestConformanceMemory(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, c := range conformance {
			t.Run(network+"/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := NewMemory()
					a := m.Host("a", "10.0.0.1")
					b := m.Host("b", "10.0.0.2")
					w := world{"memory", b, a, "tcp", "10.0.0.2:0"}
					m.SetLatency(3 * time.Millisecond)
					if network == "unix" {
						w = world{"memory", a, a, "unix", "/run/a.sock"}
					}
					c.test(t, w)
				})
			})
		}
	}
}

func TestConformanceOS(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, c := range conformance {
			t.Run(network+"/"+c.name, func(t *testing.T) {
				w := world{"os", OS{}, OS{}, "tcp", "127.0.0.1:0"}
				if network == "unix" {
					w.network, w.addr = "unix", filepath.Join(t.TempDir(), "s")
				}
				c.test(t, w)
			})
		}
	}
}

// connect returns both ends of a new connection.
func (w world) connect(t *testing.T) (client, server Conn) {
	t.Helper()
	l, err := w.server.Listen(t.Context(), w.network, w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		c   Conn
		err error
	}
	ch := make(chan result, 1)
	go func() {
		c, err := l.AcceptConn()
		ch <- result{c, err}
	}()
	client, err = w.client.Dial(t.Context(), w.network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { client.Close(); r.c.Close() })
	return client, r.c
}

func testHalfClose(t *testing.T, w world) {
	c, s := w.connect(t)
	go func() {
		b, _ := io.ReadAll(s)
		s.Write(append([]byte("got "), b...))
		s.CloseWrite()
	}()
	c.Write([]byte("hello"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if string(b) != "got hello" || err != nil {
		t.Fatalf("got %q, %v", b, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("write after CloseWrite: %v, want EPIPE", err)
	}
}

func testReset(t *testing.T, w world) {
	if w.network == "unix" && w.name == "os" {
		t.Skip("Linux has no RST on Unix sockets: the peer sees the end of the stream")
	}
	c, s := w.connect(t)
	s.Write([]byte("last"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	s.Reset()
	if _, err := c.Read(got); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want ECONNRESET", err)
	}
}

func testCloseUnread(t *testing.T, w world) {
	c, s := w.connect(t)
	c.Write([]byte("unread"))
	if err := s.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want ECONNRESET", err)
	}
}

func testReadDeadline(t *testing.T, w world) {
	c, _ := w.connect(t)
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v, want a deadline", err)
	}
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("%v is not a time-out", err)
	}
	if err := c.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wait: %v, want a deadline", err)
	}
}

func testWriteDeadline(t *testing.T, w world) {
	c, _ := w.connect(t)
	c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, err := c.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 64<<20 {
		t.Fatalf("wrote %d, %v: nobody reads, so this must not end otherwise than by the deadline", n, err)
	}
}

func testRefused(t *testing.T, w world) {
	l, err := w.server.Listen(t.Context(), w.network, w.addr)
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = w.client.Dial(t.Context(), w.network, addr)
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("dial: %v, want refused", err)
	}
}

func testDialCancelled(t *testing.T, w world) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.client.Dial(ctx, "tcp", "127.0.0.1:1"); err == nil {
		t.Fatal("dialled")
	}
}

func testWaitReadable(t *testing.T, w world) {
	c, s := w.connect(t)
	go func() {
		time.Sleep(5 * time.Millisecond)
		s.Write([]byte("abc"))
		s.Close()
	}()
	for range 2 {
		if err := c.WaitReadable(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(c)
	if string(b) != "abc" || err != nil {
		t.Fatalf("got %q, %v", b, err)
	}
	if err := c.WaitReadable(); err != nil {
		t.Fatalf("wait at the end of the stream: %v; the end is readable", err)
	}
}

func testCopy(t *testing.T, w world) {
	inC, inS := w.connect(t)
	w.addr += map[string]string{"unix": "2", "tcp": ""}[w.network]
	outC, outS := w.connect(t)
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	go func() { inC.Write(data); inC.CloseWrite() }()
	copied := make(chan int64, 1)
	go func() {
		n, err := Copy(outC, inS)
		if err != nil {
			t.Errorf("copy: %v", err)
		}
		outC.CloseWrite()
		copied <- n
	}()
	h := sha256.New()
	if _, err := io.Copy(h, outS); err != nil {
		t.Fatal(err)
	}
	if n := <-copied; n != int64(len(data)) {
		t.Fatalf("copied %d of %d bytes", n, len(data))
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Fatal("the bytes changed on their way")
	}
}

func testListenerClose(t *testing.T, w world) {
	l, err := w.server.Listen(t.Context(), w.network, w.addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.AcceptConn()
		done <- err
	}()
	time.Sleep(time.Millisecond)
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("accept: %v, want ErrClosed", err)
	}
	if l2, err := w.server.Listen(t.Context(), w.network, w.addr); err != nil {
		t.Fatalf("the address is not free after Close: %v", err)
	} else {
		l2.Close()
	}
}

func testInUse(t *testing.T, w world) {
	l, err := w.server.Listen(t.Context(), w.network, w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := w.server.Listen(t.Context(), w.network, l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("second listen: %v, want EADDRINUSE", err)
	}
}

func testCloseUnblocks(t *testing.T, w world) {
	c, _ := w.connect(t)
	errs := make(chan error, 2)
	go func() { _, err := c.Read(make([]byte, 1)); errs <- err }()
	go func() { _, err := c.Write(make([]byte, 64<<20)); errs <- err }()
	time.Sleep(10 * time.Millisecond)
	c.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("%v, want ErrClosed", err)
		}
	}
}

func testNoOriginal(t *testing.T, w world) {
	c, s := w.connect(t)
	for _, x := range []Conn{c, s} {
		if a, ok := x.OriginalDst(); ok {
			t.Fatalf("original destination %v without redirection", a)
		}
	}
}

func testWriteAfterClose(t *testing.T, w world) {
	c, s := w.connect(t)
	s.Close()
	for range 100 {
		if _, err := c.Write([]byte("x")); err != nil {
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("write: %v", err)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("writing to a closed peer never failed")
}
