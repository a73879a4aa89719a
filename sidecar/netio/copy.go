package netio

import (
	"io"
)

// Progress, where given to a copy, is told that bytes have passed.
type Progress interface{ Passed() }

// Copy copies from src to dst until src ends or either fails, and returns the
// number of bytes that dst took. While nothing is under way it holds nothing.
//
// It begins with a pooled buffer of 16 KB, which is cheapest for messages. Where
// both are kernel sockets of TCP and buffers come full, the kernel moves the
// bytes (splice(2)) for as long as it finds many; between TLS and anything,
// several records go in one system call.
func Copy(dst, src Conn) (int64, error) { return CopyTold(dst, src, nil) }

// CopyTold is Copy that tells p of its progress.
func CopyTold(dst, src Conn, p Progress) (int64, error) {
	c := copier{dst: unwrap(dst), src: unwrap(src), p: p}
	for r, ok := c.dst.(*replay); ok; r, ok = c.dst.(*replay) { // its bytes are for reading
		c.dst = unwrap(r.Conn)
	}
	c.tls, _ = c.dst.(*TLSConn)
	return c.run()
}

// fullOnes is how many full buffers in a row prove a flow to be bulk.
const fullOnes = 4

type copier struct {
	dst, src Conn
	tls      *TLSConn // dst, where it is one
	p        Progress
	n        int64
	full     int // full buffers in a row
}

func (c *copier) run() (int64, error) {
	d, dok := c.dst.(*osConn)
	s, sok := c.src.(*osConn)
	splices := dok && sok && canSplice(d, s)
	for {
		if r, ok := c.src.(*replay); ok && !r.buffered() {
			c.src = unwrap(r.Conn)
			return c.run()
		}
		if splices && c.full >= fullOnes {
			err := c.splice(d, s)
			c.full = 0
			if err == errNoSplice {
				splices = false
			} else if err != nil {
				return c.n, end(err)
			}
			continue
		}
		t, n, err := readTaken(c.src, !splices && c.full > 0)
		if n > 0 {
			if n == len(t.bytes()) || n > 3*maxPlain {
				c.full++
			} else {
				c.full = 0
			}
			err = c.write(&t, n)
			t.release()
		}
		if err != nil {
			return c.n, end(err)
		}
	}
}

// write writes the first n bytes of t.
func (c *copier) write(t *taken, n int) (err error) {
	if c.tls != nil {
		if err = c.tls.writeTaken(t, n); err == nil {
			c.passed(n)
		}
		return err
	}
	n, err = c.dst.Write(t.bytes()[:n])
	c.passed(n)
	return err
}

func (c *copier) passed(n int) {
	c.n += int64(n)
	if c.p != nil && n > 0 {
		c.p.Passed()
	}
}

func end(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// unwrap takes counting wrappers off, which have a method Unwrap.
func unwrap(c Conn) Conn {
	for {
		w, ok := c.(interface{ Unwrap() Conn })
		if !ok {
			return c
		}
		c = w.Unwrap()
	}
}
