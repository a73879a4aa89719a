package netio

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Waiting is told on the goroutine that is about to wait in a read or a write of
// a connection, before it does; it may set deadlines. It may be told for nothing.
type Waiting interface{ Waits() }

// BeforeWait makes w hear of waits of the kernel socket below c, so that what is
// needed only while somebody waits is not done for each call; false where there
// is none. Only before the connection is used.
func BeforeWait(c Conn, w Waiting) bool {
	o, ok := base(c).(*osConn)
	if ok && tellsWaits {
		o.waits = w
	}
	return ok && tellsWaits
}

// waiting tells of a wait.
func (c *osConn) waiting() {
	if c.waits != nil {
		c.waits.Waits()
	}
}

// descriptor lets system calls that cannot block be made on a connection's
// descriptor without package net, whose locks and callbacks cost as much as a
// tenth of a small message. Package net is asked for the rest: waiting, and
// whatever a deadline has to say about.
//
// Each such call stands between enter and leave; Close lets nobody enter any more
// and waits until all have left, so that a number that the kernel gives to
// another connection is never used.
type descriptor struct {
	fd    uintptr
	state atomic.Uint32 // users, and above them why nobody may enter

	deadlines sync.Mutex // orders the deadlines with their marks
}

const (
	shutDown   = 1 << 31
	readBound  = 1 << 30 // a read deadline is set: package net looks at it
	writeBound = 1 << 29
	users      = writeBound - 1
)

// enter says that the descriptor may be used until leave. unless is readBound or
// writeBound.
func (d *descriptor) enter(unless uint32) bool {
	if d.state.Add(1)&(unless|shutDown) == 0 {
		return true
	}
	d.leave()
	return false
}

func (d *descriptor) leave() { d.state.Add(^uint32(0)) }

// shut keeps everybody out; when it returns nobody is in.
func (d *descriptor) shut() {
	d.state.Or(shutDown)
	for d.state.Load()&users != 0 {
		runtime.Gosched() // in a system call that does not block
	}
}

// bound marks whether deadlines are set, and sets them by set: a mark is there
// before its deadline, and goes after it.
func (d *descriptor) bound(marks uint32, on bool, set func() error) error {
	d.deadlines.Lock()
	defer d.deadlines.Unlock()
	if on {
		d.state.Or(marks)
	}
	err := set()
	if !on && err == nil {
		d.state.And(^marks)
	}
	return err
}
