package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// hello is what a ClientHello says to whoever only listens.
type hello struct {
	serverName string // lower case
	alpn       []string
}

// recordHandshake is the first byte of a TLS connection (RFC 8446, 5.1).
const recordHandshake = 0x16

var (
	errHelloSeen  = errors.New("ClientHello read")
	errHelloLarge = errors.New("the ClientHello is larger than the limit")
)

// sniff reads a ClientHello, in however many pieces it comes, and gives a
// connection that starts with the same bytes again. nil, without an error, is a
// connection that does not begin as TLS does, or whose client waits for the
// server to speak first. An error is a ClientHello that began and did not come
// to its end in time or within the limit.
func sniff(raw netio.Conn, l Limits) (*hello, netio.Conn, error) {
	if err := raw.SetReadDeadline(time.Now().Add(l.Sniff)); err != nil {
		return nil, raw, err
	}
	r := &recorder{Conn: raw, limit: l.Hello}
	first := make([]byte, 1)
	_, err := io.ReadFull(r, first)
	if cerr := clearDeadline(raw); err == nil {
		err = cerr
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, raw, nil
	default:
		return nil, raw, err
	}
	if first[0] != recordHandshake {
		return nil, &replay{Conn: raw, prefix: r.taken}, nil
	}
	h, err := readHello(raw, r, l)
	if err != nil {
		return nil, raw, err
	}
	return h, &replay{Conn: raw, prefix: r.taken}, nil
}

// readHello lets crypto/tls read the ClientHello: it reassembles records and
// parses with the same code that will later judge it. Nothing is answered.
func readHello(raw netio.Conn, r *recorder, l Limits) (*hello, error) {
	if err := raw.SetReadDeadline(time.Now().Add(l.Sniff)); err != nil {
		return nil, err
	}
	r.again = len(r.taken)
	var h *hello
	_ = tls.Server(r, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		h = &hello{serverName: strings.ToLower(i.ServerName), alpn: append([]string(nil), i.SupportedProtos...)}
		return nil, errHelloSeen
	}}).Handshake()
	if cerr := clearDeadline(raw); cerr != nil {
		return nil, cerr
	}
	switch {
	case h != nil:
		return h, nil
	case r.err != nil && errors.Is(r.err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("not complete after %s", l.Sniff)
	case r.err != nil:
		return nil, r.err
	default:
		return nil, nil // not TLS after all: whoever wants TLS will say so
	}
}

func clearDeadline(c net.Conn) error { return c.SetReadDeadline(time.Time{}) }

// recorder keeps what is read, within a limit, and writes nothing.
type recorder struct {
	netio.Conn
	taken []byte
	again int // bytes of taken that are read a second time
	given int // bytes of those already given
	limit int
	err   error // of the connection, or of the limit
}

func (r *recorder) Read(p []byte) (int, error) {
	if r.given < r.again {
		n := copy(p, r.taken[r.given:r.again])
		r.given += n
		return n, nil
	}
	room := r.limit - len(r.taken)
	if room <= 0 {
		r.err = errHelloLarge
		return 0, r.err
	}
	n, err := r.Conn.Read(p[:min(len(p), room)])
	r.taken = append(r.taken, p[:n]...)
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) Close() error                { return nil }

// replay is a connection whose first bytes were read already.
type replay struct {
	netio.Conn
	prefix []byte // the reader's goroutine only
}

func (c *replay) Read(p []byte) (int, error) {
	if len(c.prefix) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.prefix)
	if c.prefix = c.prefix[n:]; len(c.prefix) == 0 {
		c.prefix = nil
	}
	return n, nil
}

// WaitReadable implements netio.Conn.
func (c *replay) WaitReadable() error {
	if len(c.prefix) > 0 {
		return nil
	}
	return c.Conn.WaitReadable()
}

// Raw gives the kernel socket once the replayed bytes are read: whoever splices
// before would lose them.
func (c *replay) Raw() (syscall.RawConn, bool) {
	if len(c.prefix) > 0 {
		return nil, false
	}
	return c.Conn.Raw()
}
