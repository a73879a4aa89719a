package netio

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// relay copies between two connections both ways, as an engine does.
func relay(a, b Conn) (wait func() [2]error) {
	var wg sync.WaitGroup
	var errs [2]error
	for i, p := range [][2]Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, errs[i] = Copy(p[0], p[1]); errs[i] == nil {
				errs[i] = p[0].CloseWrite()
			} else {
				_ = a.Reset()
				_ = b.Reset()
			}
		})
	}
	return func() [2]error { wg.Wait(); return errs }
}

// chains are the ways of a relay: client, its side of the relay, the other
// side, server.
func chains(t testing.TB) map[string][4]Conn {
	c, a := osPair(t)
	b, s := osPair(t)
	tc, ta, _, _ := tlsPair(t, osPair)
	d, e := osPair(t)
	tb, ts, _, _ := tlsPair(t, osPair)
	f, g := osPair(t)
	return map[string][4]Conn{"kernel": {c, a, b, s}, "from TLS": {tc, ta, d, e}, "to TLS": {f, g, tb, ts}}
}

// 64 MB in each direction at once, in writes of all sizes, then both ends.
func TestCopyBulk(t *testing.T) {
	data := make([]byte, 64<<20)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	want := sha256.Sum256(data)
	for name, c := range chains(t) {
		t.Run(name, func(t *testing.T) {
			wait := relay(c[1], c[2])
			var wg sync.WaitGroup
			for i, p := range [][2]Conn{{c[0], c[3]}, {c[3], c[0]}} {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(i), 1))
					for rest := data; len(rest) > 0; {
						n := min(1+rnd.IntN(1<<rnd.IntN(21)), len(rest))
						if _, err := p[0].Write(rest[:n]); err != nil {
							t.Error(err)
							return
						}
						rest = rest[n:]
					}
					p[0].CloseWrite()
				})
				wg.Go(func() {
					h := sha256.New()
					if _, err := io.Copy(h, p[1]); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
						t.Errorf("changed on the way, or %v", err)
					}
				})
			}
			wg.Wait()
			for _, err := range wait() {
				if err != nil {
					t.Error(err)
				}
			}
			for _, x := range c {
				x.Close()
			}
		})
	}
}

// A bulk flow is spliced, and messages after it are copied again; each arrives
// without delay.
func TestCopyAfterBulk(t *testing.T) {
	for name, c := range chains(t) {
		t.Run(name, func(t *testing.T) {
			wait := relay(c[1], c[2])
			big := make([]byte, 4<<20)
			for range 2 {
				go c[0].Write(big)
				if _, err := io.ReadFull(c[3], big); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 10)
				for range 24 { // far more often than it takes to copy again
					c[0].Write(b)
					if _, err := io.ReadFull(c[3], b); err != nil {
						t.Fatal(err)
					}
					c[3].Write(b)
					if _, err := io.ReadFull(c[0], b); err != nil {
						t.Fatal(err)
					}
				}
			}
			c[0].CloseWrite()
			if _, err := io.ReadAll(c[3]); err != nil {
				t.Error(err)
			}
			c[3].CloseWrite()
			wait()
		})
	}
}

// A reset of either end, in the middle of bulk, is a reset of the other.
func TestCopyReset(t *testing.T) {
	for _, from := range []int{0, 3} {
		c, a := osPair(t)
		b, s := osPair(t)
		ends := map[int]Conn{0: c, 3: s}
		wait := relay(a, b)
		go ends[from].Write(make([]byte, 64<<20))
		if _, err := io.ReadFull(ends[3-from], make([]byte, 8<<20)); err != nil {
			t.Fatal(err)
		}
		ends[from].Reset()
		_, err := io.Copy(io.Discard, ends[3-from])
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset of %d: the other end read %v", from, err)
		}
		for _, err := range wait() {
			var op *net.OpError
			if err != nil && !errors.As(err, &op) {
				t.Errorf("%T: %v", err, err)
			}
		}
	}
}

// Readers that have stopped cost less than 64 KB each.
func TestCopySlowReader(t *testing.T) {
	const n = 48
	var conns []Conn
	var waits []func() [2]error
	for range n {
		c, a := osPair(t)
		tb, ts, _, _ := tlsPair(t, osPair)
		waits = append(waits, relay(a, tb))
		conns = append(conns, c, ts)
	}
	before := heap()
	for i := 0; i < len(conns); i += 2 {
		c := conns[i]
		go func() { // until the relay is reset
			for b := make([]byte, 64<<10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
	// Full: no byte has moved for a while.
	for last, same := uint64(0), 0; same < 20; {
		var sum uint64
		for i := 0; i < len(conns); i += 2 {
			acked, _ := Acked(conns[i])
			sum += acked
		}
		if sum == last && sum > 0 {
			same++
		} else {
			last, same = sum, 0
		}
		<-time.After(10 * time.Millisecond)
	}
	// The writers' own buffers are the test's.
	each := (int64(heap())-int64(before))/n - 64<<10
	t.Logf("%d KB each", each>>10)
	if each > 64<<10 && !raceDetector {
		t.Errorf("%d bytes of heap for each connection whose reader has stopped, want 64 KB at the most", each)
	}
	for _, c := range conns {
		c.Reset()
	}
	for _, w := range waits {
		w()
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
