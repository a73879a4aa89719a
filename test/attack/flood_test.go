package attack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Promised of every flood: it is over after so many frames, and costs so much.
const (
	floodFrames = 1000
	floodMemory = 32 << 20
)

// flood is one way to make a server work for nothing. step sends the n-th frame,
// or the n-th few frames, and says how many of them are abusive.
type flood struct {
	name     string
	settings []http2.Setting
	begin    func(c *h2raw)
	inHead   bool // no other frame may come between
	step     func(c *h2raw, n int) (frames int)
}

// id is the n-th stream id of a client.
func id(n int) uint32 { return uint32(2*n + 1) }

func floods() []flood {
	open := func(c *h2raw, n int, end bool) { c.headers(id(n), end, request("POST", "/held")...) }
	rawFrame := func(t http2.FrameType, f http2.Flags, stream uint32, payload string) func(*h2raw, int) int {
		return func(c *h2raw, _ int) int {
			_ = c.f.WriteRawFrame(t, f, stream, []byte(payload))
			return 1
		}
	}
	held := func(c *h2raw) { open(c, 0, false) }
	// made makes the server reset each stream by what it sends after its head.
	made := func(name string, end bool, more func(c *h2raw, stream uint32)) flood {
		return flood{name: "made reset: " + name, step: func(c *h2raw, n int) int {
			open(c, n, end)
			more(c, id(n))
			return 2
		}}
	}
	zero := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}
	bomb := func(c *h2raw, n int) int {
		// One field of 3 kB in the dynamic table, then one byte for each copy.
		block := c.block(request("GET", "/p")...)
		block = append(block, c.block("x", strings.Repeat("y", 3000))...)
		block = append(block, slices.Repeat([]byte{0x80 | 62}, 10_000)...)
		_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id(n), BlockFragment: block, EndHeaders: true, EndStream: true})
		return 1
	}
	return []flood{
		{name: "rapid reset", step: func(c *h2raw, n int) int {
			c.headers(id(n), true, request("GET", "/p")...)
			_ = c.f.WriteRSTStream(id(n), http2.ErrCodeCancel)
			return 2
		}},
		{name: "rapid reset of uploads", step: func(c *h2raw, n int) int {
			open(c, n, false)
			_ = c.f.WriteRSTStream(id(n), http2.ErrCodeNo)
			return 2
		}},
		made("window update of nothing", false, func(c *h2raw, s uint32) { _ = c.f.WriteWindowUpdate(s, 0) }),
		made("window beyond all", false, func(c *h2raw, s uint32) { _ = c.f.WriteWindowUpdate(s, 1<<31-1) }),
		made("data after the end", true, func(c *h2raw, s uint32) { _ = c.f.WriteData(s, false, []byte("x")) }),
		made("a head after the end", true, func(c *h2raw, s uint32) { c.headers(s, true, request("GET", "/p")...) }),
		made("a priority frame of a wrong size", false, func(c *h2raw, s uint32) { _ = c.f.WriteRawFrame(http2.FramePriority, 0, s, []byte("abc")) }),
		made("a stream that depends on itself", false, func(c *h2raw, s uint32) { _ = c.f.WritePriority(s, http2.PriorityParam{StreamDep: s}) }),
		{name: "made reset: more than its length", step: func(c *h2raw, n int) int {
			c.headers(id(n), false, request("POST", "/p", "content-length", "1")...)
			_ = c.f.WriteData(id(n), true, []byte("xx"))
			return 2
		}},
		{name: "made reset: malformed heads", step: func(c *h2raw, n int) int {
			c.headers(id(n), true, request("GET", "/p", "Upper", "x")...)
			return 1
		}},
		{name: "CONTINUATION", inHead: true, begin: func(c *h2raw) {
			_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(request("GET", "/p")...)})
		}, step: func(c *h2raw, _ int) int {
			_ = c.f.WriteContinuation(1, false, c.block("x", "y"))
			return 1
		}},
		{name: "empty CONTINUATION", inHead: true, begin: func(c *h2raw) {
			_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(request("GET", "/p")...)})
		}, step: rawFrame(http2.FrameContinuation, 0, 1, "")},
		{name: "large CONTINUATION", inHead: true, begin: func(c *h2raw) {
			_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(request("GET", "/p")...)})
		}, step: func(c *h2raw, _ int) int {
			_ = c.f.WriteContinuation(1, false, c.block("x", strings.Repeat("y", 10_000)))
			return 1
		}},
		{name: "SETTINGS", step: rawFrame(http2.FrameSettings, 0, 0, "")},
		{name: "SETTINGS that change", step: func(c *h2raw, n int) int {
			_ = c.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(n)}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(n % 4096)})
			return 1
		}},
		{name: "acknowledged SETTINGS", step: rawFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, "")},
		{name: "PING", step: rawFrame(http2.FramePing, 0, 0, "12345678")},
		{name: "answered PING", step: rawFrame(http2.FramePing, http2.FlagPingAck, 0, "12345678")},
		{name: "PRIORITY", step: func(c *h2raw, n int) int {
			_ = c.f.WritePriority(id(n), http2.PriorityParam{StreamDep: id(n + 1), Weight: 3})
			return 1
		}},
		{name: "WINDOW_UPDATE of the connection", step: func(c *h2raw, _ int) int { _ = c.f.WriteWindowUpdate(0, 1); return 1 }},
		{name: "WINDOW_UPDATE of a stream", begin: held, step: func(c *h2raw, _ int) int { _ = c.f.WriteWindowUpdate(1, 1); return 1 }},
		{name: "empty DATA", begin: held, step: rawFrame(http2.FrameData, 0, 1, "")},
		{name: "DATA of padding", begin: held, step: rawFrame(http2.FrameData, http2.FlagDataPadded, 1, "\x03\x00\x00\x00")},
		{name: "DATA on a stream that is over", begin: func(c *h2raw) { c.headers(1, true, request("GET", "/p")...) }, step: rawFrame(http2.FrameData, 0, 1, "x")},
		{name: "unknown frames", step: rawFrame(0xee, 0, 0, "x")},
		{name: "GOAWAY", step: rawFrame(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00")},
		{name: "HPACK bomb", step: bomb},
		{name: "heads beyond the limit", step: func(c *h2raw, n int) int {
			b := c.block(request("GET", "/p", "x", strings.Repeat("y", 15_000))...)
			for range 6 {
				b = append(b, c.block("x", strings.Repeat("z", 12_000))...)
			}
			_ = c.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id(n), BlockFragment: b[:16_000], EndStream: true})
			for b = b[16_000:]; len(b) > 16_000; b = b[16_000:] {
				_ = c.f.WriteContinuation(id(n), false, b[:16_000])
			}
			_ = c.f.WriteContinuation(id(n), true, b)
			return 1
		}},
		{name: "held streams", step: func(c *h2raw, n int) int { open(c, n, false); return 1 }},
		{name: "zero windows", settings: []http2.Setting{zero}, step: func(c *h2raw, n int) int {
			c.headers(id(n), true, request("GET", "/large")...)
			return 1
		}},
		{name: "windows of one byte", settings: []http2.Setting{zero}, begin: func(c *h2raw) { c.headers(1, true, request("GET", "/large")...) },
			step: func(c *h2raw, _ int) int { _ = c.f.WriteWindowUpdate(1, 1); return 1 }},
	}
}

// run floods until the connection is over and says after how many frames that
// was; an error says that it did not end.
func (f flood) run(t testing.TB, address string, reads bool) (frames int, err error) {
	c := connectH2(t, address, f.settings...)
	defer c.Close()
	var over atomic.Bool
	done, judged := make(chan struct{}), make(chan struct{}, 1)
	go func() {
		defer close(done)
		defer close(judged)
		if !reads {
			waitForEnd(c.Conn)
			over.Store(true)
			return
		}
		for {
			fr, err := c.f.ReadFrame()
			if p, ok := fr.(*http2.PingFrame); ok && p.IsAck() && p.Data == mark {
				judged <- struct{}{}
			}
			if g, ok := fr.(*http2.GoAwayFrame); err != nil || ok && g.ErrCode != http2.ErrCodeNo {
				over.Store(true)
				return
			}
		}
	}()
	if f.begin != nil {
		f.begin(c)
	}
	for n := 1; frames < 5*floodFrames && !over.Load(); n++ {
		frames += f.step(c, n)
		// Frames are to be counted when they are judged, not when they are buffered:
		// a PING is answered when all before it were.
		switch {
		case n%20 != 0:
		case reads && !f.inHead:
			_ = c.f.WritePing(false, mark)
			<-judged
		default:
			time.Sleep(2 * time.Millisecond)
		}
	}
	if !over.Load() {
		err = fmt.Errorf("after %d frames the connection goes on", frames)
	}
	_ = c.Close()
	<-done
	return frames, err
}

// mark is in the PINGs by which a flood keeps step.
var mark = [8]byte{'k', 'e', 'e', 'p', 's', 't', 'e', 'p'}

// waitForEnd returns when the kernel says that the connection is over, without
// reading from it.
func waitForEnd(c net.Conn) {
	for {
		if _, err := c.Write(nil); err != nil {
			return
		}
		if reset(c) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// good is a sound client that works beside an attack: over HTTP/1.1 and over
// HTTP/2, one request after the other.
type good struct {
	stop  context.CancelFunc
	wg    sync.WaitGroup
	mu    sync.Mutex
	times []time.Duration
	bad   []error
}

func startGood(t testing.TB, address string) *good {
	ctx, stop := context.WithCancel(context.Background())
	g := &good{stop: stop}
	keep := func(began time.Time, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.times = append(g.times, time.Since(began))
		if err != nil {
			g.bad = append(g.bad, err)
		}
	}
	h1 := connect(t, address)
	_ = h1.SetDeadline(time.Now().Add(5 * time.Minute))
	h2 := connectH2(t, address)
	_ = h2.SetDeadline(time.Now().Add(5 * time.Minute))
	g.wg.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			h1.send("GET /canary HTTP/1.1\r\nHost: a.example\r\n\r\n")
			r, err := h1.read("GET")
			if err == nil && (r.status != 200 || r.body != "echo GET /canary 0") {
				err = fmt.Errorf("HTTP/1.1: %d %q", r.status, r.body)
			}
			keep(began, err)
			if err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	g.wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			began := time.Now()
			err := h2.alone(id(n))
			keep(began, err)
			if err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	return g
}

// end stops the client and gives how long its requests took, sorted, and what
// failed.
func (g *good) end() ([]time.Duration, []error) {
	g.stop()
	g.wg.Wait()
	slices.Sort(g.times)
	return g.times, g.bad
}

// floodBackend answers /large with 1 MB and keeps /held waiting for its body.
func floodBackend(t testing.TB) *backend {
	b := newBackend(t)
	large := strings.Repeat("x", 1<<20)
	b.answer = func(c net.Conn, s seen) bool {
		b.take() // nobody counts here
		if s.target == "/large" {
			_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(large), large)
			return err == nil
		}
		text := fmt.Sprintf("echo %s %s %d", s.method, s.target, len(s.body))
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	}
	return b
}

// TestFloods: each mode of abuse of HTTP/2, by several connections at once, is
// ended within 1,000 abusive frames on each, costs 32 MB at the most, and a sound
// client beside it has no failure.
func TestFloods(t *testing.T) {
	const connections = 4
	for _, reads := range []bool{true, false} {
		name := map[bool]string{true: "reading", false: "not reading"}[reads]
		t.Run(name, func(t *testing.T) {
			p := spawn(t, childConfig{Backend: floodBackend(t).address()})
			for range 200 { // what is made once is made
				if err := ask(p.Listen, "/canary"); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range floods() {
				t.Run(f.name, func(t *testing.T) {
					g := startGood(t, p.Listen)
					before, stop := p.memory(), p.peak()
					var wg sync.WaitGroup
					for range connections {
						wg.Go(func() {
							// One that does not read learns of the end only when the connection
							// is over, some time after the last frame that was judged.
							if n, err := f.run(t, p.Listen, reads); err != nil || reads && n > floodFrames {
								t.Errorf("over after %d frames: %v", n, err)
							}
						})
					}
					wg.Wait()
					if grown := stop() - before; grown > floodMemory {
						t.Errorf("memory grew by %s, from %s", mb(grown), mb(before))
					}
					times, bad := g.end()
					if len(bad) > 0 || len(times) < 2 {
						t.Errorf("%d of %d requests of a sound client failed, the first by: %v", len(bad), len(times), bad[:min(len(bad), 1)])
					}
				})
			}
			if n := p.stat(`parrel_errors_total{code="local_panic"`); n != 0 {
				t.Errorf("%v panics", n)
			}
		})
	}
}

// TestHeldStreamsEnd: streams that a client opens and leaves are ended by their
// idle time-out, and those who wait for windows likewise.
func TestHeldStreamsEnd(t *testing.T) {
	p := spawn(t, childConfig{Backend: floodBackend(t).address(), StreamIdle: 300 * time.Millisecond})
	for _, tt := range []struct {
		name string
		c    *h2raw
		send func(c *h2raw)
	}{
		{"an upload without data", connectH2(t, p.Listen), func(c *h2raw) { c.headers(1, false, request("POST", "/held")...) }},
		{"a response without a window", connectH2(t, p.Listen, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}), func(c *h2raw) { c.headers(1, true, request("GET", "/large")...) }},
	} {
		tt.send(tt.c)
		began := time.Now()
		o, err := tt.c.wait(1)
		if err != nil || !o.isReset && !o.over && o.status != "408" && o.status != "504" || time.Since(began) > late {
			t.Errorf("%s: %+v after %s, %v", tt.name, o, time.Since(began), err)
		}
	}
}

// beyond is a SETTINGS value by which x/net's framer would refuse to write.
func beyond(id http2.SettingID, v uint32) string {
	b := binary.BigEndian.AppendUint16(nil, uint16(id))
	return string(binary.BigEndian.AppendUint32(b, v))
}

// TestFatalFrames: what breaks the connection ends it at once, without a panic
// (x/net CVE-2026-27141, Go CVE-2026-33814), and nobody else's.
func TestFatalFrames(t *testing.T) {
	_, free := lanes(t, 1, nil)
	l := <-free
	for name, send := range map[string]func(c *h2raw){
		"a frame beyond the size": func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<15)) },
		"a frame size of 0": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameSettings, 0, 0, []byte(beyond(http2.SettingMaxFrameSize, 0)))
		},
		"a frame size of 2^24": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameSettings, 0, 0, []byte(beyond(http2.SettingMaxFrameSize, 1<<24)))
		},
		"a window beyond all": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameSettings, 0, 0, []byte(beyond(http2.SettingInitialWindowSize, 1<<31)))
		},
		"ENABLE_PUSH of 2": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameSettings, 0, 0, []byte(beyond(http2.SettingEnablePush, 2)))
		},
		"SETTINGS of 5 bytes":          func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameSettings, 0, 0, []byte("12345")) },
		"SETTINGS on a stream":         func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameSettings, 0, 1, nil) },
		"acknowledged with a payload":  func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, make([]byte, 6)) },
		"PING of 7 bytes":              func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) },
		"PING on a stream":             func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) },
		"GOAWAY of 7 bytes":            func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7)) },
		"GOAWAY on a stream":           func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameGoAway, 0, 1, make([]byte, 8)) },
		"WINDOW_UPDATE of 3 bytes":     func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 3)) },
		"WINDOW_UPDATE of nothing":     func(c *h2raw) { _ = c.f.WriteWindowUpdate(0, 0) },
		"a connection's window beyond": func(c *h2raw) { _ = c.f.WriteWindowUpdate(0, 1<<31-1) },
		"RST_STREAM of 3 bytes":        func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameRSTStream, 0, 1, make([]byte, 3)) },
		"RST_STREAM on no stream":      func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameRSTStream, 0, 0, make([]byte, 4)) },
		"RST_STREAM of an idle stream": func(c *h2raw) { _ = c.f.WriteRSTStream(99, http2.ErrCodeCancel) },
		"WINDOW_UPDATE, idle stream":   func(c *h2raw) { _ = c.f.WriteWindowUpdate(99, 1) },
		"DATA on no stream":            func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) },
		"DATA on an idle stream":       func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameData, 0, 99, []byte("x")) },
		"DATA with too much padding": func(c *h2raw) {
			c.headers(1, false, request("POST", "/p")...)
			_ = c.f.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 0})
		},
		"DATA padded, without its byte": func(c *h2raw) {
			c.headers(1, false, request("POST", "/p")...)
			_ = c.f.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil)
		},
		"HEADERS on no stream":      func(c *h2raw) { c.headers(0, true, request("GET", "/p")...) },
		"HEADERS on an even stream": func(c *h2raw) { c.headers(2, true, request("GET", "/p")...) },
		"HEADERS padded, without": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, nil)
		},
		"HEADERS with too much padding": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, []byte{9, 0x82})
		},
		"HEADERS with half a priority": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPriority|http2.FlagHeadersEndHeaders, 1, []byte{0, 0})
		},
		"HEADERS of a smaller stream": func(c *h2raw) {
			c.headers(5, true, request("GET", "/p")...)
			c.headers(3, true, request("GET", "/p")...)
		},
		"CONTINUATION of nothing": func(c *h2raw) { _ = c.f.WriteRawFrame(http2.FrameContinuation, 0, 1, nil) },
		"PING within a head": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x82})
			_ = c.f.WritePing(false, [8]byte{})
		},
		"CONTINUATION of another": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x82})
			_ = c.f.WriteRawFrame(http2.FrameContinuation, 0, 3, nil)
		},
		"PUSH_PROMISE": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, make([]byte, 8))
		},
		"HPACK: an index of 0": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x80})
		},
		"HPACK: an index beyond": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0x7f})
		},
		"HPACK: an integer without end": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte(strings.Repeat("\xff", 100)))
		},
		"HPACK: a table beyond": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x3f, 0xff, 0xff, 0x7f})
		},
		"HPACK: cut off": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x00, 0x05, 'a'})
		},
		"HPACK: Huffman of nothing": func(c *h2raw) {
			_ = c.f.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00})
		},
		"not HTTP/2 at all": func(c *h2raw) { _, _ = c.Write([]byte(strings.Repeat("GET / HTTP/1.1\r\n\r\n", 10))) },
	} {
		c := connectH2(t, l.address)
		send(c)
		began := time.Now()
		o, err := c.wait(2001)
		if err != nil || !o.over || time.Since(began) > late {
			t.Errorf("%s: %+v after %s, %v", name, o, time.Since(began), err)
		}
		_ = c.Close()
		if err := ask(l.address, "/canary"); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
}
