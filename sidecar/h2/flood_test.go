package h2

import (
	"context"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// most is how many abusive frames a peer gets away with (PROMISES: 1,000).
const most = 1000

// flood sends until the connection is over and says how many frames that took.
func flood(r *raw, say func(i int) error) int {
	for i := range 5 * most {
		err := say(i)
		synctest.Wait()
		if err != nil || r.over {
			return i
		}
		if r.goAway != nil {
			return i + 1
		}
	}
	return 5 * most
}

// Each mode of abuse ends the connection with ENHANCE_YOUR_CALM, is counted, and
// leaves no memory behind.
func TestFloodsOfClients(t *testing.T) {
	quick := func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
	}
	large := func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
		for range 1000 {
			if _, err := w.Write(kilobyte); err != nil {
				return
			}
		}
	}
	for _, tt := range []struct {
		name     string
		exchange func(*stream.Scope, *stream.Request, stream.Responder)
		say      func(r *raw, i int) error
	}{
		{"rapid reset", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			return r.WriteRSTStream(id, http2.ErrCodeCancel)
		}},
		{"rapid reset with a body", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, false)
			return r.WriteRSTStream(id, http2.ErrCodeNo)
		}},
		{"made to reset: WINDOW_UPDATE by 0", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			return r.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
		}},
		{"made to reset: the window too large", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			return r.WriteRawFrame(http2.FrameWindowUpdate, 0, id, []byte{0x7f, 0xff, 0xff, 0xff})
		}},
		{"made to reset: PRIORITY of a wrong length", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			return r.WriteRawFrame(http2.FramePriority, 0, id, make([]byte, 4))
		}},
		{"made to reset: DATA after the end", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			return r.WriteRawFrame(http2.FrameData, 0, id, []byte("x"))
		}},
		{"made to reset: HEADERS after the end", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, true)
			r.get(id, true)
			return nil
		}},
		{"made to reset: DATA longer than its length", hang, func(r *raw, i int) error {
			id := uint32(2*i + 1)
			r.get(id, false, append(plainGet[:8:8], "content-length", "1")...)
			return r.WriteRawFrame(http2.FrameData, 0, id, []byte("xx"))
		}},
		{"malformed requests", quick, func(r *raw, i int) error {
			r.get(uint32(2*i+1), true, append(plainGet[:8:8], "connection", "close")...)
			return nil
		}},
		{"CONTINUATION", hang, func(r *raw, i int) error {
			if i == 0 {
				return r.WriteRawFrame(http2.FrameHeaders, 1, 1, []byte("\x82"))
			}
			return r.WriteRawFrame(http2.FrameContinuation, 0, 1, []byte("\x00\x01a\x01b"))
		}},
		{"large CONTINUATION", hang, func(r *raw, i int) error {
			if i == 0 {
				return r.WriteRawFrame(http2.FrameHeaders, 1, 1, []byte("\x82"))
			}
			return r.WriteRawFrame(http2.FrameContinuation, 0, 1, make([]byte, maxFrame))
		}},
		{"empty CONTINUATION", hang, func(r *raw, i int) error {
			if i == 0 {
				return r.WriteRawFrame(http2.FrameHeaders, 1, 1, []byte("\x82"))
			}
			return r.WriteRawFrame(http2.FrameContinuation, 0, 1, nil)
		}},
		{"SETTINGS", hang, func(r *raw, _ int) error { return r.WriteSettings() }},
		{"SETTINGS of the table", hang, func(r *raw, i int) error {
			return r.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i%2) * 4096})
		}},
		{"SETTINGS acknowledgements", hang, func(r *raw, _ int) error { return r.WriteSettingsAck() }},
		{"PING", hang, func(r *raw, _ int) error { return r.WritePing(false, [8]byte{}) }},
		{"PING acknowledgements", hang, func(r *raw, _ int) error { return r.WritePing(true, [8]byte{}) }},
		{"PRIORITY", hang, func(r *raw, i int) error {
			return r.WritePriority(uint32(2*i+1), http2.PriorityParam{StreamDep: 0, Weight: 3})
		}},
		{"WINDOW_UPDATE of the connection", hang, func(r *raw, _ int) error { return r.WriteWindowUpdate(0, 1) }},
		{"WINDOW_UPDATE of a stream", hang, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, true)
				return nil
			}
			return r.WriteWindowUpdate(1, 1)
		}},
		{"WINDOW_UPDATE of streams that are over", quick, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, true)
				return nil
			}
			return r.WriteWindowUpdate(1, 1)
		}},
		{"a window of one byte at a time", large, func(r *raw, i int) error {
			if i == 0 {
				_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				r.get(1, true)
				return nil
			}
			return r.WriteWindowUpdate(1, 1)
		}},
		{"empty DATA", hang, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, false)
				return nil
			}
			return r.WriteData(1, false, nil)
		}},
		{"padding alone", hang, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, false)
				return nil
			}
			return r.WriteDataPadded(1, false, nil, make([]byte, 100))
		}},
		{"unknown frames", hang, func(r *raw, _ int) error { return r.WriteRawFrame(0x77, 0, 0, make([]byte, 10)) }},
		{"RST_STREAM of streams that are over", quick, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, true)
				return nil
			}
			return r.WriteRSTStream(1, http2.ErrCodeCancel)
		}},
		{"DATA on streams that are over", quick, func(r *raw, i int) error {
			if i == 0 {
				r.get(1, true)
				return nil
			}
			return r.WriteData(1, false, []byte("x"))
		}},
		{"HPACK bomb", quick, func(r *raw, i int) error {
			// One large entry, then as many references to it as fit.
			if i == 0 {
				r.get(1, true, append(plainGet[:8:8], "x-bomb", strings.Repeat("b", 3900))...)
				return nil
			}
			block := "\x82\x84\x86" + strings.Repeat("\xbe", maxFrame-3)
			return r.WriteRawFrame(http2.FrameHeaders, 5, uint32(2*i+1), []byte(block))
		}},
		{"streams beyond the limit", hang, func(r *raw, i int) error { r.get(uint32(2*i+1), true); return nil }},
		{"GOAWAY", hang, func(r *raw, i int) error { return r.WriteGoAway(0, http2.ErrCodeNo, nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, h, over, _ := rawClient(t, tt.exchange, Server{})
				synctest.Wait()
				before := heap()
				n := flood(r, func(i int) error { return tt.say(r, i) })
				if n > most || r.code != http2.ErrCodeEnhanceYourCalm {
					t.Errorf("%d frames, %v %s", n, r.code, r.debug)
				}
				<-over
				if grown := int64(heap()) - int64(before); grown > 8<<20 {
					t.Errorf("the heap grew by %d kB", grown>>10)
				}
				counted := 0
				for _, f := range h.refused {
					if f.Kind == stream.Flooded && f.Reason != "" {
						counted++
					}
				}
				if counted != 1 {
					t.Errorf("counted %d times: %+v", counted, h.refused)
				}
			})
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A client that asks and asks for answers without reading them is ended before
// the answers take memory.
func TestFloodWithoutReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, sv := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			(&Server{Handler: &handlerFunc{}, Budget: Budget{Tokens: 1 << 30}}).Serve(context.Background(), sv, netio.Pending{}, nil)
		}()
		_, _ = io.WriteString(c, Preface)
		fr := http2.NewFramer(c, nil)
		_ = fr.WriteSettings()
		n := 0
		for ; fr.WritePing(false, [8]byte{}) == nil; n++ {
		}
		<-over
		_ = c.Close()
		if n > (maxControl+drainMost+4*64<<10)/17 {
			t.Errorf("%d PINGs", n)
		}
	})
}

// A server's floods end the client's connection just so.
func TestFloodsOfServers(t *testing.T) {
	for _, tt := range []struct {
		name string
		say  func(r *raw, i int) error
	}{
		{"SETTINGS", func(r *raw, _ int) error { return r.WriteSettings() }},
		{"PING", func(r *raw, _ int) error { return r.WritePing(false, [8]byte{}) }},
		{"WINDOW_UPDATE", func(r *raw, _ int) error { return r.WriteWindowUpdate(1, 1) }},
		{"empty DATA", func(r *raw, i int) error {
			if i == 0 {
				return r.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte("\x88"))
			}
			return r.WriteData(1, false, nil)
		}},
		{"interim responses", func(r *raw, i int) error {
			return r.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte("\x08\x03103"))
		}},
		{"empty CONTINUATION", func(r *raw, i int) error {
			if i == 0 {
				return r.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte("\x88"))
			}
			return r.WriteRawFrame(http2.FrameContinuation, 0, 1, nil)
		}},
		{"header lists beyond the limit", func(r *raw, i int) error {
			return r.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte("\x88"+strings.Repeat("\x90", 5000)))
		}},
		{"unknown frames", func(r *raw, _ int) error { return r.WriteRawFrame(0x77, 0, 0, nil) }},
		{"settings that change", func(r *raw, i int) error {
			return r.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(i % 2)})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, cc, ran := rawServer(t, ClientOptions{})
				failed := make(chan error, 1)
				go func() {
					_, err := cc.Do(context.Background(), get("/"))
					if err == nil {
						<-ran
					}
					failed <- err
				}()
				synctest.Wait()
				if n := flood(r, func(i int) error { return tt.say(r, i) }); n > most || r.code != http2.ErrCodeEnhanceYourCalm {
					t.Errorf("%d frames, %v %s", n, r.code, r.debug)
				}
				<-ran
				<-failed
			})
		})
	}
}

// rawServer speaks to a client of ours.
func rawServer(t *testing.T, o ClientOptions) (*raw, *ClientConn, <-chan struct{}) {
	t.Helper()
	c, sv := pair(t)
	o.Wheel = wheel.New()
	cc := NewClientConn(c, o)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		cc.Run(context.Background())
	}()
	if _, err := io.ReadFull(sv, make([]byte, len(Preface))); err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, sv)
	_ = r.WriteSettings()
	_ = r.WriteSettingsAck()
	t.Cleanup(func() {
		cc.Close()
		_ = sv.Close()
		<-r.done
		<-ran
	})
	synctest.Wait()
	return r, cc, ran
}

// Much work, cancellations among it, is no abuse.
func TestHeavyUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, echo, Server{}, ClientOptions{})
		for i := range 6000 {
			ctx, cancel := context.WithCancel(context.Background())
			if i%3 == 0 { // every third call is given up at once
				go cancel()
			}
			resp, err := r.cc.Do(ctx, get("/"))
			if err == nil {
				_ = drainBody(resp.Body)
				_ = resp.Body.Close()
			} else if ctx.Err() == nil {
				t.Fatal(i, err)
			}
			cancel()
		}
	})
	synctest.Test(t, func(t *testing.T) { // small messages both ways, as gRPC streams them
		r, _, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
			_ = w.Flush()
			_ = pump(w, q.Body)
			_ = w.Finish(nil)
		}, Server{})
		r.get(1, false)
		for i := range 3000 {
			_ = r.WriteData(1, false, []byte("12345678"))
			synctest.Wait()
			_ = r.WriteWindowUpdate(0, 8)
			_ = r.WriteWindowUpdate(1, 8)
			if i%8 == 0 {
				_ = r.WritePing(false, [8]byte{})
			}
			synctest.Wait()
		}
		if r.goAway != nil || r.got[1] != 24000 {
			t.Errorf("%v %s, %d bytes", r.code, r.debug, r.got[1])
		}
	})
	synctest.Test(t, func(t *testing.T) { // callers whose deadlines pass, all of them
		r, _, _, _ := rawClient(t, hang, Server{})
		for id := uint32(1); id < 6000; id += 2 {
			r.get(id, true)
			time.Sleep(100 * time.Millisecond)
			_ = r.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		synctest.Wait()
		if r.goAway != nil {
			t.Errorf("%v %s", r.code, r.debug)
		}
	})
}
