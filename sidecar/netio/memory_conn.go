package netio

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// pair is one connection of a Memory network: both ends, both directions.
type pair struct {
	m    *Memory
	host [2]*Host // of side 0, which dialled, and side 1

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	flow    [2]flow       // by sending side
	end     [2]endState   // by side
	dead    bool          // nothing passes now
	cutTime *time.Timer   // ends the connection when dead for too long
}

// flow is one direction's bytes, in order.
type flow struct {
	segs []segment
	size int  // bytes in segs
	fin  bool // the sender wrote its FIN
}

// segment is what one Write sent; due is when it arrives. A nil data is the FIN.
type segment struct {
	due  time.Time
	data []byte
}

type endState struct {
	closed        bool  // this side called Close or Reset
	err           error // the connection failed (RST, time-out), read after the data before it
	errDue        time.Time
	finRead       bool
	readDeadline  time.Time
	writeDeadline time.Time
}

// wake tells every waiter to look again; the caller holds mu.
func (p *pair) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// await unlocks, waits for a change or for the first of the given times that is
// set, and locks again.
func (p *pair) await(times ...time.Time) {
	ch := p.changed
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	p.mu.Unlock()
	defer p.mu.Lock()
	if first.IsZero() {
		<-ch
		return
	}
	t := time.NewTimer(time.Until(first))
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
	}
}

// fail ends the connection at both ends at once.
func (p *pair) fail(err error) {
	p.mu.Lock()
	for i := range p.end {
		if p.end[i].err == nil {
			p.end[i].err = err
		}
	}
	p.stopTimer()
	p.wake()
	p.mu.Unlock()
	p.forget()
}

func (p *pair) stopTimer() {
	if p.cutTime != nil {
		p.cutTime.Stop()
		p.cutTime = nil
	}
}

// setCut starts or ends a silence on the connection.
func (p *pair) setCut(dead bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead == dead {
		return
	}
	p.dead = dead
	p.stopTimer()
	if dead {
		p.cutTime = time.AfterFunc(memDeadAfter, func() { p.fail(syscall.ETIMEDOUT) })
	}
	p.wake()
}

// forget takes the connection off the network's list.
func (p *pair) forget() {
	p.m.mu.Lock()
	delete(p.m.pairs, p)
	p.m.mu.Unlock()
}

// memConn is one end of a pair.
type memConn struct {
	p             *pair
	side          int
	local, remote net.Addr
	original      netip.AddrPort
}

var _ Conn = (*memConn)(nil)

func (c *memConn) fail(op string, err error) error {
	if err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// readable waits until Read would not block. The caller holds p.mu.
func (c *memConn) readable() error {
	in, me := &c.p.flow[1-c.side], &c.p.end[c.side]
	for {
		var due time.Time
		switch {
		case me.closed:
			return net.ErrClosed
		case passed(me.readDeadline):
			return os.ErrDeadlineExceeded
		case me.finRead:
			return io.EOF
		case len(in.segs) > 0 && !c.p.dead && !in.segs[0].due.After(time.Now()):
			return nil
		case len(in.segs) > 0 && !c.p.dead:
			due = in.segs[0].due
		case me.err != nil && !me.errDue.After(time.Now()):
			return me.err
		case me.err != nil:
			due = me.errDue
		}
		c.p.await(me.readDeadline, due)
	}
}

func (c *memConn) Read(b []byte) (int, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.readable(); err != nil {
		return 0, c.fail("read", err)
	}
	if len(b) == 0 {
		return 0, nil
	}
	in := &c.p.flow[1-c.side]
	n := 0
	for n < len(b) && len(in.segs) > 0 && !in.segs[0].due.After(time.Now()) {
		s := &in.segs[0]
		if s.data == nil { // the FIN
			if n == 0 {
				c.p.end[c.side].finRead = true
				in.segs = in.segs[1:]
				return 0, io.EOF
			}
			break
		}
		m := copy(b[n:], s.data)
		n += m
		if s.data = s.data[m:]; len(s.data) == 0 {
			in.segs = in.segs[1:]
		}
	}
	in.size -= n
	c.p.wake()
	return n, nil
}

func (c *memConn) WaitReadable() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.readable(); err != nil && err != io.EOF {
		return c.fail("wait", err)
	}
	return nil
}

// writable waits until a byte fits. The caller holds p.mu.
func (c *memConn) writable() error {
	out, me := &c.p.flow[c.side], &c.p.end[c.side]
	for {
		switch {
		case me.closed:
			return net.ErrClosed
		case out.fin:
			return syscall.EPIPE
		case me.err != nil && !me.errDue.After(time.Now()):
			return me.err
		case passed(me.writeDeadline):
			return os.ErrDeadlineExceeded
		case out.size < memBuffer:
			return nil
		}
		c.p.await(me.writeDeadline, me.errDue)
	}
}

func (c *memConn) Write(b []byte) (int, error) {
	d := c.p.m.delay(c.p.host[c.side], c.p.host[1-c.side])
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	n := 0
	for {
		if err := c.writable(); err != nil {
			return n, c.fail("write", err)
		}
		if n == len(b) {
			return n, nil
		}
		out := &c.p.flow[c.side]
		m := min(len(b)-n, memBuffer-out.size)
		now := time.Now()
		if c.p.end[1-c.side].closed { // nobody is there: the answer is an RST
			c.abort(c.side, syscall.ECONNRESET, now.Add(2*d))
			n += m
			continue
		}
		out.segs = append(out.segs, segment{now.Add(d), append([]byte(nil), b[n:n+m]...)})
		out.size += m
		n += m
		c.p.wake()
		if n == len(b) {
			return n, nil
		}
	}
}

// abort makes side see err at due; the caller holds p.mu.
func (c *memConn) abort(side int, err error, due time.Time) {
	if e := &c.p.end[side]; e.err == nil {
		e.err, e.errDue = err, due
	}
	c.p.wake()
}

func (c *memConn) CloseWrite() error {
	d := c.p.m.delay(c.p.host[c.side], c.p.host[1-c.side])
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.p.end[c.side].closed {
		return c.fail("close", net.ErrClosed)
	}
	if err := c.p.end[c.side].err; err != nil && !c.p.end[c.side].errDue.After(time.Now()) {
		return c.fail("close", syscall.ENOTCONN)
	}
	c.finish(d)
	return nil
}

func (c *memConn) finish(d time.Duration) {
	out := &c.p.flow[c.side]
	if !out.fin {
		out.fin = true
		out.segs = append(out.segs, segment{due: time.Now().Add(d)})
		c.p.wake()
	}
}

// Close closes both directions. As a kernel does, it sends an RST instead of a
// FIN where bytes were left unread.
func (c *memConn) Close() error { return c.close(false) }

// Reset closes with an RST: the peer reads what arrived before it, then
// ECONNRESET.
func (c *memConn) Reset() error { return c.close(true) }

func (c *memConn) close(rst bool) error {
	d := c.p.m.delay(c.p.host[c.side], c.p.host[1-c.side])
	c.p.mu.Lock()
	me, peer := &c.p.end[c.side], 1-c.side
	if me.closed {
		c.p.mu.Unlock()
		return c.fail("close", net.ErrClosed)
	}
	in := &c.p.flow[peer]
	if in.size > 0 {
		rst = true
	}
	switch {
	case me.err != nil:
	case rst:
		c.abort(peer, syscall.ECONNRESET, time.Now().Add(d))
	default:
		c.finish(d)
	}
	me.closed = true
	in.segs, in.size = nil, 0
	over := c.p.end[peer].closed || rst
	if over {
		c.p.stopTimer()
	}
	c.p.wake()
	c.p.mu.Unlock()
	if over {
		c.p.forget()
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr                 { return c.local }
func (c *memConn) RemoteAddr() net.Addr                { return c.remote }
func (c *memConn) OriginalDst() (netip.AddrPort, bool) { return c.original, c.original.IsValid() }
func (c *memConn) Raw() (syscall.RawConn, bool)        { return nil, false }

func (c *memConn) SetDeadline(t time.Time) error      { return c.deadline(&t, &t) }
func (c *memConn) SetReadDeadline(t time.Time) error  { return c.deadline(&t, nil) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return c.deadline(nil, &t) }

func (c *memConn) deadline(r, w *time.Time) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	me := &c.p.end[c.side]
	if me.closed {
		return c.fail("set", net.ErrClosed)
	}
	if r != nil {
		me.readDeadline = *r
	}
	if w != nil {
		me.writeDeadline = *w
	}
	c.p.wake()
	return nil
}
