package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// raw is a peer that says what the test wants, by x/net's framer.
type raw struct {
	t    *testing.T
	conn netio.Conn
	*http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
	// What the other side said; filled by listen.
	seen   []string
	goAway *http2.GoAwayFrame
	code   http2.ErrCode
	debug  string
	resets map[uint32]http2.ErrCode
	heads  map[uint32]string // :status by stream
	ended  map[uint32]bool
	got    map[uint32]int // bytes of DATA by stream
	pings  []uint64       // acknowledged
	over   bool           // the connection has ended
	done   chan struct{}
}

func newRaw(t *testing.T, c netio.Conn) *raw {
	r := &raw{t: t, conn: c, Framer: http2.NewFramer(c, c), resets: map[uint32]http2.ErrCode{}, heads: map[uint32]string{},
		ended: map[uint32]bool{}, got: map[uint32]int{}, done: make(chan struct{})}
	r.AllowIllegalWrites, r.AllowIllegalReads = true, true
	r.enc = hpack.NewEncoder(&r.buf)
	go r.listen()
	return r
}

func (r *raw) listen() {
	defer close(r.done)
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.over = true
			return
		}
		id := f.Header().StreamID
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			r.ended[id] = true
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			if r.goAway == nil || f.ErrCode != 0 {
				r.code, r.debug = f.ErrCode, string(f.DebugData())
			}
			r.goAway = f
			r.seen = append(r.seen, "GOAWAY")
		case *http2.RSTStreamFrame:
			r.resets[id] = f.ErrCode
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				r.t.Error(err)
			}
			for _, f := range fields {
				if f.Name == ":status" {
					r.heads[id] += f.Value
				}
			}
		case *http2.DataFrame:
			r.got[id] += len(f.Data())
		case *http2.PingFrame:
			if f.IsAck() {
				r.pings = append(r.pings, uint64(f.Data[7]))
			} else {
				r.seen = append(r.seen, "PING")
			}
		}
	}
}

func (r *raw) block(fields ...string) []byte {
	r.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return r.buf.Bytes()
}

var plainGet = []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}

func (r *raw) get(id uint32, end bool, fields ...string) {
	if fields == nil {
		fields = plainGet
	}
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: r.block(fields...)})
}

// rawClient speaks to a server of ours; preface and settings are said already.
func rawClient(t *testing.T, exchange func(*stream.Scope, *stream.Request, stream.Responder), s Server) (*raw, *handlerFunc, <-chan struct{}, *stream.Scope) {
	t.Helper()
	c, sv := pair(t)
	h := &handlerFunc{exchange: exchange, answer: true}
	s.Handler, s.Wheel = h, wheel.New()
	over, drain := make(chan struct{}), new(stream.Scope)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(over)
		s.Serve(ctx, sv, netio.Pending{}, drain)
	}()
	r := newRaw(t, c)
	t.Cleanup(func() {
		_ = c.Close()
		<-r.done
		<-over
		cancel()
	})
	_, _ = io.WriteString(c, Preface)
	_ = r.WriteSettings()
	return r, h, over, drain
}

// hang waits until the exchange is given up.
func hang(life *stream.Scope, _ *stream.Request, w stream.Responder) {
	<-life.Done()
	w.Abort()
}

// Each of these is a malformed request: the handler never sees it, its stream is
// reset with PROTOCOL_ERROR after an answer, and the connection goes on (RFC
// 9113, sections 8.1.1 to 8.3.1; HG3).
func TestMalformedRequests(t *testing.T) {
	m := func(more ...string) []string { return append(append([]string(nil), plainGet...), more...) }
	without := func(name string, more ...string) (out []string) {
		for i := 0; i < len(plainGet); i += 2 {
			if plainGet[i] != name {
				out = append(out, plainGet[i], plainGet[i+1])
			}
		}
		return append(out, more...)
	}
	for _, tt := range []struct {
		name   string
		fields []string
	}{
		{"name in upper case", m("X-A", "b")},
		{"name with a space", m("x a", "b")},
		{"name with a colon", m("x:a", "b")},
		{"name with a line end", m("x\r\na", "b")},
		{"name with NUL", m("x\x00a", "b")},
		{"empty name", m("", "b")},
		{"value with CR", m("x-a", "b\rc")},
		{"value with LF", m("x-a", "b\nc")},
		{"value with NUL", m("x-a", "b\x00c")},
		{"value with space before", m("x-a", " b")},
		{"value with tab behind", m("x-a", "b\t")},
		{"connection", m("connection", "close")},
		{"keep-alive", m("keep-alive", "1")},
		{"proxy-connection", m("proxy-connection", "close")},
		{"transfer-encoding", m("transfer-encoding", "chunked")},
		{"upgrade", m("upgrade", "h2c")},
		{"te other than trailers", m("te", "gzip")},
		{"no method", without(":method")},
		{"empty method", without(":method", ":method", "")},
		{"method with a space", without(":method", ":method", "GET /x HTTP/1.1\r\nfoo:")},
		{"no scheme", without(":scheme")},
		{"empty scheme", without(":scheme", ":scheme", "")},
		{"no path", without(":path")},
		{"empty path", without(":path", ":path", "")},
		{"path without a slash", without(":path", ":path", "admin")},
		{"path with a space", without(":path", ":path", "/a b")},
		{"path with a line end", without(":path", ":path", "/a\r\nx: y")},
		{"path with a fragment", without(":path", ":path", "/a#b")},
		{"asterisk not of OPTIONS", without(":path", ":path", "*")},
		{"absolute path", without(":path", ":path", "http://a/")},
		{"authority with a path", without(":authority", ":authority", "a/b")},
		{"authority with userinfo", without(":authority", ":authority", "u@a")},
		{"authority with a space", without(":authority", ":authority", "a b")},
		{"authority empty", without(":authority", ":authority", "")},
		{"host with a path", without(":authority", "host", "a/b")},
		{"pseudo-header twice", m(":path", "/b")},
		{"pseudo-header after a field", append([]string{"x-a", "b"}, plainGet...)},
		{"unknown pseudo-header", m(":foo", "b")},
		{"response's pseudo-header", m(":status", "200")},
		{"protocol without CONNECT", m(":protocol", "websocket")},
		{"extended CONNECT that ends", without(":method", ":method", "CONNECT", ":protocol", "websocket")},
		{"CONNECT with a path", without(":method", ":method", "CONNECT")},
		{"content-length without DATA", m("content-length", "5")},
		{"content-length with a sign", m("content-length", "+0")},
		{"content-length empty", m("content-length", "")},
		{"content-length twice", m("content-length", "0", "content-length", "1")},
		{"content-length as a list", m("content-length", "0, 0")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				served := 0
				r, h, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
					served++
					echo(l, q, w)
				}, Server{})
				r.get(1, true, tt.fields...)
				synctest.Wait()
				if served > 0 || r.resets[1] != http2.ErrCodeProtocol || r.heads[1] != "400" {
					t.Errorf("served %d, reset %v, answer %q", served, r.resets[1], r.heads[1])
				}
				if len(h.refused) != 1 || h.refused[0].Kind != stream.Malformed || h.refused[0].Reason == "" {
					t.Errorf("refused: %+v", h.refused)
				}
				r.get(3, true)
				synctest.Wait()
				if served != 1 || r.heads[3] != "200" || r.goAway != nil {
					t.Errorf("the next request: served %d, %q, %v", served, r.heads[3], r.goAway)
				}
			})
		})
	}
}

// All of these are sound (HG2).
func TestSoundRequests(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fields []string
		check  func(h *stream.RequestHead) bool
	}{
		{"te: trailers", []string{":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/", "te", "trailers"},
			func(h *stream.RequestHead) bool { return h.Header.Get("te") == "trailers" }},
		{"cookie crumbs", append(plainGet[:8:8], "cookie", "a=1", "x-a", "b", "cookie", "b=2", "cookie", "c=3"),
			func(h *stream.RequestHead) bool {
				return h.Header.Get("cookie") == "a=1; b=2; c=3" && len(h.Header) == 2
			}},
		{"host alone", []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "b:80"},
			func(h *stream.RequestHead) bool { return h.Authority == "b:80" }},
		{"OPTIONS *", []string{":method", "OPTIONS", ":scheme", "http", ":authority", "a", ":path", "*"},
			func(h *stream.RequestHead) bool { return h.Path == "*" }},
		{"length twice the same", append(plainGet[:8:8], "content-length", "0", "content-length", "0"),
			func(h *stream.RequestHead) bool { return h.ContentLength == 0 && len(h.Header) == 1 }},
		{"obs-text and tab", append(plainGet[:8:8], "x-a", "caf\xe9\tau lait"),
			func(h *stream.RequestHead) bool { return h.Header.Get("x-a") == "caf\xe9\tau lait" }},
		{"empty value", append(plainGet[:8:8], "x-a", ""), func(h *stream.RequestHead) bool { return len(h.Header) == 1 }},
		{"IPv6", []string{":method", "GET", ":scheme", "https", ":authority", "[::1]:443", ":path", "/a?b=c;d"},
			func(h *stream.RequestHead) bool { return h.Authority == "[::1]:443" && h.Path == "/a?b=c;d" }},
		{"http2-settings", append(plainGet[:8:8], "http2-settings", "x"), func(h *stream.RequestHead) bool { return len(h.Header) == 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				good := 0
				r, _, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
					if tt.check(&q.Head) {
						good++
					} else {
						t.Errorf("%+v", q.Head)
					}
					echo(l, q, w)
				}, Server{})
				for id := uint32(1); id < 9; id += 2 { // also from the table and from memory
					r.get(id, true, tt.fields...)
					synctest.Wait()
				}
				if good != 4 || r.heads[7] != "200" || len(r.resets) > 0 {
					t.Errorf("%d were good, answer %q, resets %v", good, r.heads[7], r.resets)
				}
			})
		})
	}
}

// What ends the whole connection, with its code (RFC 9113, sections 4 to 6).
func TestConnectionErrors(t *testing.T) {
	frame := func(t http2.FrameType, flags http2.Flags, id uint32, p string) func(*raw) {
		return func(r *raw) { _ = r.WriteRawFrame(t, flags, id, []byte(p)) }
	}
	for _, tt := range []struct {
		name string
		code http2.ErrCode
		say  func(r *raw)
	}{
		{"4.2 frame too large", http2.ErrCodeFrameSize, frame(http2.FrameHeaders, 5, 1, strings.Repeat("x", maxFrame+1))},
		{"4.3 bad header block", http2.ErrCodeCompression, frame(http2.FrameHeaders, 5, 1, "\xff\xff\xff\xff\xff")},
		{"5.1 DATA on idle", http2.ErrCodeProtocol, frame(http2.FrameData, 1, 1, "x")},
		{"5.1 RST_STREAM on idle", http2.ErrCodeProtocol, frame(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08")},
		{"5.1 WINDOW_UPDATE on idle", http2.ErrCodeProtocol, frame(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x08")},
		{"5.1.1 even id", http2.ErrCodeProtocol, func(r *raw) { r.get(2, true) }},
		{"5.1.1 lower id", http2.ErrCodeProtocol, func(r *raw) { r.get(5, true); r.get(3, true) }},
		{"6.1 DATA on 0", http2.ErrCodeProtocol, frame(http2.FrameData, 0, 0, "x")},
		{"6.1 padding too long", http2.ErrCodeProtocol, func(r *raw) {
			r.get(1, false)
			frame(http2.FrameData, http2.FlagDataPadded, 1, "\x05abc")(r)
		}},
		{"6.1 padded without a byte", http2.ErrCodeFrameSize, frame(http2.FrameData, http2.FlagDataPadded, 1, "")},
		{"6.2 HEADERS on 0", http2.ErrCodeProtocol, func(r *raw) { r.get(0, true) }},
		{"6.2 padding too long", http2.ErrCodeProtocol, frame(http2.FrameHeaders, 0xd, 1, "\x09\x82")},
		{"6.2 priority cut short", http2.ErrCodeFrameSize, frame(http2.FrameHeaders, 0x25, 1, "\x00\x00")},
		{"6.3 PRIORITY on 0", http2.ErrCodeProtocol, frame(http2.FramePriority, 0, 0, "\x00\x00\x00\x01\x05")},
		{"6.4 RST_STREAM on 0", http2.ErrCodeProtocol, frame(http2.FrameRSTStream, 0, 0, "\x00\x00\x00\x08")},
		{"6.4 RST_STREAM too short", http2.ErrCodeFrameSize, frame(http2.FrameRSTStream, 0, 1, "\x00\x00\x08")},
		{"6.5 SETTINGS on a stream", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 1, "")},
		{"6.5 SETTINGS of a broken length", http2.ErrCodeFrameSize, frame(http2.FrameSettings, 0, 0, "12345")},
		{"6.5 ACK with a payload", http2.ErrCodeFrameSize, frame(http2.FrameSettings, 1, 0, "123456")},
		{"6.5.2 push 2", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x02")},
		{"6.5.2 window too large", http2.ErrCodeFlowControl, frame(http2.FrameSettings, 0, 0, "\x00\x04\x80\x00\x00\x00")},
		{"6.5.2 frame size 0", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x00")},
		{"6.5.2 frame size 16383", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x3f\xff")},
		{"6.5.2 frame size 2^24", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, "\x00\x05\x01\x00\x00\x00")},
		{"RFC 8441 connect 2", http2.ErrCodeProtocol, frame(http2.FrameSettings, 0, 0, "\x00\x08\x00\x00\x00\x02")},
		{"6.6 PUSH_PROMISE", http2.ErrCodeProtocol, frame(http2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82")},
		{"6.7 PING on a stream", http2.ErrCodeProtocol, frame(http2.FramePing, 0, 1, "12345678")},
		{"6.7 PING too short", http2.ErrCodeFrameSize, frame(http2.FramePing, 0, 0, "1234567")},
		{"6.8 GOAWAY on a stream", http2.ErrCodeProtocol, frame(http2.FrameGoAway, 0, 1, "12345678")},
		{"6.8 GOAWAY too short", http2.ErrCodeFrameSize, frame(http2.FrameGoAway, 0, 0, "1234567")},
		{"6.9 WINDOW_UPDATE by 0", http2.ErrCodeProtocol, frame(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00")},
		{"6.9 WINDOW_UPDATE too long", http2.ErrCodeFrameSize, frame(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00\x01")},
		{"6.9.1 window above 2^31-1", http2.ErrCodeFlowControl, frame(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff")},
		{"6.10 CONTINUATION alone", http2.ErrCodeProtocol, frame(http2.FrameContinuation, 4, 1, "\x82")},
		{"6.10 PING in a block", http2.ErrCodeProtocol, func(r *raw) {
			frame(http2.FrameHeaders, 1, 1, "\x82")(r)
			frame(http2.FramePing, 0, 0, "12345678")(r)
		}},
		{"6.10 CONTINUATION of another", http2.ErrCodeProtocol, func(r *raw) {
			frame(http2.FrameHeaders, 1, 1, "\x82")(r)
			frame(http2.FrameContinuation, 4, 3, "\x82")(r)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, _, over, _ := rawClient(t, hang, Server{})
				tt.say(r)
				synctest.Wait()
				if r.goAway == nil || r.code != tt.code {
					t.Errorf("GOAWAY %v, want %v", r.goAway, tt.code)
				}
				select {
				case <-over:
				case <-time.After(2 * time.Second):
					t.Error("the connection is still served")
				}
			})
		})
	}
}

// Nobody who speaks no HTTP/2 is kept (RFC 9113, section 3.4).
func TestPreface(t *testing.T) {
	for _, tt := range []struct {
		say   string
		after time.Duration
	}{
		{"GET / HTTP/1.1\r\n\r\n", 0},
		{Preface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", 0}, // PING before SETTINGS
		{Preface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00", 0},         // an acknowledgement first
		{Preface[:10], headerTimeout},
		{Preface, headerTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, sv := pair(t)
			began := time.Now()
			_, _ = io.WriteString(c, tt.say)
			(&Server{Handler: &handlerFunc{}}).Serve(context.Background(), sv, netio.Pending{}, nil)
			if d := time.Since(began) - tt.after; d < 0 || d > 1500*time.Millisecond {
				t.Errorf("%q: ended after %v", tt.say, time.Since(began))
			}
			_ = c.Close()
		})
	}
}

// A header block that does not come to its end is not waited for.
func TestSlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h, over, _ := rawClient(t, hang, Server{HeaderTimeout: 3 * time.Second})
		time.Sleep(time.Minute)
		began := time.Now()
		_ = r.WriteRawFrame(http2.FrameHeaders, 1, 1, []byte("\x82"))
		<-over
		if d := time.Since(began); d < 3*time.Second || d > 4500*time.Millisecond || r.code != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("ended after %v with %v", d, r.code)
		}
		if len(h.refused) != 1 || h.refused[0].Kind != stream.TooSlow {
			t.Errorf("%+v", h.refused)
		}
	})
}

// A header list beyond its limit is answered, and the connection goes on.
func TestHeaderLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h, _, _ := rawClient(t, echo, Server{MaxHeader: 4096, MaxFields: 50})
		big := append(append([]string(nil), plainGet...), "x-big", strings.Repeat("a", 5000))
		many := append([]string(nil), plainGet...)
		for range 60 {
			many = append(many, "x-n", "1")
		}
		r.get(1, true, big...)
		r.get(3, true, many...)
		r.get(5, true)
		synctest.Wait()
		if r.heads[1] != "431" || r.heads[3] != "431" || r.heads[5] != "200" {
			t.Errorf("%v, resets %v", r.heads, r.resets)
		}
		if len(h.refused) != 2 || h.refused[0].Kind != stream.TooLarge || h.refused[0].Path != "/" {
			t.Errorf("%+v", h.refused)
		}
	})
}

// DATA that does not match the declared length resets the stream, and the
// handler's read fails (RFC 9113, section 8.1.1).
func TestLengths(t *testing.T) {
	for _, tt := range []struct {
		name  string
		data  []string
		reset bool
	}{
		{"exact", []string{"ab", "cde"}, false}, {"short", []string{"ab", "cd"}, true}, {"long", []string{"abc", "def"}, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var got []byte
			var rerr error
			r, _, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
				got, rerr = readAll(q.Body)
				if rerr != nil {
					w.Abort()
					return
				}
				_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
			}, Server{})
			r.get(1, false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/", "content-length", "5")
			for i, d := range tt.data {
				_ = r.WriteDataPadded(1, i == len(tt.data)-1, []byte(d), make([]byte, i*3))
			}
			synctest.Wait()
			if _, reset := r.resets[1]; reset != tt.reset || (rerr != nil) != tt.reset {
				t.Errorf("%s: %q %v, resets %v", tt.name, got, rerr, r.resets)
			}
		})
	}
}

// A response that is not as long as it says is reset, not ended.
func TestResponseLength(t *testing.T) {
	for _, n := range []int{4, 5, 6} {
		synctest.Test(t, func(t *testing.T) {
			r, _, _, _ := rawClient(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
				_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 5}, false)
				_, _ = w.Write(make([]byte, n))
				_ = w.Finish(nil)
			}, Server{})
			r.get(1, true)
			synctest.Wait()
			if r.ended[1] != (n == 5) || (r.resets[1] != 0) != (n != 5) {
				t.Errorf("%d bytes: ended %v, resets %v", n, r.ended, r.resets)
			}
		})
	}
}

// A PING is answered with its bytes.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, _, _ := rawClient(t, hang, Server{})
		_ = r.WritePing(false, [8]byte{7: 42})
		synctest.Wait()
		if len(r.pings) != 1 || r.pings[0] != 42 {
			t.Error(r.pings)
		}
	})
}

// A reset ends the exchange's scope; the handler's wait ends.
func TestResetCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		r, _, _, _ := rawClient(t, func(life *stream.Scope, q *stream.Request, w stream.Responder) {
			<-life.Done()
			if _, err := w.Write([]byte("x")); err == nil {
				t.Error("a write after the reset")
			}
			ended++
		}, Server{})
		r.get(1, true)
		r.get(3, true)
		synctest.Wait()
		_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
		synctest.Wait()
		if ended != 1 {
			t.Errorf("%d exchanges ended", ended)
		}
		_ = r.conn.Close()
		synctest.Wait()
		if ended != 2 {
			t.Errorf("%d exchanges ended with the connection", ended)
		}
	})
}

// The drain: GOAWAY(2^31-1), a PING, the last stream's id when it is answered;
// what came in between is served (RFC 9113, section 6.8; DP6).
func TestDrainSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r, _, over, drain := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			<-release
			echo(l, q, w)
		}, Server{})
		r.get(1, true)
		synctest.Wait()
		drain.Cancel(errors.New("drain"))
		synctest.Wait()
		if len(r.seen) != 2 || r.seen[0] != "GOAWAY" || r.seen[1] != "PING" || r.goAway.LastStreamID != maxInt31 {
			t.Fatalf("%v, %v", r.seen, r.goAway)
		}
		r.get(3, true) // was on its way
		synctest.Wait()
		var d [8]byte
		for i := range d {
			p := drainPayload
			d[i] = byte(p >> (56 - 8*i))
		}
		_ = r.WritePing(true, d)
		synctest.Wait()
		if r.goAway.LastStreamID != 3 {
			t.Errorf("the second GOAWAY says %d", r.goAway.LastStreamID)
		}
		r.get(5, true) // too late: not taken, not answered
		synctest.Wait()
		close(release)
		<-over
		<-r.done
		if r.heads[1] != "200" || r.heads[3] != "200" || r.heads[5] != "" {
			t.Errorf("%v", r.heads)
		}
	})
}

// Without an answer to the PING the drain goes on all the same.
func TestDrainWithoutPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, over, drain := rawClient(t, hang, Server{})
		synctest.Wait()
		began := time.Now()
		drain.Cancel(nil)
		<-over
		if d := time.Since(began); d < drainPing || d > drainPing+2*time.Second {
			t.Errorf("ended after %v", d)
		}
	})
}

// The client that opens no window does not hold the handler for ever.
func TestZeroWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var werr error
		r, _, _, _ := rawClient(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
			_, werr = w.Write(make([]byte, 100))
		}, Server{WriteTimeout: 5 * time.Second})
		_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		synctest.Wait()
		r.get(1, true)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if werr == nil || r.resets[1] != http2.ErrCodeCancel {
			t.Errorf("%v, resets %v", werr, r.resets)
		}
	})
}

// The client that reads nothing does not hold the connection for ever.
func TestNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, sv := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			h := &handlerFunc{exchange: func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
				_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
				for {
					if _, err := w.Write(make([]byte, 10000)); err != nil {
						return
					}
				}
			}}
			(&Server{Handler: h, WriteTimeout: 5 * time.Second}).Serve(context.Background(), sv, netio.Pending{}, nil)
		}()
		_, _ = io.WriteString(c, Preface)
		fr := http2.NewFramer(c, nil)
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		_ = fr.WriteWindowUpdate(0, 1<<30)
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: []byte("\x82\x84\x86\x41\x01a")})
		began := time.Now()
		<-over
		if d := time.Since(began); d > 8*time.Second {
			t.Errorf("ended after %v", d)
		}
		_ = c.Close()
	})
}
