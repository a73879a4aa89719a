package netio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ErrBudget is why a guarded Dial is refused: what is left of the process's file
// descriptors is kept for health checks, configuration and administration.
var ErrBudget = errors.New("the file descriptors for traffic are used up")

// readDelay is how long a read from a client waits at the most while the gate is
// shut: what is in hand goes on, slowly, and so ends and frees what it holds.
const readDelay = time.Second

// Guard watches over the connections of a process's traffic: how many there are,
// whether more may be dialled, and whether clients are read from. All methods are
// safe for concurrent use. The zero value counts and forbids nothing.
type Guard struct {
	// Touch, where set, is told of the first read after each [Guard.Ask]. It must
	// not block. Read-only once the guard is in use.
	Touch func()

	attention atomic.Uint32 // 0: a read goes on at once
	accepted  atomic.Int64
	dialled   atomic.Int64
	limit     atomic.Int64 // of both together, for Dial; 0: none
	delayed   atomic.Uint64

	mu   sync.Mutex
	gate chan struct{} // guarded by mu; non-nil: shut, closed when it opens
}

const (
	wantTouch = 1 << iota
	gateShut
)

// Open is the number of open connections, accepted and dialled.
func (g *Guard) Open() (accepted, dialled int) {
	return int(g.accepted.Load()), int(g.dialled.Load())
}

// Limit bounds what Dial may add; 0: nothing does.
func (g *Guard) Limit(n int) { g.limit.Store(int64(n)) }

// Delayed counts the reads that waited at the gate.
func (g *Guard) Delayed() uint64 { return g.delayed.Load() }

// Ask makes the next read from a client call Touch.
func (g *Guard) Ask() { g.attention.Or(wantTouch) }

// Shut makes every read from a client wait until the gate is opened, a second at
// the most. Reads that wait for bytes already are not held back.
func (g *Guard) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate == nil {
		g.gate = make(chan struct{})
		g.attention.Or(gateShut)
	}
}

// Release opens the gate.
func (g *Guard) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gate != nil {
		g.attention.And(^uint32(gateShut))
		close(g.gate)
		g.gate = nil
	}
}

// before is called before each read from a client.
func (g *Guard) before() {
	if g.attention.Load() != 0 {
		g.attend()
	}
}

func (g *Guard) attend() {
	if g.attention.And(^uint32(wantTouch))&wantTouch != 0 && g.Touch != nil {
		g.Touch()
	}
	if g.Wait() {
		g.delayed.Add(1)
	}
}

// Wait waits at the gate as a read from a client does, and says whether it was
// shut.
func (g *Guard) Wait() (waited bool) {
	if g.attention.Load()&gateShut == 0 {
		return false
	}
	g.mu.Lock()
	gate := g.gate
	g.mu.Unlock()
	if gate == nil {
		return false
	}
	t := time.NewTimer(readDelay)
	defer t.Stop()
	select {
	case <-gate:
	case <-t.C:
	}
	return true
}

// dial counts a connection that is about to be dialled, or refuses it.
func (g *Guard) dial() error {
	n := g.dialled.Add(1)
	if max := g.limit.Load(); max > 0 && n+g.accepted.Load() > max {
		g.dialled.Add(-1)
		return fmt.Errorf("netio: %w: %d are in use", ErrBudget, max)
	}
	return nil
}

// guarded is a connection's part of its guard's count.
type guarded struct {
	g        *Guard // nil: not guarded
	accepted bool
	over     atomic.Bool
}

func (c *guarded) end() {
	if c.g == nil || c.over.Swap(true) {
		return
	}
	if c.accepted {
		c.g.accepted.Add(-1)
	} else {
		c.g.dialled.Add(-1)
	}
}

// hold is called before a read.
func (c *guarded) hold() {
	if c.accepted && c.g != nil {
		c.g.before()
	}
}

// Guarded returns n with g watching over every connection that it makes from
// now on. Listeners' connections are a client's: their reads are g's to delay.
func Guarded(n Net, g *Guard) Net {
	if os, ok := n.(OS); ok {
		os.guard = g
		return os
	}
	return guardedNet{n, g}
}

// guardedNet is Guarded for networks other than the kernel's.
type guardedNet struct {
	Net
	g *Guard
}

func (n guardedNet) Dial(ctx context.Context, network, address string) (Conn, error) {
	if err := n.g.dial(); err != nil {
		return nil, err
	}
	c, err := n.Net.Dial(ctx, network, address)
	if err != nil {
		n.g.dialled.Add(-1)
		return nil, err
	}
	return &guardedConn{Conn: c, guarded: guarded{g: n.g}}, nil
}

func (n guardedNet) Listen(ctx context.Context, network, address string) (Listener, error) {
	l, err := n.Net.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return guardedListener{l, n.g}, nil
}

type guardedListener struct {
	Listener
	g *Guard
}

func (l guardedListener) AcceptConn() (Conn, error) {
	c, err := l.Listener.AcceptConn()
	if err != nil {
		return nil, err
	}
	l.g.accepted.Add(1)
	return &guardedConn{Conn: c, guarded: guarded{g: l.g, accepted: true}}, nil
}

type guardedConn struct {
	Conn
	guarded
}

func (c *guardedConn) Unwrap() Conn { return c.Conn }

func (c *guardedConn) Read(p []byte) (int, error) {
	c.hold()
	return c.Conn.Read(p)
}

func (c *guardedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *guardedConn) Reset() error {
	c.end()
	return c.Conn.Reset()
}
