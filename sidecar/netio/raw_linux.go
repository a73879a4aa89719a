package netio

import (
	"io"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// How bytes cross to the kernel. The socket is tried without blocking: first on
// its descriptor ([descriptor]); where that finds nothing, or is not to be, inside
// the callback of syscall.RawConn, which waits in the runtime's poller: deadlines
// and Close work as in package net.
//
// The system calls do not tell the scheduler that they begin: they cannot block
// (MSG_DONTWAIT), and the telling costs a tenth of a small message. It also wakes
// the runtime's monitor, which then looks 50 times a millisecond for a while: a
// process that is idle often, as one of two on a core is, spent 8 % on that. Where
// more than a big buffer is copied in one call the scheduler is told, so that a stop of the
// world does not wait for it.
const rawMost = bigSize

const tellsWaits = true

// op is one transfer under way. Its callbacks are made once, for a closure per
// call would be an allocation per call.
type op struct {
	p    []byte
	v    gather
	big  bool // take is to be a big buffer
	take taken

	n     int
	errno syscall.Errno

	recv, recvBuf, peek, send, sendv func(fd uintptr) bool
}

var ops = sync.Pool{New: func() any {
	o := new(op)
	o.recv, o.recvBuf, o.peek, o.send, o.sendv = o.doRecv, o.doRecvBuf, o.doPeek, o.doSend, o.doSendv
	return o
}}

func (o *op) done() {
	o.p, o.take, o.big = nil, taken{}, false
	o.v.clear()
	o.n, o.errno = 0, 0
	ops.Put(o)
}

// call makes one system call on a socket, not to block, again where a signal
// came between.
func call(trap, fd uintptr, p unsafe.Pointer, n int, flags uintptr) (int, syscall.Errno) {
	for {
		var m uintptr
		var e syscall.Errno
		if n <= rawMost {
			m, _, e = syscall.RawSyscall6(trap, fd, uintptr(p), uintptr(n), flags|syscall.MSG_DONTWAIT, 0, 0)
		} else {
			m, _, e = syscall.Syscall6(trap, fd, uintptr(p), uintptr(n), flags|syscall.MSG_DONTWAIT, 0, 0)
		}
		if e == 0 {
			return int(m), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

func (o *op) doRecv(fd uintptr) bool {
	o.n, o.errno = call(syscall.SYS_RECVFROM, fd, unsafe.Pointer(unsafe.SliceData(o.p)), len(o.p), 0)
	return o.errno != syscall.EAGAIN
}

func (o *op) doPeek(fd uintptr) bool {
	var b [1]byte
	o.n, o.errno = call(syscall.SYS_RECVFROM, fd, unsafe.Pointer(&b), 1, syscall.MSG_PEEK)
	return o.errno != syscall.EAGAIN
}

// receive reads into a buffer that it takes, and keeps while there are bytes in it.
func receive(fd uintptr, big bool) (t taken, n int, errno syscall.Errno) {
	t = take(big)
	p := t.bytes()
	n, errno = call(syscall.SYS_RECVFROM, fd, unsafe.Pointer(unsafe.SliceData(p)), len(p), 0)
	if errno != 0 || n == 0 {
		t.release()
	}
	return t, n, errno
}

func (o *op) doRecvBuf(fd uintptr) bool {
	o.take, o.n, o.errno = receive(fd, o.big)
	return o.errno != syscall.EAGAIN
}

// transmit sends as much of p as the kernel takes.
func transmit(fd uintptr, p []byte) (n int, errno syscall.Errno) {
	for n < len(p) {
		m, e := call(syscall.SYS_SENDTO, fd, unsafe.Pointer(&p[n]), len(p)-n, syscall.MSG_NOSIGNAL)
		if e != 0 {
			return n, e
		}
		n += m
	}
	return n, 0
}

func (o *op) doSend(fd uintptr) bool {
	m, e := transmit(fd, o.p[o.n:])
	o.n, o.errno = o.n+m, e
	return e != syscall.EAGAIN
}

func (o *op) doSendv(fd uintptr) bool {
	o.errno = o.v.transmit(fd)
	return o.errno != syscall.EAGAIN
}

// gather is a gathering send under way.
type gather struct {
	vecs [maxVecs]syscall.Iovec
	nvec int
	n    int // sent
}

// add takes at most maxVecs buffers.
func (g *gather) add(bufs [][]byte) {
	for _, b := range bufs {
		if len(b) > 0 {
			g.vecs[g.nvec] = syscall.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
			g.nvec++
		}
	}
}

func (g *gather) clear() {
	clear(g.vecs[:g.nvec])
	g.nvec, g.n = 0, 0
}

// transmit sends as much as the kernel takes: sendmsg and not writev, for only it
// can be told not to raise SIGPIPE.
func (g *gather) transmit(fd uintptr) syscall.Errno {
	for first := g.first(); first < g.nvec; first = g.first() {
		msg := syscall.Msghdr{Iov: &g.vecs[first], Iovlen: uint64(g.nvec - first)}
		m, _, e := syscall.RawSyscall(syscall.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		switch e {
		case 0:
			g.sent(int(m))
		case syscall.EINTR:
		default:
			return e
		}
	}
	return 0
}

// sent takes m bytes off the vectors.
func (g *gather) sent(m int) {
	g.n += m
	for i := range g.vecs[:g.nvec] {
		v := &g.vecs[i]
		k := min(uint64(m), v.Len)
		if k == 0 {
			continue
		}
		if v.Len -= k; v.Len > 0 {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), k))
		}
		m -= int(k)
	}
}

func (g *gather) first() int {
	for i := range g.vecs[:g.nvec] {
		if g.vecs[i].Len > 0 {
			return i
		}
	}
	return g.nvec
}

// outcome makes a read's result of a system call's.
func (c *osConn) outcome(n int, errno syscall.Errno) (int, error) {
	switch {
	case errno != 0:
		return 0, c.failed("read", "recvfrom", nil, errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// tryRecv reads what is there, EAGAIN where nothing is or nobody may look.
func (c *osConn) tryRecv(p []byte) (n int, errno syscall.Errno) {
	if !c.enter(readBound) {
		return 0, syscall.EAGAIN
	}
	n, errno = call(syscall.SYS_RECVFROM, c.fd, unsafe.Pointer(unsafe.SliceData(p)), len(p), 0)
	c.leave()
	return n, errno
}

// recv lets others run, or the burst that is coming read for it, only when nothing
// was there at once: it reads on in what has begun to come.
func (c *osConn) recv(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.yield.likely() {
		n, errno := 0, syscall.EAGAIN
		if c.settled() {
			n, errno = c.tryRecv(p)
		}
		if errno == syscall.EAGAIN {
			var joined bool
			if _, n, errno, joined = c.burst.join(c, p, false); !joined {
				runtime.Gosched()
				n, errno = c.tryRecv(p)
			}
			c.yield.after(errno != syscall.EAGAIN)
		}
		if errno != syscall.EAGAIN {
			return c.outcome(n, errno)
		}
	}
	c.waiting()
	o := ops.Get().(*op)
	o.p = p
	err := c.rc.Read(o.recv)
	n, errno := o.n, o.errno
	o.done()
	if err != nil {
		return 0, c.failed("read", "recvfrom", err, 0)
	}
	return c.outcome(n, errno)
}

// recvBuf reads into a pooled buffer, which it takes when there is something to
// read. After a read that filled its buffer more is there: nobody is let run first,
// so that what a peer sent at once is taken at once.
func (c *osConn) recvBuf(big bool) (taken, int, error) {
	if c.full || c.yield.likely() {
		var t taken
		n, errno, tried := 0, syscall.EAGAIN, false
		if !c.full {
			if t, n, errno, tried = c.burst.join(c, nil, big); !tried {
				runtime.Gosched()
			}
		}
		if !tried && c.enter(readBound) {
			t, n, errno = receive(c.fd, big)
			c.leave()
			tried = true
		}
		if tried && !c.full {
			c.yield.after(errno != syscall.EAGAIN)
		}
		c.full = errno == 0 && n > 0 && n == len(t.bytes())
		if errno != syscall.EAGAIN {
			n, err := c.outcome(n, errno)
			return t, n, err
		}
	}
	c.waiting()
	o := ops.Get().(*op)
	o.big = big
	err := c.rc.Read(o.recvBuf)
	t, n, errno := o.take, o.n, o.errno
	o.done()
	c.full = n > 0 && n == len(t.bytes())
	if err != nil {
		return taken{}, 0, c.failed("read", "recvfrom", err, 0)
	}
	n, err = c.outcome(n, errno)
	return t, n, err
}

func (c *osConn) waitReadable() error {
	c.waiting()
	o := ops.Get().(*op)
	err := c.rc.Read(o.peek)
	errno := o.errno
	o.done()
	if err != nil || errno != 0 {
		return c.failed("wait", "recvfrom", err, errno)
	}
	return nil
}

// alive says that nothing waits on the socket: no byte, no end, no error, and none
// of ours.
func (c *osConn) alive() bool {
	if !c.settled() || !c.enter(0) {
		return false
	}
	var b [1]byte
	_, errno := call(syscall.SYS_RECVFROM, c.fd, unsafe.Pointer(&b), 1, syscall.MSG_PEEK)
	c.leave()
	return errno == syscall.EAGAIN
}

func (c *osConn) send(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n := 0
	if c.enter(writeBound) {
		var errno syscall.Errno
		n, errno = transmit(c.fd, p)
		c.leave()
		if errno == 0 {
			return n, nil
		}
		if errno != syscall.EAGAIN {
			return n, c.failed("write", "sendto", nil, errno)
		}
	}
	c.waiting()
	o := ops.Get().(*op)
	o.p, o.n = p, n
	err := c.rc.Write(o.send)
	n, errno := o.n, o.errno
	o.done()
	if err != nil || errno != 0 {
		return n, c.failed("write", "sendto", err, errno)
	}
	return n, nil
}

// sendv sends at most maxVecs buffers.
func (c *osConn) sendv(bufs [][]byte) (int64, error) {
	var g gather
	g.add(bufs)
	if c.enter(writeBound) {
		errno := g.transmit(c.fd)
		c.leave()
		if errno == 0 {
			return int64(g.n), nil
		}
		if errno != syscall.EAGAIN {
			return int64(g.n), c.failed("write", "sendmsg", nil, errno)
		}
	}
	c.waiting()
	o := ops.Get().(*op)
	o.v = g
	err := c.rc.Write(o.sendv)
	n, errno := o.v.n, o.errno
	o.done()
	if err != nil || errno != 0 {
		return int64(n), c.failed("write", "sendmsg", err, errno)
	}
	return int64(n), nil
}
