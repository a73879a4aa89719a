package h1

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

const (
	smallHead = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
	usualHead = "GET /api/v1/orders/1234567?expand=items&page=2 HTTP/1.1\r\n" +
		"Host: orders.default.svc\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36\r\n" +
		"Accept: application/json, text/plain, */*\r\n" +
		"Accept-Encoding: gzip, deflate, br\r\n" +
		"Accept-Language: en-GB,en;q=0.9\r\n" +
		"Cache-Control: no-cache\r\n" +
		"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n" +
		"Connection: keep-alive\r\n" +
		"X-Request-Id: daa66d2c-7ddf-443f-b8dd-e6e5fd29f054\r\n" +
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
	usualResponse = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 23:00:00 GMT\r\nContent-Type: text/html\r\n" +
		"Content-Length: 13\r\nLast-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\nETag: \"65a-1\"\r\nAccept-Ranges: bytes\r\n\r\nHello, world!"
)

func BenchmarkScan(b *testing.B) {
	for name, text := range map[string]string{"small": smallHead, "usual": usualHead, "response": usualResponse} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, len(text))
			var m message
			var h stream.RequestHead
			room := make(stream.Header, 0, 32)
			k := aRequest
			if name == "response" {
				k = aResponse
			}
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, text)
				m.begin(k, 128, room)
				if done, f := m.scan(buf); !done || f != nil {
					b.Fatal(f)
				}
				if k == aRequest && m.request(&h) != nil {
					b.Fatal("request")
				}
			}
		})
	}
}

// script is a connection whose peer says the same text again and again, and
// drops what it hears.
type script struct {
	text  string
	times int // how often; then EOF
	wrote int
}

func (s *script) Read(p []byte) (int, error) {
	if s.times == 0 {
		return 0, io.EOF
	}
	s.times--
	return copy(p, s.text), nil
}
func (s *script) Write(p []byte) (int, error) {
	if len(p) > 0 {
		s.wrote++
	}
	return len(p), nil
}
func (s *script) Close() error                        { return nil }
func (s *script) LocalAddr() net.Addr                 { return nil }
func (s *script) RemoteAddr() net.Addr                { return nil }
func (s *script) SetDeadline(time.Time) error         { return nil }
func (s *script) SetReadDeadline(time.Time) error     { return nil }
func (s *script) SetWriteDeadline(time.Time) error    { return nil }
func (s *script) OriginalDst() (netip.AddrPort, bool) { return netip.AddrPort{}, false }
func (s *script) CloseWrite() error                   { return nil }
func (s *script) Reset() error                        { return nil }
func (s *script) WaitReadable() error                 { return nil }
func (s *script) Raw() (syscall.RawConn, bool)        { return nil, false }

// forwarder is the least of a proxy: one client connection for one server's.
type forwarder struct{ c *ClientConn }

func (f *forwarder) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	r, err := f.c.Do(life, req)
	if err != nil {
		w.Abort()
		return
	}
	body := r.Body.(stream.Chunks)
	_ = w.Head(&r.Head, false)
	for {
		p, err := body.Next()
		if len(p) > 0 {
			if _, err := w.Write(p); err != nil {
				break
			}
		}
		if err == io.EOF {
			_ = w.Finish(body.Trailers())
			break
		}
		if err != nil {
			w.Abort()
			break
		}
		if !body.Ready() {
			if w.Flush() != nil {
				break
			}
		}
	}
	r.End()
}

func (f *forwarder) Refused(stream.Refusal) *stream.Response { return nil }

// forward serves n requests.
func forward(n int, request, response string) (down, up *script) {
	down, up = &script{text: request, times: n}, &script{text: response, times: n}
	s := &Server{Handler: &forwarder{NewClientConn(up, ClientOptions{})}, Wheel: wheel.New(), IdleTimeout: time.Hour, HeaderTimeout: time.Second}
	s.NewConn(&stream.Scope{}, down, nil).Serve(netio.Pending{})
	return down, up
}

func unpoisoned(tb testing.TB) {
	stream.Poison = false
	tb.Cleanup(func() { stream.Poison = true })
}

// A request and its response through both sides, without the kernel.
func BenchmarkForward(b *testing.B) {
	unpoisoned(b)
	for name, t := range map[string][2]string{
		"small": {smallHead, usualResponse},
		"usual": {usualHead, usualResponse},
		"post":  {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024), usualResponse},
		"chunked": {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.ResetTimer()
			if down, up := forward(b.N, t[0], t[1]); down.wrote != b.N || up.wrote != b.N {
				b.Fatalf("%d requests: %d writes down, %d up", b.N, down.wrote, up.wrote)
			}
		})
	}
}
