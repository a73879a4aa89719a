package h1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// far is a client connection whose server is the test.
type far struct {
	t     *testing.T
	conn  *ClientConn
	peer  netio.Conn
	br    *bufio.Reader
	ended []bool
}

func newFar(t *testing.T) *far {
	c, s := pair(t)
	f := &far{t: t, peer: s, br: bufio.NewReader(s)}
	f.conn = NewClientConn(c, ClientOptions{Ended: func(cc *ClientConn, reusable bool) {
		if cc != f.conn {
			t.Error("Ended of another connection")
		}
		f.ended = append(f.ended, reusable)
		if !reusable {
			_ = cc.Close()
		}
	}})
	t.Cleanup(func() {
		_ = f.conn.Close()
		_ = s.Close()
	})
	return f
}

// answers reads one request and sends each text; the request's wire form comes
// from the channel.
func (f *far) answers(texts ...string) <-chan string {
	got := make(chan string, 1)
	go func() {
		var b strings.Builder
		r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(f.br, &b)))
		if err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		for _, s := range texts {
			_, _ = io.WriteString(f.peer, s)
		}
		got <- b.String()
	}()
	return got
}

func get(path string) *stream.Request {
	return &stream.Request{Head: stream.RequestHead{Method: "GET", Scheme: "http", Authority: "a", Path: path, Protocol: stream.HTTP1}}
}

// whole reads a response's body to its end and closes it.
func whole(t *testing.T, r *stream.Response) (string, stream.Header) {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	h := r.Body.Trailers().Clone()
	r.End()
	return string(b), h
}

// slow is a body that lends nothing and blocks until it is fed.
type slow struct {
	c        chan string
	closed   chan struct{}
	trailers stream.Header
	err      error
	rest     string
}

func newSlow() *slow { return &slow{c: make(chan string), closed: make(chan struct{}), err: io.EOF} }

func (s *slow) Read(p []byte) (int, error) {
	if s.rest == "" {
		select {
		case v, ok := <-s.c:
			if !ok {
				return 0, s.err
			}
			s.rest = v
		case <-s.closed:
			return 0, errors.New("closed")
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
func (s *slow) Trailers() stream.Header { return s.trailers }
func (s *slow) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

func failure(t *testing.T, err error, kind stream.FailureKind, sent bool) {
	t.Helper()
	var f *stream.Failure
	if !errors.As(err, &f) || f.Kind != kind || f.Sent != sent {
		t.Fatalf("%#v, want %v sent %v", err, kind, sent)
	}
}

func TestClientReuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		for _, text := range []string{
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
			"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi",
		} {
			got := f.answers(text)
			r, err := f.conn.Do(t.Context(), get("/x"))
			if err != nil {
				t.Fatal(err)
			}
			if <-got != "GET /x HTTP/1.1\r\nhost: a\r\n\r\n" {
				t.Error("request")
			}
			if b, _ := whole(t, r); b != "hi" {
				t.Errorf("%q: %q", text, b)
			}
			if n := len(f.ended); !f.ended[n-1] {
				t.Errorf("%q: not reusable", text)
			}
		}
	})
}

func TestClientEnds(t *testing.T) {
	for name, tt := range map[string]struct{ text, body string }{
		"close":      {"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nhi", "hi"},
		"HTTP/1.0":   {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi"},
		"extra":      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n", "hi"},
		"extra, 204": {"HTTP/1.1 204 No Content\r\n\r\nx", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				f.answers(tt.text)
				r, err := f.conn.Do(t.Context(), get("/"))
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := whole(t, r); b != tt.body || len(f.ended) != 1 || f.ended[0] {
					t.Errorf("%q %v", b, f.ended)
				}
				_, err = f.conn.Do(t.Context(), get("/"))
				failure(t, err, stream.FailedGone, false)
				if len(f.ended) != 1 {
					t.Error("Ended twice")
				}
			})
		})
	}
}

func TestClientRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"CL and TE":          "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
		"unknown coding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"TE in 1.0":          "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"fold":               "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
		"bare LF":            "HTTP/1.1 200 OK\nX: a\r\n\r\n",
		"bare CR":            "HTTP/1.1 200 O\rK\r\nX: a\r\n\r\n",
		"HTTP/2":             "HTTP/2.0 200 OK\r\n\r\n",
		"status 099":         "HTTP/1.1 099 OK\r\n\r\n",
		"status 20":          "HTTP/1.1 20 OK\r\n\r\n",
		"no response":        "nonsense\r\n\r\n",
		"unasked 101":        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"many informational": strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100),
		"large head":         "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", DefaultMaxHeader) + "\r\n\r\n",
		"many fields":        "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: x\r\n", DefaultMaxFields+1) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				f.answers(text)
				_, err := f.conn.Do(t.Context(), get("/"))
				failure(t, err, stream.FailedProtocol, true)
				if len(f.ended) != 1 || f.ended[0] {
					t.Error(f.ended)
				}
			})
		})
	}
}

func TestClientBroken(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		end  func(netio.Conn) error
		kind stream.FailureKind
	}{
		"short length": {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", netio.Conn.Close, stream.FailedReset},
		"short chunk":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhi", netio.Conn.Close, stream.FailedReset},
		"no last":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", netio.Conn.Close, stream.FailedReset},
		"reset to end": {"HTTP/1.1 200 OK\r\n\r\nhi", netio.Conn.Reset, stream.FailedReset},
		"bad chunk":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\n0\r\n\r\n", nil, stream.FailedProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				got := f.answers(tt.text)
				r, err := f.conn.Do(t.Context(), get("/"))
				if err != nil {
					t.Fatal(err)
				}
				<-got
				if tt.end != nil {
					_ = tt.end(f.peer)
				}
				_, err = io.ReadAll(r.Body)
				failure(t, err, tt.kind, true)
				r.End()
				if len(f.ended) != 1 || f.ended[0] {
					t.Error(f.ended)
				}
			})
		})
	}
}

func TestClientToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		got := f.answers("HTTP/1.1 200 OK\r\n\r\nhi")
		r, err := f.conn.Do(t.Context(), get("/"))
		if err != nil || r.Head.ContentLength != -1 {
			t.Fatal(err)
		}
		<-got
		_ = f.peer.CloseWrite()
		if b, _ := whole(t, r); b != "hi" || f.ended[0] {
			t.Errorf("%q %v", b, f.ended)
		}
	})
}

// The usual race: the server ends an idle connection.
func TestClientStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		f.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		r, err := f.conn.Do(t.Context(), get("/"))
		if err != nil {
			t.Fatal(err)
		}
		r.End()
		_ = f.peer.Close()
		_, err = f.conn.Do(t.Context(), get("/"))
		failure(t, err, stream.FailedStale, true)
		if len(f.ended) != 2 || !f.ended[0] || f.ended[1] {
			t.Error(f.ended)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a new connection is not stale
		f := newFar(t)
		_ = f.peer.CloseWrite()
		_, err := f.conn.Do(t.Context(), get("/"))
		failure(t, err, stream.FailedReset, true)
	})
}

func TestClientCancel(t *testing.T) {
	cause := errors.New("the reason")
	for name, scope := range map[string]func(t *testing.T) (context.Context, func()){
		"scope": func(*testing.T) (context.Context, func()) {
			s := new(stream.Scope)
			return s, func() { s.Cancel(cause) }
		},
		"context": func(t *testing.T) (context.Context, func()) {
			ctx, cancel := context.WithCancelCause(t.Context())
			return ctx, func() { cancel(cause) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // while it waits for the head
				f := newFar(t)
				ctx, cancel := scope(t)
				time.AfterFunc(time.Second, cancel)
				_, err := f.conn.Do(ctx, get("/"))
				failure(t, err, stream.FailedCancelled, true)
				if !errors.Is(err, cause) || f.ended[0] {
					t.Error(err)
				}
			})
			synctest.Test(t, func(t *testing.T) { // in the body
				f := newFar(t)
				ctx, cancel := scope(t)
				f.answers("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi")
				r, err := f.conn.Do(ctx, get("/"))
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Second, cancel)
				_, err = io.ReadAll(r.Body)
				failure(t, err, stream.FailedCancelled, true)
				r.End()
				if f.ended[0] {
					t.Error("reusable")
				}
			})
			synctest.Test(t, func(t *testing.T) { // before anything
				f := newFar(t)
				ctx, cancel := scope(t)
				cancel()
				synctest.Wait()
				_, err := f.conn.Do(ctx, get("/"))
				failure(t, err, stream.FailedCancelled, false)
				if !f.ended[0] {
					t.Error("a connection on which nothing was sent is lost")
				}
				f.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				r, err := f.conn.Do(t.Context(), get("/"))
				if err != nil {
					t.Fatal(err)
				}
				r.End()
			})
			synctest.Test(t, func(t *testing.T) { // after the end: nothing happens
				f := newFar(t)
				ctx, cancel := scope(t)
				f.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				r, err := f.conn.Do(ctx, get("/"))
				if err != nil {
					t.Fatal(err)
				}
				r.End()
				cancel()
				synctest.Wait()
				f.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				if r, err = f.conn.Do(t.Context(), get("/")); err != nil {
					t.Fatal(err)
				}
				r.End()
			})
		})
	}
}

// text is a body that is ready, and lends.
type text struct{ s string }

func (b *text) Next() ([]byte, error) {
	p := []byte(b.s)
	b.s = ""
	return p, io.EOF
}
func (b *text) Read(p []byte) (int, error) {
	n := copy(p, b.s)
	b.s = b.s[n:]
	if b.s == "" {
		return n, io.EOF
	}
	return n, nil
}
func (b *text) Ready() bool             { return true }
func (b *text) Trailers() stream.Header { return nil }
func (b *text) Close() error            { return nil }

func post(length int64, b stream.Body, h ...stream.Field) *stream.Request {
	r := get("/p")
	r.Head.Method, r.Head.ContentLength, r.Body, r.Head.Header = "POST", length, b, h
	return r
}

// What is ready leaves with the head; the rest follows while the response is
// waited for.
func TestClientSends(t *testing.T) {
	for name, tt := range map[string]struct {
		req  func() *stream.Request
		wire string
	}{
		"ready":   {func() *stream.Request { return post(5, &text{"hello"}) }, "content-length: 5\r\n\r\nhello"},
		"unknown": {func() *stream.Request { return post(-1, &text{"hello"}) }, "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		"none":    {func() *stream.Request { return post(0, nil) }, "content-length: 0\r\n\r\n"},
		"empty":   {func() *stream.Request { return post(0, &text{""}) }, "content-length: 0\r\n\r\n"},
		"slow": {func() *stream.Request {
			s := newSlow()
			s.trailers = stream.Header{{Name: "x-sum", Value: "1"}, {Name: "host", Value: "evil"}}
			go func() { s.c <- "a"; time.Sleep(time.Second); s.c <- "bc"; close(s.c) }()
			return post(-1, s, stream.Field{Name: "trailer", Value: "x-sum"})
		}, "trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nx-sum: 1\r\n\r\n"},
		"fields": {func() *stream.Request {
			return post(0, nil, stream.Field{Name: "connection", Value: "x"}, stream.Field{Name: "expect", Value: "100-continue"},
				stream.Field{Name: "te", Value: "trailers"}, stream.Field{Name: "host", Value: "evil"}, stream.Field{Name: "x-a", Value: ""})
		}, "x-a: \r\ncontent-length: 0\r\nte: trailers\r\nconnection: te\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				got := f.answers("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				r, err := f.conn.Do(t.Context(), tt.req())
				if err != nil {
					t.Fatal(err)
				}
				r.End()
				if g := <-got; g != "POST /p HTTP/1.1\r\nhost: a\r\n"+tt.wire {
					t.Errorf("%q", g)
				}
				if !f.ended[0] {
					t.Error("not reusable")
				}
			})
		})
	}
}

func TestClientSendsOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		go func() {
			buf := make([]byte, 1000)
			n, _ := f.peer.Read(buf)
			if !strings.HasSuffix(string(buf[:n]), "\r\n\r\nhello") {
				t.Errorf("%q", buf[:n])
			}
			_, _ = io.WriteString(f.peer, "HTTP/1.1 204 No Content\r\n\r\n")
		}()
		r, err := f.conn.Do(t.Context(), post(5, &text{"hello"}))
		if err != nil {
			t.Fatal(err)
		}
		r.End()
	})
}

func TestClientCannotSend(t *testing.T) {
	for name, req := range map[string]*stream.Request{
		"injection by value":  post(0, nil, stream.Field{Name: "x", Value: "a\r\nb: c"}),
		"injection by name":   post(0, nil, stream.Field{Name: "x: a\r\nb", Value: "c"}),
		"injection by target": {Head: stream.RequestHead{Method: "GET", Path: "/ HTTP/1.1\r\nx: ", Authority: "a"}},
		"injection by host":   {Head: stream.RequestHead{Method: "GET", Path: "/", Authority: "a\r\nx: y"}},
		"injection by method": {Head: stream.RequestHead{Method: "GET /x HTTP/1.1\r\n", Path: "/", Authority: "a"}},
		"target":              {Head: stream.RequestHead{Method: "GET", Path: "x", Authority: "a"}},
		"CONNECT":             {Head: stream.RequestHead{Method: "CONNECT", Path: "a:1", Authority: "a:1"}},
		"upgrade":             {Head: stream.RequestHead{Method: "GET", Path: "/", Authority: "a", Upgrade: "a\r\nb: c"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				_, err := f.conn.Do(t.Context(), req)
				failure(t, err, stream.FailedRequest, false)
				if !f.ended[0] {
					t.Error("nothing was sent: the connection is as good as before")
				}
			})
		})
	}
}

// A body that is shorter or longer than was announced, or fails, ends the
// connection: the server must not take the next request for its rest.
func TestClientBodyFails(t *testing.T) {
	broken := newSlow()
	broken.err = errors.New("client gone")
	for name, tt := range map[string]struct {
		req   *stream.Request
		first string
	}{
		"short": {post(7, &text{"hello"}), ""},
		"long":  {post(3, &text{"hello"}), ""},
		"fails": {post(-1, broken), "part"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				if tt.first != "" {
					s := newSlow()
					s.err = broken.err
					tt.req.Body = s
					go func() { s.c <- tt.first; time.Sleep(time.Second); close(s.c) }()
				}
				_, err := f.conn.Do(t.Context(), tt.req)
				failure(t, err, stream.FailedRequest, tt.first != "")
				if tt.first != "" && f.ended[0] {
					t.Error("reusable")
				}
				if tt.first != "" {
					b, _ := io.ReadAll(f.peer)
					if strings.HasSuffix(string(b), "0\r\n\r\n") {
						t.Errorf("half a request looks complete: %q", b)
					}
				}
			})
		})
	}
}

// A response that comes before the request's end is delivered; the connection
// is not used again.
func TestClientEarlyResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		s := newSlow()
		go func() {
			s.c <- strings.Repeat("x", 100)
			_, _ = io.WriteString(f.peer, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
			for {
				select {
				case s.c <- strings.Repeat("x", 100<<10): // nobody reads: the sender blocks
				case <-s.closed:
					return
				}
			}
		}()
		r, err := f.conn.Do(t.Context(), post(1<<30, s))
		if err != nil || r.Head.Status != 413 {
			t.Fatal(r, err)
		}
		if b, _ := whole(t, r); b != "no" || f.ended[0] {
			t.Errorf("%q %v", b, f.ended)
		}
	})
}

// Both directions at the same time: the request goes on while the response is
// read.
func TestClientBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		s := newSlow()
		go func() {
			r, _ := http.ReadRequest(f.br)
			_, _ = io.WriteString(f.peer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			buf := make([]byte, 1)
			for {
				if n, err := r.Body.Read(buf); n == 0 && err != nil {
					break
				}
				_, _ = io.WriteString(f.peer, "1\r\n"+string(buf)+"\r\n")
			}
			_, _ = io.WriteString(f.peer, "0\r\nX-Sum: 3\r\nHost: evil\r\n\r\n")
		}()
		go func() { s.c <- "a" }()
		r, err := f.conn.Do(t.Context(), post(-1, s))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		for _, want := range []string{"a", "b", "c"} {
			if _, err := io.ReadFull(r.Body, buf); err != nil || string(buf) != want {
				t.Fatalf("%q %v", buf, err)
			}
			if want != "c" {
				s.c <- string(want[0] + 1)
			}
		}
		close(s.c)
		b, h := whole(t, r)
		if b != "" || len(h) != 1 || h.Get("x-sum") != "3" || !f.ended[0] {
			t.Errorf("%q %v %v", b, h, f.ended)
		}
	})
}

func TestClientInformational(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		f.answers("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		req := get("/")
		var seen []string
		req.Informational = func(h *stream.ResponseHead) {
			seen = append(seen, strings.Clone(h.Header.Get("link")))
		}
		r, err := f.conn.Do(t.Context(), req)
		if err != nil || r.Head.Status != 200 || len(seen) != 1 || seen[0] != "</x>" {
			t.Fatal(r, err, seen)
		}
		r.End()
	})
}

func TestClientUpgrade(t *testing.T) {
	ask := func() *stream.Request {
		r := get("/ws")
		r.Head.Upgrade = "websocket"
		return r
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		got := f.answers("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nX-A: 1\r\n\r\nearly")
		r, err := f.conn.Do(t.Context(), ask())
		if err != nil || r.Tunnel == nil || r.Body != nil || r.Head.Header.Get("x-a") != "1" || r.Head.Header.Get("upgrade") != "" {
			t.Fatal(r, err)
		}
		if g := <-got; g != "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" {
			t.Errorf("%q", g)
		}
		buf := make([]byte, 3)
		if _, err := io.ReadFull(r.Tunnel, buf); err != nil || string(buf) != "ear" {
			t.Fatal(err)
		}
		_, _ = io.WriteString(r.Tunnel, "up")
		if _, err := io.ReadFull(f.br, buf[:2]); err != nil || string(buf[:2]) != "up" {
			t.Fatal(err)
		}
		_, _ = io.WriteString(f.peer, "!")
		_ = f.peer.CloseWrite()
		if b, err := io.ReadAll(r.Tunnel); string(b) != "ly!" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		r.End()
		_ = r.Tunnel.Close()
		if len(f.ended) != 1 || f.ended[0] {
			t.Error(f.ended)
		}
	})
	for name, text := range map[string]string{
		"another protocol": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"no protocol":      "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
		"no connection":    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				f.answers(text)
				_, err := f.conn.Do(t.Context(), ask())
				failure(t, err, stream.FailedProtocol, true)
			})
		})
	}
	// An upgrade accepted on another status is none, and the connection that
	// carried the wish is not used again.
	synctest.Test(t, func(t *testing.T) {
		f := newFar(t)
		f.answers("HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno")
		r, err := f.conn.Do(t.Context(), ask())
		if err != nil || r.Tunnel != nil || r.Body == nil {
			t.Fatal(r, err)
		}
		if b, _ := whole(t, r); b != "no" || f.ended[0] {
			t.Error(b, f.ended)
		}
	})
}

func TestClientBodiless(t *testing.T) {
	for name, tt := range map[string]struct {
		method, text string
		length       int64
	}{
		"HEAD":         {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", 10},
		"HEAD chunked": {"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", -1},
		"204":          {"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 0},
		"304":          {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				f.answers(tt.text)
				req := get("/")
				req.Head.Method = tt.method
				r, err := f.conn.Do(t.Context(), req)
				if err != nil || r.Head.ContentLength != tt.length {
					t.Fatal(r, err)
				}
				if c := r.Body.(stream.Chunks); !c.Ready() {
					t.Error("an empty body is not ready")
				} else if p, err := c.Next(); p != nil || err != io.EOF {
					t.Error(p, err)
				}
				if b, _ := whole(t, r); b != "" || !f.ended[0] {
					t.Error(b, f.ended)
				}
			})
		})
	}
}

// A tunnel ends with its exchange's context, and may be closed while it is read
// and more than once.
func TestClientTunnelEnds(t *testing.T) {
	for name, end := range map[string]func(cancel func(), tun stream.Tunnel){
		"cancel": func(cancel func(), _ stream.Tunnel) { cancel() },
		"close":  func(_ func(), tun stream.Tunnel) { _ = tun.Close() },
		"both": func(cancel func(), tun stream.Tunnel) {
			go cancel()
			go func() { _ = tun.Close() }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFar(t)
				f.answers("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
				life := new(stream.Scope)
				req := get("/")
				req.Head.Upgrade = "x"
				r, err := f.conn.Do(life, req)
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Second, func() { end(func() { life.Cancel(nil) }, r.Tunnel) })
				if b, err := io.ReadAll(r.Tunnel); err == nil {
					t.Errorf("%q", b)
				}
				_ = r.Tunnel.Close()
				_ = r.Tunnel.Close()
				synctest.Wait()
				if len(f.ended) != 1 || f.ended[0] {
					t.Error(f.ended)
				}
			})
		})
	}
}

// A server and a client of ours, one behind the other, many requests of every
// kind at the same time on many connections.
func TestForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for c := range 20 {
			front, down := pair(t)
			up, back := pair(t)
			echo := answerFunc(func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
				b, err := io.ReadAll(req.Body)
				if err != nil {
					w.Abort()
					return
				}
				h := &stream.ResponseHead{Status: 200, ContentLength: req.Head.ContentLength, Header: stream.Header{{Name: "x-path", Value: strings.Clone(req.Head.Path)}}}
				_ = w.Head(h, false)
				for len(b) > 0 {
					n := min(len(b), 5000)
					_, _ = w.Write(b[:n])
					b = b[n:]
				}
				_ = w.Finish(nil)
			})
			go newServer(echo).NewConn(t.Context(), back, nil).Serve(netio.Pending{})
			go newServer(&forwarder{NewClientConn(up, ClientOptions{})}).NewConn(t.Context(), down, nil).Serve(netio.Pending{})
			br := bufio.NewReader(front)
			for i, size := range []int{1, 1000, 16 << 10, 17000, 200 << 10, 3} {
				body := strings.Repeat(string(rune('a'+i)), size)
				r, _ := http.NewRequest("POST", "http://a/"+strings.Repeat("p", c), strings.NewReader(body))
				if (i+c)%2 == 0 {
					r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), -1
				}
				sent := make(chan struct{})
				go func() { _ = r.Write(front); close(sent) }()
				resp, err := http.ReadResponse(br, r)
				if err != nil {
					t.Fatal(c, i, err)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || string(got) != body || resp.Header.Get("X-Path") != r.URL.Path {
					t.Fatalf("%d %d: %d bytes of %d, %v", c, i, len(got), len(body), err)
				}
				<-sent
			}
			_ = front.Close()
			synctest.Wait()
			_ = up.Close()
		}
	})
}
