package h1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
)

type exchangeFunc = func(life *stream.Scope, req *stream.Request, w stream.Responder)

// withAnswer serves f, in a bubble.
func withAnswer(t *testing.T, f exchangeFunc, do func(t *testing.T, n *near)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNear(t, &seen{unread: true, answer: f}, nil)
		defer n.end()
		do(t, n)
	})
}

// raw reads everything until the server ends the connection.
func (n *near) raw() string {
	b, _ := io.ReadAll(n.br)
	return string(b)
}

// The framing of responses (RFC 9112, section 6; RFC 9110, sections 8.6, 9.3.2,
// 15.3.5, 15.4.5), as bytes.
func TestResponseFraming(t *testing.T) {
	h := func(status int, length int64, f ...stream.Field) *stream.ResponseHead {
		return &stream.ResponseHead{Status: status, ContentLength: length, Header: f}
	}
	say := func(head *stream.ResponseHead, parts ...string) exchangeFunc {
		return func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(head, len(parts) == 0)
			for _, p := range parts {
				if p == "" {
					_ = w.Flush()
				}
				_, _ = io.WriteString(writer{w}, p)
			}
			_ = w.Finish(stream.Header{{Name: "x-sum", Value: "1"}, {Name: "content-length", Value: "7"}})
		}
	}
	const get, head, old, oldKeep = "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
	for name, tt := range map[string]struct {
		request string
		f       exchangeFunc
		want    string
		over    bool
	}{
		"length":           {get, say(h(200, 5), "he", "llo"), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false},
		"length once":      {get, say(h(200, 5, stream.Field{Name: "content-length", Value: "9"}), "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false},
		"chunks":           {get, say(h(200, -1), "he", "llo"), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n", false},
		"stale length":     {get, say(h(200, -1, stream.Field{Name: "content-length", Value: "9"}), "hello"), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", false},
		"flushed":          {get, say(h(200, -1), "", "he", "", "llo", ""), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n", false},
		"nothing":          {get, say(h(200, -1)), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"HEAD, known":      {head, say(h(200, 5)), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", false},
		"HEAD, unknown":    {head, say(h(200, -1)), "HTTP/1.1 200 OK\r\n\r\n", false},
		"HEAD, field":      {head, say(h(200, -1, stream.Field{Name: "content-length", Value: "0"})), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"HEAD, body":       {head, say(h(200, 5), "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", false},
		"204":              {get, say(h(204, 0, stream.Field{Name: "content-length", Value: "0"})), "HTTP/1.1 204 No Content\r\n\r\n", false},
		"204, body":        {get, say(h(204, 5), "hello"), "HTTP/1.1 204 No Content\r\n\r\n", false},
		"304":              {get, say(h(304, -1, stream.Field{Name: "content-length", Value: "5"}, stream.Field{Name: "etag", Value: "x"})), "HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 5\r\n\r\n", false},
		"304, bad length":  {get, say(h(304, -1, stream.Field{Name: "content-length", Value: "5, 5"})), "HTTP/1.1 304 Not Modified\r\n\r\n", false},
		"1.0, length":      {old, say(h(200, 5), "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello", true},
		"1.0, unknown":     {old, say(h(200, -1), "hello"), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", true},
		"1.0, keep":        {oldKeep, say(h(200, 5), "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello", false},
		"1.0, keep, chunk": {oldKeep, say(h(200, -1), "hello"), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", true},
		"own fields":       {get, say(h(200, 0, stream.Field{Name: "connection", Value: "x"}, stream.Field{Name: "transfer-encoding", Value: "x"}, stream.Field{Name: ":status", Value: "x"}, stream.Field{Name: "a", Value: ""})), "HTTP/1.1 200 OK\r\na: \r\ncontent-length: 0\r\n\r\n", false},
		"unknown status":   {get, say(h(599, 0)), "HTTP/1.1 599 \r\ncontent-length: 0\r\n\r\n", false},
		"too short":        {get, say(h(200, 9), "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", true},
		"too long":         {get, say(h(200, 4), "", "hello"), "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", true},
		"no head":          {get, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {}, "", true},
		"no finish": {get, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(h(200, -1), false)
			_, _ = w.Write([]byte("hello"))
		}, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false},
		"abort": {get, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(h(200, -1), false)
			_, _ = w.Write([]byte("hello"))
			_ = w.Flush()
			w.Abort()
		}, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", true},
		"value injects":  {get, say(h(200, 0, stream.Field{Name: "a", Value: "b\r\nc: d"})), "", true},
		"name injects":   {get, say(h(200, 0, stream.Field{Name: "a: b\r\nc", Value: "d"})), "", true},
		"informational":  {get, informational(103, h(200, 0)), "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"100 is not his": {get, informational(100, h(200, 0)), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false},
		"1.0 knows none": {oldKeep, informational(103, h(200, 0)), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			withAnswer(t, tt.f, func(t *testing.T, n *near) {
				n.send(tt.request)
				synctest.Wait()
				over := false
				select {
				case <-n.over:
					over = true
				default:
				}
				if !over && tt.over {
					t.Error("the connection goes on")
				} else if over && !tt.over {
					t.Error("the connection ended")
				}
				_ = n.c.CloseWrite()
				if got := n.raw(); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
		})
	}
}

type writer struct{ stream.Responder }

func informational(status int, h *stream.ResponseHead) exchangeFunc {
	return func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Informational(&stream.ResponseHead{Status: status, Header: stream.Header{{Name: "link", Value: "x"}}})
		_ = w.Head(h, true)
	}
}

// A body that ends with the connection must not look complete where it is not.
func TestAbortToEnd(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
		_, _ = w.Write([]byte("half"))
		_ = w.Flush()
		w.Abort()
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.0\r\n\r\n")
		if b, err := io.ReadAll(n.br); err == nil {
			t.Errorf("%q looks complete", b)
		}
	})
}

// Misuse is told, and does not reach the wire.
func TestResponderMisuse(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		if _, err := w.Write([]byte("x")); err != errNoHead {
			t.Error(err)
		}
		if err := w.Finish(nil); err != errNoHead {
			t.Error(err)
		}
		if err := w.Head(&stream.ResponseHead{Status: 101}, true); err != errStatus {
			t.Error(err)
		}
		if _, err := w.Accept(&stream.ResponseHead{Status: 101}); err != errNoUpgrade {
			t.Error(err)
		}
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
		if err := w.Head(&stream.ResponseHead{Status: 200}, true); err != errTwoHeads {
			t.Error(err)
		}
		if _, err := w.Write([]byte("x")); err != errOver {
			t.Error(err)
		}
		if err := w.Finish(nil); err != nil {
			t.Error(err)
		}
		w.Abort() // too late
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if r, _ := n.response("GET"); r.StatusCode != 200 {
			t.Error(r.StatusCode)
		}
	})
}

// Head and a body that fits leave in one write; a large part goes as it is.
func TestOneWrite(t *testing.T) {
	for name, tt := range map[string]struct {
		length int64
		part   int
		writes int
	}{"small": {1000, 1000, 1}, "small, chunked": {-1, 1000, 1}, "large": {100 << 10, 100 << 10, 1}} {
		t.Run(name, func(t *testing.T) {
			down := &script{text: smallHead, times: 1}
			(&Server{Handler: answerFunc(func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
				_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: tt.length}, false)
				_, _ = w.Write(make([]byte, tt.part))
				_ = w.Finish(nil)
			})}).NewConn(t.Context(), &gathering{down}, nil).Serve(netio.Pending{})
			// The memory network has no gathering write: its parts count.
			if down.wrote > tt.writes+1 || tt.part < netio.BufSize && down.wrote != tt.writes {
				t.Errorf("%d writes", down.wrote)
			}
		})
	}
}

type gathering struct{ *script }

type answerFunc exchangeFunc

func (f answerFunc) Exchange(life *stream.Scope, req *stream.Request, w stream.Responder) {
	f(life, req, w)
}
func (f answerFunc) Refused(stream.Refusal) *stream.Response { return nil }

// RFC 9110, section 10.1.1; CVE-2024-24791: 100 (Continue) comes when the body
// is wanted, never after the final head, and a client that still waits for it
// is not read on.
func TestContinue(t *testing.T) {
	const ask = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n"
	echo := func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			w.Abort()
			return
		}
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: int64(len(b))}, false)
		_, _ = w.Write(b)
		_ = w.Finish(nil)
	}
	t.Run("read first", func(t *testing.T) {
		withAnswer(t, echo, func(t *testing.T, n *near) {
			for range 2 {
				n.send(ask)
				buf := make([]byte, len(continueHead))
				if _, err := io.ReadFull(n.br, buf); err != nil || string(buf) != continueHead {
					t.Fatalf("%q %v", buf, err)
				}
				n.send("hello")
				if r, b := n.response("POST"); b != "hello" || r.Close {
					t.Error(b, r.Close)
				}
			}
			if n.h.heads[0].Header.Get("expect") != "" {
				t.Error("the expectation crosses to the next hop")
			}
		})
	})
	t.Run("the body is here already", func(t *testing.T) {
		withAnswer(t, echo, func(t *testing.T, n *near) {
			n.send(ask + "hello")
			if r, b := n.response("POST"); b != "hello" || r.StatusCode != 200 || r.Close {
				t.Error(r.StatusCode, b, r.Close)
			}
		})
	})
	t.Run("answered first", func(t *testing.T) {
		withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 403, ContentLength: 2}, false)
			_, _ = w.Write([]byte("no"))
			_ = w.Flush()
			buf := make([]byte, 2)
			if nr, err := req.Body.Read(buf); nr != 2 || err != nil {
				t.Error(nr, err)
			}
			_ = w.Finish(nil)
		}, func(t *testing.T, n *near) {
			n.send(ask)
			r, b := n.response("POST")
			if r.StatusCode != 403 || b != "no" || !r.Close {
				t.Error(r.StatusCode, b, r.Close)
			}
			// Whatever comes now is not a request: the body of the first, or its rest.
			n.send("heGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
			if got := n.raw(); got != "" {
				t.Errorf("%q", got)
			}
			if len(n.h.requests) != 1 {
				t.Error(n.h.requests)
			}
		})
	})
	t.Run("never read", func(t *testing.T) {
		withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 417, ContentLength: 0}, true)
		}, func(t *testing.T, n *near) {
			n.send(ask)
			if r, _ := n.response("POST"); r.StatusCode != 417 || !r.Close {
				t.Error(r.StatusCode, r.Close)
			}
			n.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
			if got := n.raw(); got != "" || len(n.h.requests) != 1 {
				t.Errorf("%q %q", got, n.h.requests)
			}
		})
	})
	t.Run("HTTP/1.0", func(t *testing.T) {
		withAnswer(t, echo, func(t *testing.T, n *near) {
			n.send("POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
			time.Sleep(time.Second)
			n.send("hello")
			if r, b := n.response("POST"); b != "hello" || r.StatusCode != 200 {
				t.Error(r.StatusCode, b)
			}
		})
	})
	t.Run("another goroutine reads", func(t *testing.T) {
		withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
			read := make(chan struct{})
			go func() {
				_, _ = io.ReadAll(req.Body)
				close(read)
			}()
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
			_ = req.Body.Close()
			<-read
		}, func(t *testing.T, n *near) {
			n.send(ask)
			// Before the head or not at all.
			got := n.raw()
			if i := strings.Index(got, continueHead); i > 0 || !strings.Contains(got, "200 OK") {
				t.Errorf("%q", got)
			}
		})
	})
}

// A response that comes before the request's end is delivered, though the client
// goes on sending.
func TestEarlyResponse(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 413, ContentLength: 3}, false)
		_, _ = w.Write([]byte("too"))
		_ = w.Finish(nil)
	}, func(t *testing.T, n *near) {
		n.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
		sent := make(chan error, 1)
		go func() {
			var err error
			for range 30 { // below lingerBytes
				if _, err = n.c.Write(make([]byte, 100<<10)); err != nil {
					break
				}
			}
			sent <- err
		}()
		if err := <-sent; err != nil {
			t.Error("the upload was reset: ", err)
		}
		began := time.Now()
		r, b := n.response("POST")
		if r.StatusCode != 413 || b != "too" || !r.Close {
			t.Error(r.StatusCode, b, r.Close)
		}
		<-n.over
		if d := time.Since(began); d > lingerTime {
			t.Errorf("it lingered for %v", d)
		}
	})
}

// What is left of a short request is read, and the connection goes on; of a long
// one, or one of unknown length, it is not.
func TestUnreadBody(t *testing.T) {
	refuse := func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 403, ContentLength: 0}, true)
	}
	withAnswer(t, refuse, func(t *testing.T, n *near) {
		n.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
		if r, _ := n.response("POST"); r.Close {
			t.Error("closed for five bytes")
		}
		n.send("GET /GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
		n.response("GET")
		if want := []string{"POST a /1", "GET a /2"}; !slices.Equal(n.h.requests, want) {
			t.Errorf("%q", n.h.requests)
		}
	})
	withAnswer(t, refuse, func(t *testing.T, n *near) { // and where it does not come
		n.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
		n.response("POST")
		began := time.Now()
		<-n.over
		if d := time.Since(began); d < lingerTime || d > 3*lingerTime {
			t.Error(d)
		}
	})
	for name, text := range map[string]string{
		"long":    "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
		"chunked": "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			withAnswer(t, refuse, func(t *testing.T, n *near) {
				n.send(text)
				if r, _ := n.response("POST"); !r.Close {
					t.Error("not closed")
				}
				n.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
				if got := n.raw(); got != "" || len(n.h.requests) != 1 {
					t.Errorf("%q %q", got, n.h.requests)
				}
			})
		})
	}
}

// A client that ends its direction still gets its answer; one that resets the
// connection ends the exchange.
func TestHalfClosed(t *testing.T) {
	withAnswer(t, func(life *stream.Scope, _ *stream.Request, w stream.Responder) {
		select {
		case <-time.After(10 * time.Second):
		case <-life.Done():
			t.Error("a FIN ended the exchange")
		}
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		_ = n.c.CloseWrite()
		n.response("GET")
	})
	withAnswer(t, func(life *stream.Scope, _ *stream.Request, w stream.Responder) {
		<-life.Done()
		w.Abort()
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		time.Sleep(10 * time.Second)
		_ = n.c.Reset()
		began := time.Now()
		<-n.over
		if d := time.Since(began); d > 2*watchEvery {
			t.Errorf("seen after %v", d)
		}
	})
	withAnswer(t, func(life *stream.Scope, req *stream.Request, w stream.Responder) { // in the middle of the request
		_, err := io.ReadAll(req.Body)
		var f *stream.Failure
		if !errors.As(err, &f) || f.Kind != stream.FailedReset || life.Cause() == nil {
			t.Error(err, life.Cause())
		}
		w.Abort()
	}, func(t *testing.T, n *near) {
		n.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
		_ = n.c.CloseWrite()
		<-n.over
	})
}

// The end of the scope, by a time-out, ends reads of the body; the response can
// still be written. So does Close, from another goroutine.
func TestBodyGivenUp(t *testing.T) {
	cause := errors.New("time-out")
	for name, give := range map[string]func(life *stream.Scope, req *stream.Request){
		"scope": func(life *stream.Scope, _ *stream.Request) { life.Cancel(cause) },
		"close": func(_ *stream.Scope, req *stream.Request) { _ = req.Body.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			withAnswer(t, func(life *stream.Scope, req *stream.Request, w stream.Responder) {
				time.AfterFunc(time.Second, func() { give(life, req) })
				b, err := io.ReadAll(req.Body)
				if string(b) != "half" || err == nil || name == "scope" && !errors.Is(err, cause) {
					t.Errorf("%q %v", b, err)
				}
				_ = w.Head(&stream.ResponseHead{Status: 504, ContentLength: 0}, true)
			}, func(t *testing.T, n *near) {
				n.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf")
				if r, _ := n.response("POST"); r.StatusCode != 504 || !r.Close {
					t.Error(r.StatusCode, r.Close)
				}
			})
		})
	}
}

// Interrupt frees a write that the client does not take.
func TestInterrupt(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 1 << 30}, false)
		time.AfterFunc(time.Minute, w.Interrupt)
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				if err != errInterrupted {
					t.Error(err)
				}
				return
			}
		}
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-n.over
	})
}

// A panic that the handler lets pass ends its connection and no other.
func TestPanic(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
		panic("a defect")
	}, func(t *testing.T, n *near) {
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if got := n.raw(); got != "" {
			t.Errorf("%q", got)
		}
		<-n.over
	})
}

func TestUpgrade(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
		tun, err := w.Accept(&stream.ResponseHead{Status: 101, Header: stream.Header{{Name: "x-a", Value: "1"}, {Name: "upgrade", Value: "evil"}}})
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(tun)
		if err != nil {
			t.Error(err)
		}
		_, _ = tun.Write(append([]byte("got "), b...))
		_ = tun.CloseWrite()
		_ = tun.Close()
	}, func(t *testing.T, n *near) {
		n.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nearly ")
		time.Sleep(time.Second)
		n.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		_ = n.c.CloseWrite()
		want := "HTTP/1.1 101 Switching Protocols\r\nx-a: 1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\ngot early GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
		if got := n.raw(); got != want {
			t.Errorf("%q", got)
		}
		<-n.over
		if len(n.h.requests) != 1 {
			t.Error(n.h.requests)
		}
	})
	// Not accepted: an ordinary exchange, and the connection goes on.
	withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
	}, func(t *testing.T, n *near) {
		n.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
		n.response("GET")
		n.response("GET")
	})
}

// The head must come in its time, counted from its first byte.
func TestSlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &seen{}
		n := newNear(t, h, nil)
		defer n.end()
		time.Sleep(30 * time.Second) // idle: another limit
		began := time.Now()
		go func() {
			for range 15 {
				n.send("G")
				time.Sleep(time.Second)
			}
		}()
		defer time.Sleep(time.Minute)
		r, _ := n.response("GET")
		if d := time.Since(began); r.StatusCode != 408 || !r.Close || d < 10*time.Second || d > 10*time.Second+100*time.Millisecond {
			t.Error(r.StatusCode, r.Close, d)
		}
		if len(h.refusals) != 1 || h.refusals[0].Kind != stream.TooSlow {
			t.Errorf("%+v", h.refusals)
		}
		<-n.over
	})
}

// The limit of a head does not run while its exchange lasts, nor does the idle
// one.
func TestSlowExchange(t *testing.T) {
	withAnswer(t, func(life *stream.Scope, req *stream.Request, w stream.Responder) {
		select {
		case <-time.After(time.Hour):
		case <-life.Done():
			t.Error(life.Cause())
		}
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
	}, func(t *testing.T, n *near) {
		for i := range 2 {
			n.send("GET / HTTP/1.1\r\n")
			time.Sleep(9 * time.Second)
			n.send("Host: a\r\n\r\n")
			n.response("GET")
			if i == 0 {
				time.Sleep(59 * time.Second)
			}
		}
	})
}

// With ParkAfter an idle connection is left to the caller, holds nothing, and
// goes on when it is called again; its idle time ends it all the same.
func TestParks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		h := &seen{}
		srv := newServer(h)
		srv.ParkAfter = 5 * time.Second
		n := &near{t: t, c: c, h: h}
		sc := srv.NewConn(t.Context(), s, nil)
		began := time.Now()
		for i := range 3 {
			if !sc.Serve(netio.Pending{}) {
				t.Fatal("over")
			}
			if d := time.Since(began); i == 0 && (d < 5*time.Second || d > 6*time.Second) {
				t.Errorf("parked after %v", d)
			}
			if sc.in.b != nil || sc.x != nil {
				t.Error("it holds a buffer")
			}
			time.Sleep(20 * time.Second)
			n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		if len(h.requests) != 2 {
			t.Error(h.requests)
		}
		if !sc.Serve(netio.Pending{}) {
			t.Fatal("over")
		}
		began = time.Now()
		if err := s.WaitReadable(); err == nil {
			t.Error("something to read")
		}
		if d := time.Since(began); d < 50*time.Second || d > time.Minute {
			t.Errorf("idle for %v", d)
		}
		if sc.Serve(netio.Pending{}) {
			t.Error("parked again")
		}
		_ = c.Close()
	})
}

// A connection that is parked while it is drained ends when it is called.
func TestParkedDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		srv := newServer(&seen{})
		srv.ParkAfter = time.Second
		drain := new(stream.Scope)
		sc := srv.NewConn(t.Context(), s, drain)
		if !sc.Serve(netio.Pending{}) {
			t.Fatal("over")
		}
		drain.Cancel(nil)
		if sc.Serve(netio.Pending{}) {
			t.Error("parked again")
		}
		_ = c.Close()
	})
}

// What was read ahead of the connection is its beginning.
func TestPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := pair(t)
		h := &seen{}
		over := make(chan struct{})
		first := netio.Pending{Buf: netio.GetBuf()}
		first.N = copy(first.Buf[:], "GET / HT")
		go func() {
			defer close(over)
			newServer(h).NewConn(t.Context(), s, nil).Serve(first)
		}()
		n := &near{t: t, c: c, h: h}
		n.send("TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		<-over
		if len(h.requests) != 1 {
			t.Error(h.requests)
		}
		_ = c.Close()
	})
}

// A drain lets the request in hand and one that has come already end, and says
// so; it ends what is idle at once.
func TestDrainServesWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain := new(stream.Scope)
		n := newNear(t, &seen{}, drain)
		defer n.end()
		synctest.Wait()
		n.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		drain.Cancel(nil)
		if r, _ := n.response("GET"); r.StatusCode != 200 || !r.Close {
			t.Error(r.StatusCode, r.Close)
		}
		<-n.over
	})
}

// The end of the context ends everything: an exchange, its body, a linger.
func TestContextEndsExchange(t *testing.T) {
	for name, f := range map[string]exchangeFunc{
		"waiting": func(life *stream.Scope, _ *stream.Request, w stream.Responder) { <-life.Done() },
		"reading": func(_ *stream.Scope, req *stream.Request, w stream.Responder) { _, _ = io.ReadAll(req.Body) },
		"writing": func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: -1}, false)
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
		"lingering": func(_ *stream.Scope, _ *stream.Request, w stream.Responder) {
			_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 0}, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := pair(t)
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan struct{})
				go func() {
					defer close(over)
					newServer(&seen{unread: true, answer: f}).NewConn(ctx, s, nil).Serve(netio.Pending{})
				}()
				_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf")
				synctest.Wait()
				began := time.Now()
				cancel()
				<-over
				if d := time.Since(began); d != 0 {
					t.Errorf("ended after %v", d)
				}
				_ = c.Close()
			})
		})
	}
}

// Requests and responses in order, whatever the writes look like.
func TestPipelining(t *testing.T) {
	withAnswer(t, func(_ *stream.Scope, req *stream.Request, w stream.Responder) {
		time.Sleep(time.Second)
		_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: int64(len(req.Head.Path))}, false)
		_, _ = io.WriteString(writer{w}, req.Head.Path)
		_ = w.Finish(nil)
	}, func(t *testing.T, n *near) {
		var text strings.Builder
		for i := range 300 {
			text.WriteString("GET /" + strings.Repeat("x", i) + " HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		go n.send(text.String())
		for i := range 300 {
			if r, b := n.response("GET"); b != "/"+strings.Repeat("x", i) || r.StatusCode != http.StatusOK {
				t.Fatalf("%d: %q", i, b)
			}
		}
	})
}
