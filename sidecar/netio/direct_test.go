package netio

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// A read deadline that has passed counts although bytes are there, a write
// deadline although the kernel would take more; without them all goes on.
func TestDeadlineBeforeBytes(t *testing.T) {
	a, b := osPair(t)
	past := time.Unix(1, 0)
	if _, err := a.Write([]byte("xyz")); err != nil {
		t.Fatal(err)
	}
	b.SetReadDeadline(past)
	if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %d, %v", n, err)
	}
	if p, n, err := ReadBuf(b); p != nil || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadBuf: %d, %v", n, err)
	}
	a.SetWriteDeadline(past)
	if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write: %d, %v", n, err)
	}
	if n, err := WriteBuffers(a, []byte("x"), []byte("y")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WriteBuffers: %d, %v", n, err)
	}
	a.SetDeadline(time.Time{})
	b.SetDeadline(time.Time{})
	if n, err := a.Write([]byte("!")); n != 1 || err != nil {
		t.Errorf("Write without a deadline: %d, %v", n, err)
	}
	buf := make([]byte, 8)
	if n, err := io.ReadFull(b, buf[:4]); n != 4 || err != nil || string(buf[:4]) != "xyz!" {
		t.Errorf("Read without a deadline: %q, %v", buf[:n], err)
	}
}

// What is read and written while connections are closed and their descriptors
// given to others goes to its own connection or fails.
func TestCloseAgainstTransfers(t *testing.T) {
	l, err := OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	const workers, rounds = 3, 8
	for w := range workers {
		all.Go(func() {
			for range rounds {
				c, err := OS{}.Dial(t.Context(), "tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				mine := byte('a' + w)
				if _, err := c.Write([]byte{mine}); err != nil {
					t.Error(err)
				}
				var io sync.WaitGroup
				io.Go(func() { // the server answers with the same byte for as long as it can
					buf := make([]byte, 64)
					for {
						n, err := c.Read(buf)
						for _, got := range buf[:n] {
							if got != mine {
								t.Errorf("a byte of another connection: %q instead of %q", got, mine)
							}
						}
						if err != nil {
							if !errors.Is(err, net.ErrClosed) {
								t.Errorf("Read: %v", err)
							}
							return
						}
					}
				})
				io.Go(func() {
					for {
						if _, err := c.Write([]byte{mine}); err != nil {
							if !errors.Is(err, net.ErrClosed) {
								t.Errorf("Write: %v", err)
							}
							return
						}
					}
				})
				var one [1]byte
				s, err := l.AcceptConn()
				if err == nil {
					io.Go(func() {
						defer s.Close()
						if _, err := s.Read(one[:]); err != nil {
							return
						}
						for {
							if _, err := s.Write(one[:]); err != nil {
								return
							}
						}
					})
				}
				_, _, _ = Alive(c), Gone(c), c.WaitReadable()
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				io.Wait()
			}
		})
	}
}
