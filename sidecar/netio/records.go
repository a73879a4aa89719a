package netio

import (
	"encoding/binary"
	"io"
	"sync"
)

// Sizes of TLS records (RFC 8446, 5.1 and 5.2).
const (
	recordHeader = 5
	maxPlain     = 1 << 14 // plaintext in one record
)

// records is the connection below a tls.Conn. It reads ahead, so that one system
// call brings many records; it gives tls.Conn no byte beyond the record that it
// is at, so that what is left can be told: tls.Conn then holds nothing but that
// record. Between hold and flush it gathers written records for one system call.
// It has no buffer while it has no bytes.
type records struct {
	Conn

	// The reader's; tls.Conn lets one read at a time.
	in   taken
	r, w int  // of in: next byte to give, end
	bulk bool // the last read filled its buffer: take a big one
	dry  bool // a Read that would have to wait fails with errDry
	hn   int  // bytes of header given
	hdr  [recordHeader]byte
	left int // bytes of the record's body not yet given

	mu   sync.Mutex // guards what follows, and keeps written bytes in order
	held bool
	out  taken
	n    int // bytes in out
}

// errDry is a failure that tls.Conn does not keep (it is Temporary): the read
// can be tried again when there is more.
type errDry struct{}

func (errDry) Error() string   { return "netio: no complete record yet" }
func (errDry) Timeout() bool   { return true }
func (errDry) Temporary() bool { return true }

// ahead says that bytes were read that tls.Conn does not have.
func (c *records) ahead() bool { return c.r < c.w }

// whole says that a complete record was read ahead.
func (c *records) whole() bool {
	b := c.in.bytes()[c.r:c.w]
	return c.hn == 0 && len(b) >= recordHeader && len(b)-recordHeader >= int(binary.BigEndian.Uint16(b[3:]))
}

// fill waits for bytes, without a buffer, and reads what is there.
func (c *records) fill() error {
	t, n, err := readTaken(c.Conn, c.bulk)
	if n == 0 {
		return err
	}
	c.in, c.r, c.w = t, 0, n
	c.bulk = n == len(t.bytes()) || n > BufSize
	return nil
}

// eof is what crypto/tls says of an end without close_notify: the end of a
// stream after a complete record, a failure inside one.
func (c *records) eof(err error) error {
	if err == io.EOF && c.hn > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *records) Read(p []byte) (int, error) {
	if !c.ahead() {
		if c.dry {
			return 0, errDry{}
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := c.give(p)
	if c.r == c.w {
		c.in.release()
		c.r, c.w = 0, 0
	}
	return n, nil
}

// give copies to p up to the end of the record under way.
func (c *records) give(p []byte) int {
	b := c.in.bytes()[c.r:c.w]
	n := 0
	if c.hn < recordHeader {
		n = copy(c.hdr[c.hn:], b[:min(len(b), len(p))])
		if c.hn += n; c.hn == recordHeader {
			c.left = int(binary.BigEndian.Uint16(c.hdr[3:]))
		}
	}
	if c.hn == recordHeader {
		m := min(c.left, len(b)-n, len(p)-n)
		n += m
		if c.left -= m; c.left == 0 {
			c.hn = 0
		}
	}
	copy(p, b[:n])
	c.r += n
	return n
}

// Write sends a record, or holds it.
func (c *records) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return c.Conn.Write(p)
	}
	if c.out.none() {
		c.out = take(true)
	}
	if len(p) > len(c.out.bytes())-c.n {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
		if len(p) > len(c.out.bytes()) {
			return c.Conn.Write(p)
		}
	}
	c.n += copy(c.out.bytes()[c.n:], p)
	return len(p), nil
}

func (c *records) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

// flush sends what is held and ends the holding.
func (c *records) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	err := c.flushLocked()
	c.out.release()
	return err
}

func (c *records) flushLocked() error {
	if c.n == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.out.bytes()[:c.n])
	c.n = 0
	return err
}
