package netio

import (
	"sync"
	"time"
)

// Waker is told that its connection needs somebody again. Wake must not block;
// any goroutine may call it.
type Waker interface{ Wake() }

// Idler watches connections on which nothing is under way, so that they need no
// goroutine: kernel sockets with one epoll and one goroutine for all of them,
// connections of the memory network with a goroutine each. The zero value is
// ready; its goroutine lives from the first [Idler.Park] to [Idler.Close].
type Idler struct {
	mu     sync.Mutex
	closed bool
	slots  []slot // guarded by mu; by file descriptor
	epoch  uint32 // guarded by mu; tells a Park from those before it
	parked int    // guarded by mu
	poll   *poller
	mem    map[*memConn]*memWait // guarded by mu
	wg     sync.WaitGroup
}

// slot is what is parked on one file descriptor.
type slot struct {
	c     *osConn // nil: nothing
	w     Waker
	epoch uint32
}

// memWait is one parked connection of the memory network.
type memWait struct {
	w    Waker
	stop chan struct{}
}

// Park gives up a connection until w is told, once: when it has something to
// read, has ended or failed, was closed on this side, or by [Idler.Wake]. That
// may be before Park returns. Read deadlines do not count meanwhile; whoever
// bounds the idle time closes the connection. It returns false, and w hears
// nothing, where the connection cannot be watched: then keep a goroutine in
// WaitReadable.
func (i *Idler) Park(c Conn, w Waker) bool {
	if ahead(c) {
		w.Wake()
		return true
	}
	switch k := base(c).(type) {
	case *osConn:
		return i.parkSocket(k, w)
	case *memConn:
		return i.parkMemory(k, w)
	}
	return false
}

// Wake wakes the connection if it is parked. Any goroutine, at any time.
func (i *Idler) Wake(c Conn) {
	if w := i.take(base(c)); w != nil {
		w.Wake()
	}
}

// Parked is the number of connections that are parked.
func (i *Idler) Parked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.parked
}

// Close wakes whatever is parked and waits for the Idler's goroutines. Nothing
// can be parked afterwards.
func (i *Idler) Close() {
	var left []Waker
	i.mu.Lock()
	i.closed = true
	for n := range i.slots {
		if w := i.slots[n].w; w != nil {
			left = append(left, w)
			i.slots[n] = slot{}
		}
	}
	for c, m := range i.mem {
		left = append(left, m.w)
		close(m.stop)
		delete(i.mem, c)
	}
	i.parked = 0
	p := i.poll
	i.mu.Unlock()
	if p != nil {
		p.close()
	}
	for _, w := range left {
		w.Wake()
	}
	i.wg.Wait()
}

// take takes what is parked on a connection, nil where nothing is.
func (i *Idler) take(below Conn) (w Waker) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch k := below.(type) {
	case *osConn:
		if fd := int(k.parkFD.Load()) - 1; fd >= 0 && fd < len(i.slots) && i.slots[fd].c == k {
			w = i.slots[fd].w
			i.slots[fd] = slot{}
		}
	case *memConn:
		if m := i.mem[k]; m != nil {
			w = m.w
			close(m.stop)
			delete(i.mem, k)
		}
	}
	if w != nil {
		i.parked--
	}
	return w
}

// parkMemory keeps a goroutine that looks at the connection.
func (i *Idler) parkMemory(c *memConn, w Waker) bool {
	m := &memWait{w: w, stop: make(chan struct{})}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return false
	}
	if i.mem == nil {
		i.mem = make(map[*memConn]*memWait)
	}
	i.mem[c] = m
	i.parked++
	i.wg.Go(func() {
		c.awaitReadable(m.stop)
		i.mu.Lock()
		mine := i.mem[c] == m
		if mine {
			delete(i.mem, c)
			i.parked--
		}
		i.mu.Unlock()
		if mine {
			m.w.Wake()
		}
	})
	return true
}

// awaitReadable blocks until a Read would not, whatever the read deadline, or
// until stop is closed.
func (c *memConn) awaitReadable(stop <-chan struct{}) {
	for {
		c.p.mu.Lock()
		ready, due := c.look()
		changed := c.p.changed
		c.p.mu.Unlock()
		if ready {
			return
		}
		var timer *time.Timer
		var later <-chan time.Time
		if !due.IsZero() {
			timer = time.NewTimer(time.Until(due))
			later = timer.C
		}
		select {
		case <-changed:
		case <-later:
		case <-stop:
		}
		if timer != nil {
			timer.Stop()
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// look says whether a Read would return at once, the read deadline aside; if
// not, due is when what is under way arrives. The caller holds p.mu.
func (c *memConn) look() (ready bool, due time.Time) {
	in, me := &c.p.flow[1-c.side], &c.p.end[c.side]
	now := time.Now()
	switch {
	case me.closed || me.finRead:
		return true, due
	case len(in.segs) > 0 && !c.p.dead:
		due = in.segs[0].due
	case me.err != nil:
		due = me.errDue
	default:
		return false, due
	}
	return !due.After(now), due
}

// base is the connection at the bottom of c's wrappers. Any goroutine.
func base(c Conn) Conn {
	for {
		b := under(c)
		if b == nil {
			return c
		}
		c = b
	}
}

// under is the connection that a wrapper stands on; nil: c is none.
func under(c Conn) Conn {
	switch w := c.(type) {
	case interface{ Unwrap() Conn }:
		return w.Unwrap()
	case interface{ below() Conn }:
		return w.below()
	}
	return nil
}

// ahead says that a wrapper holds bytes that a Read would give without asking
// the connection below. For the one who may read.
func ahead(c Conn) bool {
	for ; c != nil; c = under(c) {
		if b, ok := c.(interface{ buffered() bool }); ok && b.buffered() {
			return true
		}
	}
	return false
}
