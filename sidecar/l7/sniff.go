package l7

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// codec says which version of HTTP the connection speaks: as configured, by
// ALPN, or by whether its first bytes are HTTP/2's preface (RFC 9113, section
// 3.3: prior knowledge). The connection that it returns has every byte.
func (e *Engine) codec(ctx context.Context, c *listener.Conn, draining <-chan struct{}, idle time.Duration) (netio.Conn, bool, error) {
	switch {
	case e.c.Manager.Codec == resource.CodecHTTP1 || e.c.Manager.Codec == resource.CodecAuto && c.ALPN == "http/1.1":
		return c, false, nil
	case e.c.Manager.Codec == resource.CodecHTTP2 || c.ALPN == "h2":
		return c, true, nil
	}
	// No request is in hand yet: ending or draining ends the wait.
	waiting, done := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-draining:
		case <-waiting.Done():
			if ctx.Err() == nil {
				return
			}
		}
		_ = c.SetReadDeadline(time.Unix(1, 0))
	})
	first, err := readFirst(c, idle, or(e.c.Manager.RequestHeadersTimeout, DefaultHeaderTimeout))
	done()
	watch.Wait()
	if err != nil {
		return nil, false, err
	}
	_ = c.SetReadDeadline(time.Time{})
	return &replayed{Conn: c, first: first}, len(first) >= sniffed && strings.HasPrefix(h2.Preface, string(first)), nil
}

// sniffed is how many bytes tell HTTP/2 from HTTP/1: no method of HTTP/1 is
// called PRI (RFC 9113, section 11.6).
const sniffed = len("PRI ")

func readFirst(c netio.Conn, idle, head time.Duration) ([]byte, error) {
	buf := make([]byte, len(h2.Preface))
	_ = c.SetReadDeadline(time.Now().Add(idle))
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		n += m
		if n >= sniffed || n > 0 && !strings.HasPrefix(h2.Preface, string(buf[:n])) {
			return buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
		if n == m { // the first bytes
			_ = c.SetReadDeadline(time.Now().Add(head))
		}
	}
}

// replayed gives the first bytes once more.
type replayed struct {
	netio.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		if r.first = r.first[n:]; len(r.first) == 0 {
			r.first = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}
