package stream

import (
	"context"
	"strings"
)

// Field is one header field. Name is lower case.
type Field struct{ Name, Value string }

// Header is an ordered list of fields. The zero value is empty and usable.
type Header []Field

// Protocol is the version that a side speaks.
type Protocol uint8

const (
	HTTP1 Protocol = iota + 1
	HTTP2
)

func (p Protocol) String() string {
	switch p {
	case HTTP1:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return "-"
}

// RequestHead is a request's head. Its strings may be borrowed from the codec's
// buffer: they are valid until the exchange is over; clone what is kept longer. Path is the request target as received, with
// query, origin form; Upgrade is the protocol asked for ("websocket") by
// HTTP/1.1 Upgrade or by HTTP/2 extended CONNECT, else "".
type RequestHead struct {
	Method        string
	Scheme        string
	Authority     string
	Path          string
	Upgrade       string
	Header        Header
	ContentLength int64 // -1: unknown
	Protocol      Protocol
}

// ResponseHead is a response's head. Its strings may be borrowed: they are valid
// until the response's body is closed.
type ResponseHead struct {
	Status        int
	Header        Header
	ContentLength int64 // -1: unknown
	Protocol      Protocol
}

// Body is a stream of bytes with trailers at its end. A nil Body is empty.
type Body interface {
	// Read is io.Reader's. It blocks for as long as the peer sends nothing:
	// back-pressure is not reading.
	Read(p []byte) (int, error)
	// Trailers are complete once Read has returned io.EOF.
	Trailers() Header
	// Close says that nothing more will be read; the engine resets the stream
	// where bytes are left. Idempotent.
	Close() error
}

// Request is one request on its way.
type Request struct {
	Head RequestHead
	Body Body // nil: none; always so where Head.Upgrade is set
	// Informational, where set, is called with each 1xx head but 101 that comes
	// before the response, on the goroutine that waits for it.
	Informational func(h *ResponseHead)
}

// Response is one response on its way back. For an accepted upgrade Tunnel is
// set, Body is nil, and both ends are then opaque bytes.
type Response struct {
	Head   ResponseHead
	Body   Body
	Tunnel Tunnel
}

// End closes what the response still holds, body or tunnel. Nothing of the
// response, its head's strings included, may be used afterwards; nil does
// nothing.
func (r *Response) End() {
	switch {
	case r == nil:
	case r.Tunnel != nil:
		_ = r.Tunnel.Close()
	case r.Body != nil:
		_ = r.Body.Close()
	}
}

// Tunnel is an upgraded stream: bytes both ways.
type Tunnel interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
	CloseWrite() error
	Close() error
}

// Upstream sends requests: a cluster, or one endpoint's pool.
type Upstream interface {
	// Do sends one request and returns when the response's head is there. ctx
	// ends the whole exchange, its body included.
	Do(ctx context.Context, req *Request) (*Response, error)
}

// Get returns the first value of the field, "" if there is none. name must be
// lower case.
func (h Header) Get(name string) string {
	v, _ := h.Lookup(name)
	return v
}

// Lookup returns the first value of the field and whether there is one.
func (h Header) Lookup(name string) (string, bool) {
	for i := range h {
		if h[i].Name == name {
			return h[i].Value, true
		}
	}
	return "", false
}

// Add appends a field.
func (h *Header) Add(name, value string) { *h = append(*h, Field{name, value}) }

// Set replaces every field of that name by one.
func (h *Header) Set(name, value string) {
	h.Del(name)
	h.Add(name, value)
}

// Del removes every field of that name.
func (h *Header) Del(name string) {
	out := (*h)[:0]
	for _, f := range *h {
		if f.Name != name {
			out = append(out, f)
		}
	}
	*h = out
}

// Clone returns a copy that shares nothing: it may be kept where the strings of
// h are borrowed.
func (h Header) Clone() Header {
	if h == nil {
		return nil
	}
	out := make(Header, len(h))
	for i, f := range h {
		out[i] = Field{strings.Clone(f.Name), strings.Clone(f.Value)}
	}
	return out
}
