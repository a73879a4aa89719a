package pool

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/parrel-mesh/parrel/sidecar/h1"
	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// link is one connection for requests. Exactly one of h1 and h2 is set.
type link struct {
	l    *lane
	raw  netio.Conn // the socket
	conn netio.Conn // what is spoken on
	x    Exchange
	h1   *h1.ClientConn
	h2   *h2.ClientConn

	over   atomic.Bool // closed or being closed
	single bool        // for one upgrade: never idle

	// HTTP/1.1: of whoever has the link, or of the pool while it is idle.
	idled bool   // it was taken from the idle ones
	epoch uint32 // the pool's when it became idle
	since int64  // when that began, by the wheel's clock
	acked uint64 // what the endpoint's TCP had acknowledged when it was taken, where asked is set
	asked bool
	doing bool // Do has not returned: who called it ends the link where it fails
	spare bool // … and nothing of the exchange had begun
	// HTTP/2.
	greeted bool         // how many streams the endpoint takes is known; guarded by p.mu
	last    atomic.Bool  // opened while the pool drained: ends with those it was opened for
	due     atomic.Int64 // of them, who has not begun yet
}

// link makes a link of an open connection whose room is taken; nil, and the
// connection is reset, where the pool is closed.
func (l *lane) link(raw, conn netio.Conn, x Exchange, two bool) *link {
	p := l.p
	k := &link{l: l, raw: raw, conn: conn, x: x}
	if two {
		k.h2 = h2.NewClientConn(conn, h2.ClientOptions{
			Wheel: p.d.Wheel, MaxHeader: maxResponseHeader, PingAfter: pingAfter, PingTimeout: pingTimeout,
			Changed: func(*h2.ClientConn) { l.changed(k) },
		})
	} else {
		k.h1 = h1.NewClientConn(conn, h1.ClientOptions{MaxHeader: maxResponseHeader, Ended: k.ended})
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.links[k] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		k.over.Store(true)
		_ = raw.Reset()
		p.give()
		return nil
	}
	return k
}

// do carries one exchange.
func (k *link) do(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	if k.h2 == nil {
		k.doing, k.spare = true, false
		resp, err := k.h1.Do(ctx, req)
		k.doing = false
		return resp, err
	}
	resp, err := k.h2.Do(ctx, req)
	if k.last.Load() && k.due.Add(-1) <= 0 && k.l.waiting.Load() == 0 {
		k.h2.Drain() // one that others waited for in vain ends with the next sweep
	}
	if err != nil { // its room may be another's
		k.l.changed(k)
	}
	return resp, err
}

// untouched says that the endpoint had ended the connection before any byte of
// the request reached it: its end was an orderly one, and neither with it nor
// before it did it acknowledge a byte of the request. A FIN acknowledges all
// that the application can have read by then, and a server that has ended its
// side can answer nothing that comes later.
func (k *link) untouched(f *stream.Failure) bool {
	// EPIPE: the end, and then a reset by what was written after it.
	if !k.asked || !errors.Is(f.Err, io.EOF) && !errors.Is(f.Err, syscall.EPIPE) {
		return false
	}
	n, ok := netio.Acked(k.raw)
	return ok && n == k.acked && netio.Finished(k.raw)
}

// ended is told when an HTTP/1.1 exchange is over.
func (k *link) ended(_ *h1.ClientConn, reusable bool) {
	if k.doing {
		k.spare = reusable
		return
	}
	if !reusable || k.single || k.over.Load() {
		k.close()
		return
	}
	k.l.put(k)
}

// run reads an HTTP/2 connection until it is over.
func (k *link) run() {
	k.h2.Run(k.l.p.ctx)
	k.close()
}

// close ends the connection in order. Idempotent.
func (k *link) close() {
	if k.forget() {
		if k.h2 != nil {
			k.h2.Close()
		} else {
			_ = k.h1.Close()
		}
	}
}

// reset ends it at once. Idempotent.
func (k *link) reset() {
	if k.forget() {
		_ = k.raw.Reset()
		if k.h2 != nil {
			k.h2.Close()
		} else {
			_ = k.h1.Close()
		}
	}
}

// forget takes the link off the pool's lists; false: it was off already.
func (k *link) forget() bool {
	if !k.over.CompareAndSwap(false, true) {
		return false
	}
	l, p := k.l, k.l.p
	p.mu.Lock()
	delete(p.links, k)
	var again []*waiter
	for i, s := range l.shared {
		if s == k {
			l.shared = append(l.shared[:i], l.shared[i+1:]...)
			l.current.CompareAndSwap(k, nil)
			if l.opening == 0 { // who waited for its room opens another
				again = l.first(len(l.waiters))
			}
			break
		}
	}
	for i, s := range l.idle {
		if s == k {
			l.idle = append(l.idle[:i], l.idle[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	p.give()
	answer(again)
	return true
}

// failureOf is what a codec's error says.
func failureOf(err error) *stream.Failure {
	var f *stream.Failure
	if errors.As(err, &f) {
		return f
	}
	return &stream.Failure{Kind: stream.FailedReset, Sent: true, Detail: err.Error(), Err: err}
}
