package h1

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// past is a deadline that has passed in any clock.
var past = time.Unix(1, 0)

// largeSize is the size of the buffers for heads that do not fit into a
// [netio.Buf]: the default limit and some of a body.
const largeSize = 64 << 10

var larges = sync.Pool{New: func() any { return new([largeSize]byte) }}

// store is where the bytes of an input lie.
type store struct {
	small *netio.Buf
	large *[largeSize]byte
	own   []byte // beyond the pools' sizes
}

// put gives the store back.
func (s *store) put() {
	if s.small != nil {
		netio.PutBuf(s.small)
	}
	if s.large != nil {
		stream.Poisoned(s.large[:])
		larges.Put(s.large)
	}
	stream.Poisoned(s.own)
	*s = store{}
}

// waiter is asked when a read deadline has passed: nil means that it was
// nothing, and the read goes on.
type waiter interface{ woken() error }

// input is the reading side of a connection. It holds a buffer from the first
// byte of a message until the message is over, and none between two of them.
type input struct {
	c    netio.Conn
	wait waiter
	b    []byte // what the store holds; nil: none
	s    store
	r, w int   // b[r:w] is not consumed
	low  int   // b[:low] is lent until the message is over
	kept store // an earlier one, lent until the message is over
	came bool  // a byte was read since it was last reset
}

// take gives the input what was read ahead.
func (in *input) take(p netio.Pending) {
	if p.Buf == nil {
		return
	}
	in.s = store{small: p.Buf}
	in.b = p.Buf[:]
	in.r, in.w = 0, p.N
	in.came = true
}

// empty says that nothing is left that was read ahead.
func (in *input) empty() bool { return in.r == in.w }

func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// read is the connection's Read; n is above 0 where the error is nil.
func (in *input) read(p []byte) (int, error) {
	for {
		n, err := in.c.Read(p)
		switch {
		case n > 0:
			in.came = true
			return n, nil
		case err == nil:
		case err == io.EOF || !isDeadline(err):
			return 0, err
		default:
			if err := in.wait.woken(); err != nil {
				return 0, err
			}
		}
	}
}

// first waits for a message's first bytes without a buffer.
func (in *input) first() error {
	for {
		buf, n, err := netio.ReadBuf(in.c)
		switch {
		case n > 0:
			in.take(netio.Pending{Buf: buf, N: n})
			return nil
		case err == nil:
		case err == io.EOF || !isDeadline(err):
			return err
		default:
			if err := in.wait.woken(); err != nil {
				return err
			}
		}
	}
}

// head reads more of the head that begins at r. moved says that its bytes lie
// elsewhere now. A head that leaves no room below limit is a fault.
func (in *input) head(limit int) (moved bool, err error) {
	if in.b == nil {
		return false, in.first()
	}
	if in.w == len(in.b) {
		moved = true
		switch {
		case in.w-in.r >= limit:
			return false, faultHeadLarge
		case in.r > 0:
			copy(in.b, in.b[in.r:in.w])
			in.r, in.w = 0, in.w-in.r
		default:
			in.grow(limit)
		}
	}
	n, err := in.read(in.b[in.w:])
	in.w += n
	return moved, err
}

// grow moves a head into a larger store.
func (in *input) grow(limit int) {
	old, held := in.s, in.b[in.r:in.w]
	if len(in.b) < largeSize {
		in.s = store{large: larges.Get().(*[largeSize]byte)}
		in.b = in.s.large[:]
	} else {
		in.s = store{own: make([]byte, max(2*len(in.b), min(limit, 4*len(in.b))))}
		in.b = in.s.own
	}
	in.w = copy(in.b, held)
	in.r = 0
	old.put()
}

// minRoom is how much room must be left beside a head for its body to be read
// into the same buffer.
const minRoom = 4 << 10

// body reads more of a body all of whose bytes that came are consumed.
func (in *input) body() error {
	if in.b == nil {
		return in.first()
	}
	in.r, in.w = in.low, in.low
	if len(in.b)-in.low < minRoom {
		in.renew()
	}
	n, err := in.read(in.b[in.w:])
	in.w += n
	return err
}

// renew goes on in another buffer; the one in hand stays lent.
func (in *input) renew() {
	held := in.b[in.r:in.w]
	in.kept = in.s // empty until now: only the head's buffer has low above 0
	in.s = store{small: netio.GetBuf()}
	in.b = in.s.small[:]
	in.r, in.w, in.low = 0, copy(in.b, held), 0
}

// trailer reads more of the trailer section that begins at r; moved is as of
// head.
func (in *input) trailer() (moved bool, err error) {
	if in.w == len(in.b) {
		moved = true
		switch {
		case in.w-in.r >= netio.BufSize-minRoom:
			return false, faultTrailerLarge
		case in.r > in.low && len(in.b)-(in.w-in.r)-in.low >= minRoom:
			copy(in.b[in.low:], in.b[in.r:in.w])
			in.r, in.w = in.low, in.low+in.w-in.r
		case in.low > 0:
			in.renew()
		default:
			return false, faultTrailerLarge
		}
	}
	n, err := in.read(in.b[in.w:])
	in.w += n
	return moved, err
}

// next ends a message: nothing that was lent is used any more. A buffer is kept
// only where bytes of another message are in it.
func (in *input) next() {
	in.kept.put()
	in.low = 0
	if in.r == in.w {
		in.release()
		return
	}
	stream.Poisoned(in.b[:in.r])
}

// release gives everything back.
func (in *input) release() {
	in.kept.put()
	in.s.put()
	in.b, in.r, in.w, in.low = nil, 0, 0, 0
}
