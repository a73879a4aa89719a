package pool

import (
	"context"
	"crypto/tls"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// versions says what the connections of a lane may speak.
type versions uint8

const (
	onlyHTTP1 versions = iota
	onlyHTTP2
	byALPN // what the endpoint chose last is expected of the next connection
)

// Who waits for what.
//
// Why: a request must go out on the first connection that can take it, and a
// burst must not open more connections than it needs.
//
// Conditions: with HTTP/1.1 each waiting request has a connection opened for it,
// and takes one that became free before that; the next that waits takes over what
// is then opened for nobody. With HTTP/2, and while ALPN has
// not spoken yet, requests wait together for one connection and for how many
// streams it takes, and for another only where that has no room for all. Where the limits leave no room for a
// connection, a request waits, counted as pending, for either.
//
// First start: nothing is open; the first request opens.
//
// Recovery: an error of opening answers those for whom it was opened; whoever
// waits without anybody opening is told to look again.

// maxLooks is how often a request looks for a connection, each time after it
// waited in vain: an endpoint may allow no streams at all.
const maxLooks = 100

// lane is connections that are alike.
type lane struct {
	p     *Pool
	speak versions
	tls   *tls.Config // nil: plaintext

	// current is the HTTP/2 connection that had room last, so that a request
	// takes no lock; nil where that is not known.
	current atomic.Pointer[link]
	waiting atomic.Int32 // len(waiters), for who need not look

	// Guarded by p.mu.
	idle    []*link // HTTP/1.1, the last used at the end
	shared  []*link // HTTP/2
	waiters []*waiter
	opening int     // connections that waiters wait for together
	dials   []*dial // connections that are opened for one waiter each
	h1      bool    // byALPN: the endpoint chose HTTP/1.1 last
}

func (l *lane) init(p *Pool, v versions) {
	l.p, l.speak = p, v
	switch v {
	case onlyHTTP1:
		l.tls = p.offering("http/1.1")
	case onlyHTTP2:
		l.tls = p.offering("h2")
	default:
		l.tls = p.offering("h2", "http/1.1")
	}
}

// together says that waiters wait for one connection. The caller holds p.mu.
func (l *lane) together() bool { return l.speak == onlyHTTP2 || l.speak == byALPN && !l.h1 }

// greeting says that there is a connection of which it is not known yet how many
// streams it takes. The caller holds p.mu.
func (l *lane) greeting() bool {
	for _, k := range l.shared {
		if !k.greeted && !k.h2.Greeted() {
			return true
		}
	}
	return false
}

// waiter is one request that waits. It is answered once: with a connection, an
// error, or neither, which means "look again". It is not used again.
type waiter struct {
	l    *lane
	got  chan struct{} // closed by the answer
	off  bool          // off the list: answered, or about to be; guarded by p.mu
	link *link
	err  error
}

// Cancelled implements [stream.Canceler].
func (w *waiter) Cancelled(cause error) {
	p := w.l.p
	p.mu.Lock()
	mine := w.l.remove(w)
	p.mu.Unlock()
	if mine {
		w.err = errWaiting(cause)
		close(w.got)
	}
}

// remove takes w off the list and says whether it was there: who removes
// answers. The caller holds p.mu.
func (l *lane) remove(w *waiter) bool {
	for i, x := range l.waiters {
		if x == w {
			w.off = true
			l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
			l.waiting.Store(int32(len(l.waiters)))
			return true
		}
	}
	return false
}

// first removes up to n waiters from the head of the list. The caller holds
// p.mu and answers them.
func (l *lane) first(n int) []*waiter {
	n = min(n, len(l.waiters))
	if n <= 0 {
		return nil
	}
	out := append([]*waiter(nil), l.waiters[:n]...)
	for _, w := range out {
		w.off = true
	}
	l.waiters = append(l.waiters[:0], l.waiters[n:]...)
	l.waiting.Store(int32(len(l.waiters)))
	return out
}

// dial is a connection being opened for one waiter; own is guarded by p.mu.
type dial struct{ own *waiter }

// adopt gives w a connection that is being opened for somebody who needs it no
// longer, if there is one. The caller holds p.mu.
func (l *lane) adopt(w *waiter) bool {
	for _, d := range l.dials {
		if d.own.off {
			d.own = w
			return true
		}
	}
	return false
}

// dialled ends a dial; its waiter is returned. nil was opened for all that wait
// together. The caller holds p.mu.
func (l *lane) dialled(d *dial) *waiter {
	if d == nil {
		l.opening--
		return nil
	}
	for i, x := range l.dials {
		if x == d {
			l.dials = append(l.dials[:i], l.dials[i+1:]...)
			break
		}
	}
	return d.own
}

func answer(ws []*waiter) {
	for _, w := range ws {
		close(w.got)
	}
}

// abandon removes the waiters for whom nothing is being opened when the pool
// drains. The caller holds p.mu and answers them.
func (l *lane) abandon() []*waiter {
	if !l.together() || l.opening > 0 || l.greeting() {
		return nil
	}
	ws := l.first(len(l.waiters))
	for _, w := range ws {
		w.err = errGone
	}
	return ws
}

// take finds a connection for a request, or waits for one. One that was idle for
// more than a moment is looked at first (one system call); checked: each is.
// once: the request must not
// be carried out twice.
func (l *lane) take(ctx context.Context, checked, once bool) (*link, error) {
	if k := l.current.Load(); k != nil && k.h2.Room() > 0 {
		return k, nil
	}
	p := l.p
	pending := false
	for looks := 0; ; looks++ {
		if looks > maxLooks {
			p.leave(pending)
			return nil, &Error{Kind: Refused, Detail: "the endpoint lets no stream be opened on any connection"}
		}
		var freed <-chan struct{}
		if pending {
			freed = p.d.Limits.Freed()
		}
		p.mu.Lock()
		if p.draining {
			p.mu.Unlock()
			p.leave(pending)
			return nil, errGone
		}
		if n := len(l.idle); n > 0 {
			k := l.idle[n-1]
			l.idle[n-1] = nil
			l.idle = l.idle[:n-1]
			look := checked || k.epoch != p.epoch
			k.idled = true
			p.mu.Unlock()
			if look && !netio.Alive(k.conn) {
				p.observe(k)
				k.close()
				continue
			}
			if once {
				k.acked, k.asked = netio.Acked(k.raw)
			}
			p.leave(pending)
			return k, nil
		}
		for _, k := range l.shared {
			if k.h2.Room() > 0 {
				l.current.Store(k)
				p.mu.Unlock()
				p.leave(pending)
				return k, nil
			}
		}
		w, joins := &waiter{l: l, got: make(chan struct{})}, false
		switch together := l.together(); {
		case together && (l.opening > 0 || l.greeting()):
			joins = true
		case !together && l.adopt(w):
		case p.take():
			var d *dial
			if together {
				l.opening++
			} else {
				d = &dial{w}
				l.dials = append(l.dials, d)
			}
			p.wg.Go(func() { l.open(d) })
		case !pending:
			p.mu.Unlock()
			if err := p.d.Limits.Enter(); err != nil {
				return nil, err
			}
			pending = true
			continue
		}
		if freed != nil {
			looks = 0 // its turn may be long in coming
		}
		l.waiters = append(l.waiters, w)
		l.waiting.Store(int32(len(l.waiters)))
		// Room that grew before changed could know of w.
		for _, k := range l.shared {
			if k.h2.Room() > 0 && l.remove(w) {
				w.link = k
				close(w.got)
			}
		}
		if joins && l.opening == 0 && !l.greeting() && l.remove(w) {
			p.mu.Unlock()
			continue
		}
		p.mu.Unlock()
		k, err := w.wait(ctx, freed)
		if k != nil || err != nil {
			p.leave(pending)
			return k, err
		}
	}
}

func (p *Pool) leave(pending bool) {
	if pending {
		p.d.Limits.Leave()
	}
}

// wait returns neither link nor error where the waiter should look again.
func (w *waiter) wait(ctx context.Context, freed <-chan struct{}) (*link, error) {
	stop, ok := stream.OnCancel(ctx, w)
	if !ok {
		w.Cancelled(stream.CauseOf(ctx))
	}
	select {
	case <-w.got:
	case <-freed:
		p := w.l.p
		p.mu.Lock()
		mine := w.l.remove(w)
		p.mu.Unlock()
		if !mine {
			<-w.got
		}
	}
	stop.Stop()
	return w.link, w.err
}

// open opens a connection with the room that its caller took: for one waiter, or
// with nil for all that wait together. It runs on a goroutine of the pool's.
func (l *lane) open(d *dial) {
	p := l.p
	raw, conn, x, alpn, err := p.open(p.ctx, l.tls)
	two := l.speak == onlyHTTP2 || alpn == "h2"
	if err == nil && l.tls != nil && l.speak == onlyHTTP2 && alpn != "h2" {
		_ = raw.Reset()
		err = &Error{Kind: Protocol, Detail: "the endpoint does not offer HTTP/2 (ALPN h2), which the cluster demands"}
	}
	if err != nil {
		p.give()
		if p.ctx.Err() != nil {
			err = errGone
		}
		l.failed(d, err)
		return
	}
	k := l.link(raw, conn, x, two)
	if k == nil {
		l.failed(d, errGone)
		return
	}
	if two {
		l.share(d, k)
		return
	}
	l.opened(d, k)
}

// failed answers those for whom the connection was to be.
func (l *lane) failed(d *dial, err error) {
	l.p.mu.Lock()
	var ws []*waiter
	switch own := l.dialled(d); {
	case own == nil:
		ws = l.first(len(l.waiters))
	case l.remove(own):
		ws = []*waiter{own}
	}
	l.p.mu.Unlock()
	for _, w := range ws {
		w.err = err
	}
	answer(ws)
}

// opened gives a new HTTP/1.1 connection to its waiter, to another, or to the
// idle ones.
func (l *lane) opened(d *dial, k *link) {
	p := l.p
	var again []*waiter
	p.mu.Lock()
	l.h1 = true
	own := l.dialled(d)
	if own == nil && len(l.waiters) > 0 {
		own = l.waiters[0]
	}
	mine := own != nil && l.remove(own)
	if d == nil && l.opening == 0 {
		again = l.first(len(l.waiters)) // each needs its own now
	}
	p.mu.Unlock()
	if mine {
		own.link = k
		close(own.got)
	} else {
		l.put(k)
	}
	answer(again)
}

// share puts a new HTTP/2 connection up and answers those that it has room for;
// the others look again.
func (l *lane) share(d *dial, k *link) {
	p := l.p
	p.mu.Lock()
	l.h1 = false
	l.dialled(d)
	closed := p.closed
	if !closed {
		l.shared = append(l.shared, k)
		p.wg.Go(k.run)
	}
	served := l.first(k.h2.Room())
	var again []*waiter
	if k.greeted = k.h2.Greeted(); k.greeted || closed {
		again = l.first(len(l.waiters))
	}
	k.due.Add(int64(len(served)))
	if p.draining {
		k.last.Store(true)
	} else {
		l.current.Store(k)
	}
	p.mu.Unlock()
	if closed {
		k.reset()
		k = nil
	}
	for _, w := range served {
		if w.link = k; k == nil {
			w.err = errGone
		}
	}
	answer(served)
	answer(again)
	switch {
	case k == nil:
	case k.last.Load() && len(served) == 0 && l.waiting.Load() == 0:
		k.h2.Drain()
	default:
		p.mu.Lock()
		p.wake()
		p.mu.Unlock()
	}
}

// put takes a connection back that can carry another request: a waiter gets it,
// or it becomes idle.
func (l *lane) put(k *link) {
	p := l.p
	k.idled, k.asked = false, false
	p.mu.Lock()
	if len(l.waiters) > 0 {
		w := l.waiters[0]
		l.remove(w)
		p.mu.Unlock()
		w.link = k
		close(w.got)
		return
	}
	if p.draining || len(l.idle) >= maxIdle {
		p.mu.Unlock()
		k.close()
		return
	}
	p.wake()
	k.epoch, k.since = p.epoch, p.epochAt
	l.idle = append(l.idle, k)
	p.mu.Unlock()
}

// changed is told by an HTTP/2 connection that it has room again, or none any
// more.
func (l *lane) changed(k *link) {
	if l.waiting.Load() == 0 { // greeted is found out when somebody waits
		return
	}
	p := l.p
	p.mu.Lock()
	served := l.first(k.h2.Room())
	k.due.Add(int64(len(served)))
	var again []*waiter
	greeted := !k.greeted && k.h2.Greeted()
	k.greeted = k.greeted || greeted
	if (greeted || k.h2.Leaving()) && l.opening == 0 && l.together() {
		again = l.first(len(l.waiters)) // they open another
	}
	p.mu.Unlock()
	for _, w := range served {
		w.link = k
	}
	answer(served)
	answer(again)
}
