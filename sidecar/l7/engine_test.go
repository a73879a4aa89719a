package l7

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

type tlsConfig = tls.Config

// get asks and gives status, body and response.
func get(t *testing.T, c *http.Client, method, target string, body io.Reader, edit ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://app"+target, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range edit {
		f(r)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// all reads a request's body.
func all(b stream.Body) string {
	if b == nil {
		return ""
	}
	var out strings.Builder
	_, _ = io.Copy(&out, struct{ io.Reader }{b})
	return out.String()
}

func echo(_ context.Context, req *stream.Request) (*stream.Response, error) {
	return ok(fmt.Sprintf("%s %s %s", req.Head.Method, req.Head.Path, all(req.Body))), nil
}

func TestForwards(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, echo, nil)
		c := client(g)
		for i := range 3 { // one connection
			resp, body := get(t, c, "POST", "/a/../b//c?x=1", strings.NewReader("hello"))
			if resp.StatusCode != 200 || body != "POST /b/c?x=1 hello" {
				t.Fatalf("request %d: %d %q", i, resp.StatusCode, body)
			}
			if ct, ok := resp.Header["Content-Type"]; ok {
				t.Fatalf("content type was guessed: %q", ct)
			}
		}
		synctest.Wait()
		r := g.rec.last(t)
		if r.Path != "/b/c?x=1" || r.Received != "/a/../b//c?x=1" || r.Status != 200 || r.BytesIn != 5 || r.BytesOut == 0 || r.Cluster != "app.default.dc1" ||
			r.DestinationService != "app" || r.SourceService != "web" || r.Version != "v1" || r.RequestID == "" || r.Code != telemetry.OK {
			t.Fatalf("record: %+v", r)
		}
		if len(g.conns) != 1 {
			t.Fatalf("%d connections for three requests in a row", len(g.conns))
		}
	})
}

func TestBodiless(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(_ context.Context, req *stream.Request) (*stream.Response, error) {
			switch req.Head.Path {
			case "/head":
				return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: 42, Header: stream.Header{{Name: "content-length", Value: "42"}}}}, nil
			case "/204":
				return &stream.Response{Head: stream.ResponseHead{Status: 204, ContentLength: 0}}, nil
			}
			return &stream.Response{Head: stream.ResponseHead{Status: 304, ContentLength: -1, Header: stream.Header{{Name: "etag", Value: `"x"`}}}}, nil
		}, nil)
		c := client(g)
		if resp, b := get(t, c, "HEAD", "/head", nil); resp.ContentLength != 42 || b != "" {
			t.Errorf("HEAD: length %d body %q", resp.ContentLength, b)
		}
		if resp, b := get(t, c, "GET", "/204", nil); resp.StatusCode != 204 || b != "" || resp.Header.Get("Content-Length") != "" {
			t.Errorf("204: %v %q", resp.Header, b)
		}
		if resp, _ := get(t, c, "GET", "/304", nil); resp.StatusCode != 304 || resp.Header.Get("Etag") != `"x"` {
			t.Errorf("304: %d %v", resp.StatusCode, resp.Header)
		}
	})
}

func TestTrailersBothWays(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			b := all(req.Body)
			p := newParts(ctx, b, "-", req.Body.Trailers().Get("x-in"))
			p.trailers = stream.Header{{Name: "x-out", Value: "2"}, {Name: "content-length", Value: "9"}}
			close(p.c)
			return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1}, Body: p}, nil
		}, nil)
		resp, body := get(t, client(g), "POST", "/", io.MultiReader(strings.NewReader("a"), strings.NewReader("b")), func(r *http.Request) {
			r.Trailer = http.Header{"X-In": {"1"}}
		})
		if body != "ab-1" || resp.Trailer.Get("X-Out") != "2" || resp.Trailer.Get("Content-Length") != "" {
			t.Fatalf("body %q trailers %v", body, resp.Trailer)
		}
	})
}

func TestFlushesEachPart(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		var p *parts
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			p = newParts(ctx)
			return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1}, Body: p}, nil
		}, nil)
		resp, err := client(g).Get("http://app/")
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		for _, s := range []string{"one", "two"} {
			p.c <- s
			n, err := resp.Body.Read(buf)
			if string(buf[:n]) != s || err != nil {
				t.Fatalf("read %q %v", buf[:n], err)
			}
		}
		close(p.c)
		if n, err := resp.Body.Read(buf); n != 0 || err != io.EOF {
			t.Fatalf("end: %d %v", n, err)
		}
		_ = resp.Body.Close()
	})
}

// An application may answer before it has the whole request: the answer arrives.
func TestEarlyResponse(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(_ context.Context, req *stream.Request) (*stream.Response, error) {
			buf := make([]byte, 1)
			_, _ = req.Body.Read(buf)
			r := ok("too large")
			r.Head.Status = 413
			return r, nil
		}, nil)
		body, feed := io.Pipe()
		go func() {
			for range 100 {
				if _, err := feed.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
			_ = feed.Close()
		}()
		resp, got := get(t, client(g), "POST", "/", body)
		_ = body.Close()
		if resp.StatusCode != 413 || got != "too large" {
			t.Fatalf("%d %q", resp.StatusCode, got)
		}
		// The next request is not confused by what was left of this one.
		if resp, _ := get(t, client(g), "POST", "/", strings.NewReader("x")); resp.StatusCode != 413 {
			t.Fatalf("second: %d", resp.StatusCode)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, echo, nil)
		c := g.dial()
		br := bufio.NewReader(c)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
		line, _ := br.ReadString('\n')
		if line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q", line)
		}
		_, _ = br.ReadString('\n')
		_, _ = io.WriteString(c, "ok")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		b, _ := io.ReadAll(resp.Body)
		if string(b) != "POST / ok" {
			t.Fatalf("%q", b)
		}
		_ = c.Close()
	})
}

func TestClientGone(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		ended := make(chan struct{})
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		}, nil)
		if strings.HasSuffix(t.Name(), "http1") { // a FIN alone does not say that the client no longer reads
			c := g.dial()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
			synctest.Wait()
			_ = c.(netio.Conn).Reset()
		} else {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { time.Sleep(time.Second); cancel() }()
			r, _ := http.NewRequestWithContext(ctx, "GET", "http://app/", nil)
			if _, err := client(g).Do(r); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		<-ended
		synctest.Wait()
		if r := g.rec.last(t); r.Code != telemetry.DownstreamReset || r.Status != 0 {
			t.Fatalf("%+v", r)
		}
	})
}

func TestUpstreamEndsMidBody(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			p := newParts(ctx, "half")
			p.err = errors.New("connection reset by peer")
			close(p.c)
			return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1}, Body: p}, nil
		}, nil)
		resp, err := client(g).Get("http://app/")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Fatalf("a body that was cut short looks complete: %q", b)
		}
		_ = resp.Body.Close()
		synctest.Wait()
		if r := g.rec.last(t); r.Code != telemetry.UpstreamConnectionTermination || r.Status != 200 {
			t.Fatalf("%+v", r)
		}
	})
}

func TestTimeouts(t *testing.T) {
	ms := func(n int) *time.Duration { d := time.Duration(n) * time.Millisecond; return &d }
	hang := func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
		_ = all(req.Body)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for name, tt := range map[string]struct {
		fw     resource.Forward
		m      resource.HTTPManager
		slow   bool // the client does not end its request
		code   telemetry.Code
		status int
		after  time.Duration
	}{
		"route":        {fw: resource.Forward{Timeout: ms(700)}, code: telemetry.UpstreamRequestTimeout, status: 504, after: 700 * time.Millisecond},
		"default":      {code: telemetry.UpstreamRequestTimeout, status: 504, after: 15 * time.Second},
		"stream idle":  {fw: resource.Forward{Timeout: ms(0)}, m: resource.HTTPManager{StreamIdleTimeout: 2 * time.Second}, code: telemetry.StreamIdleTimeout, status: 504, after: 2 * time.Second},
		"route's idle": {fw: resource.Forward{Timeout: ms(0), IdleTimeout: ms(900)}, code: telemetry.StreamIdleTimeout, status: 504, after: 900 * time.Millisecond},
		"request":      {m: resource.HTTPManager{RequestTimeout: 3 * time.Second}, slow: true, code: telemetry.RequestTimeout, status: 408, after: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, client func(*rig) *http.Client) {
				g := newRig(t, hang, func(c *Config) {
					tt.m.Filters = c.Manager.Filters
					c.Manager = &tt.m
					route := toApp()
					tt.fw.Cluster = route.Forward.Cluster
					route.Forward = &tt.fw
					rt := routes(t, route)
					c.Routes = func() *decide.Routes { return rt }
				})
				var body io.Reader
				if tt.slow {
					pr, pw := io.Pipe()
					defer func() { _ = pw.Close() }()
					body = pr
				}
				began := time.Now()
				method := "GET"
				if tt.slow {
					method = "POST"
				}
				resp, text := get(t, client(g), method, "/", body)
				if resp.StatusCode != tt.status || time.Since(began) != tt.after {
					t.Errorf("%d after %v", resp.StatusCode, time.Since(began))
				}
				if ps := resp.Header.Get("Proxy-Status"); !strings.Contains(ps, `details="`+tt.code.Info().ID+`"`) || !strings.HasPrefix(ps, "parrel; error=") {
					t.Errorf("proxy-status %q", ps)
				}
				if !strings.Contains(text, tt.code.Info().Sentence) {
					t.Errorf("body %q", text)
				}
				synctest.Wait()
				if r := g.rec.last(t); r.Code != tt.code || r.Status != tt.status {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			if req.Head.Upgrade != "websocket" {
				return ok("no"), nil
			}
			return &stream.Response{
				Head:   stream.ResponseHead{Status: 101, ContentLength: -1, Header: stream.Header{{Name: "sec-websocket-accept", Value: "k"}}},
				Tunnel: newLoop(),
			}, nil
		}, nil)
		c := g.dial()
		br := bufio.NewReader(c)
		_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-Websocket-Accept") != "k" {
			t.Fatal(resp, err)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(br, buf); err != nil || string(buf) != "early" {
			t.Fatal(string(buf), err)
		}
		_, _ = io.WriteString(c, "later")
		if _, err := io.ReadFull(br, buf); err != nil || string(buf) != "later" {
			t.Fatal(string(buf), err)
		}
		_ = c.Close()
		synctest.Wait()
		if r := g.rec.last(t); r.Status != 101 || r.BytesIn != 10 || r.BytesOut != 10 {
			t.Fatalf("%+v", r)
		}
	})
}

// loop is a tunnel that gives back what it gets.
type loop struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func newLoop() *loop { r, w := io.Pipe(); return &loop{r, w} }

func (l *loop) Read(p []byte) (int, error)  { return l.r.Read(p) }
func (l *loop) Write(p []byte) (int, error) { return l.w.Write(p) }
func (l *loop) CloseWrite() error           { return l.w.Close() }
func (l *loop) Close() error                { _ = l.w.Close(); return l.r.Close() }

// recycled is a tunnel whose end hands its response on to another exchange, as a
// codec does that pools its streams.
type recycled struct {
	*loop
	once sync.Once
	on   func()
}

func (r *recycled) Close() error {
	err := r.loop.Close()
	r.once.Do(r.on)
	return err
}

// TestUpgradeEndsItsOwn: an exchange ends its own tunnel, and tells of its own
// head, although the response that it got is another's by then.
func TestUpgradeEndsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := newLoop()
		defer other.Close()
		var resp stream.Response // the codec's, used for one exchange after the other
		list := stream.Header{{Name: "x-whose", Value: "mine"}}
		g := newRig(t, func(context.Context, *stream.Request) (*stream.Response, error) {
			resp = stream.Response{Head: stream.ResponseHead{Status: 101, ContentLength: -1, Header: list}, Tunnel: &recycled{loop: newLoop(), on: func() {
				list[0].Value = "another's"
				resp.Tunnel = other
			}}}
			return &resp, nil
		}, nil)
		c := g.dial()
		_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		_ = c.Close()
		synctest.Wait()
		if v := g.rec.last(t).Response.Get("x-whose"); v != "mine" {
			t.Errorf("the record has the field of a response that is %q", v)
		}
		went := make(chan error, 1)
		go func() { _, err := other.Write([]byte("x")); went <- err }()
		if _, err := other.Read(make([]byte, 1)); err != nil {
			t.Fatalf("another exchange's tunnel was ended: %v", err)
		}
		if err := <-went; err != nil {
			t.Error(err)
		}
	})
}

func TestPanicEndsOneRequest(t *testing.T) {
	both(t, func(t *testing.T, client func(*rig) *http.Client) {
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			if req.Head.Path == "/boom" {
				panic("boom")
			}
			return echo(ctx, req)
		}, nil)
		c := client(g)
		resp, _ := get(t, c, "GET", "/boom", nil)
		if resp.StatusCode != 500 || !strings.Contains(resp.Header.Get("Proxy-Status"), "local_panic") {
			t.Fatal(resp.StatusCode, resp.Header)
		}
		if resp, _ := get(t, c, "GET", "/fine", nil); resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode)
		}
		synctest.Wait()
		if len(g.conns) != 1 {
			t.Fatal("the connection did not survive the panic")
		}
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			time.Sleep(time.Second)
			return ok("done"), nil
		}, nil)
		h1, h2 := g.h1(), g.h2()
		idle := g.dial()
		time.AfterFunc(500*time.Millisecond, func() { g.drain.Cancel(nil) })
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, body := get(t, h2, "GET", "/", nil); resp.StatusCode != 200 || body != "done" {
				t.Error(resp.StatusCode)
			}
		}()
		resp, body := get(t, h1, "GET", "/", nil)
		if resp.StatusCode != 200 || body != "done" || !resp.Close {
			t.Errorf("%d %q close=%v", resp.StatusCode, body, resp.Close)
		}
		<-done
		if _, err := idle.Read(make([]byte, 1)); err == nil {
			t.Error("the idle connection got bytes")
		}
		_ = idle.Close()
		time.Sleep(3 * time.Second)
		if n := g.host.Open(); n != 0 {
			t.Errorf("%d connections are open after the drain", n)
		}
	})
}
