package l7

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// pair is an engine's connection that nobody serves yet, and the client's end.
func (g *rig) pair() (client net.Conn, c *listener.Conn) {
	g.t.Helper()
	ln, err := g.host.Listen(g.t.Context(), "tcp", "10.0.0.1:81")
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	client, err = g.host.Dial(g.t.Context(), "tcp", "10.0.0.1:81")
	if err != nil {
		g.t.Fatal(err)
	}
	conn, err := ln.AcceptConn()
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = client.Close(); _ = conn.Close() })
	return client, &listener.Conn{Conn: conn, Listener: "l", Chain: "c", Draining: g.drain, Source: netip.MustParseAddrPort("10.0.0.1:9")}
}

func talk(t *testing.T, c net.Conn, br *bufio.Reader) int {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// An idle connection is left to the listener, before its first byte and between
// requests, and goes on where it was; its end, a drain and its idle time are seen
// when it is taken up again.
func TestParks(t *testing.T) {
	for name, end := range map[string]func(g *rig, client net.Conn){
		"the client ends it": func(_ *rig, client net.Conn) { _ = client.Close() },
		"a drain":            func(g *rig, _ net.Conn) { g.drain.Cancel(nil) },
		"its idle time":      func(_ *rig, client net.Conn) { time.Sleep(DefaultIdle); _, _ = client.Read(make([]byte, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, echo, nil)
				client, c := g.pair()
				br := bufio.NewReader(client)
				began := time.Now()
				for range 2 {
					if !g.engine.ServeUntilIdle(t.Context(), c) {
						t.Fatal("a connection that nothing came on is over")
					}
				}
				if d := time.Since(began); d != 2*parkAfter {
					t.Errorf("it kept its goroutine for %v", d)
				}
				for range 2 {
					var asked sync.WaitGroup
					asked.Go(func() {
						if status := talk(t, client, br); status != 200 {
							t.Error(status)
						}
					})
					if !g.engine.ServeUntilIdle(t.Context(), c) {
						t.Fatal("a connection is over after a request")
					}
					asked.Wait()
				}
				end(g, client)
				synctest.Wait()
				if g.engine.ServeUntilIdle(t.Context(), c) {
					t.Error("it is still there")
				}
			})
		})
	}
}

// The preface may come in any parts: both versions are told apart on one port.
func TestSniffsAtEverySplit(t *testing.T) {
	for _, first := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "PUT / HTTP/1.1\r\nHost: a\r\n\r\n", "P / HTTP/1.1\r\nHost: a\r\n\r\n"} {
		for at := 1; at < min(len(first), 26); at++ {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, echo, nil)
				c := g.dial()
				defer func() { _ = c.Close() }()
				_, _ = io.WriteString(c, first[:at])
				time.Sleep(time.Second)
				_, _ = io.WriteString(c, first[at:])
				buf := make([]byte, 9)
				if _, err := io.ReadFull(c, buf); err != nil {
					t.Fatalf("%q split at %d: %v", first, at, err)
				}
				if h2 := strings.HasPrefix(first, "PRI"); h2 != (buf[3] == byte(http2.FrameSettings)) || h2 == (string(buf) == "HTTP/1.1 ") {
					t.Errorf("%q split at %d: answered %q", first, at, buf)
				}
			})
		}
	}
}

// Who sends part of a first line and then nothing is ended, and recorded.
func TestSlowFirstBytesAreRecorded(t *testing.T) {
	for _, first := range []string{"P", "PRI", "GET / HT"} {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, echo, nil)
			c := g.dial()
			_, _ = io.WriteString(c, first)
			began := time.Now()
			_, _ = io.ReadAll(c)
			if d := time.Since(began); d < DefaultHeaderTimeout || d > 2*DefaultHeaderTimeout {
				t.Errorf("%q: ended after %v", first, d)
			}
			_ = c.Close()
			synctest.Wait()
			if r := g.rec.last(t); r.Code != telemetry.RequestHeaderTimeout || r.Detail == "" {
				t.Errorf("%q: %+v", first, r)
			}
		})
	}
}

// What a codec refuses has its code, its answer says so, and it is counted.
func TestRefusalsHaveCodes(t *testing.T) {
	for kind, tt := range map[stream.RefusalKind]struct {
		status int
		code   telemetry.Code
	}{
		stream.Malformed:  {400, telemetry.DownstreamProtocolError},
		stream.TooLarge:   {431, telemetry.RequestHeaderTooLarge},
		stream.TooSlow:    {408, telemetry.RequestHeaderTimeout},
		stream.Flooded:    {0, telemetry.DownstreamFlood},
		stream.Overloaded: {503, telemetry.Overload},
	} {
		rec := &records{}
		e := &Engine{name: "parrel", rec: rec, d: Deps{Now: time.Now}}
		x := &connection{e: e, c: &listener.Conn{Listener: "l"}}
		resp := x.Refused(stream.Refusal{Protocol: stream.HTTP2, Status: tt.status, Kind: kind, Reason: "why", Method: "GET", Path: "/p", Authority: "a"})
		if r := rec.last(t); r.Code != tt.code || r.Status != tt.status || r.Detail != "why" || r.Path != "/p" || r.HTTP != "HTTP/2" || r.Listener != "l" {
			t.Errorf("%v: %+v", kind, r)
		}
		if (resp == nil) != (tt.status == 0) {
			t.Errorf("%v: answer %v", kind, resp)
		}
		if resp != nil && !strings.Contains(resp.Head.Header.Get(hProxyStatus), `details="`+tt.code.Info().ID+`"`) {
			t.Errorf("%v: %v", kind, resp.Head.Header)
		}
	}
}
