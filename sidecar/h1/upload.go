package h1

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// maxAtOnce is how much of a body the caller of Do sends itself: what the
// kernel takes without waiting for the server.
const maxAtOnce = 32 << 10

// Why a request cannot be sent.
var (
	errHead    = errors.New("h1: the request's head cannot be sent as HTTP/1.1: method, target or host")
	errTooLong = errors.New("h1: the request's body is longer than its Content-Length")
	errShort   = errors.New("h1: the request's body is shorter than its Content-Length")
)

// upload is the sending of one request.
type upload struct {
	inChunks bool
	left     int64 // of Content-Length; -1: none
	complete bool  // all is written; the sender's until done is closed
	err      error // why the body could not be read; set before failed
	failed   atomic.Bool
	done     chan struct{} // closed by the sender; nil: there is none
}

func (u *upload) reset() {
	u.inChunks, u.left, u.complete, u.err, u.done = false, 0, false, nil, nil
	u.failed.Store(false)
}

// sent says that a byte of the request may have reached the server.
func (x *call) sent() bool {
	if x.up.done != nil {
		return true // the head was written, or tried to be, before the sender began
	}
	return x.out.sent && !netio.Unsent(x.c.c)
}

// head writes the request's head into the buffer.
func (x *call) head() error {
	h := &x.req.Head
	if !sendable(h) {
		return x.refuse(errHead)
	}
	x.out.hold()
	b := append(x.out.b, h.Method...)
	b = append(b, ' ')
	b = append(b, h.Path...)
	b = append(b, " HTTP/1.1\r\nhost: "...)
	b = append(b, h.Authority...)
	b = append(b, "\r\n"...)
	te, length, announced, ok := false, false, false, true
	for i := range h.Header {
		f := &h.Header[i]
		switch f.Name {
		case "te":
			te = true
			continue
		case "content-length":
			length = true
			continue
		case "expect": // each hop's own: our server asks for the body when it is wanted
			continue
		case "trailer":
			announced = true
		}
		if !forwardable(f.Name) {
			continue
		}
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			return x.refuse(errField)
		}
	}
	u := &x.up
	u.left = -1
	switch {
	case x.req.Body == nil || h.ContentLength == 0 && !announced:
		u.left = 0
		if length || h.Method == "POST" || h.Method == "PUT" || h.Method == "PATCH" {
			b = appendLength(b, 0)
		}
	case h.ContentLength > 0:
		u.left = h.ContentLength
		b = appendLength(b, u.left)
	default: // also where trailers alone are announced
		u.inChunks = true
		b = append(b, "transfer-encoding: chunked\r\n"...)
	}
	switch {
	case h.Upgrade != "":
		b = append(b, "connection: upgrade\r\n"...)
		if b, ok = appendField(b, "upgrade", h.Upgrade); !ok {
			return x.refuse(errField)
		}
	case te: // RFC 9110, section 10.1.4
		b = append(b, "te: trailers\r\nconnection: te\r\n"...)
	}
	x.out.b = append(b, "\r\n"...)
	return nil
}

// sendable says whether the parts of a request line, and Host, are one word each.
func sendable(h *stream.RequestHead) bool {
	if h.Method == "" || h.Method == "CONNECT" || h.Path == "" || h.Path[0] != '/' && (h.Path != "*" || h.Method != "OPTIONS") {
		return false
	}
	for i := 0; i < len(h.Method); i++ {
		if lower[h.Method[i]] == 0 {
			return false
		}
	}
	return oneWord(h.Path) && oneWord(h.Authority)
}

// refuse ends the sending for the request's own fault.
func (x *call) refuse(err error) error {
	x.up.err = err
	x.up.failed.Store(true)
	return errRequest
}

// send sends the head and what is ready of the body, and leaves the rest to a
// goroutine. A failed write is not its error: the server may have answered.
func (x *call) send() error {
	body := x.req.Body
	if x.up.left == 0 || body == nil {
		x.up.complete = x.out.flushSoon() == nil
		x.out.release()
		return nil
	}
	c, lends := body.(stream.Chunks)
	for left := maxAtOnce; lends && left > 0 && c.Ready(); {
		p, err := c.Next()
		left -= len(p)
		if done, err := x.part(body, p, err); err != nil {
			return err
		} else if done {
			x.out.release()
			return nil
		}
	}
	if x.out.flush() != nil {
		return nil
	}
	x.up.done = make(chan struct{})
	go x.rest(body, c)
	return nil
}

// part writes what was read of the body. done: nothing more is to be sent. The
// error is the body's own.
func (x *call) part(body stream.Body, p []byte, rerr error) (done bool, err error) {
	u := &x.up
	if u.left >= 0 {
		if int64(len(p)) > u.left {
			return true, x.refuse(errTooLong)
		}
		u.left -= int64(len(p))
	}
	if len(p) > 0 && x.out.part(p, u.inChunks) != nil {
		return true, nil
	}
	switch {
	case rerr == io.EOF && u.left > 0:
		return true, x.refuse(errShort)
	case rerr == io.EOF:
		if u.inChunks {
			if err := x.out.lastChunk(body.Trailers()); err == errField {
				return true, x.refuse(err)
			}
		}
		u.complete = x.out.flushSoon() == nil
		return true, nil
	case rerr != nil:
		return true, x.refuse(rerr)
	}
	return false, nil
}

// rest is the sender's goroutine.
func (x *call) rest(body stream.Body, c stream.Chunks) {
	defer close(x.up.done)
	var buf *netio.Buf
	if c == nil {
		buf = netio.GetBuf()
		defer netio.PutBuf(buf)
	}
	for {
		if c == nil || !c.Ready() {
			if x.out.flush() != nil {
				return
			}
		}
		var p []byte
		var err error
		if c != nil {
			p, err = c.Next()
		} else {
			var n int
			n, err = body.Read(buf[:])
			p = buf[:n]
		}
		done, err := x.part(body, p, err)
		if err != nil {
			x.wake() // nobody will answer half a request
			return
		}
		if done {
			return
		}
	}
}

// stopUpload ends the sender and waits for it.
func (x *call) stopUpload() {
	done := x.up.done
	if done == nil {
		return
	}
	select {
	case <-done:
		return
	default:
	}
	_ = x.c.c.SetWriteDeadline(past)
	_ = x.req.Body.Close()
	<-done
	x.c.mu.Lock()
	if !x.c.cancelled && x.up.complete { // it was just done
		_ = x.c.c.SetWriteDeadline(time.Time{})
	}
	x.c.mu.Unlock()
}
