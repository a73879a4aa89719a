package h1

import (
	"errors"
	"net/http"
	"strconv"
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// errField: a head that is to be written has a name or a value that would be
// read as something else on the wire.
var errField = errors.New("h1: a field has characters that HTTP/1.1 cannot carry: it would be read as something else")

// output is the writing side of a connection: what is held back until it is
// flushed, in a pooled buffer.
type output struct {
	c    netio.Conn
	buf  *netio.Buf
	b    []byte // held back; nil: no buffer
	sent bool   // something may have been written since it was last reset
	err  error  // sticky
}

func (o *output) hold() {
	if o.buf == nil {
		o.buf = netio.GetBuf()
		o.b = o.buf[:0]
	}
}

// room is how much more can be held back.
func (o *output) room() int { return netio.BufSize - len(o.b) }

// flush writes what is held back.
func (o *output) flush() error {
	if o.err != nil {
		return o.err
	}
	if len(o.b) == 0 {
		return nil
	}
	n, err := o.c.Write(o.b)
	return o.wrote(n, err)
}

// flushSoon is flush for the end of a message whose answer is waited for next.
func (o *output) flushSoon() error {
	if o.err != nil {
		return o.err
	}
	if len(o.b) == 0 {
		return nil
	}
	n, err := netio.WriteSoon(o.c, o.b)
	return o.wrote(n, err)
}

func (o *output) wrote(n int, err error) error {
	o.sent = o.sent || n > 0
	o.b, o.err = o.b[:0], err
	return err
}

// write sends what is held back, p, and end after it, in one system call.
func (o *output) write(p []byte, end string) error {
	if o.err != nil {
		return o.err
	}
	var n int64
	var err error
	if len(o.b) == 0 && end == "" {
		var m int
		m, err = o.c.Write(p)
		n = int64(m)
	} else {
		n, err = netio.WriteBuffers(o.c, o.b, p, octets(end))
	}
	o.sent = o.sent || n > 0
	o.b, o.err = o.b[:0], err
	return err
}

// release gives the buffer back.
func (o *output) release() {
	if o.buf != nil {
		netio.PutBuf(o.buf)
	}
	o.buf, o.b = nil, nil
}

// part adds a part of a body, held back where it fits.
func (o *output) part(p []byte, inChunks bool) error {
	o.hold()
	if !inChunks {
		if len(p) <= o.room() {
			o.b = append(o.b, p...)
			return o.err
		}
		return o.write(p, "")
	}
	const around = 16 + 2 + 2 // size, and a CRLF after it and after the data
	if around > o.room() {
		if err := o.flush(); err != nil {
			return err
		}
	}
	o.b = strconv.AppendUint(o.b, uint64(len(p)), 16)
	o.b = append(o.b, "\r\n"...)
	if len(p)+2 <= o.room() {
		o.b = append(o.b, p...)
		o.b = append(o.b, "\r\n"...)
		return o.err
	}
	return o.write(p, "\r\n")
}

// lastChunk ends a chunked body.
func (o *output) lastChunk(trailers stream.Header) error {
	o.hold()
	o.b = append(o.b, "0\r\n"...)
	for i := range trailers {
		f := &trailers[i]
		if !forwardable(f.Name) || f.Name == "content-length" {
			continue
		}
		var ok bool
		if o.b, ok = appendField(o.b, f.Name, f.Value); !ok {
			o.err = errField
			return o.err
		}
	}
	o.b = append(o.b, "\r\n"...)
	return o.err
}

// forwardable says whether a field of the border's form is one to be written as
// it is. name may be anything that a filter made.
func forwardable(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "http2-settings", "host", "":
		return false
	}
	return name[0] != ':'
}

// appendField writes one field; ok is false where it cannot be written.
func appendField(b []byte, name, value string) (_ []byte, ok bool) {
	for i := 0; i < len(name); i++ {
		if lower[name[i]] == 0 {
			return b, false
		}
	}
	if valueEnd(octets(value), 0) != len(value) {
		return b, false
	}
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...), true
}

// octets lends a string's bytes, to be read only.
func octets(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// oneWord says that s has neither control characters nor spaces.
func oneWord(s string) bool { return targetEnd(octets(s), 0) == len(s) }

func appendLength(b []byte, n int64) []byte {
	b = append(b, "content-length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

// statusLine begins a response.
func statusLine(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	case 204:
		return append(b, "HTTP/1.1 204 No Content\r\n"...)
	case 304:
		return append(b, "HTTP/1.1 304 Not Modified\r\n"...)
	case 404:
		return append(b, "HTTP/1.1 404 Not Found\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// bodiless says whether a response to the method never has a body (RFC 9112,
// section 6.3).
func bodiless(method string, status int) bool {
	return status < 200 || status == 204 || status == 304 || method == "HEAD"
}
