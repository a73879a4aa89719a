package netio

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Why: keep-alive is silent while data waits to be acknowledged (Linux's
// tcp_keepalive_timer), so a peer that vanishes then needs another watch.
// TCP_USER_TIMEOUT is none: Linux counts a window that stays shut as
// unacknowledged though the peer answers every probe (tcp(7); measured: a reader
// that paused was cut after 20.4 s).
//
// Conditions: a connection is reset when something waits for the peer, its last
// ACK is silentAfter old, and it was asked, by data or by a probe, askedFor ago
// at least. A shut window whose probes are answered therefore stays, however far
// apart the kernel sends them.
//
// First start: the first look only remembers.
//
// Recovery: every ACK begins anew.
const (
	watchEvery  = 5 * time.Second
	silentAfter = 24 * time.Second // found at the next look: below 30 s
	askedFor    = 10 * time.Second
	// probesApart bounds the time between two retransmissions or window probes
	// while something waits. The kernel's own bound is 120 s; RFC 6298, 2.5 wants
	// 60 s at least, which is too long to find anybody in 30 s, and the watch ends
	// what is not answered. Needs Linux 6.15; before, a peer that dies behind a
	// shut window is found askedFor after the kernel's next probe.
	probesApart = 8 * time.Second
	// sameACK is the doubt in the age of an ACK: the kernel counts in jiffies.
	sameACK = 50 * time.Millisecond
)

// look is what the kernel says of a connection at one time.
type look struct {
	at      time.Time
	quiet   time.Duration // since the peer's last ACK
	waiting bool          // data or a FIN unacknowledged or unsent
	asked   asked
	over    bool // the connection ended: nothing left to watch
}

// asked counts what was sent. Until an ACK comes it changes only because
// something was sent or could not be for want of a route.
type asked struct {
	segments                     uint32
	retransmits, probes, backoff uint8
}

// silence remembers from look to look. The zero value is ready.
type silence struct {
	last  time.Time // of the look before
	base  asked     // at the first look after the last ACK
	since time.Time // first look that saw the peer asked since then; zero: not asked
}

// observe takes the next look and says whether the peer is gone.
func (s *silence) observe(l look) (gone bool) {
	fresh := s.last.IsZero() || l.quiet < l.at.Sub(s.last)+sameACK
	s.last = l.at
	if fresh {
		s.base, s.since = l.asked, time.Time{}
		return false
	}
	if s.since.IsZero() && l.asked != s.base {
		s.since = l.at
	}
	return l.waiting && l.quiet >= silentAfter && !s.since.IsZero() && l.at.Sub(s.since) >= askedFor
}

// errSilent is why the watch resets a connection. It is an ETIMEDOUT, as the
// kernel gives for a peer that keep-alive found dead.
type errSilent struct{ quiet time.Duration }

func (e *errSilent) Error() string {
	return fmt.Sprintf("the peer acknowledged nothing for %s while data was waiting for it: connection reset", e.quiet.Round(time.Second))
}
func (e *errSilent) Unwrap() error { return syscall.ETIMEDOUT }
func (e *errSilent) Timeout() bool { return true }

// watch looks at one connection every watchEvery until stop, the end of the
// connection, or the peer's silence, for which it resets the connection.
type watch struct {
	c     *net.TCPConn
	rc    syscall.RawConn
	owner *osConn

	gone atomic.Pointer[errSilent] // set before the connection is closed for it

	mu      sync.Mutex
	timer   *time.Timer // guarded by mu
	stopped bool        // guarded by mu
	silence silence     // guarded by mu
	bound   bound       // guarded by mu
}

// newWatch watches c; nil where there is nothing to watch for: on loopback the
// peer cannot vanish without an RST.
func newWatch(c *net.TCPConn, owner *osConn) *watch {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); !ok || a.IP.IsLoopback() || !canLook {
		return nil
	}
	w := &watch{c: c, rc: owner.rc, owner: owner}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchEvery, w.tick)
	return w
}

func (w *watch) tick() {
	if w.look() {
		_ = w.c.SetLinger(0)
		_ = w.owner.shut()
	}
}

// look says whether the connection is to be reset. It holds mu throughout, so
// that stop waits for it; none of its calls block.
func (w *watch) look() (gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return false
	}
	l, err := lookAt(w.rc)
	if err != nil || l.over {
		w.stopped = true
		return false
	}
	if w.silence.observe(l) {
		w.stopped = true
		w.gone.Store(&errSilent{l.quiet})
		return true
	}
	w.bound.set(w.rc, l.waiting && l.asked.backoff > 0)
	w.timer.Reset(watchEvery)
	return false
}

// stop ends the watch, and with it the bound on probes: what is still unsent at
// Close has the kernel's patience. When stop returns, nobody looks.
func (w *watch) stop() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if !w.stopped {
		w.stopped = true
		w.bound.set(w.rc, false)
	}
}

// explain puts the reason in the place of "use of closed network connection"
// where the watch closed the connection.
func (w *watch) explain(op string, err error) error {
	if w == nil || err == nil || !errors.Is(err, net.ErrClosed) {
		return err
	}
	e := w.gone.Load()
	if e == nil {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: w.c.LocalAddr(), Addr: w.c.RemoteAddr(), Err: e}
}
