package h2

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// loopback is a connection over the kernel's loopback.
func loopback(t testing.TB) (client, server netio.Conn) {
	t.Helper()
	l, err := netio.OS{}.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if client, err = (netio.OS{}).Dial(context.Background(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// link runs a server with h at one end and a client at the other.
func link(t testing.TB, h stream.Handler, w *wheel.Wheel) (cc *ClientConn, stop func()) {
	if _, ok := t.(*testing.B); ok {
		stream.Poison = false
	}
	c, s := loopback(t)
	var both sync.WaitGroup
	both.Go(func() {
		(&Server{Handler: h, Wheel: w}).Serve(context.Background(), s, netio.Pending{}, nil)
	})
	greeted := make(chan struct{}, 8)
	cc = NewClientConn(c, ClientOptions{Wheel: w, Changed: func(*ClientConn) { greeted <- struct{}{} }})
	both.Go(func() { cc.Run(context.Background()) })
	<-greeted
	return cc, func() {
		cc.Close()
		both.Wait()
	}
}

var kilobyte = make([]byte, 1024)

// origin answers with 1 kB.
type origin struct{ head stream.ResponseHead }

func newOrigin() *origin {
	return &origin{stream.ResponseHead{Status: 200, ContentLength: 1024, Header: stream.Header{
		{Name: "server", Value: "origin"}, {Name: "content-type", Value: "text/plain"},
		{Name: "last-modified", Value: "Mon, 23 Nov 2026 10:00:00 GMT"}, {Name: "etag", Value: "\"6743a-400\""},
	}}}
}

func (o *origin) Exchange(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
	_ = w.Head(&o.head, false)
	_, _ = w.Write(kilobyte)
	_ = w.Finish(nil)
}
func (o *origin) Refused(stream.Refusal) *stream.Response { return nil }

// forwarder is the way of a request through a sidecar without its decisions.
type forwarder struct{ to *ClientConn }

func (f *forwarder) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	resp, err := f.to.Do(life, req)
	if err != nil {
		abort(w, err)
		return
	}
	if err = w.Head(&resp.Head, false); err == nil {
		err = pump(w, resp.Body)
	}
	if err == nil {
		_ = w.Finish(resp.Body.Trailers())
	} else {
		abort(w, err)
	}
	_ = resp.Body.Close()
}

// abort passes the upstream's reset on.
func abort(w stream.Responder, err error) {
	var r *ResetError
	if errors.As(err, &r) {
		w.(interface{ AbortWith(ErrCode) }).AbortWith(r.Code)
		return
	}
	w.Abort()
}

func (f *forwarder) Refused(stream.Refusal) *stream.Response { return nil }

func benchGet(h stream.Header) *stream.Request {
	return &stream.Request{Head: stream.RequestHead{Method: "GET", Scheme: "http", Authority: "127.0.0.1:8080", Path: "/1k.txt",
		Header: h}}
}

var benchHeader = stream.Header{{Name: "user-agent", Value: "h2load nghttp2/1.52.0"}, {Name: "accept", Value: "*/*"}}

// drainBody reads a response to its end.
func drainBody(b stream.Body) error {
	c := b.(stream.Chunks)
	for {
		if _, err := c.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func times() (user, sys int64) {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return r.Utime.Nano(), r.Stime.Nano()
}

// run makes b.N requests by so many callers on one connection.
func run(b *testing.B, cc *ClientConn, callers int) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	u, s := times()
	b.ResetTimer()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			req := benchGet(benchHeader)
			for left.Add(-1) >= 0 {
				resp, err := cc.Do(context.Background(), req)
				if err != nil {
					b.Error(err)
					return
				}
				if err := drainBody(resp.Body); err != nil {
					b.Error(err)
				}
				_ = resp.Body.Close()
			}
		})
	}
	all.Wait()
	b.StopTimer()
	u2, s2 := times()
	b.ReportMetric(float64(u2-u)/float64(b.N), "user-ns/op")
	b.ReportMetric(float64(s2-s)/float64(b.N), "sys-ns/op")
}

// BenchmarkGet is a client and a server, 64 streams.
func BenchmarkGet(b *testing.B) {
	cc, stop := link(b, newOrigin(), wheel.New())
	defer stop()
	run(b, cc, 64)
}

// large answers with 1 MB.
type large struct{}

func (large) Exchange(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
	_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 1 << 20}, false)
	for range 64 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
	_ = w.Finish(nil)
}
func (large) Refused(stream.Refusal) *stream.Response { return nil }

var block = make([]byte, 16<<10)

// BenchmarkLarge is 1 MB through client, forwarder and server, 8 and 100 at a
// time.
func BenchmarkLarge(b *testing.B) {
	for _, n := range []int{8, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			w := wheel.New()
			up, stopUp := link(b, large{}, w)
			defer stopUp()
			cc, stop := link(b, &forwarder{up}, w)
			defer stop()
			b.SetBytes(1 << 20)
			run(b, cc, n)
		})
	}
}

// BenchmarkForward is a client, a forwarding server and client, and a server:
// what a sidecar does in between is half of it.
func BenchmarkForward(b *testing.B) {
	w := wheel.New()
	up, stopUp := link(b, newOrigin(), w)
	defer stopUp()
	cc, stop := link(b, &forwarder{up}, w)
	defer stop()
	run(b, cc, 64)
}
