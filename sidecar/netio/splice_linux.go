package netio

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	spliceMost  = 1 << 20 // bytes asked of the kernel at once
	spliceFew   = BufSize // less at a time is cheaper copied
	spliceTries = 8       // so often in a row before copying again
	pipesKept   = 32
)

// errNoSplice: this pair, or this moment, has no splice; nothing was moved that
// is not delivered.
var errNoSplice = errors.New("netio: not spliced")

// canSplice: two kernel sockets of TCP.
func canSplice(a, b *osConn) bool {
	_, aok := a.kernelConn.(*net.TCPConn)
	_, bok := b.kernelConn.(*net.TCPConn)
	return aok && bok
}

// kernelPipe carries bytes from socket to socket inside the kernel.
type kernelPipe struct{ r, w int }

var pipes struct {
	mu   sync.Mutex
	free []kernelPipe
}

func takePipe() (p kernelPipe, err error) {
	pipes.mu.Lock()
	if n := len(pipes.free); n > 0 {
		p = pipes.free[n-1]
		pipes.free = pipes.free[:n-1]
		pipes.mu.Unlock()
		return p, nil
	}
	pipes.mu.Unlock()
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return p, err
	}
	return kernelPipe{fd[0], fd[1]}, nil
}

// putPipe keeps an empty pipe for the next one.
func putPipe(p kernelPipe) {
	pipes.mu.Lock()
	if len(pipes.free) < pipesKept {
		pipes.free = append(pipes.free, p)
		pipes.mu.Unlock()
		return
	}
	pipes.mu.Unlock()
	p.close()
}

func (p kernelPipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// splicer is one flow's state, so that its callbacks are made once.
type splicer struct {
	pipe kernelPipe
	n    int // bytes that came, then bytes in the pipe
	err  error
}

// in has a pipe only while the kernel has bytes for it.
func (s *splicer) in(fd uintptr) bool {
	if s.pipe, s.err = takePipe(); s.err != nil {
		s.err = errNoSplice
		return true
	}
	s.n, s.err = spliceOnce(int(fd), s.pipe.w, spliceMost)
	if s.n > 0 {
		return true
	}
	putPipe(s.pipe)
	return s.err != unix.EAGAIN
}

func (s *splicer) out(fd uintptr) bool {
	for s.n > 0 {
		n, err := spliceOnce(s.pipe.r, int(fd), s.n)
		if err != nil {
			s.err = err
			return err != unix.EAGAIN
		}
		s.n -= n
	}
	s.err = nil
	return true
}

func spliceOnce(from, to, most int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return max(int(n), 0), err
		}
	}
}

// splice moves bytes inside the kernel until it finds few of them (nil), the end
// or a failure. It holds a pipe only while bytes are in it.
func (c *copier) splice(dst, src *osConn) error {
	var s splicer
	in, out := s.in, s.out
	for few := 0; few < spliceTries; {
		src.hold()
		err := src.rc.Read(in)
		switch {
		case s.err == errNoSplice || s.err == unix.EINVAL || s.err == unix.ENOSYS:
			return errNoSplice
		case err != nil || s.err != nil:
			errno, _ := s.err.(syscall.Errno)
			return src.watch.explain("read", src.failed("read", "splice", err, errno))
		case s.n == 0:
			return io.EOF
		}
		n := s.n
		if n < spliceFew {
			few++
		} else {
			few = 0
		}
		err = dst.rc.Write(out)
		c.passed(n - s.n)
		if err != nil || s.err != nil {
			s.pipe.close() // bytes are in it
			errno, _ := s.err.(syscall.Errno)
			return dst.watch.explain("write", dst.failed("write", "splice", err, errno))
		}
		putPipe(s.pipe)
	}
	return nil
}
