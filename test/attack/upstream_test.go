package attack

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// evil is a backend that answers each connection with what a function writes,
// whatever is asked. /canary goes to a sound one.
func evil(t *testing.T, speak func(c net.Conn)) string {
	t.Helper()
	ln := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err == nil {
				speak(c)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

func say(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// endlessly writes until nobody takes it, or 64 MB are written.
func endlessly(first, text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, first)
		part := strings.Repeat(text, 1+16_000/len(text))
		for n := 0; n < 64<<20; n += len(part) {
			if _, err := io.WriteString(c, part); err != nil {
				return
			}
		}
	}
}

// TestHostileUpstream: what a server answers wrongly, without end or in two ways
// reaches no client: it gets 502, 503 or 504, or an answer that is visibly cut
// off, never another's bytes; the next request is served.
func TestHostileUpstream(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, speak := range map[string]func(net.Conn){
		"garbage":                   say("\x00\x01\x02 this is no HTTP\r\n\r\n"),
		"a request":                 say("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
		"nothing":                   func(net.Conn) {},
		"HTTP/2":                    say("\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		"TLS":                       say("\x15\x03\x01\x00\x02\x02\x28"),
		"half a head":               say(ok + "X: y\r\n"),
		"an endless head":           endlessly(ok, "X: y\r\n"),
		"an endless line":           endlessly(ok+"X: ", "y"),
		"an endless status line":    endlessly("HTTP/1.1 200 ", "x"),
		"1xx without end":           endlessly("", "HTTP/1.1 100 Continue\r\n\r\n"),
		"103 without end":           endlessly("", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
		"101 that nobody asked for": say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes"),
		"both lengths":              say(ok + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		"two lengths":               say(ok + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody"),
		"a negative length":         say(ok + "Content-Length: -1\r\n\r\nbody"),
		"a length beyond all":       say(ok + "Content-Length: 18446744073709551620\r\n\r\nbody"),
		"a signed length":           say(ok + "Content-Length: +4\r\n\r\nbody"),
		"an unknown coding":         say(ok + "Transfer-Encoding: gzip\r\n\r\nbody"),
		"an obscured coding":        say(ok + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
		"a folded field":            say(ok + "X: y\r\n z\r\nContent-Length: 4\r\n\r\nbody"),
		"bare LF":                   say("HTTP/1.1 200 OK\nContent-Length: 4\n\nbody"),
		"a NUL":                     say(ok + "X: a\x00b\r\nContent-Length: 4\r\n\r\nbody"),
		"a bare CR":                 say(ok + "X: a\rb\r\nContent-Length: 4\r\n\r\nbody"),
		"an empty name":             say(ok + ": y\r\nContent-Length: 4\r\n\r\nbody"),
		"a space in a name":         say(ok + "X y: z\r\nContent-Length: 4\r\n\r\nbody"),
		"status 99":                 say("HTTP/1.1 99 x\r\nContent-Length: 4\r\n\r\nbody"),
		"status 1000":               say("HTTP/1.1 1000 x\r\nContent-Length: 4\r\n\r\nbody"),
		"status abc":                say("HTTP/1.1 abc x\r\nContent-Length: 4\r\n\r\nbody"),
		"HTTP/3.0":                  say("HTTP/3.0 200 OK\r\nContent-Length: 4\r\n\r\nbody"),
		"HTTP/0.9":                  say("body"),
		"a body that is too short":  say(ok + "Content-Length: 100\r\n\r\nbody"),
		"chunks cut off":            say(ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
		"chunks without their end":  say(ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"),
		"a chunk size of garbage":   say(ok + "Transfer-Encoding: chunked\r\n\r\nxyz\r\nbody\r\n0\r\n\r\n"),
		"a chunk that is longer":    say(ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nbody\r\n0\r\n\r\n"),
		"a chunk size beyond all":   say(ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nbody\r\n0\r\n\r\n"),
		"chunks ended by bare LF":   say(ok + "Transfer-Encoding: chunked\r\n\r\n4\nbody\n0\n\n"),
		"endless chunk extensions":  endlessly(ok+"Transfer-Encoding: chunked\r\n\r\n1;", "x"),
		"endless trailers":          endlessly(ok+"Transfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n"),
		"a second response unasked": say(ok + "Content-Length: 4\r\n\r\nbodyHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
		"more than its length":      say(ok + "Content-Length: 4\r\n\r\nbodypoison"),
		"a body behind 204":         say("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison"),
		"a body behind 304":         say("HTTP/1.1 304 Not Modified\r\n\r\npoison"),
		"a slow drip, then the end": func(c net.Conn) {
			for _, b := range []byte(ok + "Content-Le") {
				_, _ = c.Write([]byte{b})
				time.Sleep(2 * time.Millisecond)
			}
		},
		"a reset": func(c net.Conn) { _, _ = io.WriteString(c, ok+"Content-Length: 100\r\n\r\nbo"); rst(c) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hostile(t, evil(t, speak), resource.ProtocolHTTP1)
		})
	}
}

// TestHostileUpstreamH2: the same over HTTP/2: floods, bombs and broken frames
// from a server.
func TestHostileUpstreamH2(t *testing.T) {
	h2 := func(attack func(h *h2raw)) func(net.Conn) {
		return func(c net.Conn) {
			h := newH2(t, c)
			_ = h.f.WriteSettings()
			go func() { _, _ = io.Copy(io.Discard, c) }()
			attack(h)
		}
	}
	frames := func(t http2.FrameType, f http2.Flags, stream uint32, payload string) func(net.Conn) {
		return h2(func(h *h2raw) {
			for range 20_000 {
				if h.f.WriteRawFrame(t, f, stream, []byte(payload)) != nil {
					return
				}
			}
		})
	}
	for name, speak := range map[string]func(net.Conn){
		"HTTP/1.1":      say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"),
		"nothing":       func(net.Conn) {},
		"SETTINGS":      frames(http2.FrameSettings, 0, 0, ""),
		"PING":          frames(http2.FramePing, 0, 0, "12345678"),
		"empty DATA":    frames(http2.FrameData, 0, 1, ""),
		"WINDOW_UPDATE": frames(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x01"),
		"PRIORITY":      frames(http2.FramePriority, 0, 1, "\x00\x00\x00\x03\x01"),
		"PUSH_PROMISE":  frames(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, "\x00\x00\x00\x02\x88"),
		"empty CONTINUATION": h2(func(h *h2raw) {
			_ = h.f.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x88})
			for range 20_000 {
				if h.f.WriteContinuation(1, false, nil) != nil {
					return
				}
			}
		}),
		"a head without end": h2(func(h *h2raw) {
			_ = h.f.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x88})
			for range 5_000 {
				if h.f.WriteContinuation(1, false, h.block("x", strings.Repeat("y", 8000))) != nil {
					return
				}
			}
		}),
		"1xx without end": h2(func(h *h2raw) {
			for range 20_000 {
				if h.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(":status", "100"), EndHeaders: true}) != nil {
					return
				}
			}
		}),
		"a field with CRLF":  h2(func(h *h2raw) { h.headers(1, true, ":status", "200", "x", "a\r\nset-cookie: b") }),
		"an upper-case name": h2(func(h *h2raw) { h.headers(1, true, ":status", "200", "X", "a") }),
		"no status":          h2(func(h *h2raw) { h.headers(1, true, "x", "a") }),
		"two statuses":       h2(func(h *h2raw) { h.headers(1, true, ":status", "200", ":status", "201") }),
		"transfer-encoding":  h2(func(h *h2raw) { h.headers(1, true, ":status", "200", "transfer-encoding", "chunked") }),
		"a wrong length": h2(func(h *h2raw) {
			h.headers(1, false, ":status", "200", "content-length", "100")
			_ = h.f.WriteData(1, true, []byte("body"))
		}),
		"DATA before a head": h2(func(h *h2raw) { _ = h.f.WriteData(1, true, []byte("body")) }),
		"more than windows": h2(func(h *h2raw) {
			h.headers(1, false, ":status", "200")
			for range 4_000 {
				if h.f.WriteData(1, false, make([]byte, 16<<10)) != nil {
					return
				}
			}
		}),
		"an HPACK bomb": h2(func(h *h2raw) {
			b := append(h.block(":status", "200"), h.block("x", strings.Repeat("y", 3000))...)
			b = append(b, []byte(strings.Repeat("\xbe", 10_000))...)
			_ = h.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndHeaders: true, EndStream: true})
		}),
		"a reset":             h2(func(h *h2raw) { _ = h.f.WriteRSTStream(1, http2.ErrCodeInternal) }),
		"GOAWAY":              h2(func(h *h2raw) { _ = h.f.WriteGoAway(1, http2.ErrCodeInternal, nil) }),
		"a stream of its own": h2(func(h *h2raw) { h.headers(2, true, ":status", "200") }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hostile(t, evil(t, speak), resource.ProtocolHTTP2)
		})
	}
}

// hostile asks a bad cluster over HTTP/1.1 and HTTP/2 and checks what comes.
func hostile(t *testing.T, bad string, p resource.Protocol) {
	t.Helper()
	b, address := newBackend(t), freeAddress(t)
	m := manager("bad")
	short := 2 * time.Second
	m.Route.VirtualHosts[0].Routes = []resource.Route{
		{Match: resource.RouteMatch{PathKind: resource.PathExact, Path: "/canary"}, Forward: &resource.Forward{Cluster: "good"}},
		{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: "bad", Timeout: &short}},
	}
	e := start(t, nil, cluster("good", b.address(), resource.ProtocolHTTP1), cluster("bad", bad, p), inbound("x", address, m))
	for range 2 {
		c := connect(t, address)
		c.send("GET /p HTTP/1.1\r\nHost: a.example\r\n\r\n")
		r, err := c.read("GET")
		whole := err == nil && (r.status == 502 || r.status == 503 || r.status == 504 || r.status == 200 && r.body == "body" || (r.status == 204 || r.status == 304) && r.body == "")
		cut := err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || strings.Contains(err.Error(), "reset"))
		if !whole && !cut || strings.Contains(r.body, "poison") {
			t.Errorf("HTTP/1.1: %d %.100q, %v", r.status, r.body, err)
		}
		_ = c.Close()
		h := connectH2(t, address)
		h.headers(1, true, request("GET", "/p")...)
		o, err := h.wait(1)
		if err != nil || strings.Contains(o.body, "poison") || !o.isReset && !o.over && !strings.HasPrefix(o.status, "50") && o.body != "body" && o.status != "204" && o.status != "304" {
			t.Errorf("HTTP/2: %+v, %v", o, err)
		}
		if err := h.alone(3); err != nil {
			t.Errorf("the connection of the client: %v", err)
		}
		_ = h.Close()
		if err := ask(address, "/canary"); err != nil {
			t.Error(err)
		}
	}
	if n := e.errorsOf("local_panic"); n != 0 {
		t.Errorf("%v panics", n)
	}
}
