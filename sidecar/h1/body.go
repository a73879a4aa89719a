package h1

import (
	"io"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// framing is how a body ends (RFC 9112, section 6.3).
type framing uint8

const (
	noBody framing = iota
	counted
	chunked
	toEnd
)

// maxExtensions bounds what chunk extensions may exceed the data by, in bytes
// per message: they are dropped, and may not cost more than what they come with.
const maxExtensions = 8 << 10

// chunkState is what the chunk reader expects next (RFC 9112, section 7.1).
type chunkState uint8

const (
	sizeFirst chunkState = iota
	sizeMore
	sizeSpace
	extension
	sizeLF
	chunkData
	dataCR
	dataLF
	trailerSection
)

// bodyOwner is the side that a body belongs to.
type bodyOwner interface {
	// awaited is called before the body is first waited for.
	awaited() error
	// broken turns an error, or a *fault, into what the reader gets.
	broken(err error) error
	// wake makes a blocked read of the body ask woken.
	wake()
}

// body is the body of the message in hand, read by one goroutine at a time.
type body struct {
	in      *input
	owner   bodyOwner
	framing framing
	state   chunkState
	begun   bool
	left    int64 // of the message (counted) or of the chunk
	size    int64
	digits  int
	over    int // bytes of extensions beyond the data's
	max     int // fields of the trailer section
	trailer message
	room    stream.Header // for the trailers
	fields  stream.Header // the trailers
	err     error         // sticky; io.EOF at the end

	done    atomic.Bool // err is io.EOF; for other goroutines than the reader's
	closed  atomic.Bool
	reading atomic.Bool // a read waits for the peer
}

var _ stream.Chunks = (*body)(nil)

// start makes the body that of a new message.
func (b *body) start(f framing, length int64, max int) {
	b.framing, b.state, b.begun = f, sizeFirst, false
	b.left, b.over, b.max = length, 0, max
	b.fields, b.err = nil, nil
	b.closed.Store(false)
	b.done.Store(false)
	if f == noBody || f == counted && length == 0 {
		b.end()
	}
}

func (b *body) end() {
	b.err = io.EOF
	b.done.Store(true)
}

// complete says that the message was read to its end. Any goroutine.
func (b *body) complete() bool { return b.done.Load() }

// Next implements [stream.Chunks].
func (b *body) Next() ([]byte, error) { return b.take(1<<63 - 1) }

// Read implements [stream.Body].
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	lent, err := b.take(int64(len(p)))
	return copy(p, lent), err
}

// Ready implements [stream.Chunks].
func (b *body) Ready() bool {
	if b.err != nil || b.closed.Load() {
		return true
	}
	if b.framing == chunked {
		b.advance()
		return b.err != nil || b.state == chunkData && !b.in.empty()
	}
	return !b.in.empty()
}

// Trailers implements [stream.Body].
func (b *body) Trailers() stream.Header { return b.fields }

// Close ends reading; a read that waits fails. Any goroutine.
func (b *body) Close() error {
	b.closed.Store(true)
	if b.reading.Load() {
		b.owner.wake()
	}
	return nil
}

// take lends at most most bytes.
func (b *body) take(most int64) ([]byte, error) {
	for {
		if b.closed.Load() {
			return nil, errClosed
		}
		if b.err != nil {
			return nil, b.err
		}
		if p := b.lend(most); len(p) > 0 {
			if b.err == io.EOF {
				return p, io.EOF
			}
			return p, nil
		}
		if b.err != nil {
			continue
		}
		if err := b.fill(); err != nil {
			if err == io.EOF && b.framing == toEnd {
				b.end()
				continue
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			b.err = b.owner.broken(err)
		}
	}
}

// lend gives what is there without waiting.
func (b *body) lend(most int64) []byte {
	in := b.in
	if b.framing == chunked {
		b.advance()
		if b.err != nil || b.state != chunkData {
			return nil
		}
	}
	n := min(int64(in.w-in.r), most)
	if b.framing != toEnd {
		n = min(n, b.left)
	}
	p := in.b[in.r : in.r+int(n)]
	in.r += int(n)
	if b.framing == toEnd {
		return p
	}
	if b.left -= n; b.left > 0 {
		return p
	}
	if b.framing == counted {
		b.end()
		return p
	}
	b.over = max(b.over-int(min(b.size, maxExtensions)), 0)
	b.state = dataCR
	b.advance() // the end, where it is there already, comes with the last bytes
	return p
}

// fill waits for more.
func (b *body) fill() error {
	if !b.begun {
		b.begun = true
		if err := b.owner.awaited(); err != nil {
			return err
		}
	}
	b.reading.Store(true)
	defer b.reading.Store(false)
	if b.closed.Load() {
		return errClosed
	}
	if b.framing == chunked && b.state == trailerSection {
		moved, err := b.in.trailer()
		if moved {
			b.trailer.restart()
		}
		return err
	}
	return b.in.body()
}

// advance reads framing as far as it has come; a fault becomes the body's error.
func (b *body) advance() {
	in := b.in
	for in.r < in.w && b.err == nil && b.state != chunkData {
		if b.state == trailerSection {
			done, f := b.trailer.scan(in.b[in.r:in.w])
			if f != nil {
				b.err = b.owner.broken(f)
			}
			if done {
				in.r += b.trailer.pos
				if b.fields = b.trailer.fields; len(b.fields) > 0 {
					in.low = in.r
				}
				b.room = b.trailer.fields[:0]
				b.end()
			}
			return
		}
		c := in.b[in.r]
		in.r++
		if f := b.line(c); f != nil {
			b.err = b.owner.broken(f)
		}
	}
}

// line takes one byte of the lines around a chunk's data.
func (b *body) line(c byte) *fault {
	switch b.state {
	case sizeFirst, sizeMore:
		if v, ok := hex(c); ok {
			if b.state == sizeFirst {
				b.size, b.digits, b.state = 0, 0, sizeMore
			}
			if b.digits++; b.digits > 16 || b.size > (1<<63-1)>>4 {
				return faultChunkSize
			}
			b.size = b.size<<4 | int64(v)
			return nil
		}
		if b.state == sizeFirst {
			return faultChunkSize
		}
		switch c {
		case '\r':
			b.state = sizeLF
		case ';':
			b.state = extension
		case ' ', '\t':
			b.state = sizeSpace
		default:
			return faultChunkSize
		}
		return nil
	case sizeSpace: // RFC 9112, section 7.1.1: before an extension only
		switch c {
		case ' ', '\t':
		case ';':
			b.state = extension
		default:
			return faultChunkLine
		}
		return b.extended()
	case extension:
		switch {
		case c == '\r':
			b.state = sizeLF
		case c < ' ' && c != '\t' || c == 0x7f:
			return faultChunkLine
		}
		return b.extended()
	case sizeLF:
		if c != '\n' {
			return faultBareCR
		}
		if b.left = b.size; b.left > 0 {
			b.state = chunkData
			return nil
		}
		b.state = trailerSection
		b.trailer.begin(aTrailer, b.max, b.room)
	case dataCR:
		if c != '\r' {
			return faultChunkEnd
		}
		b.state = dataLF
	case dataLF:
		if c != '\n' {
			return faultChunkEnd
		}
		b.state = sizeFirst
	}
	return nil
}

// extended counts a byte of an extension.
func (b *body) extended() *fault {
	if b.over++; b.over > maxExtensions {
		return faultChunkExt
	}
	return nil
}

func hex(c byte) (byte, bool) {
	switch {
	case digit(c):
		return c - '0', true
	case c|0x20-'a' < 6:
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
