package netio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// How a dead peer is found on a TCP connection: an idle one by probes from 10 s
// on, every 5 s, given up after 3; one for which data waits by a watch. Both stay
// below 30 s.
const (
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// Back-off of Accept while the process is out of file descriptors or memory.
const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// OS is the kernel's network. The zero value is usable; [Guarded] gives one whose
// connections are counted.
type OS struct{ guard *Guard }

var _ Net = OS{}

var keepAlive = net.KeepAliveConfig{
	Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
}

// Listen opens a listening socket. Its address may be taken over at once after
// a restart (SO_REUSEADDR, which package net sets); a stale Unix socket on which
// nobody listens is replaced.
func (n OS) Listen(ctx context.Context, network, address string) (Listener, error) {
	lc := listenConfig()
	if network == "unix" {
		removeStale(ctx, address)
	}
	l, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("netio: listen %s %s: %w", network, address, err)
	}
	return &osListener{Listener: l, done: make(chan struct{}), guard: n.guard}, nil
}

// removeStale removes a Unix socket that no process listens on any more.
func removeStale(ctx context.Context, path string) {
	if st, err := os.Stat(path); err != nil || st.Mode()&os.ModeSocket == 0 {
		return
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		c.Close() // somebody listens: let Listen fail with "address already in use"
		return
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}

// Dial connects. ctx bounds only the connecting.
func (n OS) Dial(ctx context.Context, network, address string) (Conn, error) {
	return n.dial(ctx, net.Dialer{KeepAliveConfig: keepAlive}, network, address)
}

func (n OS) dial(ctx context.Context, d net.Dialer, network, address string) (Conn, error) {
	if n.guard != nil {
		if err := n.guard.dial(); err != nil {
			return nil, err
		}
	}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		if n.guard != nil {
			n.guard.dialled.Add(-1)
		}
		return nil, fmt.Errorf("netio: %w", err)
	}
	return wrap(c, n.guard, false)
}

// ListenPacket opens a datagram socket.
func (OS) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("netio: listen %s %s: %w", network, address, err)
	}
	return c, nil
}

type osListener struct {
	net.Listener
	done  chan struct{} // closed by Close
	guard *Guard
}

func (l *osListener) Accept() (net.Conn, error) { return l.AcceptConn() }

func (l *osListener) Close() error {
	err := l.Listener.Close()
	if err == nil {
		close(l.done)
	}
	return err
}

func (l *osListener) AcceptConn() (Conn, error) {
	wait := acceptBackoffMin
	for {
		c, err := l.Listener.Accept()
		if err == nil {
			if l.guard != nil {
				l.guard.accepted.Add(1)
			}
			conn, err := wrap(c, l.guard, true)
			if err != nil { // reset between accept and setsockopt: not the listener's failure
				c.Close()
				continue
			}
			return conn, nil
		}
		if !passing(err) {
			return nil, fmt.Errorf("netio: %w", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-l.done:
			t.Stop()
			return nil, fmt.Errorf("netio: accept %s: %w", l.Addr(), net.ErrClosed)
		}
		wait = min(2*wait, acceptBackoffMax)
	}
}

// passing says whether a failure of accept(2) passes by itself (accept(2),
// "Error handling": network errors of the new socket count as EAGAIN).
func passing(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
		syscall.ENETDOWN, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EHOSTDOWN,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EOPNOTSUPP,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// kernelConn is what *net.TCPConn and *net.UnixConn have in common.
type kernelConn interface {
	net.Conn
	CloseWrite() error
	SyscallConn() (syscall.RawConn, error)
}

// osConn is a kernel socket.
type osConn struct {
	kernelConn
	rc    syscall.RawConn
	watch *watch // nil: not watched
	guarded
	descriptor

	waits   Waiting // nil: nobody is told; see BeforeWait
	closing atomic.Bool
	parkFD  atomic.Int32 // the descriptor plus one, once it was parked
	idler   atomic.Pointer[Idler]
	yield   yield
	soon
	full bool // the last read filled its buffer: more is there; one goroutine reads
}

// wrap makes a Conn of c; where it fails, c is closed and no longer counted.
func wrap(c net.Conn, g *Guard, accepted bool) (Conn, error) {
	o := &osConn{guarded: guarded{g: g, accepted: accepted}}
	k, ok := c.(kernelConn)
	if !ok {
		c.Close()
		o.end()
		return nil, fmt.Errorf("netio: %s is not a stream network", c.LocalAddr().Network())
	}
	rc, err := k.SyscallConn()
	if err != nil {
		c.Close()
		o.end()
		return nil, fmt.Errorf("netio: %w", err)
	}
	o.kernelConn, o.rc = k, rc
	if err := rc.Control(func(fd uintptr) { o.fd = fd }); err != nil {
		o.descriptor.shut()
	}
	if t, ok := k.(*net.TCPConn); ok {
		o.watch = newWatch(t, o)
	}
	o.enterBurst()
	return o, nil
}

func (c *osConn) Read(p []byte) (int, error) {
	c.hold()
	n, err := c.recv(p)
	if err != nil {
		err = c.watch.explain("read", c.sooner(err))
	}
	return n, err
}

func (c *osConn) readTaken(big bool) (taken, int, error) {
	c.hold()
	t, n, err := c.recvBuf(big)
	if err != nil {
		err = c.watch.explain("read", c.sooner(err))
	}
	return t, n, err
}

func (c *osConn) Write(p []byte) (int, error) {
	if !c.settled() {
		if err := c.settle(); err != nil {
			return 0, c.watch.explain("write", err)
		}
	}
	n, err := c.send(p)
	if err != nil {
		err = c.watch.explain("write", err)
	}
	return n, err
}

func (c *osConn) writeBuffers(bufs [][]byte) (int64, error) {
	if !c.settled() {
		if err := c.settle(); err != nil {
			return 0, c.watch.explain("write", err)
		}
	}
	n, err := c.sendv(bufs)
	if err != nil {
		err = c.watch.explain("write", err)
	}
	return n, err
}

// failed makes an error as package net words it: err is of RawConn (closed,
// deadline), errno of the system call.
func (c *osConn) failed(op, call string, err error, errno syscall.Errno) error {
	if err == nil {
		err = os.NewSyscallError(call, errno)
	} else if oe, ok := err.(*net.OpError); ok {
		err = oe.Err
	}
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func (c *osConn) CloseWrite() error {
	if err := c.settle(); err != nil {
		return c.watch.explain("close", err)
	}
	return c.watch.explain("close", c.kernelConn.CloseWrite())
}

func (c *osConn) SetDeadline(t time.Time) error {
	return c.watch.explain("set", c.bound(readBound|writeBound, !t.IsZero(), func() error { return c.kernelConn.SetDeadline(t) }))
}

func (c *osConn) SetReadDeadline(t time.Time) error {
	return c.watch.explain("set", c.bound(readBound, !t.IsZero(), func() error { return c.kernelConn.SetReadDeadline(t) }))
}

func (c *osConn) SetWriteDeadline(t time.Time) error {
	return c.watch.explain("set", c.bound(writeBound, !t.IsZero(), func() error { return c.kernelConn.SetWriteDeadline(t) }))
}

// Close succeeds, too, where the watch has closed the connection before.
func (c *osConn) Close() error {
	c.end()
	c.push()
	c.watch.stop()
	err := c.shut()
	if c.watch != nil && c.watch.gone.Load() != nil {
		return nil
	}
	return err
}

// shut closes the descriptor and wakes what is parked on it: see parkSocket.
func (c *osConn) shut() error {
	if !c.closing.Swap(true) {
		c.leaveBurst()
	}
	var w Waker
	if i := c.idler.Load(); i != nil {
		w = i.take(c)
	}
	c.descriptor.shut()
	err := c.kernelConn.Close()
	if w != nil {
		w.Wake()
	}
	return err
}

func (c *osConn) Raw() (syscall.RawConn, bool) {
	c.push()
	return c.rc, true
}

func (c *osConn) Reset() error {
	if t, ok := c.kernelConn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	return c.Close()
}

func (c *osConn) OriginalDst() (netip.AddrPort, bool) {
	t, ok := c.kernelConn.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, false
	}
	local, remote := addrPort(t.LocalAddr()), addrPort(t.RemoteAddr())
	dst, ok := originalDst(c.rc, local.Addr().Is4())
	if !ok || dst == local || dst == remote { // remote: asked on the dialling side
		return netip.AddrPort{}, false
	}
	return dst, true
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (c *osConn) WaitReadable() error {
	return c.watch.explain("read", c.waitReadable())
}

// SetKeepAlive changes how a dead idle peer is found on a kernel's TCP
// connection, in seconds; zero leaves a value as [OS] set it. On others it does
// nothing.
func SetKeepAlive(c Conn, probes, idle, interval uint32) {
	k, ok := unwrap(c).(*osConn)
	if !ok {
		return
	}
	t, ok := k.kernelConn.(*net.TCPConn)
	if !ok {
		return
	}
	conf := keepAlive
	if probes > 0 {
		conf.Count = int(probes)
	}
	if idle > 0 {
		conf.Idle = time.Duration(idle) * time.Second
	}
	if interval > 0 {
		conf.Interval = time.Duration(interval) * time.Second
	}
	_ = t.SetKeepAliveConfig(conf)
}
