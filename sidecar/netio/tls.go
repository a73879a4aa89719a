package netio

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// TLSConn is a TLS connection: reads and writes are plaintext, CloseWrite sends
// close_notify (RFC 8446, 6.1: each side closes its own direction), Reset resets
// the connection below. One Write of many records is one system call, and so is
// a read of many. While nothing is there it holds no buffer; crypto/tls keeps
// one of the size of the largest record that came.
type TLSConn struct {
	tc  *tls.Conn
	rec records

	rmu    sync.Mutex // held by the reader
	peeked []byte     // a byte that WaitReadable took; guarded by rmu
	one    [1]byte
	inside bool // tls.Conn may have plaintext, or an end, that was not read; guarded by rmu

	wmu sync.Mutex // held by a writer of more than one record

	closed atomic.Bool
}

var _ Conn = (*TLSConn)(nil)

// ServerTLS makes the server's side of a TLS connection on raw. Shake hands
// before anything else.
func ServerTLS(raw Conn, conf *tls.Config) *TLSConn {
	c := &TLSConn{rec: records{Conn: raw}}
	c.tc = tls.Server(&c.rec, conf)
	return c
}

// ClientTLS makes the client's side.
func ClientTLS(raw Conn, conf *tls.Config) *TLSConn {
	c := &TLSConn{rec: records{Conn: raw}}
	c.tc = tls.Client(&c.rec, conf)
	return c
}

// HandshakeBefore shakes hands; what is not complete at the given time fails
// with [os.ErrDeadlineExceeded]. After a failure the connection is of no use.
func (c *TLSConn) HandshakeBefore(t time.Time) error {
	if err := c.rec.SetDeadline(t); err != nil {
		return err
	}
	deep(0)
	if err := c.tc.Handshake(); err != nil { // with a context it would need a goroutine
		return err
	}
	return c.rec.SetDeadline(time.Time{})
}

// deep needs a stack as deep as a handshake's, whatever it is asked: a new
// goroutine's stack then grows once, while it is shallow, instead of by doubling
// and moving on the way down.
//
//go:noinline
func deep(n int) (sum byte) {
	if n == 0 {
		return 0
	}
	var b [12 << 10]byte
	for i := range n {
		b[i%len(b)] = byte(i)
	}
	return b[n%len(b)]
}

// Handshake shakes hands until ctx ends; the error then is ctx's cause.
func (c *TLSConn) Handshake(ctx context.Context) error {
	by, bounded := ctx.Deadline()
	stop, ok := stream.OnCancel(ctx, (*interrupt)(c))
	if !ok {
		return stream.CauseOf(ctx)
	}
	err := c.HandshakeBefore(by)
	stop.Stop()
	if bounded && errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done() // at the same moment
	}
	if cause := stream.CauseOf(ctx); cause != nil {
		return cause // the deadline may have been set to it, and stays
	}
	return err
}

// interrupt ends a handshake.
type interrupt TLSConn

func (c *interrupt) Cancelled(error) { _ = c.rec.SetDeadline(time.Unix(1, 0)) }

// ConnectionState is what the handshake came to.
func (c *TLSConn) ConnectionState() tls.ConnectionState { return c.tc.ConnectionState() }

// Read reads as many records as fit in p and were read ahead.
func (c *TLSConn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.doneReading()
	if len(p) == 0 {
		return 0, nil
	}
	n := c.unpeek(p)
	if n > 0 && !c.inside {
		return n, nil
	}
	return c.read(p, n, n > 0)
}

// doneReading ends what began with locking rmu. Where the connection was closed
// meanwhile, what was read ahead is nobody's.
func (c *TLSConn) doneReading() {
	c.dropIfClosed()
	c.rmu.Unlock()
	if c.closed.Load() && c.rmu.TryLock() { // closed between the two
		c.dropIfClosed()
		c.rmu.Unlock()
	}
}

func (c *TLSConn) dropIfClosed() {
	if c.closed.Load() {
		c.rec.in.release()
		c.rec.r, c.rec.w = 0, 0
	}
}

// closing gives back what was read ahead, or leaves it to the reader.
func (c *TLSConn) closing() {
	c.closed.Store(true)
	if c.rmu.TryLock() {
		c.dropIfClosed()
		c.rmu.Unlock()
	}
}

// unpeek gives what WaitReadable took. The caller holds rmu.
func (c *TLSConn) unpeek(p []byte) int {
	n := copy(p, c.peeked)
	c.peeked = c.peeked[n:]
	return n
}

// read reads behind the n bytes that are in p already, and, dry, does not wait.
// The caller holds rmu.
func (c *TLSConn) read(p []byte, n int, dry bool) (int, error) {
	c.rec.dry = dry
	m, err := c.tc.Read(p[n:])
	for m > 0 && err == nil && c.rec.whole() && len(p)-n-m >= maxPlain {
		n += m
		c.rec.dry = true
		m, err = c.tc.Read(p[n:])
	}
	c.rec.dry = false
	n += m
	c.inside = n == len(p) || err != nil && err != (errDry{}) // an end is crypto/tls's to repeat
	if n > 0 {
		return n, nil // a failure comes again
	}
	return 0, err
}

// idle says that nothing is to be had without waiting for the connection below.
// The caller holds rmu.
func (c *TLSConn) idle() bool { return len(c.peeked) == 0 && !c.inside && !c.rec.ahead() }

func (c *TLSConn) buffered() bool {
	c.rmu.Lock()
	defer c.doneReading()
	if c.inside && len(c.peeked) == 0 && !c.rec.ahead() { // perhaps: ask
		n, err := c.read(c.one[:], 0, true)
		c.peeked = c.one[:n]
		return n > 0 || err != (errDry{})
	}
	return !c.idle()
}

func (c *TLSConn) below() Conn { return c.rec.Conn }
func (c *TLSConn) gone() bool  { return Gone(c.rec.Conn) }

// readTaken waits without a buffer; a record that is not complete waits in
// crypto/tls.
func (c *TLSConn) readTaken(big bool) (t taken, n int, err error) {
	c.rmu.Lock()
	defer c.doneReading()
	for {
		if c.idle() {
			if err := c.rec.fill(); err != nil {
				return taken{}, 0, c.rec.eof(err)
			}
		}
		t = take(big && (c.rec.bulk || c.rec.w-c.rec.r > maxPlain))
		p := t.bytes()
		n = c.unpeek(p)
		n, err = c.read(p, n, true)
		if n > 0 {
			return t, n, nil
		}
		t.release()
		if err != (errDry{}) {
			return taken{}, 0, err
		}
	}
}

// WaitReadable waits below as long as there is nothing; whether a record holds
// application data shows only when it is decrypted.
func (c *TLSConn) WaitReadable() error {
	c.rmu.Lock()
	defer c.doneReading()
	for len(c.peeked) == 0 {
		if c.idle() {
			if err := c.rec.fill(); err != nil {
				if err == io.EOF {
					return nil // the next Read says so
				}
				return err
			}
		}
		n, err := c.read(c.one[:], 0, true)
		if n > 0 {
			c.peeked = c.one[:n]
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != (errDry{}) {
			return err
		}
	}
	return nil
}

// alive lets crypto/tls see what has come: tickets and key updates are no sign
// of death.
func (c *TLSConn) alive() bool {
	c.rmu.Lock()
	defer c.doneReading()
	for c.idle() {
		if Alive(c.rec.Conn) {
			return true
		}
		if err := c.rec.fill(); err != nil {
			return false
		}
		n, err := c.read(c.one[:], 0, true)
		c.peeked = c.one[:n]
		if n > 0 || err != (errDry{}) {
			return false
		}
	}
	return false
}

// Write sends p; more than one record in as few system calls as can be.
func (c *TLSConn) Write(p []byte) (int, error) {
	if len(p) <= maxPlain {
		return c.tc.Write(p)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.rec.hold()
	n, err := c.tc.Write(p)
	if ferr := c.rec.flush(); ferr != nil && err == nil {
		n, err = 0, ferr
	}
	return n, err
}

// writeTaken is Write of the first n bytes of a buffer that it gives back once
// they are encrypted, before it waits for the peer.
func (c *TLSConn) writeTaken(t *taken, n int) error {
	if n <= maxPlain {
		_, err := c.tc.Write(t.bytes()[:n])
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.rec.hold()
	_, err := c.tc.Write(t.bytes()[:n])
	t.release()
	if ferr := c.rec.flush(); err == nil {
		err = ferr
	}
	return err
}

// writeBuffers makes one record of what fits in one.
func (c *TLSConn) writeBuffers(bufs [][]byte) (total int64, err error) {
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	if size <= maxPlain {
		buf := GetBuf()
		n := 0
		for _, b := range bufs {
			n += copy(buf[n:], b)
		}
		_, err := c.tc.Write(buf[:n])
		PutBuf(buf)
		if err != nil {
			return 0, err
		}
		return int64(n), nil
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.rec.hold()
	for _, b := range bufs {
		if err == nil && len(b) > 0 {
			_, err = c.tc.Write(b)
		}
	}
	if ferr := c.rec.flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return 0, err
	}
	return int64(size), nil
}

// Close sends close_notify, if it can be sent, and closes the connection below.
func (c *TLSConn) Close() error {
	err := c.tc.Close()
	c.closing()
	return err
}

// CloseWrite sends close_notify.
func (c *TLSConn) CloseWrite() error { return c.tc.CloseWrite() }

func (c *TLSConn) LocalAddr() net.Addr                 { return c.rec.LocalAddr() }
func (c *TLSConn) RemoteAddr() net.Addr                { return c.rec.RemoteAddr() }
func (c *TLSConn) SetDeadline(t time.Time) error       { return c.rec.SetDeadline(t) }
func (c *TLSConn) SetReadDeadline(t time.Time) error   { return c.rec.SetReadDeadline(t) }
func (c *TLSConn) SetWriteDeadline(t time.Time) error  { return c.rec.SetWriteDeadline(t) }
func (c *TLSConn) OriginalDst() (netip.AddrPort, bool) { return c.rec.OriginalDst() }
func (c *TLSConn) Raw() (syscall.RawConn, bool)        { return nil, false }

// Reset implements Conn.
func (c *TLSConn) Reset() error {
	err := c.rec.Reset()
	c.closing()
	return err
}
