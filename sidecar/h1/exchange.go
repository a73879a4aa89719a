package h1

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Errors of the server's side.
var (
	errClosed      = errors.New("h1: the body was closed")
	errOver        = errors.New("h1: the response is complete, or was given up")
	errInterrupted = errors.New("h1: the response was interrupted")
	errNoHead      = errors.New("h1: a body without a head")
	errTwoHeads    = errors.New("h1: a second final head")
	errStatus      = errors.New("h1: not the status of a final response")
	errLength      = errors.New("h1: the body is not as long as its Content-Length says")
	errNoUpgrade   = errors.New("h1: the request asked for no upgrade")
)

// how far a response has come.
type progress uint8

const (
	noHead progress = iota
	inBody
	finished
	aborted
	switched // to a tunnel
)

// exchange is one request and its response, on the server's side. It is pooled:
// the connection has one from a request's first byte to its end.
type exchange struct {
	sc   *ServerConn
	req  stream.Request
	m    message
	body body
	out  output
	room stream.Header // the head's fields

	progress progress
	keep     bool // the connection goes on after it
	inChunks bool
	toEnd    bool  // the body ends with the connection
	bodiless bool  // of the response
	left     int64 // of the response's Content-Length; -1: none

	interrupted atomic.Bool

	expecting atomic.Bool // the client waits for 100 (Continue)
	// cont orders 100 (Continue), which whoever reads the body writes, before the
	// final head. It is held for that write alone, and only in such exchanges.
	cont sync.Mutex
}

var exchanges = sync.Pool{New: func() any {
	x := &exchange{room: make(stream.Header, 0, 32)}
	x.body.owner = x
	return x
}}

var _ stream.Responder = (*exchange)(nil)

const continueHead = "HTTP/1.1 100 Continue\r\n\r\n"

// awaited implements bodyOwner: 100 (Continue) is due when somebody wants the
// body and nothing of it is here (RFC 9110, section 10.1.1).
func (x *exchange) awaited() error {
	if !x.expecting.Load() {
		return nil
	}
	x.cont.Lock()
	defer x.cont.Unlock()
	if !x.expecting.Swap(false) {
		return nil
	}
	_, err := io.WriteString(x.sc.c, continueHead)
	return err
}

// broken implements bodyOwner. A body that cannot be read to its end is the
// client's end.
func (x *exchange) broken(err error) error {
	var f *fault
	switch {
	case err == errClosed:
		return err
	case errors.As(err, &f):
		return &stream.Failure{Kind: stream.FailedProtocol, Detail: "h1: the request's body: " + f.reason}
	}
	if cause := x.sc.life.Load().Cause(); cause != nil {
		return &stream.Failure{Kind: stream.FailedCancelled, Detail: "h1: the request's body", Err: cause}
	}
	fail := &stream.Failure{Kind: stream.FailedReset, Detail: "h1: the request's body", Err: err}
	x.sc.life.Load().Cancel(fail)
	return fail
}

func (x *exchange) wake() { x.sc.wake() }

// Informational implements [stream.Responder]. HTTP/1.0 knows none.
func (x *exchange) Informational(h *stream.ResponseHead) error {
	if h.Status < 102 || h.Status > 199 || x.m.minor == 0 || x.progress != noHead {
		return nil // 100 is the codec's own, 101 is Accept
	}
	x.out.hold()
	x.out.b = statusLine(x.out.b, h.Status)
	if err := x.fields(h.Header); err != nil {
		return err
	}
	x.out.b = append(x.out.b, "\r\n"...)
	return x.flush()
}

// fields writes those of a head, without any length.
func (x *exchange) fields(h stream.Header) error {
	b, ok := x.out.b, true
	for i := range h {
		f := &h[i]
		if !forwardable(f.Name) || f.Name == "content-length" {
			continue
		}
		if b, ok = appendField(b, f.Name, f.Value); !ok {
			x.out.b = x.out.b[:0]
			return errField
		}
	}
	x.out.b = b
	return nil
}

// Head implements [stream.Responder].
func (x *exchange) Head(h *stream.ResponseHead, end bool) error {
	switch {
	case x.progress != noHead:
		return errTwoHeads
	case h.Status < 200 || h.Status > 999:
		return errStatus
	}
	x.settle()
	x.out.hold()
	x.out.b = statusLine(x.out.b, h.Status)
	if err := x.fields(h.Header); err != nil {
		return err
	}
	x.progress = inBody
	x.bodiless = bodiless(x.req.Head.Method, h.Status)
	x.left, x.inChunks, x.toEnd = -1, false, false
	x.length(h, end)
	switch {
	case !x.keep:
		x.out.b = append(x.out.b, "connection: close\r\n"...)
	case x.m.minor == 0:
		x.out.b = append(x.out.b, "connection: keep-alive\r\n"...)
	}
	x.out.b = append(x.out.b, "\r\n"...)
	if end {
		return x.Finish(nil)
	}
	return nil
}

// settle decides, before the head is written, whether the connection goes on:
// not where the client would have to be waited for to learn where its request
// ends.
func (x *exchange) settle() {
	sc := x.sc
	if x.m.expect {
		x.cont.Lock() // no 100 (Continue) from here on
		if x.expecting.Swap(false) && !x.body.complete() {
			x.keep = false
		}
		x.cont.Unlock()
	}
	if sc.drained.Load() || sc.ended.Load() {
		x.keep = false
	}
	if x.keep && x.req.Body != nil {
		// Another goroutine may be reading the body: only what does not change
		// counts.
		if b := &x.body; !b.complete() && (b.framing != counted || x.req.Head.ContentLength > maxDrained) {
			x.keep = false
		}
	}
}

// length writes how long the body is, or chooses how it ends.
func (x *exchange) length(h *stream.ResponseHead, end bool) {
	switch {
	case h.Status == 204:
	case x.bodiless: // the length that a GET would have, where it is known
		if v, ok := h.Header.Lookup("content-length"); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil && n >= 0 {
				x.out.b = appendLength(x.out.b, n)
			}
		} else if h.ContentLength > 0 && h.Status != 304 {
			x.out.b = appendLength(x.out.b, h.ContentLength)
		}
	case h.ContentLength >= 0:
		x.left = h.ContentLength
		x.out.b = appendLength(x.out.b, x.left)
	case end:
		x.left = 0
		x.out.b = appendLength(x.out.b, 0)
	case x.m.minor == 0:
		x.toEnd, x.keep = true, false
	default:
		x.inChunks = true
		x.out.b = append(x.out.b, "transfer-encoding: chunked\r\n"...)
	}
}

// Write implements [stream.Responder].
func (x *exchange) Write(p []byte) (int, error) {
	switch {
	case x.progress == noHead:
		return 0, errNoHead
	case x.progress != inBody:
		return 0, errOver
	case x.interrupted.Load():
		return 0, errInterrupted
	case x.bodiless || len(p) == 0:
		return len(p), nil
	}
	if x.left >= 0 {
		if int64(len(p)) > x.left {
			x.Abort()
			return 0, errLength
		}
		x.left -= int64(len(p))
	}
	if err := x.out.part(p, x.inChunks); err != nil {
		x.Abort()
		return 0, x.explain(err)
	}
	return len(p), nil
}

func (x *exchange) explain(err error) error {
	if x.interrupted.Load() {
		return errInterrupted
	}
	return err
}

// Flush implements [stream.Responder].
func (x *exchange) Flush() error {
	if x.progress == aborted {
		return errOver
	}
	return x.flush()
}

func (x *exchange) flush() error {
	if x.interrupted.Load() {
		return errInterrupted
	}
	if err := x.out.flush(); err != nil {
		return x.explain(err)
	}
	return nil
}

// flushLast is flush at the end of a response: where the connection goes on, the
// next thing is to wait for a request.
func (x *exchange) flushLast() error {
	if !x.keep || x.interrupted.Load() {
		return x.flush()
	}
	if err := x.out.flushSoon(); err != nil {
		return x.explain(err)
	}
	return nil
}

// Finish implements [stream.Responder].
func (x *exchange) Finish(trailers stream.Header) error {
	switch {
	case x.progress == finished:
		return nil
	case x.progress == noHead:
		return errNoHead
	case x.progress != inBody:
		return errOver
	case x.left > 0:
		_ = x.flush() // what there is of it
		x.Abort()
		return errLength
	}
	if x.inChunks {
		if err := x.out.lastChunk(trailers); err != nil {
			x.Abort()
			return x.explain(err)
		}
	}
	x.progress = finished
	if err := x.flushLast(); err != nil {
		x.progress = aborted
		return err
	}
	return nil
}

// Abort implements [stream.Responder].
func (x *exchange) Abort() {
	if x.progress != finished && x.progress != switched {
		x.progress = aborted
	}
	x.keep = false
}

// Interrupt implements [stream.Responder]. The connection does not outlive it.
func (x *exchange) Interrupt() {
	x.interrupted.Store(true)
	_ = x.sc.c.SetWriteDeadline(past)
}

// Accept implements [stream.Responder] (RFC 9110, section 7.8).
func (x *exchange) Accept(h *stream.ResponseHead) (stream.Tunnel, error) {
	switch {
	case x.progress != noHead:
		return nil, errTwoHeads
	case x.req.Head.Upgrade == "":
		return nil, errNoUpgrade
	}
	x.keep = false
	x.out.hold()
	x.out.b = statusLine(x.out.b, 101)
	if err := x.fields(h.Header); err != nil {
		return nil, err
	}
	x.out.b = append(x.out.b, "connection: upgrade\r\n"...)
	var ok bool
	if x.out.b, ok = appendField(x.out.b, "upgrade", x.req.Head.Upgrade); !ok {
		return nil, errField
	}
	x.out.b = append(x.out.b, "\r\n"...)
	x.progress = switched
	if err := x.flush(); err != nil {
		x.progress = aborted
		return nil, err
	}
	x.out.release()
	return &tunnel{c: x.sc.c, in: &x.sc.in}, nil
}
