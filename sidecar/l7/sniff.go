package l7

import (
	"bytes"
	"context"
	"errors"
	"os"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// version is what a connection speaks.
type version uint8

const (
	unknownVersion version = iota // nothing that could be read came
	speaksHTTP1
	speaksHTTP2
	saysNothing // nothing came so far
	slowHead    // some bytes came, and then no more
)

// told is the version as far as configuration or ALPN say it.
func (e *Engine) told(c *listener.Conn) version {
	switch {
	case e.c.Manager.Codec == resource.CodecHTTP1 || e.c.Manager.Codec == resource.CodecAuto && c.ALPN == "http/1.1":
		return speaksHTTP1
	case e.c.Manager.Codec == resource.CodecHTTP2 || c.ALPN == "h2":
		return speaksHTTP2
	}
	return unknownVersion
}

// sniffed is how many bytes tell HTTP/2 from HTTP/1: no method of HTTP/1 is
// called PRI (RFC 9113, section 11.6).
const sniffed = len("PRI ")

// past is a deadline that has passed in any clock.
var past = time.Unix(1, 0)

// sniff tells the version by the first bytes, which are HTTP/2's preface or not
// (RFC 9113, section 3.3: prior knowledge), and gives what it read. It waits for
// the first byte as long as wait says, and holds no buffer until it came; it is
// saysNothing where none did. Where not either is spoken it is HTTP/1.1.
func (e *Engine) sniff(ctx context.Context, c *listener.Conn, wait time.Duration, either bool) (first netio.Pending, v version) {
	// Ending ends the wait at once. Who connected just before a drain is about to
	// ask, and may not ask again where a connection that it never used fails: it is
	// given a moment, and its request is then the last.
	_ = c.SetReadDeadline(time.Now().Add(wait))
	stop, live := stream.OnCancel(ctx, (*ender)(c))
	defer stop.Stop()
	if !live {
		return first, unknownVersion
	}
	if c.Draining != nil {
		if !c.Draining.Attach((*drainer)(c)) {
			_ = c.SetReadDeadline(time.Now().Add(min(wait, drainGrace)))
		}
		defer c.Draining.Detach((*drainer)(c))
	}
	over := func() bool { return ctx.Err() != nil || c.Draining != nil && c.Draining.Cause() != nil }
	var err error
	if first.Buf, first.N, err = netio.ReadBuf(c.Conn); first.N == 0 {
		if isTimeout(err) && !over() {
			_ = c.SetReadDeadline(time.Time{})
			return first, saysNothing
		}
		return first, unknownVersion
	}
	if !either {
		_ = c.SetReadDeadline(time.Time{})
		return first, speaksHTTP1
	}
	_ = c.SetReadDeadline(time.Now().Add(e.headerTimeout))
	for first.N < sniffed && bytes.HasPrefix([]byte(h2.Preface), first.Bytes()) {
		n, err := c.Read(first.Buf[first.N:])
		first.N += n
		if n == 0 && err != nil {
			first.Release()
			if isTimeout(err) && !over() {
				return first, slowHead
			}
			return first, unknownVersion
		}
	}
	_ = c.SetReadDeadline(time.Time{})
	if first.N >= sniffed && string(first.Buf[:sniffed]) == h2.Preface[:sniffed] {
		return first, speaksHTTP2
	}
	return first, speaksHTTP1
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// ender ends a read of the connection.
type ender listener.Conn

func (e *ender) Cancelled(error) { _ = (*listener.Conn)(e).SetReadDeadline(past) }

// drainGrace is how long a drained connection may take to send its first bytes.
const drainGrace = time.Second

// drainer bounds the wait for a connection's first bytes.
type drainer listener.Conn

func (d *drainer) Cancelled(error) {
	_ = (*listener.Conn)(d).SetReadDeadline(time.Now().Add(drainGrace))
}
