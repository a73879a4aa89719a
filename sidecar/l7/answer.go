package l7

import (
	"context"
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
	token := info.Token
	if token == "" {
		token = "proxy_internal_error"
	}
	h := stream.Header{
		{Name: hProxyStatus, Value: proxyName(e.name) + "; error=" + token + `; details="` + info.ID + `"`},
		{Name: "server", Value: e.name},
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
func (x *connection) Refused(_ context.Context, p stream.Protocol, status int, reason string) *stream.Response {
	e := x.e
	a := &filter.Abort{Status: status, Code: telemetry.DownstreamProtocolError, Detail: reason}
	resp := e.answer(a, false)
	now := e.d.Now()
	rec := telemetry.Record{
		Start: now, Protocol: "http", HTTP: p.String(), Status: status, GRPCStatus: -1,
		Code: a.Code, Detail: a.Detail, Response: resp.Head.Header, BytesOut: resp.Head.ContentLength,
	}
	x.describe(&rec)
	e.rec.Request(&rec)
	return resp
}
