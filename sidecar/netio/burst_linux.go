package netio

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// burst sends the small messages of many connections one after the other, when
// everybody who could run has run, and reads for those who wait for an answer.
//
// Why: a goroutine per connection sends one message at a time. Its peer answers
// and goes to sleep before the next one; to wake it costs half as much as to send.
// Under load messages that leave together find their peers awake (a fifth of the
// wake-ups), as those of an event loop do by nature, and the kernel's code is in
// the processor's caches from the second message on.
//
// Conditions: Go runs on one processor ([burstProcs]); several are sent together. Each burst of fewer than
// burstFew lets twice as many messages go without it, up to 2^burstMost: a process
// with little to do sends at once.
//
// First start: a burst is tried. Recovery: one burst that pays.
//
// A burst has a goroutine of its own, so what it took is sent whatever the sender
// does next. It waits in the runtime's poller, on an eventfd: the runtime looks at
// the network only when nothing else runs, and so it does once a burst.
type burst struct {
	kicked atomic.Bool  // one is coming
	skip   atomic.Int32 // messages until the next try
	due    func(uintptr) bool
	waits  bool // the poller was asked to wait; the goroutine's own

	sending sync.Mutex // held while messages are sent

	users atomic.Int32 // connections

	mu     sync.Mutex
	file   *os.File  // guarded by mu: the eventfd; nil: the goroutine does not run
	fd     uintptr   // guarded by mu, and the goroutine's
	next   batch     // guarded by mu
	spare  batch     // guarded by mu
	free   []*reader // guarded by mu
	misses uint8     // guarded by mu
	most   int       // guarded by mu: messages of the largest burst
	over   sync.Cond // with mu: somebody was read for
}

// batch is what one burst does. Of two kinds: with those who were dialled and with
// those who were accepted. Peers of one kind are often one process, which wakes
// once, and who was sent to first is read from first.
type batch struct {
	bytes   []byte
	msgs    [2][]message
	readers [2][]*reader
}

type message struct {
	c        *osConn
	from, to int // in bytes
}

// reader is one who waits.
type reader struct {
	c    *osConn
	into []byte // where to read to; nil: a pooled buffer
	big  bool

	take  taken
	n     int
	errno syscall.Errno // EAGAIN: nothing was there
	tries uint8         // that found nothing
	over  bool          // guarded by the burst's mu
}

const (
	burstFew  = 3
	burstMost = 10
	// burstTries is how many bursts a reader waits for that find nothing.
	burstTries = 2
	// burstBytes bounds what waits for a burst, soonMost one message.
	burstBytes = 256 << 10
	soonMost   = 4 << 10
)

// burstProcs is on how many processors the process may run Go at the most for
// there to be bursts: on two they cost a sixth more, for those that the burst lets
// go on are spread over both, which wakes the other one.
var burstProcs = 1

// theBurst is that of the process.
var theBurst = sync.OnceValue(func() *burst {
	b := new(burst)
	b.over.L = &b.mu
	b.due = b.isDue
	return b
})

// enterBurst gives the connection its burst, until leaveBurst.
func (c *osConn) enterBurst() {
	if runtime.GOMAXPROCS(0) <= burstProcs {
		c.burst = theBurst()
		c.burst.users.Add(1)
	}
}

func (c *osConn) leaveBurst() {
	if c.burst != nil {
		c.burst.leave()
	}
}

// start makes the eventfd and the goroutine, which end with the last connection;
// false where no descriptor is left. The caller holds mu.
func (b *burst) start() bool {
	if b.file != nil {
		return true
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "burst")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return false
	}
	b.file, b.fd = f, uintptr(fd)
	go b.run(rc)
	return true
}

func (b *burst) run(rc syscall.RawConn) {
	for {
		b.waits = false
		if rc.Read(b.due) != nil {
			return
		}
		runtime.Gosched() // whoever was found by the same look at the network goes first
		b.turn()
		if b.users.Load() == 0 && b.end() {
			return
		}
	}
}

// end ends what start began, unless there is something to do.
func (b *burst) end() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kicked.Load() || b.users.Load() != 0 {
		return false
	}
	_ = b.file.Close()
	b.file = nil
	return true
}

// leave is called once for a connection that is closed.
func (b *burst) leave() {
	if b.users.Add(-1) > 0 {
		return
	}
	b.mu.Lock()
	if b.file != nil {
		b.kick()
	}
	b.mu.Unlock()
}

// isDue is called by the poller: first after it was told to forget what it knows,
// and then after each write to the eventfd, which is never read.
func (b *burst) isDue(uintptr) bool {
	if b.waits {
		return b.kicked.Load()
	}
	b.waits = true
	if b.kicked.Load() {
		b.tell() // wait all the same: by that the runtime looks at the network
	}
	return false
}

// tell makes the poller call isDue.
func (b *burst) tell() {
	one := uint64(1)
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, b.fd, uintptr(unsafe.Pointer(&one)), 8)
}

// kick makes a burst come; the caller holds mu.
func (b *burst) kick() {
	if !b.kicked.Load() {
		b.kicked.Store(true)
		b.tell()
	}
}

// add takes a message; false where it is to be sent at once.
func (b *burst) add(c *osConn, p []byte) bool {
	if !b.kicked.Load() {
		if s := b.skip.Load(); s > 0 {
			b.skip.Store(s - 1) // about as many
			return false
		}
	}
	b.mu.Lock()
	n := &b.next
	from := len(n.bytes)
	if from+len(p) > burstBytes || !b.start() {
		b.mu.Unlock()
		return false
	}
	n.bytes = append(n.bytes, p...)
	k := c.kind()
	n.msgs[k] = append(n.msgs[k], message{c, from, from + len(p)})
	c.soon.last.Store(soonQueued)
	b.kick()
	b.mu.Unlock()
	return true
}

// kind tells those who were dialled from those who were accepted.
func (c *osConn) kind() int {
	if c.accepted {
		return 1
	}
	return 0
}

// join waits for the burst that is coming, if one is, which reads for c.
func (b *burst) join(c *osConn, into []byte, big bool) (t taken, n int, errno syscall.Errno, joined bool) {
	if b == nil || !b.kicked.Load() {
		return taken{}, 0, syscall.EAGAIN, false
	}
	b.mu.Lock()
	if !b.kicked.Load() {
		b.mu.Unlock()
		return taken{}, 0, syscall.EAGAIN, false
	}
	var r *reader
	if l := len(b.free); l > 0 {
		r, b.free = b.free[l-1], b.free[:l-1]
	} else {
		r = new(reader)
	}
	*r = reader{c: c, into: into, big: big}
	k := c.kind()
	b.next.readers[k] = append(b.next.readers[k], r)
	for !r.over {
		b.over.Wait()
	}
	t, n, errno = r.take, r.n, r.errno
	*r = reader{}
	if len(b.free) < 64 {
		b.free = append(b.free, r)
	}
	b.mu.Unlock()
	return t, n, errno, true
}

// turn is one burst.
func (b *burst) turn() {
	b.sending.Lock()
	b.mu.Lock()
	now := b.next
	b.next, b.spare = b.spare, batch{}
	b.kicked.Store(false)
	b.learn(len(now.msgs[0]) + len(now.msgs[1]))
	b.mu.Unlock()
	now.send()
	b.sending.Unlock()

	b.read(now.readers[0])
	if len(now.readers[0]) > 0 && len(now.readers[1]) > 0 {
		runtime.Gosched() // who was accepted has more time to answer
	}
	b.read(now.readers[1])

	now.reset()
	b.mu.Lock()
	if b.misses < burstMost/2 { // else it is not needed soon
		b.spare = now
	} else {
		b.free = nil
	}
	b.mu.Unlock()
}

// flush sends what was taken so far.
func (b *burst) flush() {
	b.sending.Lock()
	defer b.sending.Unlock()
	b.mu.Lock()
	now := batch{bytes: b.next.bytes, msgs: b.next.msgs}
	b.next = batch{readers: b.next.readers}
	b.mu.Unlock()
	now.send()
}

func (b *batch) send() {
	for _, msgs := range b.msgs {
		for _, m := range msgs {
			m.c.sendSoon(b.bytes[m.from:m.to])
		}
	}
}

func (b *batch) reset() {
	b.bytes = b.bytes[:0]
	for k := range b.msgs {
		clear(b.msgs[k])
		clear(b.readers[k])
		b.msgs[k], b.readers[k] = b.msgs[k][:0], b.readers[k][:0]
	}
}

// learn adapts to the number of messages of a burst; the caller holds mu.
func (b *burst) learn(n int) {
	b.most = max(b.most, n)
	switch {
	case n >= burstFew:
		b.misses = 0
	case n > 0:
		b.misses = min(b.misses+1, burstMost)
		b.skip.Store(1<<b.misses - 1)
	}
}

// read reads for readers and lets them go on. Those for whom nothing has come wait
// for one more burst: that costs less than to be waited for by the poller.
func (b *burst) read(readers []*reader) {
	if len(readers) == 0 {
		return
	}
	for _, r := range readers {
		r.read()
	}
	again := false
	b.mu.Lock()
	for _, r := range readers {
		if r.errno != syscall.EAGAIN || r.tries == burstTries {
			r.over = true
			continue
		}
		again = true
		k := r.c.kind()
		b.next.readers[k] = append(b.next.readers[k], r)
	}
	if again {
		b.kick()
	}
	b.over.Broadcast()
	b.mu.Unlock()
}

func (r *reader) read() {
	r.errno = syscall.EAGAIN
	r.tries++
	if !r.c.enter(readBound) {
		r.tries = burstTries // a deadline, or the end: to be heard of at once
		return
	}
	if r.into != nil {
		r.n, r.errno = call(syscall.SYS_RECVFROM, r.c.fd, unsafe.Pointer(unsafe.SliceData(r.into)), len(r.into), 0)
	} else {
		r.take, r.n, r.errno = receive(r.c.fd, r.big)
	}
	r.c.leave()
}

// soon is a connection's part in bursts.
type soon struct {
	burst *burst        // nil: messages are sent at once
	last  atomic.Uint32 // what became of the last message: see below
	rest  atomic.Pointer[soonRest]
}

const (
	soonNone   = iota // it is the kernel's
	soonQueued        // it waits for the burst
	soonSlow          // the peer does not take it: a goroutine writes the rest
	soonFailed
)

// soonRest is the writing of a message that the kernel did not take whole.
type soonRest struct {
	over chan struct{} // closed when it was written or has failed
	sent int           // bytes; set, as err is, before over is closed
	err  error
}

func (c *osConn) writeSoon(p []byte) (int, error) {
	if c.burst != nil && len(p) <= soonMost && c.soon.last.Load() == soonNone && c.burst.add(c, p) {
		return len(p), nil
	}
	return c.Write(p)
}

// sendSoon sends a message in a burst.
func (c *osConn) sendSoon(p []byte) {
	n := 0
	if c.enter(writeBound) {
		var errno syscall.Errno
		n, errno = transmit(c.fd, p)
		c.leave()
		switch errno {
		case 0:
			c.soon.last.Store(soonNone)
			return
		case syscall.EAGAIN:
		default:
			c.soonOver(&soonRest{over: make(chan struct{}), sent: n}, c.failed("write", "sendto", nil, errno))
			return
		}
	}
	r := &soonRest{over: make(chan struct{}), sent: n}
	c.rest.Store(r)
	c.soon.last.Store(soonSlow)
	p = append([]byte(nil), p[n:]...)
	go func() {
		m, err := c.send(p) // waits as a write does, until the deadline or Close
		r.sent += m
		c.soonOver(r, err)
	}()
}

// soonOver ends a message that took longer or has failed. After a failure bytes are
// missing: the connection is shut down, so that whoever reads hears of it.
func (c *osConn) soonOver(r *soonRest, err error) {
	r.err = err
	c.rest.Store(r)
	if err == nil {
		c.soon.last.Store(soonNone)
	} else {
		c.soon.last.Store(soonFailed)
		if c.enter(0) {
			_ = unix.Shutdown(int(c.fd), unix.SHUT_RDWR)
			c.leave()
		}
	}
	close(r.over)
}

// settled says that the last message is the kernel's.
func (c *osConn) settled() bool { return c.soon.last.Load() == soonNone }

// settle waits until the last message is the kernel's; its error is what became of
// it.
func (c *osConn) settle() error {
	for {
		switch c.soon.last.Load() {
		case soonNone:
			return nil
		case soonQueued:
			c.burst.flush()
		case soonSlow:
			<-c.rest.Load().over
		case soonFailed:
			return c.rest.Load().err
		}
	}
}

// push sends the last message, as far as the kernel takes it.
func (c *osConn) push() {
	if c.soon.last.Load() == soonQueued {
		c.burst.flush()
	}
}

// sooner is why a read has failed: the failure of the last message, where that is
// it. Nothing leaves after a failure was told.
func (c *osConn) sooner(err error) error {
	if c.push(); c.soon.last.Load() == soonFailed {
		return c.rest.Load().err
	}
	return err
}

// slow says that the peer has not taken all of the last message.
func (c *osConn) slow() bool { return c.soon.last.Load() == soonSlow }

// unsent says that the last message has failed before a byte of it was sent.
func (c *osConn) unsent() bool { return c.soon.last.Load() == soonFailed && c.rest.Load().sent == 0 }
