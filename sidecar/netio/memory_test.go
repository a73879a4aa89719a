package netio

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// inMemory runs a test on two hosts, a and b, with one connection between them.
func inMemory(t *testing.T, f func(t *testing.T, m *Memory, a, b *Host, c, s Conn)) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		a, b := m.Host("a", "10.0.0.1"), m.Host("b", "10.0.0.2")
		c, s := world{"memory", b, a, "tcp", "10.0.0.2:80"}.connect(t)
		f(t, m, a, b, c, s)
	})
}

func TestLatency(t *testing.T) {
	inMemory(t, func(t *testing.T, m *Memory, a, b *Host, c, s Conn) {
		m.SetLatency(40 * time.Millisecond)
		start := time.Now()
		c.Write([]byte("x"))
		io.ReadFull(s, make([]byte, 1))
		if d := time.Since(start); d != 40*time.Millisecond {
			t.Errorf("one byte took %v", d)
		}
		l, _ := b.Listen(t.Context(), "tcp", ":81")
		defer l.Close()
		start = time.Now()
		x, err := a.Dial(t.Context(), "tcp", "10.0.0.2:81")
		if err != nil {
			t.Fatal(err)
		}
		x.Close()
		if d := time.Since(start); d != 80*time.Millisecond {
			t.Errorf("a handshake took %v", d)
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	inMemory(t, func(t *testing.T, m *Memory, a, b *Host, c, s Conn) {
		m.Partition(a, b)
		c.Write([]byte("x"))
		time.AfterFunc(10*time.Second, func() { m.Heal(a, b) })
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); err != nil || time.Since(start) != 10*time.Second {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
	})
}

func TestHalfDeadIsFound(t *testing.T) {
	inMemory(t, func(t *testing.T, m *Memory, a, b *Host, c, s Conn) {
		start := time.Now()
		b.Unplug()
		for _, x := range []Conn{c, s} {
			if _, err := x.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) || time.Since(start) > 30*time.Second {
				t.Errorf("read: %v after %v", err, time.Since(start))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, "tcp", "10.0.0.2:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial to an unplugged host: %v", err)
		}
	})
}

func TestIdleForHours(t *testing.T) {
	inMemory(t, func(t *testing.T, m *Memory, a, b *Host, c, s Conn) {
		time.Sleep(3 * time.Hour)
		c.Write([]byte("x"))
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
}

func TestResetBetweenAndKill(t *testing.T) {
	inMemory(t, func(t *testing.T, m *Memory, a, b *Host, c, s Conn) {
		if n := m.ResetBetween(a, b); n != 1 {
			t.Errorf("reset %d connections", n)
		}
		for _, x := range []Conn{c, s} {
			if _, err := x.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
		}
		l, _ := b.Listen(t.Context(), "tcp", ":82")
		b.Kill()
		if _, err := l.Accept(); err == nil {
			t.Error("a killed host accepts")
		}
		if _, err := a.Dial(t.Context(), "tcp", "10.0.0.2:82"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		if n := a.Open(); n != 0 {
			t.Errorf("%d connections open", n)
		}
	})
}

func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewMemory().Host("a")
		l, err := h.Listen(t.Context(), "tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		var got int
		for range memBacklog + 5 {
			c, err := h.Dial(t.Context(), "tcp", "localhost:80")
			if err == nil {
				got++
				defer c.Close()
			} else if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
		if got != memBacklog {
			t.Errorf("%d connections wait, want %d", got, memBacklog)
		}
		l.Close()
	})
}

func TestRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewMemory().Host("a", "10.0.0.1")
		l, _ := h.Listen(t.Context(), "tcp", "127.0.0.1:15001")
		defer l.Close()
		h.Redirect(func(dst netip.AddrPort) (netip.AddrPort, bool) {
			return netip.MustParseAddrPort("127.0.0.1:15001"), dst.Port() == 5432
		})
		c, err := h.Dial(t.Context(), "tcp", "10.9.9.9:5432")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, _ := l.AcceptConn()
		defer s.Close()
		if dst, ok := s.OriginalDst(); !ok || dst.String() != "10.9.9.9:5432" {
			t.Errorf("original destination %v, %v", dst, ok)
		}
	})
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		a, b := m.Host("a", "10.0.0.1"), m.Host("b", "10.0.0.2")
		m.SetLatency(time.Millisecond)
		pa, _ := a.ListenPacket(t.Context(), "udp", ":0")
		pb, err := b.ListenPacket(t.Context(), "udp", "10.0.0.2:53")
		if err != nil {
			t.Fatal(err)
		}
		defer pa.Close()
		defer pb.Close()
		pa.WriteTo([]byte("ask"), pb.LocalAddr())
		buf := make([]byte, 9)
		n, from, err := pb.ReadFrom(buf)
		if string(buf[:n]) != "ask" || err != nil {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		pb.WriteTo([]byte("answer"), from)
		if n, _, _ := pa.ReadFrom(buf); string(buf[:n]) != "answer" {
			t.Fatalf("got %q", buf[:n])
		}
		m.Partition(a, b)
		pa.WriteTo([]byte("lost"), pb.LocalAddr())
		pb.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := pb.ReadFrom(buf); err == nil {
			t.Fatal("a datagram crossed a partition")
		}
	})
}
