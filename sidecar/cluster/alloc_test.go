//go:build !race

package cluster

import (
	"context"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// The race detector makes sync.Pool forget at random: what allocates is told
// without it.

// onLoopback is a cluster of one endpoint on the kernel's loopback that answers
// every read with a response and allocates nothing.
func onLoopback(t testing.TB) *Cluster {
	t.Helper()
	l, err := (netio.OS{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				buf, out := make([]byte, 16<<10), []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello")
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write(out); err != nil {
						return
					}
				}
			})
		}
	})
	port := l.Addr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
	m := NewManager(Deps{Net: netio.OS{}})
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	m.Update([]Spec{{
		Cluster: &resource.Cluster{Name: "web", Protocol: resource.ProtocolHTTP1},
		Endpoints: &resource.Endpoints{Cluster: "web", Localities: []resource.Locality{{Endpoints: []resource.Endpoint{
			{Address: resource.Address{Host: "127.0.0.1", Port: port}}}}}},
	}})
	c, _ := m.Get("web")
	return c
}

func exchanged(t testing.TB, c *Cluster, life *stream.Scope, r *stream.Request, o *Options) {
	resp, _, err := c.RoundTrip(life, r, *o)
	if err != nil {
		t.Fatal(err)
	}
	b, n := resp.Body.(stream.Chunks), 0
	for {
		p, err := b.Next()
		if n += len(p); err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n != 5 {
		t.Fatalf("%d bytes", n)
	}
	resp.End()
}

// whole is a body that is lent whole, as a codec's small one is.
type whole struct {
	text []byte
	done bool
}

func (w *whole) Next() ([]byte, error) {
	if w.done {
		return nil, io.EOF
	}
	w.done = true
	return w.text, io.EOF
}
func (w *whole) Ready() bool              { return true }
func (w *whole) Read([]byte) (int, error) { panic("a lender is not read") }
func (w *whole) Trailers() stream.Header  { return nil }
func (w *whole) Close() error             { return nil }

// What a request on a warm connection allocates, pool and codec included, with
// retries and time-outs armed.
func TestAllocations(t *testing.T) {
	stream.Poison = false
	defer func() { stream.Poison = true }()
	c := onLoopback(t)
	var life stream.Scope
	retry := &resource.Retry{On: []string{"5xx", "reset", "retriable-status-codes", "unavailable"}, StatusCodes: []uint32{503}, NumRetries: 2}
	for _, tt := range []struct {
		name string
		o    Options
		body bool
		most float64
	}{
		{"plain", Options{}, false, 0},
		{"with a policy", Options{Retry: retry}, false, 0},
		{"with a body", Options{Retry: retry}, true, 0},
		{"with a time-out for each attempt", Options{Retry: retry, PerTryTimeout: time.Minute}, false, 0},
	} {
		r := request("GET", nil)
		var b whole
		if tt.body {
			b.text = []byte("a small body")
			r.Head.Method, r.Head.ContentLength, r.Body = "POST", int64(len(b.text)), &b
		}
		run := func() {
			b.done = false
			exchanged(t, c, &life, r, &tt.o)
		}
		for range 50 {
			run()
		}
		if n := testing.AllocsPerRun(500, run); n > tt.most {
			t.Errorf("%s: %v allocations, at most %v expected", tt.name, n, tt.most)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	stream.Poison = false
	c := onLoopback(b)
	var life stream.Scope
	r, o := request("GET", nil), Options{}
	exchanged(b, c, &life, r, &o)
	b.ReportAllocs()
	for b.Loop() {
		exchanged(b, c, &life, r, &o)
	}
}
