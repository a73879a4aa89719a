package l7

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// text is a body that is there already.
type text struct{ s string }

func newText(s string) stream.Body {
	if s == "" {
		return nil
	}
	return &text{s}
}

func (t *text) Read(p []byte) (int, error) {
	if t.s == "" {
		return 0, io.EOF
	}
	n := copy(p, t.s)
	t.s = t.s[n:]
	return n, nil
}

func (t *text) Trailers() stream.Header { return nil }
func (t *text) Close() error            { return nil }

// retryAfter is how many seconds a client that is refused for want of memory is
// asked to stay away: about as long as shedding takes to show.
const retryAfter = "2"

// answer makes the response that tells a client of an error of the mesh's own.
// The detail stays out of it: it names what is inside the mesh.
func (e *Engine) answer(a *filter.Abort, grpc bool) *stream.Response {
	info := a.Code.Info()
	status := a.Status
	if status == 0 {
		status = info.Status
	}
	if status == 0 {
		status = 503
	}
	h := stream.Header{e.proxyStatus(a.Code), {Name: "server", Value: e.name}}
	if a.Code == telemetry.Overload {
		h = append(h, stream.Field{Name: "retry-after", Value: retryAfter})
	}
	if grpc {
		h = append(h,
			stream.Field{Name: hContentType, Value: "application/grpc"},
			stream.Field{Name: hGRPCStatus, Value: strconv.Itoa(info.GRPC)},
			stream.Field{Name: hGRPCMessage, Value: grpcMessage(e.name + ": " + info.ID + ": " + info.Sentence)})
		return &stream.Response{Head: stream.ResponseHead{Status: 200, Header: h, ContentLength: -1}}
	}
	body := fmt.Sprintf("%s: %s\n%s\n", e.name, info.ID, info.Sentence)
	h = append(h, stream.Field{Name: hContentType, Value: "text/plain; charset=utf-8"})
	return &stream.Response{
		Head: stream.ResponseHead{Status: status, Header: h, ContentLength: int64(len(body))},
		Body: newText(body),
	}
}

// proxyStatus is the field that says of a response that the mesh made it, and
// why (RFC 9209).
func (e *Engine) proxyStatus(c telemetry.Code) stream.Field {
	info := c.Info()
	token := info.Token
	if token == "" {
		token = "proxy_internal_error"
	}
	return stream.Field{Name: hProxyStatus, Value: proxyName(e.name) + "; error=" + token + `; details="` + info.ID + `"`}
}

// grpcTrailers are the end of a gRPC response that the mesh cut short.
func (e *Engine) grpcTrailers(c telemetry.Code) stream.Header {
	info := c.Info()
	return stream.Header{
		{Name: hGRPCStatus, Value: strconv.Itoa(info.GRPC)},
		{Name: hGRPCMessage, Value: grpcMessage(e.name + ": " + info.ID + ": " + info.Sentence)},
	}
}

// proxyName makes a token or a string of structured fields (RFC 8941) of a name.
func proxyName(s string) string {
	for i := 0; i < len(s); i++ {
		if !unreserved(s[i]) || s[i] == '~' || i == 0 && (s[0] < 'A' || s[0] == '_') {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// grpcMessage percent-encodes a status message
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses).
func grpcMessage(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

// grpcOf maps an HTTP status to gRPC's
// (https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html).
func grpcOf(status int) int {
	switch status {
	case 200:
		return 0
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// Refused answers and records a request that the codec could not read.
func (x *connection) Refused(r stream.Refusal) *stream.Response {
	e := x.e
	a := &filter.Abort{Status: r.Status, Code: refusals[r.Kind], Detail: r.Reason}
	rec := e.record
	x.describe(&rec)
	rec.Start, rec.HTTP, rec.Status = e.d.Now(), r.Protocol.String(), r.Status
	rec.Method, rec.Path, rec.Authority = r.Method, r.Path, r.Authority
	rec.Code, rec.Detail = a.Code, a.Detail
	var resp *stream.Response
	if r.Status != 0 {
		resp = e.answer(a, false)
		rec.Response, rec.BytesOut = resp.Head.Header, resp.Head.ContentLength
	}
	e.rec.Request(&rec)
	return resp
}

// refusals are the codes of what a codec refuses.
var refusals = [...]telemetry.Code{
	0:                 telemetry.DownstreamProtocolError,
	stream.Malformed:  telemetry.DownstreamProtocolError,
	stream.TooLarge:   telemetry.RequestHeaderTooLarge,
	stream.TooSlow:    telemetry.RequestHeaderTimeout,
	stream.Flooded:    telemetry.DownstreamFlood,
	stream.Overloaded: telemetry.Overload,
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
