package h2

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// kindOf is the failure's kind, 0 where there is none.
func kindOf(err error) stream.FailureKind {
	var f *stream.Failure
	if errors.As(err, &f) {
		return f.Kind
	}
	return 0
}

// What a server says wrong fails the exchange as a protocol failure, or ends the
// connection, and never reaches the caller.
func TestHostileServer(t *testing.T) {
	heads := func(r *raw, end bool, fields ...string) { r.get(1, end, fields...) }
	for _, tt := range []struct {
		name   string
		method string
		say    func(r *raw)
		kind   stream.FailureKind
		body   bool // the failure is in the body
		goAway http2.ErrCode
	}{
		{"no status", "GET", func(r *raw) { heads(r, true, "x-a", "b") }, stream.FailedProtocol, false, 0},
		{"status of two digits", "GET", func(r *raw) { heads(r, true, ":status", "20") }, stream.FailedProtocol, false, 0},
		{"status with a sign", "GET", func(r *raw) { heads(r, true, ":status", "+20") }, stream.FailedProtocol, false, 0},
		{"status 101", "GET", func(r *raw) { heads(r, false, ":status", "101") }, stream.FailedProtocol, false, 0},
		{"status after a field", "GET", func(r *raw) { heads(r, true, "x-a", "b", ":status", "200") }, stream.FailedProtocol, false, 0},
		{"status twice", "GET", func(r *raw) { heads(r, true, ":status", "200", ":status", "200") }, stream.FailedProtocol, false, 0},
		{"a request's pseudo-header", "GET", func(r *raw) { heads(r, true, ":status", "200", ":path", "/") }, stream.FailedProtocol, false, 0},
		{"connection", "GET", func(r *raw) { heads(r, true, ":status", "200", "connection", "close") }, stream.FailedProtocol, false, 0},
		{"line end in a value", "GET", func(r *raw) { heads(r, true, ":status", "200", "x-a", "b\r\nx: y") }, stream.FailedProtocol, false, 0},
		{"two lengths", "GET", func(r *raw) { heads(r, false, ":status", "200", "content-length", "1", "content-length", "2") }, stream.FailedProtocol, false, 0},
		{"a length without DATA", "GET", func(r *raw) { heads(r, true, ":status", "200", "content-length", "1") }, stream.FailedProtocol, false, 0},
		{"too little DATA", "GET", func(r *raw) {
			heads(r, false, ":status", "200", "content-length", "5")
			_ = r.WriteData(1, true, []byte("abcd"))
		}, stream.FailedProtocol, true, 0},
		{"too much DATA", "GET", func(r *raw) {
			heads(r, false, ":status", "200", "content-length", "5")
			_ = r.WriteData(1, true, []byte("abcdef"))
		}, stream.FailedProtocol, true, 0},
		{"DATA in answer to HEAD", "HEAD", func(r *raw) {
			heads(r, false, ":status", "200", "content-length", "5")
			_ = r.WriteData(1, true, []byte("abcde"))
		}, stream.FailedProtocol, true, 0},
		{"DATA in a 204", "GET", func(r *raw) {
			heads(r, false, ":status", "204")
			_ = r.WriteData(1, true, []byte("a"))
		}, stream.FailedProtocol, true, 0},
		{"DATA before the head", "GET", func(r *raw) { _ = r.WriteData(1, true, []byte("a")) }, stream.FailedProtocol, false, 0},
		{"an interim head that ends", "GET", func(r *raw) { heads(r, true, ":status", "103") }, stream.FailedProtocol, false, 0},
		{"a second head", "GET", func(r *raw) { heads(r, false, ":status", "200"); heads(r, false, ":status", "200") }, stream.FailedProtocol, true, 0},
		{"a pseudo-header in the trailers", "GET", func(r *raw) { heads(r, false, ":status", "200"); heads(r, true, ":status", "200") }, stream.FailedProtocol, true, 0},
		{"a header list too large", "GET", func(r *raw) { heads(r, true, ":status", "200", "x-a", strings.Repeat("a", 70000)) }, stream.FailedReset, false, http2.ErrCodeFrameSize},
		{"REFUSED_STREAM", "GET", func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, stream.FailedRefused, false, 0},
		{"INTERNAL_ERROR", "GET", func(r *raw) { _ = r.WriteRSTStream(1, http2.ErrCodeInternal) }, stream.FailedReset, false, 0},
		{"a reset in the body", "GET", func(r *raw) {
			heads(r, false, ":status", "200")
			_ = r.WriteRSTStream(1, http2.ErrCodeInternal)
		}, stream.FailedReset, true, 0},
		{"GOAWAY below", "GET", func(r *raw) { _ = r.WriteGoAway(0, http2.ErrCodeNo, nil) }, stream.FailedRefused, false, 0},
		{"the connection closed", "GET", func(r *raw) { _ = r.conn.Close() }, stream.FailedReset, false, 0},
		{"PUSH_PROMISE", "GET", func(r *raw) {
			_ = r.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true, BlockFragment: r.block(plainGet...)})
		}, stream.FailedReset, false, http2.ErrCodeProtocol},
		{"HEADERS on an idle stream", "GET", func(r *raw) { r.get(3, true, ":status", "200") }, stream.FailedReset, false, http2.ErrCodeProtocol},
		{"frame size 0 in SETTINGS", "GET", func(r *raw) {
			_ = r.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 0})
		}, stream.FailedReset, false, http2.ErrCodeProtocol},
		{"enable push in SETTINGS", "GET", func(r *raw) {
			_ = r.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1})
		}, stream.FailedReset, false, http2.ErrCodeProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, cc, _ := rawServer(t, ClientOptions{})
				failed := make(chan error, 1)
				go func() {
					req := get("/")
					req.Head.Method = tt.method
					resp, err := cc.Do(context.Background(), req)
					if err == nil {
						if !tt.body {
							t.Errorf("a response: %+v", resp.Head)
						}
						_, err = readAll(resp.Body)
						_ = resp.Body.Close()
					}
					failed <- err
				}()
				synctest.Wait()
				tt.say(r)
				if err := <-failed; kindOf(err) != tt.kind {
					t.Errorf("%v, want %v", err, tt.kind)
				}
				synctest.Wait()
				if tt.goAway != 0 && r.code != tt.goAway || tt.goAway == 0 && r.goAway != nil {
					t.Errorf("GOAWAY %v, want %v", r.code, tt.goAway)
				}
			})
		})
	}
}

// A response may come before the request is complete; NO_ERROR then means that
// the rest is not wanted (RFC 9113, section 8.1).
func TestEarlyResponse(t *testing.T) {
	for _, reset := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r, cc, _ := rawServer(t, ClientOptions{})
			body := &textBody{parts: [][]byte{[]byte("a"), []byte("b"), make([]byte, 100000)}, wait: time.Second}
			got := make(chan string, 1)
			go func() {
				req := get("/")
				req.Head.Method, req.Head.ContentLength, req.Body = "POST", -1, body
				resp, err := cc.Do(context.Background(), req)
				if err != nil {
					t.Error(err)
					got <- ""
					return
				}
				b, err := readAll(resp.Body)
				if err != nil {
					t.Error(err)
				}
				_ = resp.Body.Close()
				got <- string(b)
			}()
			synctest.Wait()
			r.get(1, false, ":status", "413")
			_ = r.WriteData(1, true, []byte("too large"))
			if reset {
				_ = r.WriteRSTStream(1, http2.ErrCodeNo)
			}
			if s := <-got; s != "too large" {
				t.Errorf("%q", s)
			}
			time.Sleep(5 * time.Second) // the sender has noticed
			synctest.Wait()
			if cc.Streams() != 0 || cc.Room() != 100 {
				t.Errorf("%d streams, room %d", cc.Streams(), cc.Room())
			}
		})
	}
}

// 1xx heads come before the response; 100 is kept here.
func TestInformational(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cc, _ := rawServer(t, ClientOptions{})
		var seen []int
		over := make(chan struct{})
		go func() {
			defer close(over)
			req := get("/")
			req.Informational = func(h *stream.ResponseHead) {
				if h.Header.Get("link") == "x" {
					seen = append(seen, h.Status)
				}
			}
			resp, err := cc.Do(context.Background(), req)
			if err != nil {
				t.Error(err)
				return
			}
			seen = append(seen, resp.Head.Status)
			_ = resp.Body.Close()
		}()
		synctest.Wait()
		r.get(1, false, ":status", "100", "link", "x")
		r.get(1, false, ":status", "103", "link", "x")
		r.get(1, false, ":status", "104", "link", "x")
		r.get(1, true, ":status", "200")
		<-over
		if len(seen) != 3 || seen[0] != 103 || seen[1] != 104 || seen[2] != 200 {
			t.Error(seen)
		}
	})
}

// A caller that gives up resets its stream, wherever it is.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cc, _ := rawServer(t, ClientOptions{})
		var life stream.Scope
		failed := make(chan error, 1)
		go func() {
			_, err := cc.Do(&life, get("/"))
			failed <- err
		}()
		synctest.Wait()
		life.Cancel(io.ErrClosedPipe)
		if err := <-failed; kindOf(err) != stream.FailedCancelled || !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
		synctest.Wait()
		if r.resets[1] != http2.ErrCodeCancel {
			t.Error(r.resets)
		}
		if _, err := cc.Do(&life, get("/")); kindOf(err) != stream.FailedCancelled {
			t.Error(err)
		}
		// In the body, by Close.
		go func() {
			resp, err := cc.Do(context.Background(), get("/"))
			if err == nil {
				_ = resp.Body.Close()
				err = resp.Body.Close() // once more: nobody else's stream is touched
			}
			failed <- err
		}()
		synctest.Wait()
		r.get(5, false, ":status", "200")
		if err := <-failed; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if r.resets[5] != http2.ErrCodeCancel || cc.Streams() != 0 {
			t.Error(r.resets, cc.Streams())
		}
	})
}

// Room follows the server's limit, and Changed says when there is some again.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int32
		r, cc, ran := rawServer(t, ClientOptions{Changed: func(*ClientConn) { changes.Add(1) }})
		if cc.Room() != 100 {
			t.Errorf("room %d before a limit", cc.Room())
		}
		_ = r.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		synctest.Wait()
		changes.Store(0)
		over := make(chan struct{})
		go func() {
			defer close(over)
			if resp, err := cc.Do(context.Background(), get("/")); err != nil {
				t.Error(err)
			} else {
				_ = resp.Body.Close()
			}
		}()
		synctest.Wait()
		if cc.Room() != 0 {
			t.Errorf("room %d with one of one", cc.Room())
		}
		if _, err := cc.Do(context.Background(), get("/")); kindOf(err) != stream.FailedGone {
			t.Error(err)
		}
		r.get(1, true, ":status", "200")
		<-over
		synctest.Wait()
		if cc.Room() != 1 || changes.Load() != 1 {
			t.Errorf("room %d, %d changes", cc.Room(), changes.Load())
		}
		_ = r.WriteGoAway(1, http2.ErrCodeNo, nil)
		synctest.Wait()
		if cc.Room() != 0 || !cc.Leaving() || changes.Load() < 2 {
			t.Errorf("room %d, %d changes", cc.Room(), changes.Load())
		}
		<-ran
	})
}

// GOAWAY lets the streams below its id end and fails those above as refused.
func TestGoAwayKeepsLower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cc, ran := rawServer(t, ClientOptions{})
		results := make([]error, 2)
		var all sync.WaitGroup
		for i := range results {
			all.Go(func() {
				resp, err := cc.Do(context.Background(), get("/"))
				if results[i] = err; err == nil {
					_ = drainBody(resp.Body)
					_ = resp.Body.Close()
				}
			})
			synctest.Wait()
		}
		_ = r.WriteGoAway(1, http2.ErrCodeNo, nil)
		synctest.Wait()
		if kindOf(results[1]) != stream.FailedRefused {
			t.Error(results[1])
		}
		r.get(1, true, ":status", "200")
		all.Wait()
		if results[0] != nil {
			t.Error(results[0])
		}
		<-ran // it ends with its last stream
	})
}

// Silence with streams open is asked about, and no answer ends the connection.
func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, cc, ran := rawServer(t, ClientOptions{PingAfter: 10 * time.Second, PingTimeout: 3 * time.Second})
		time.Sleep(time.Minute) // without streams nobody asks
		if len(r.seen) > 0 {
			t.Fatal(r.seen)
		}
		began := time.Now()
		_, err := cc.Do(context.Background(), get("/"))
		if d := time.Since(began); d < 13*time.Second || d > 14*time.Second || kindOf(err) != stream.FailedReset {
			t.Errorf("after %v: %v", d, err)
		}
		<-ran
	})
}

// An upgrade travels as an extended CONNECT (RFC 8441), bytes go both ways, and
// each direction ends by itself.
func TestTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked stream.RequestHead
		r := newRig(t, func(_ *stream.Scope, q *stream.Request, w stream.Responder) {
			asked = q.Head
			asked.Upgrade = strings.Clone(q.Head.Upgrade)
			asked.Header = nil
			tun, err := w.Accept(&stream.ResponseHead{Header: stream.Header{{Name: "sec-websocket-accept", Value: "x"}}})
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(tun) // until the client's half is closed
			if err != nil {
				t.Error(err)
			}
			_, _ = tun.Write(append([]byte("you said: "), b...))
			_ = tun.CloseWrite()
		}, Server{}, ClientOptions{})
		req := get("/chat")
		req.Head.Upgrade = "websocket"
		resp, err := r.cc.Do(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Tunnel == nil || resp.Body != nil || resp.Head.Header.Get("sec-websocket-accept") != "x" {
			t.Fatalf("%+v", resp)
		}
		_, _ = resp.Tunnel.Write([]byte("hel"))
		time.Sleep(time.Second)
		_, _ = resp.Tunnel.Write([]byte("lo"))
		_ = resp.Tunnel.CloseWrite()
		b, err := io.ReadAll(resp.Tunnel)
		if err != nil || string(b) != "you said: hello" {
			t.Errorf("%q %v", b, err)
		}
		_ = resp.Tunnel.Close()
		if asked.Method != "GET" || asked.Upgrade != "websocket" || asked.ContentLength != -1 {
			t.Errorf("%+v", asked)
		}
	})
	synctest.Test(t, func(t *testing.T) { // not offered
		_, cc, _ := rawServer(t, ClientOptions{})
		req := get("/chat")
		req.Head.Upgrade = "websocket"
		if _, err := cc.Do(context.Background(), req); kindOf(err) != stream.FailedGone || !errors.Is(err, ErrNoConnect) {
			t.Error(err)
		}
	})
}

// A drain in the middle of much work loses nothing (DP6).
func TestDrainLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			time.Sleep(3 * time.Millisecond)
			echo(l, q, w)
		}, Server{}, ClientOptions{})
		synctest.Wait() // the settings have come
		var served, gone, lost atomic.Int32
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				for {
					resp, err := r.cc.Do(context.Background(), get("/"))
					switch {
					case err == nil:
						if drainBody(resp.Body) == nil {
							served.Add(1)
						}
						_ = resp.Body.Close()
						continue
					case kindOf(err) == stream.FailedGone, kindOf(err) == stream.FailedRefused:
						gone.Add(1)
					default:
						lost.Add(1)
						t.Error(err)
					}
					return
				}
			})
		}
		time.Sleep(time.Second)
		r.drain.Cancel(nil)
		all.Wait()
		<-r.served
		<-r.ran
		if lost.Load() > 0 || gone.Load() != 50 || served.Load() < 1000 {
			t.Errorf("served %d, gone %d, lost %d", served.Load(), gone.Load(), lost.Load())
		}
	})
}

// The client drains its own side, too.
func TestClientDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r := newRig(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			<-release
			echo(l, q, w)
		}, Server{}, ClientOptions{})
		failed := make(chan error, 1)
		go func() {
			resp, err := r.cc.Do(context.Background(), get("/"))
			if err == nil {
				_ = resp.Body.Close()
			}
			failed <- err
		}()
		synctest.Wait()
		r.cc.Drain()
		if _, err := r.cc.Do(context.Background(), get("/")); kindOf(err) != stream.FailedGone {
			t.Error(err)
		}
		close(release)
		if err := <-failed; err != nil {
			t.Error(err)
		}
		<-r.ran
		<-r.served
	})
}

// A panic of one handler is that exchange's alone.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			if q.Head.Path == "/boom" {
				panic(errBoom)
			}
			echo(l, q, w)
		}, Server{}, ClientOptions{})
		if _, err := r.cc.Do(context.Background(), get("/boom")); kindOf(err) != stream.FailedReset {
			t.Error(err)
		}
		resp, err := r.cc.Do(context.Background(), get("/"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	})
}

// A body that fails resets the stream and says whose fault it was.
func TestRequestBodyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			if _, err := readAll(q.Body); err == nil {
				t.Error("the body came to its end")
			}
			w.Abort()
		}, Server{}, ClientOptions{})
		for _, b := range []*textBody{
			{parts: [][]byte{[]byte("a")}, err: errBoom},
			{parts: [][]byte{[]byte("a")}, err: errBoom, wait: time.Second},
			{parts: [][]byte{[]byte("short")}},
			{parts: [][]byte{[]byte("far too long")}},
		} {
			req := get("/")
			req.Head.Method, req.Head.ContentLength, req.Body = "POST", 7, b
			if _, err := r.cc.Do(context.Background(), req); kindOf(err) != stream.FailedRequest {
				t.Error(err)
			}
		}
	})
}

// 100 (Continue) is asked for when the handler reads.
func TestContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan struct{})
		r, _, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			<-read
			echo(l, q, w)
		}, Server{})
		r.get(1, false, append(plainGet[:8:8], "expect", "100-continue")...)
		synctest.Wait()
		if r.heads[1] != "" {
			t.Errorf("%q before anybody reads", r.heads[1])
		}
		close(read)
		synctest.Wait()
		// echo sends its head first: then 100 is of no use any more.
		if r.heads[1] != "200" {
			t.Errorf("%q", r.heads[1])
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r, _, _, _ := rawClient(t, func(l *stream.Scope, q *stream.Request, w stream.Responder) {
			b, _ := readAll(q.Body)
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: int64(len(b))}, false)
			_, _ = w.Write(b)
		}, Server{})
		r.get(1, false, append(plainGet[:8:8], "expect", "100-continue")...)
		synctest.Wait()
		_ = r.WriteData(1, true, []byte("abc"))
		synctest.Wait()
		if r.heads[1] != "100200" || r.got[1] != 3 {
			t.Errorf("%q, %d bytes", r.heads[1], r.got[1])
		}
	})
}
