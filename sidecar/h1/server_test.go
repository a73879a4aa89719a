package h1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

func TestMain(m *testing.M) {
	stream.Poison = true
	goleak.VerifyTestMain(m)
}

// handler answers after a second with the path.
type handler struct{ t *testing.T }

func (h handler) Exchange(ctx *stream.Scope, req *stream.Request, w stream.Responder) {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		w.Abort()
		return
	}
	if err := w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false); err != nil {
		return
	}
	_, _ = w.Write([]byte(req.Head.Path))
	_ = w.Finish(nil)
}

func (h handler) Refused(r stream.Refusal) *stream.Response {
	return &stream.Response{Head: stream.ResponseHead{Status: r.Status, Header: stream.Header{{Name: "x-mine", Value: "1"}}}}
}

// pair is a connection on a memory network.
func pair(t *testing.T) (client, server netio.Conn) {
	t.Helper()
	h := netio.NewMemory().Host("h", "10.0.0.1")
	l, err := h.Listen(t.Context(), "tcp", "10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if client, err = h.Dial(t.Context(), "tcp", "10.0.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if server, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// serve runs the server on its side and says when Serve returned.
func serve(ctx context.Context, t *testing.T, c netio.Conn, drain *stream.Scope) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		s := &Server{Handler: handler{t}, IdleTimeout: time.Minute, HeaderTimeout: 10 * time.Second, Wheel: wheel.New()}
		if s.NewConn(ctx, c, drain).Serve(netio.Pending{}) {
			t.Error("parked without being told to")
		}
	}()
	return over
}

func ask(t *testing.T, c net.Conn, br *bufio.Reader, path string) *http.Response {
	t.Helper()
	_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != path {
		t.Fatalf("%q %v", b, err)
	}
	return resp
}

func TestIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		over := serve(t.Context(), t, s, nil)
		br := bufio.NewReader(c)
		ask(t, c, br, "/a")
		ask(t, c, br, "/b")
		began := time.Now()
		<-over
		if d := time.Since(began); d < time.Minute || d > time.Minute+wheel.Tick {
			t.Errorf("ended after %v", d)
		}
		_ = c.Close()
	})
}

// Draining ends the connection after the request in hand, an idle one at once.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		drain := new(stream.Scope)
		over := serve(t.Context(), t, s, drain)
		br := bufio.NewReader(c)
		ask(t, c, br, "/a")
		time.AfterFunc(500*time.Millisecond, func() { drain.Cancel(nil) })
		if resp := ask(t, c, br, "/b"); !resp.Close {
			t.Error("the last response does not say Connection: close")
		}
		<-over
		_ = c.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		drain := new(stream.Scope)
		over := serve(t.Context(), t, s, drain)
		ask(t, c, bufio.NewReader(c), "/a")
		synctest.Wait()
		drain.Cancel(nil)
		began := time.Now()
		<-over
		if time.Since(began) != 0 {
			t.Error("an idle connection outlives the drain")
		}
		_ = c.Close()
	})
}

func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		over := serve(ctx, t, s, nil)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		synctest.Wait()
		cancel()
		<-over
		if b, _ := io.ReadAll(c); len(b) != 0 {
			t.Errorf("%q", b)
		}
		_ = c.Close()
	})
}

// What is no request is the handler's to answer.
// What is not HTTP at all, a damaged HTTP/2 preface for example, is not answered
// in HTTP.
func TestForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		over := serve(t.Context(), t, s, nil)
		_, _ = io.WriteString(c, "INVALID CONNECTION PREFACE\r\n\r\n")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Errorf("answered %q, %v", b, err)
		}
		_ = c.Close()
		<-over
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		over := serve(t.Context(), t, s, nil)
		_, _ = io.WriteString(c, "nonsense\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 400 || resp.Header.Get("X-Mine") != "1" || !resp.Close {
			t.Errorf("%v %v", resp, err)
		}
		_ = c.Close()
		<-over
	})
}

// trailing answers with the trailers that came.
type trailing struct{ handler }

func (trailing) Exchange(_ *stream.Scope, req *stream.Request, w stream.Responder) {
	_, _ = io.Copy(io.Discard, req.Body)
	h := stream.Header{{Name: "x-announced", Value: req.Head.Header.Get("trailer")}, {Name: "x-sum", Value: req.Body.Trailers().Get("x-sum")}}
	_ = w.Head(&stream.ResponseHead{Status: 204, Header: h, ContentLength: -1}, true)
}

// RFC 9110, section 6.6.2: who sends trailers announces them; whoever forwards
// the request needs the announcement.
func TestRequestTrailersAreAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			(&Server{Handler: trailing{}}).NewConn(t.Context(), server, nil).Serve(netio.Pending{})
		}()
		if _, err := io.WriteString(client, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\na\r\n0\r\nX-Sum: 9\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Header.Get("X-Announced") != "X-Sum" || r.Header.Get("X-Sum") != "9" {
			t.Errorf("%v", r.Header)
		}
		_ = client.Close()
		<-over
	})
}
