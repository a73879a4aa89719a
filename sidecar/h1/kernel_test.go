package h1

import (
	"errors"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// On a kernel socket the end of an exchange's scope ends its waits, although
// nothing attaches to the scope before somebody waits; and no exchange that was
// answered leaves anything behind.
func TestCancelOnKernelSocket(t *testing.T) {
	l, err := netio.OS{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := netio.OS{}.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := NewClientConn(raw, ClientOptions{})
	defer c.Close()
	if !c.told && netio.BeforeWait(raw, c) {
		t.Error("the connection does not say when it waits")
	}
	req := func() *stream.Request {
		return &stream.Request{Head: stream.RequestHead{Method: "GET", Scheme: "http", Authority: "h", Path: "/", Protocol: stream.HTTP1}}
	}
	answered := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1024))
		if err == nil {
			_, err = s.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
		}
		answered <- err
	}()
	var first stream.Scope
	resp, err := c.Do(&first, req())
	if werr := <-answered; err != nil || werr != nil {
		t.Fatal(err, werr)
	}
	resp.End()
	first.Cancel(nil) // too late to be of this connection's interest

	var life stream.Scope
	failed := make(chan error, 1)
	go func() { _, err := c.Do(&life, req()); failed <- err }()
	if _, err := s.Read(make([]byte, 1024)); err != nil { // it waits now, or is about to
		t.Fatal(err)
	}
	why := errors.New("the end")
	life.Cancel(why)
	select {
	case err := <-failed:
		var f *stream.Failure
		if !errors.As(err, &f) || f.Kind != stream.FailedCancelled || !errors.Is(err, why) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the exchange waits on after the end of its scope")
	}
}
