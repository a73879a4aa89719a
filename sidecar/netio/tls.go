package netio

import (
	"crypto/tls"
	"io"
	"net/netip"
	"sync"
	"syscall"
)

// TLS makes a Conn of a TLS connection on raw: reads and writes are plaintext,
// CloseWrite sends close_notify (RFC 8446, 6.1: each side closes its own
// direction), Reset resets raw.
func TLS(tc *tls.Conn, raw Conn) Conn { return &tlsConn{Conn: tc, raw: raw} }

type tlsConn struct {
	*tls.Conn
	raw Conn

	mu     sync.Mutex // held by the reader; Read and WaitReadable are one goroutine's
	peeked []byte     // a byte that WaitReadable took; guarded by mu
	one    [1]byte
}

func (c *tlsConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.peeked) == 0 || len(p) == 0 {
		return c.Conn.Read(p)
	}
	p[0] = c.peeked[0]
	c.peeked = nil
	return 1, nil
}

// WaitReadable decrypts until there is a byte, since whether a record holds
// application data shows only then.
func (c *tlsConn) WaitReadable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.peeked) > 0 {
		return nil
	}
	n, err := c.Conn.Read(c.one[:])
	if n > 0 {
		c.peeked = c.one[:n]
		return nil
	}
	if err == io.EOF {
		return nil // the next Read says so again
	}
	return err
}

func (c *tlsConn) OriginalDst() (netip.AddrPort, bool) { return c.raw.OriginalDst() }
func (c *tlsConn) Reset() error                        { return c.raw.Reset() }
func (c *tlsConn) Raw() (syscall.RawConn, bool)        { return nil, false }
