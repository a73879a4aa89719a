package netio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"
)

func init() { burstProcs = 1 << 20 } // whatever the machine has

// together makes the bursts of the process's connections take messages from now
// on, until one does not pay.
func together(c Conn) *burst {
	b := c.(*osConn).burst
	b.mu.Lock()
	b.misses = 0
	b.mu.Unlock()
	b.skip.Store(0)
	return b
}

// What many connections send together arrives whole, in its order, and each answer
// at its own connection; and messages do leave together.
func TestBurst(t *testing.T) {
	const conns, rounds = 48, 200
	l, err := OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var all sync.WaitGroup
	all.Go(func() {
		for range conns {
			c, err := l.AcceptConn()
			if err != nil {
				t.Error(err)
				return
			}
			all.Go(func() {
				defer c.Close()
				for {
					p, n, err := ReadBuf(c)
					if err != nil {
						if err != io.EOF {
							t.Errorf("server: %v", err)
						}
						return
					}
					if _, err := WriteSoon(c, p[:n]); err != nil {
						t.Errorf("server: %v", err)
					}
					PutBuf(p)
				}
			})
		}
	})
	for i := range conns {
		c, err := OS{}.Dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer c.Close()
			msg, got := make([]byte, 300), make([]byte, 300)
			for r := range rounds {
				for k := range msg {
					msg[k] = byte(i + r + k)
				}
				write := WriteSoon
				if r%7 == 3 { // the two kinds of writes keep their order
					if _, err := WriteSoon(c, msg[:100]); err != nil {
						t.Error(err)
					}
					write = func(c Conn, p []byte) (int, error) { n, err := c.Write(p[100:]); return n + 100, err }
				}
				if n, err := write(c, msg); n != len(msg) || err != nil {
					t.Errorf("write: %d, %v", n, err)
					return
				}
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, msg) {
					t.Errorf("connection %d, round %d: %v, %x", i, r, err, got[:8])
					return
				}
			}
		})
	}
	all.Wait()
	b := theBurst()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.most < burstFew {
		t.Errorf("%d messages left together at the most", b.most)
	}
}

// A message that waits is sent before what comes after it: a write, the end of the
// direction, a close; and before a failed read is told.
func TestBurstOrder(t *testing.T) {
	msg := []byte("message")
	for name, then := range map[string]func(c Conn) error{
		"Write":      func(c Conn) error { _, err := c.Write([]byte("!")); return err },
		"Buffers":    func(c Conn) error { _, err := WriteBuffers(c, []byte("!"), []byte("?")); return err },
		"CloseWrite": func(c Conn) error { return c.CloseWrite() },
		"Close":      func(c Conn) error { return c.Close() },
		"Settle":     func(c Conn) error { return Settle(c) },
		"Read": func(c Conn) error {
			c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				return errors.New("no deadline")
			}
			return nil
		},
	} {
		a, b := osPair(t)
		burst := together(a)
		burst.sending.Lock() // no burst for now
		added := burst.add(a.(*osConn), msg)
		if !added || a.(*osConn).settled() {
			t.Fatalf("%s: not taken", name)
		}
		if Alive(a) {
			t.Errorf("%s: a connection with an unsent message can be used again", name)
		}
		done := make(chan error, 1)
		go func() { done <- then(a) }()
		burst.sending.Unlock()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name != "Close" && !a.(*osConn).settled() {
			t.Errorf("%s: the message is left", name)
		}
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		a.Close()
		b.Close()
	}
}

// Where the peer takes nothing a message waits as a write does: nothing is lost,
// the next write comes after it, and a write deadline ends it.
func TestBurstSlowPeer(t *testing.T) {
	fill := func(t *testing.T, a Conn) (n int) {
		a.SetWriteDeadline(time.Now().Add(time.Second))
		for {
			m, err := a.Write(make([]byte, 64<<10))
			if n += m; err != nil {
				break
			}
		}
		a.SetWriteDeadline(time.Time{})
		for { // what is too little room for the poller to tell of
			m, errno := transmit(a.(*osConn).fd, make([]byte, 512))
			if n += m; errno != 0 {
				return n
			}
		}
	}
	msg := bytes.Repeat([]byte("message "), soonMost/8) // more than the kernel can add to its last buffer
	soon := func(t *testing.T, a Conn) {
		burst := together(a)
		burst.sending.Lock()
		n, err := WriteSoon(a, msg)
		burst.sending.Unlock()
		if n != len(msg) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		a.(*osConn).push()
		if !Slow(a) {
			t.Fatal("the kernel took it")
		}
	}
	t.Run("read at last", func(t *testing.T) {
		a, b := osPair(t)
		n := fill(t, a)
		soon(t, a)
		done := make(chan error, 1)
		go func() { _, err := a.Write([]byte("after")); done <- err; a.CloseWrite() }()
		got, err := io.ReadAll(b)
		if werr := <-done; err != nil || werr != nil {
			t.Fatal(err, werr)
		}
		if end := got[n:]; !bytes.Equal(end, append(msg, "after"...)) {
			t.Errorf("%d bytes at the end, %q last", len(end), end[max(0, len(end)-9):])
		}
	})
	t.Run("deadline", func(t *testing.T) {
		a, _ := osPair(t)
		fill(t, a)
		soon(t, a)
		a.SetWriteDeadline(time.Unix(1, 0))
		if err := Settle(a); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
		if _, err := WriteSoon(a, []byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("WriteSoon: %v", err)
		}
	})
	t.Run("Close", func(t *testing.T) {
		a, _ := osPair(t)
		fill(t, a)
		soon(t, a)
		a.Close()
		if err := Settle(a); err == nil {
			t.Error("no error")
		}
	})
}

// A message that could not be sent is told by the next operation.
func TestBurstFailure(t *testing.T) {
	a, b := osPair(t)
	_ = b.Reset()
	if err := a.WaitReadable(); err == nil {
		t.Log("readable") // the reset has come
	}
	together(a)
	if _, err := WriteSoon(a, []byte("message")); err == nil {
		err = Settle(a)
		if err == nil || !Unsent(a) {
			t.Errorf("%v, unsent %v", err, Unsent(a))
		}
		if _, werr := a.Write([]byte("x")); werr != err {
			t.Errorf("Write: %v instead of %v", werr, err)
		}
		if _, _, rerr := ReadBuf(a); rerr != err {
			t.Errorf("ReadBuf: %v instead of %v", rerr, err)
		}
		if Alive(a) {
			t.Error("alive")
		}
	}
}

// A message that leaves with others costs no allocation.
func TestBurstAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("what is pooled is dropped at random under the race detector")
	}
	a, b := osPair(t)
	msg, buf := make([]byte, 256), make([]byte, 1024)
	if n := testing.AllocsPerRun(500, func() {
		together(a)
		_, _ = WriteSoon(a, msg)
		_, _ = b.Read(buf)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
