package nethttp

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

var errOver = errors.New("nethttp: the exchange is over: its body can no longer be read")

// body is a request's body. Whoever forwards it may still be reading when the
// exchange ends; finish waits until it no longer is.
type body struct {
	p  stream.Protocol
	r  *http.Request
	rc *http.ResponseController

	mu     sync.Mutex // held during a Read
	left   int64      // of a known length; -1: unknown. Guarded by mu
	eof    atomic.Bool
	closed atomic.Bool
}

func newBody(p stream.Protocol, r *http.Request, rc *http.ResponseController) *body {
	return &body{p: p, r: r, rc: rc, left: r.ContentLength}
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return 0, errOver
	}
	n, err := b.r.Body.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	if err == io.EOF || b.left == 0 {
		b.eof.Store(true)
	}
	return n, err
}

// Trailers is complete after io.EOF.
func (b *body) Trailers() stream.Header {
	if !b.eof.Load() {
		return nil
	}
	h := Fields(b.r.Trailer)
	h.StripTrailers()
	return h
}

func (b *body) Close() error {
	b.finish()
	return nil
}

// finish ends reading: a Read that blocks fails. It says whether bytes may be
// left on an HTTP/1.1 connection.
func (b *body) finish() (unread bool) {
	b.closed.Store(true)
	if b.p == stream.HTTP2 {
		_ = b.r.Body.Close()
	}
	if !b.mu.TryLock() {
		if b.p == stream.HTTP1 {
			_ = b.rc.SetReadDeadline(past)
		}
		b.mu.Lock()
	}
	b.mu.Unlock()
	return b.p == stream.HTTP1 && !b.eof.Load()
}

// complete says whether the request was read to its end.
func (b *body) complete() bool { return b == nil || b.eof.Load() }
