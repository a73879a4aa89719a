//go:build !race

package pool

import (
	"bufio"
	"context"
	"io"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// answering is an HTTP/1.1 server that allocates nothing: each read is taken to
// be one request without a body.
func answering(s *script, c netio.Conn, _ *bufio.Reader) {
	buf, out := make([]byte, 16<<10), []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello")
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

var helloText = []byte("hello")

// hello answers every exchange.
type hello struct{ head stream.ResponseHead }

func (h *hello) Exchange(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
	_ = w.Head(&h.head, false)
	_, _ = w.Write(helloText)
	_ = w.Finish(nil)
}

func (h *hello) Refused(stream.Refusal) *stream.Response { return nil }

// loopback is a pool to a server on the kernel's loopback.
func loopback(t testing.TB, proto resource.Protocol) *Pool {
	play := answering
	if proto == resource.ProtocolHTTP2 {
		w := wheel.New()
		srv := &h2.Server{Wheel: w, Handler: &hello{stream.ResponseHead{Status: 200, ContentLength: 5,
			Header: stream.Header{{Name: "content-type", Value: "text/plain"}, {Name: "server", Value: "x"}}}}}
		play = func(s *script, c netio.Conn, _ *bufio.Reader) {
			srv.Serve(context.Background(), c, netio.Pending{}, nil)
		}
	}
	s := scripted(t, netio.OS{}, "127.0.0.1:0", play)
	p := New(Config{Network: "tcp", Address: s.l.Addr().String(), Protocol: proto}, Deps{Net: netio.OS{}})
	t.Cleanup(func() {
		p.Close()
		s.close()
	})
	return p
}

func exchanged(t testing.TB, p *Pool, life *stream.Scope, r *stream.Request) {
	resp, _, err := p.RoundTrip(life, r)
	if err != nil {
		t.Fatal(err)
	}
	c := resp.Body.(stream.Chunks)
	n := 0
	for {
		b, err := c.Next()
		if n += len(b); err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n != 5 || resp.Head.Status != 200 {
		t.Fatalf("%d, %d bytes", resp.Head.Status, n)
	}
	resp.End()
}

func typical() *stream.Request {
	r := get("/api/v1/items/42?x=1")
	r.Head.Header = stream.Header{{Name: "user-agent", Value: "curl/8"}, {Name: "accept", Value: "*/*"},
		{Name: "x-request-id", Value: "0123456789abcdef"}, {Name: "x-forwarded-for", Value: "10.1.2.3"}}
	return r
}

// The race detector makes sync.Pool forget at random: what allocates is told
// without it.
//
// What a request on a warm connection allocates, codec included (and, with
// HTTP/2, that of our own server as well).
func TestAllocations(t *testing.T) {
	stream.Poison = false
	defer func() { stream.Poison = true }()
	for proto, most := range map[resource.Protocol]float64{resource.ProtocolHTTP1: 0, resource.ProtocolHTTP2: 0} {
		p := loopback(t, proto)
		var life stream.Scope
		r := typical()
		for range 50 {
			exchanged(t, p, &life, r)
		}
		if n := testing.AllocsPerRun(500, func() { exchanged(t, p, &life, r) }); n > most {
			t.Errorf("%v: %v allocations, at most %v expected", proto, n, most)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	stream.Poison = false
	for name, proto := range map[string]resource.Protocol{"h1": resource.ProtocolHTTP1, "h2": resource.ProtocolHTTP2} {
		b.Run(name, func(b *testing.B) {
			p := loopback(b, proto)
			var life stream.Scope
			r := typical()
			exchanged(b, p, &life, r)
			b.ReportAllocs()
			for b.Loop() {
				exchanged(b, p, &life, r)
			}
		})
	}
}

// The pool's own part: a connection is taken and put back.
func BenchmarkTakeAndPut(b *testing.B) {
	p := loopback(b, resource.ProtocolHTTP1)
	var life stream.Scope
	exchanged(b, p, &life, typical())
	b.ReportAllocs()
	for b.Loop() {
		k, err := p.main.take(&life, false, false)
		if err != nil {
			b.Fatal(err)
		}
		p.main.put(k)
	}
}

// The same from every processor at once: what the pool's lock costs.
func BenchmarkTakeAndPutInParallel(b *testing.B) {
	p := loopback(b, resource.ProtocolHTTP1)
	b.RunParallel(func(pb *testing.PB) {
		var life stream.Scope
		for pb.Next() {
			k, err := p.main.take(&life, false, false)
			if err != nil {
				b.Error(err)
				return
			}
			p.main.put(k)
		}
	})
}
