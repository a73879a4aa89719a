package netio

import (
	"io"
	"testing"
	"time"
)

// osPair is a connected pair of kernel sockets on loopback.
func osPair(t testing.TB) (dialled, accepted Conn) {
	t.Helper()
	l, err := (OS{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialled, err = (OS{}).Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

func memPair(t testing.TB) (dialled, accepted Conn) {
	t.Helper()
	m := NewMemory()
	a, b := m.Host("a", "10.0.0.1"), m.Host("b", "10.0.0.2")
	l, err := b.Listen(t.Context(), "tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialled, err = a.Dial(t.Context(), "tcp", "10.0.0.2:80"); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

func eachPair(t *testing.T, f func(t *testing.T, a, b Conn)) {
	for name, pair := range map[string]func(testing.TB) (Conn, Conn){"kernel": osPair, "memory": memPair} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			f(t, a, b)
		})
	}
}

// An idle connection is alive until its peer says anything or goes.
func TestAlive(t *testing.T) {
	for name, end := range map[string]func(c Conn) error{
		"byte":  func(c Conn) error { _, err := c.Write([]byte("x")); return err },
		"end":   Conn.CloseWrite,
		"reset": Conn.Reset,
	} {
		t.Run(name, func(t *testing.T) {
			eachPair(t, func(t *testing.T, a, b Conn) {
				if !Alive(a) {
					t.Fatal("a fresh connection is said to be dead")
				}
				if err := end(b); err != nil {
					t.Fatal(err)
				}
				a.SetReadDeadline(time.Now().Add(10 * time.Second))
				_ = a.WaitReadable() // until it has arrived
				if Alive(a) {
					t.Error("still said to be alive")
				}
			})
		})
	}
}

func TestWriteBuffers(t *testing.T) {
	eachPair(t, func(t *testing.T, a, b Conn) {
		n, err := WriteBuffers(a, []byte("one "), nil, []byte("two "), []byte("three"))
		if n != 13 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		a.CloseWrite()
		got, err := io.ReadAll(b)
		if string(got) != "one two three" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

func TestPending(t *testing.T) {
	var p Pending
	if p.Bytes() != nil {
		t.Error("the zero value has bytes")
	}
	p = Pending{GetBuf(), 3}
	copy(p.Buf[:], "GET")
	if string(p.Bytes()) != "GET" {
		t.Errorf("%q", p.Bytes())
	}
	p.Release()
	p.Release()
	if p.Buf != nil {
		t.Error("still there")
	}
}
