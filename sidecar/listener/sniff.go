package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
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
	b, n, err := netio.ReadBuf(raw)
	if cerr := clearDeadline(raw); err == nil {
		err = cerr
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, raw, nil
	default:
		if b != nil {
			netio.PutBuf(b)
		}
		return nil, raw, err
	}
	if b[0] != recordHandshake {
		return nil, netio.Replay(raw, netio.Pending{Buf: b, N: n}), nil
	}
	r := &recorder{Conn: raw, limit: l.Hello, taken: b[:n]}
	h, err := readHello(raw, r, l)
	if err != nil {
		netio.PutBuf(b)
		return nil, raw, err
	}
	return h, r.replay(b), nil
}

// readHello lets crypto/tls read the ClientHello: it reassembles records and
// parses with the same code that will later judge it. Nothing is answered.
func readHello(raw netio.Conn, r *recorder, l Limits) (*hello, error) {
	if err := raw.SetReadDeadline(time.Now().Add(l.Sniff)); err != nil {
		return nil, err
	}
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
	taken []byte // in a pooled buffer as long as it fits
	given int    // bytes of it that were given
	limit int
	err   error // of the connection, or of the limit
}

func (r *recorder) Read(p []byte) (int, error) {
	room := r.limit - r.given
	if room <= 0 {
		r.err = errHelloLarge
		return 0, r.err
	}
	if r.given < len(r.taken) {
		n := copy(p[:min(len(p), room)], r.taken[r.given:])
		r.given += n
		return n, nil
	}
	n, err := r.Conn.Read(p[:min(len(p), room)])
	r.taken = append(r.taken, p[:n]...)
	r.given += n
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) Close() error                { return nil }

// replay gives a connection that starts with what was read. b is where reading
// began.
func (r *recorder) replay(b *netio.Buf) netio.Conn {
	if len(r.taken) <= len(b) { // then it never left b
		return netio.Replay(r.Conn, netio.Pending{Buf: b, N: len(r.taken)})
	}
	c, rest := r.Conn, r.taken
	for len(rest) > 0 { // from the end
		at := (len(rest) - 1) / len(b) * len(b)
		if at > 0 {
			next := netio.GetBuf()
			c = netio.Replay(c, netio.Pending{Buf: next, N: copy(next[:], rest[at:])})
		} else {
			c = netio.Replay(c, netio.Pending{Buf: b, N: copy(b[:], rest)})
		}
		rest = rest[:at]
	}
	return c
}
