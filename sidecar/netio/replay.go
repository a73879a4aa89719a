package netio

import "syscall"

// Replay gives a connection whose first bytes were read ahead: reading begins
// with those of p, whose buffer it takes over.
func Replay(c Conn, p Pending) Conn {
	if p.N == 0 {
		p.Release()
		return c
	}
	return &replay{Conn: c, first: p}
}

type replay struct {
	Conn
	first Pending // the reader's goroutine only
	at    int
}

func (c *replay) buffered() bool { return c.first.Buf != nil }
func (c *replay) below() Conn    { return c.Conn }
func (c *replay) gone() bool     { return Gone(c.Conn) }

func (c *replay) alive() bool { return c.first.Buf == nil && Alive(c.Conn) }

func (c *replay) Read(p []byte) (int, error) {
	if c.first.Buf == nil {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first.Buf[c.at:c.first.N])
	if c.at += n; c.at == c.first.N {
		c.first.Release()
	}
	return n, nil
}

// readTaken gives the buffer of the first bytes away.
func (c *replay) readTaken(big bool) (taken, int, error) {
	b := c.first.Buf
	if b == nil {
		return readTaken(c.Conn, big)
	}
	n := copy(b[:], b[c.at:c.first.N])
	c.first.Buf = nil
	return taken{small: b}, n, nil
}

func (c *replay) writeBuffers(bufs [][]byte) (int64, error) { return WriteBuffers(c.Conn, bufs...) }

// WaitReadable implements Conn.
func (c *replay) WaitReadable() error {
	if c.first.Buf != nil {
		return nil
	}
	return c.Conn.WaitReadable()
}

// Raw gives the kernel socket once the first bytes are read: whoever splices
// before would lose them.
func (c *replay) Raw() (syscall.RawConn, bool) {
	if c.first.Buf != nil {
		return nil, false
	}
	return c.Conn.Raw()
}
