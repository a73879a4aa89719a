package netio

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// BufSize is the size of the engines' pooled buffers: large enough for a head
// and a small body, small enough to stay in the processor's caches.
const BufSize = 16 << 10

// Buf is a pooled buffer.
type Buf [BufSize]byte

var bufs = sync.Pool{New: func() any { return new(Buf) }}

// GetBuf takes a buffer from the pool; its content is whatever it was.
func GetBuf() *Buf { return bufs.Get().(*Buf) }

// PutBuf gives it back. Nothing may refer to its bytes any more.
func PutBuf(b *Buf) {
	stream.Poisoned(b[:])
	bufs.Put(b)
}

// Bulk moves in big buffers, so that one system call carries several TLS
// records. They are few: whoever gets none works on with a small one, and
// together they hold 1 MB at the most, however many connections there are and
// however slowly they are read. Writes of 128 KB cost a quarter less per byte
// than those of 16 KB, and a tenth less than 48 KB (BenchmarkTLSBulk).
const (
	bigSize = 128 << 10
	bigMost = 8
)

type bigBuf [bigSize]byte

var (
	bigs    = sync.Pool{New: func() any { return new(bigBuf) }}
	bigHeld atomic.Int32
)

// taken is one buffer in use, small or big. The zero value is none.
type taken struct {
	small *Buf
	big   *bigBuf
}

// take takes a buffer, a big one where that is wished and one is left.
func take(big bool) taken {
	if big {
		if bigHeld.Add(1) <= bigMost {
			return taken{big: bigs.Get().(*bigBuf)}
		}
		bigHeld.Add(-1)
	}
	return taken{small: GetBuf()}
}

func (t taken) none() bool { return t.small == nil && t.big == nil }

func (t taken) bytes() []byte {
	if t.big != nil {
		return t.big[:]
	}
	if t.small != nil {
		return t.small[:]
	}
	return nil
}

// release puts the buffer back, where there is one.
func (t *taken) release() {
	switch {
	case t.small != nil:
		PutBuf(t.small)
	case t.big != nil:
		stream.Poisoned(t.big[:])
		bigs.Put(t.big)
		bigHeld.Add(-1)
	}
	*t = taken{}
}

// takeReader is a Conn that reads into a pooled buffer, which it takes when
// there is something to read, without a second system call.
type takeReader interface {
	readTaken(big bool) (taken, int, error)
}

// readTaken waits until there is something to read, without a buffer, takes one
// and reads into it. None is held where n is 0, and then there is an error.
func readTaken(c Conn, big bool) (t taken, n int, err error) {
	if o, ok := c.(*osConn); ok {
		return o.readTaken(big)
	}
	if r, ok := c.(takeReader); ok {
		return r.readTaken(big)
	}
	if err := c.WaitReadable(); err != nil {
		return taken{}, 0, err
	}
	t = take(big)
	if n, err = c.Read(t.bytes()); n == 0 {
		t.release()
		if err == nil {
			err = io.ErrNoProgress
		}
		return taken{}, 0, err
	}
	return t, n, nil // an error that came with bytes comes again without them
}

// ReadBuf waits until the connection has something to read without holding a
// buffer, then takes one and reads into it. The buffer is nil where n is 0. The
// read deadline bounds the wait.
func ReadBuf(c Conn) (b *Buf, n int, err error) {
	t, n, err := readTaken(c, false)
	return t.small, n, err
}
