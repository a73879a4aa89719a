package netio

import (
	"io"
	"net"
	"sync"
)

// bufSize is how much a Copy through user space holds in memory.
const bufSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// Copy copies from src to dst until src ends or either fails, and returns the
// number of bytes that dst took. Where both are kernel sockets of TCP the kernel
// moves the bytes (splice(2)); else one pooled buffer of 32 kB is held, and only
// while there is something to read: an idle connection holds none.
func Copy(dst, src Conn) (int64, error) {
	dst, src = unwrap(dst), unwrap(src)
	d, dok := dst.(*osConn)
	s, sok := src.(*osConn)
	if dok && sok {
		if t, ok := d.kernelConn.(*net.TCPConn); ok {
			n, err := t.ReadFrom(s.kernelConn)
			return n, d.watch.explain("write", s.watch.explain("read", err))
		}
	}
	if _, ok := src.(*tlsConn); ok {
		return copyHolding(dst, src)
	}
	var n int64
	for {
		if err := src.WaitReadable(); err != nil {
			return n, err
		}
		m, err := copyOnce(dst, src)
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// copyHolding keeps one buffer for the whole copy: of a TLS connection one
// cannot tell that a byte is there without taking it off.
func copyHolding(dst, src Conn) (int64, error) {
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}

func copyOnce(dst, src Conn) (int64, error) {
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	n, err := src.Read(buf[:])
	if n > 0 {
		m, werr := dst.Write(buf[:n])
		if werr != nil {
			return int64(m), werr
		}
	}
	return int64(n), err
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
