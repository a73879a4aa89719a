package nethttp

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// smallBody is how long a body of known length may be for its head to wait
// for its first bytes, so that both leave in one write.
const smallBody = 16 << 10

type responder struct {
	p       stream.Protocol
	w       http.ResponseWriter
	rc      *http.ResponseController
	r       *http.Request
	body    *body
	aborted bool
}

func (o *responder) Informational(h *stream.ResponseHead) error {
	if h.Status < 102 || h.Status > 199 || !o.r.ProtoAtLeast(1, 1) {
		return nil // 100 is the codec's own, 101 is Accept
	}
	hdr := o.w.Header()
	set(hdr, h.Header)
	o.w.WriteHeader(h.Status)
	clear(hdr)
	return nil
}

func (o *responder) Head(h *stream.ResponseHead, end bool) error {
	hdr := o.w.Header()
	set(hdr, h.Header)
	if _, ok := hdr["Content-Type"]; !ok {
		hdr["Content-Type"] = nil // net/http must not guess one from the body
	}
	if h.ContentLength >= 0 && hdr["Content-Length"] == nil && h.Status != http.StatusNotModified && h.Status != http.StatusNoContent &&
		!(end && o.r.Method == http.MethodHead && h.ContentLength == 0) {
		hdr["Content-Length"] = []string{strconv.FormatInt(h.ContentLength, 10)}
	}
	if o.p == stream.HTTP1 && !o.body.complete() {
		hdr["Connection"] = []string{"close"}
	}
	o.w.WriteHeader(h.Status)
	if end || h.ContentLength >= 0 && h.ContentLength <= smallBody && o.p == stream.HTTP1 {
		return nil
	}
	return o.rc.Flush()
}

func (o *responder) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, o.rc.Flush()
}

func (o *responder) Finish(trailers stream.Header) error {
	hdr := o.w.Header()
	for _, f := range trailers {
		k := http.TrailerPrefix + http.CanonicalHeaderKey(f.Name)
		hdr[k] = append(hdr[k], f.Value)
	}
	return nil
}

func (o *responder) Abort() { o.aborted = true }

func (o *responder) Interrupt() { _ = o.rc.SetWriteDeadline(past) }

// set writes fields into a header map. What only the codec may say is left out.
func set(hdr http.Header, fields stream.Header) {
	for _, f := range fields {
		if stream.ConnectionSpecific(f.Name) || f.Name == "" || f.Name[0] == ':' {
			continue
		}
		k := http.CanonicalHeaderKey(f.Name)
		if k == "Content-Length" && hdr[k] != nil {
			continue
		}
		if k == "Trailer" {
			// Declared trailers would have to be sent under their own keys; they
			// travel undeclared, which receivers must bear with.
			continue
		}
		hdr[k] = append(hdr[k], f.Value)
	}
}

func (o *responder) Accept(h *stream.ResponseHead) (stream.Tunnel, error) {
	if o.p == stream.HTTP2 {
		set(o.w.Header(), h.Header)
		o.w.WriteHeader(http.StatusOK) // RFC 8441, section 5
		return &h2Tunnel{o}, o.rc.Flush()
	}
	conn, rw, err := o.rc.Hijack()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	for _, f := range h.Header {
		if !stream.ConnectionSpecific(f.Name) && f.Name != "content-length" {
			b.WriteString(http.CanonicalHeaderKey(f.Name) + ": " + f.Value + "\r\n")
		}
	}
	up := h.Header.Get("upgrade")
	if up == "" {
		up = o.r.Header.Get("Upgrade")
	}
	b.WriteString("Connection: Upgrade\r\nUpgrade: " + up + "\r\n\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &h1Tunnel{conn: conn, buf: rw.Reader}, nil
}

// h1Tunnel is a hijacked connection; buf holds what came together with the
// head.
type h1Tunnel struct {
	conn net.Conn
	buf  *bufio.Reader
}

func (t *h1Tunnel) Read(p []byte) (int, error) {
	if t.buf.Buffered() > 0 {
		return t.buf.Read(p)
	}
	return t.conn.Read(p)
}

func (t *h1Tunnel) Write(p []byte) (int, error) { return t.conn.Write(p) }

func (t *h1Tunnel) CloseWrite() error {
	if c, ok := t.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (t *h1Tunnel) Close() error { return t.conn.Close() }

// h2Tunnel is an accepted extended CONNECT.
type h2Tunnel struct{ o *responder }

func (t *h2Tunnel) Read(p []byte) (int, error)  { return t.o.r.Body.Read(p) }
func (t *h2Tunnel) Write(p []byte) (int, error) { return t.o.Write(p) }

// CloseWrite cannot end one direction alone before the handler returns; the
// engine closes the tunnel when both directions are done.
func (t *h2Tunnel) CloseWrite() error { return nil }

func (t *h2Tunnel) Close() error { return t.o.r.Body.Close() }
