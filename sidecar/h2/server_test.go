package h2

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
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
		(&Server{Handler: handler{t}, IdleTimeout: time.Minute}).Serve(ctx, c, netio.Pending{}, drain)
	}()
	return over
}

func client(t *testing.T, c net.Conn) *http2.ClientConn {
	t.Helper()
	cc, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(c)
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

func ask(t *testing.T, cc *http2.ClientConn, path string) {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://a"+path, nil)
	resp, err := cc.RoundTrip(r)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != path {
		t.Errorf("%q %v", b, err)
	}
}

func TestIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		over := serve(t.Context(), t, s, nil)
		ask(t, client(t, c), "/a")
		began := time.Now()
		<-over
		if d := time.Since(began); d < time.Minute || d > time.Minute+5*time.Second {
			t.Errorf("ended after %v", d)
		}
		_ = c.Close()
	})
}

// Draining says GOAWAY, lets the streams in hand finish and ends.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		drain := new(stream.Scope)
		over := serve(t.Context(), t, s, drain)
		cc := client(t, c)
		time.AfterFunc(500*time.Millisecond, func() { drain.Cancel(nil) })
		ask(t, cc, "/a")
		if cc.CanTakeNewRequest() {
			t.Error("the client was not told to go away")
		}
		<-over
		_ = c.Close()
	})
}

func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		over := serve(ctx, t, s, nil)
		cc := client(t, c)
		failed := make(chan error)
		go func() {
			r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://a/", nil)
			_, err := cc.RoundTrip(r)
			failed <- err
		}()
		synctest.Wait()
		cancel()
		<-over
		if err := <-failed; err == nil {
			t.Error("the stream outlived the connection")
		}
		_ = c.Close()
	})
}
