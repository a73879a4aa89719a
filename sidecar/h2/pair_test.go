package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// handlerFunc makes a Handler of functions.
type handlerFunc struct {
	exchange func(life *stream.Scope, req *stream.Request, w stream.Responder)
	mu       sync.Mutex
	refused  []stream.Refusal
	answer   bool
}

func (h *handlerFunc) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	h.exchange(life, req, w)
}

func (h *handlerFunc) Refused(r stream.Refusal) *stream.Response {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = append(h.refused, r)
	if r.Status == 0 || !h.answer {
		return nil
	}
	return &stream.Response{Head: stream.ResponseHead{Status: r.Status, ContentLength: 0}}
}

// echo answers with the request's body and trailers.
func echo(_ *stream.Scope, req *stream.Request, w stream.Responder) {
	h := stream.ResponseHead{Status: 200, ContentLength: -1, Header: stream.Header{{Name: "x-path", Value: req.Head.Path}}}
	if err := w.Head(&h, req.Body == nil); err != nil || req.Body == nil {
		return
	}
	if err := pump(w, req.Body); err != nil {
		w.Abort()
		return
	}
	_ = w.Finish(req.Body.Trailers())
}

// pump copies a body as the engine does.
func pump(w stream.Responder, b stream.Body) error {
	c := b.(stream.Chunks)
	for {
		if !c.Ready() {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		p, err := c.Next()
		if len(p) > 0 {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// rig is a client and a server on a memory network.
type rig struct {
	t       *testing.T
	cc      *ClientConn
	drain   *stream.Scope
	handler *handlerFunc
	served  chan struct{} // closed when Serve has returned
	ran     chan struct{} // closed when Run has returned
	cancel  context.CancelFunc
}

func newRig(t *testing.T, exchange func(*stream.Scope, *stream.Request, stream.Responder), s Server, o ClientOptions) *rig {
	t.Helper()
	c, sv := pair(t)
	return rigOn(t, c, sv, exchange, s, o)
}

func rigOn(t *testing.T, c, sv netio.Conn, exchange func(*stream.Scope, *stream.Request, stream.Responder), s Server, o ClientOptions) *rig {
	r := &rig{t: t, drain: new(stream.Scope), handler: &handlerFunc{exchange: exchange}, served: make(chan struct{}), ran: make(chan struct{})}
	w := wheel.New()
	s.Handler, s.Wheel, o.Wheel = r.handler, w, w
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(r.served)
		s.Serve(ctx, sv, netio.Pending{}, r.drain)
	}()
	r.cc = NewClientConn(c, o)
	go func() {
		defer close(r.ran)
		r.cc.Run(ctx)
	}()
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	r.cc.Close()
	<-r.ran
	<-r.served
	r.cancel()
}

func get(path string) *stream.Request {
	return &stream.Request{Head: stream.RequestHead{Method: "GET", Scheme: "http", Authority: "a", Path: path}}
}

// textBody is a body of pieces that is ready or comes after a while.
type textBody struct {
	parts    [][]byte
	wait     time.Duration
	trailers stream.Header
	err      error
}

func (b *textBody) Ready() bool { return b.wait == 0 }

func (b *textBody) Next() ([]byte, error) {
	if b.wait > 0 {
		time.Sleep(b.wait)
	}
	if len(b.parts) == 0 {
		if b.err != nil {
			return nil, b.err
		}
		return nil, io.EOF
	}
	p := b.parts[0]
	b.parts = b.parts[1:]
	return p, nil
}

func (b *textBody) Read(p []byte) (int, error) {
	q, err := b.Next()
	return copy(p, q), err
}
func (b *textBody) Trailers() stream.Header { return b.trailers }
func (b *textBody) Close() error            { return nil }

func readAll(b stream.Body) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{b}) }

func TestPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo, Server{}, ClientOptions{})
		for i := range 5 {
			path := fmt.Sprint("/p", i)
			resp, err := r.cc.Do(context.Background(), get(path))
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Head.Header.Get("x-path"); got != path {
				t.Errorf("%q, want %q", got, path)
			}
			if b, err := readAll(resp.Body); len(b) > 0 || err != nil {
				t.Error(b, err)
			}
			_ = resp.Body.Close()
		}
	})
}

// Bodies of any size, in any pieces, on many streams at once, arrive as they
// were sent, through windows of any size.
func TestBodies(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			r := newRig(t, echo, Server{}, ClientOptions{})
			synctest.Wait() // the settings have come
			var all sync.WaitGroup
			for range 1 + rnd.IntN(20) {
				size := rnd.IntN(1 << rnd.IntN(22))
				body := make([]byte, size)
				for i := range body {
					body[i] = byte(rnd.Uint32())
				}
				tb := &textBody{trailers: stream.Header{{Name: "x-sum", Value: fmt.Sprint(size)}}}
				for p := body; len(p) > 0; {
					n := min(len(p), 1+rnd.IntN(40000))
					tb.parts = append(tb.parts, p[:n])
					p = p[n:]
				}
				if rnd.IntN(2) == 0 {
					tb.wait = time.Millisecond
				}
				length := int64(-1)
				if rnd.IntN(2) == 0 {
					length = int64(size)
				}
				var rb stream.Body = tb
				if rnd.IntN(3) == 0 {
					rb = struct{ stream.Body }{&limited{tb, nil}}
				}
				all.Go(func() {
					req := get("/b")
					req.Head.Method, req.Head.ContentLength, req.Body = "POST", length, rb
					resp, err := r.cc.Do(context.Background(), req)
					if err != nil {
						t.Error(err)
						return
					}
					defer func() { _ = resp.Body.Close() }()
					got, err := readAll(resp.Body)
					if err != nil || string(got) != string(body) {
						t.Errorf("%d bytes of %d, %v", len(got), size, err)
					}
					if s := resp.Body.Trailers().Get("x-sum"); s != fmt.Sprint(size) {
						t.Errorf("trailer %q", s)
					}
				})
			}
			all.Wait()
			if t.Failed() {
				t.Log("seed", seed)
			}
		})
	}
}

// limited reads without lending, keeping what did not fit.
type limited struct {
	stream.Body
	rest []byte
}

func (l *limited) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		b, err := l.Body.(stream.Chunks).Next()
		if err != nil {
			return 0, err
		}
		l.rest = b
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

var errBoom = errors.New("boom")
