package traffic

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// app is the HTTP application of the tests.
type app struct {
	mu   sync.Mutex
	seen map[string]int // requests by their x-id
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get("X-Id"); id != "" {
		a.mu.Lock()
		a.seen[id]++
		a.mu.Unlock()
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/echo"):
		w.Header().Set("X-Content-Length", strconv.FormatInt(r.ContentLength, 10))
		b, _ := io.ReadAll(r.Body) // what came is compared by the client
		for k, v := range r.Trailer {
			w.Header().Set("X-Got-Trailer", k+"="+strings.Join(v, ","))
		}
		w.Write(b)
	case r.URL.Path == "/trailers":
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "42")
	case strings.HasPrefix(r.URL.Path, "/status/"):
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		w.Header().Set("ETag", `"x"`)
		w.WriteHeader(n)
	case r.URL.Path == "/early":
		http.Error(w, "too large", http.StatusRequestEntityTooLarge) // the body is not read
	case r.URL.Path == "/hints":
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "hinted")
	case r.URL.Path == "/abort":
		io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case r.URL.Path == "/ws":
		websocket(w, r)
	case r.URL.Path == "/big":
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		w.Header().Set("Content-Length", strconv.Itoa(n))
		io.CopyN(w, zeros{}, int64(n))
	default: // what arrived
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "target": r.RequestURI, "host": r.Host, "header": r.Header, "proto": r.Proto})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// websocket takes the upgrade and sends bytes back, then ends its side after
// the client's.
func websocket(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Refuse") != "" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "no upgrade here", http.StatusForbidden)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: test\r\nX-App: 1\r\n\r\nhello")
	if _, err := io.Copy(c, rw); err == nil {
		io.WriteString(c, "bye")
	}
}

type arrived struct {
	Method, Target, Host, Proto string
	Header                      http.Header
}

// exchange sends raw bytes and reads one response to a request of that method.
func exchange(t *testing.T, addr, method, raw string) (*http.Response, string) {
	t.Helper()
	c := dial(t, addr)
	say(t, c, raw)
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", raw[:min(len(raw), 80)], err)
	}
	return r, drainBody(t, r)
}

func testHTTP1(t *testing.T, w *world, a *app) {
	addr := w.upstream["app"]
	t.Run("pipelining", func(t *testing.T) {
		c := dial(t, addr)
		var all strings.Builder
		for i := range 50 {
			fmt.Fprintf(&all, "POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\n%03d", i)
		}
		say(t, c, all.String())
		br := bufio.NewReader(c)
		for i := range 50 {
			r, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("response %d: %v", i, err)
			}
			if got := drainBody(t, r); got != fmt.Sprintf("%03d", i) {
				t.Fatalf("response %d is %q", i, got)
			}
		}
	})
	t.Run("chunked and trailers up", func(t *testing.T) {
		r, body := exchange(t, addr, "POST", "POST /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Sum: 9\r\n\r\n")
		if body != "abcde" || r.Header.Get("X-Got-Trailer") != "X-Sum=9" || r.Header.Get("X-Content-Length") != "-1" {
			t.Errorf("body %q, header %v", body, r.Header)
		}
	})
	t.Run("trailers down", func(t *testing.T) {
		r, body := exchange(t, addr, "GET", "GET /trailers HTTP/1.1\r\nHost: app\r\nTE: trailers\r\n\r\n")
		if body != "body" || r.Trailer.Get("X-Sum") != "42" {
			t.Errorf("body %q, trailer %v", body, r.Trailer)
		}
	})
	t.Run("100-continue", func(t *testing.T) {
		c := dial(t, addr)
		say(t, c, "POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		br := bufio.NewReader(c)
		r, err := http.ReadResponse(br, nil)
		if err != nil || r.StatusCode != 100 {
			t.Fatalf("%v, %v", r, err)
		}
		say(t, c, "data")
		if r, err = http.ReadResponse(br, nil); err != nil || drainBody(t, r) != "data" {
			t.Fatalf("%v, %v", r, err)
		}
	})
	t.Run("early hints", func(t *testing.T) {
		c := dial(t, addr)
		say(t, c, "GET /hints HTTP/1.1\r\nHost: app\r\n\r\n")
		br := bufio.NewReader(c)
		r, err := http.ReadResponse(br, nil)
		if err != nil || r.StatusCode != 103 || r.Header.Get("Link") == "" {
			t.Fatalf("%v, %v", r, err)
		}
		if r, err = http.ReadResponse(br, nil); err != nil || drainBody(t, r) != "hinted" {
			t.Fatalf("%v, %v", r, err)
		}
	})
	t.Run("no body", func(t *testing.T) {
		c := dial(t, addr)
		br := bufio.NewReader(c)
		for _, x := range []struct {
			method, path string
			status       int
		}{{"HEAD", "/big?n=1000", 200}, {"GET", "/status/204", 204}, {"GET", "/status/304", 304}, {"HEAD", "/status/404", 404}, {"GET", "/status/418", 418}} {
			say(t, c, x.method+" "+x.path+" HTTP/1.1\r\nHost: app\r\n\r\n")
			r, err := http.ReadResponse(br, &http.Request{Method: x.method})
			if err != nil {
				t.Fatalf("%s %s: %v", x.method, x.path, err)
			}
			if b := drainBody(t, r); r.StatusCode != x.status || b != "" {
				t.Errorf("%s %s: %d %q", x.method, x.path, r.StatusCode, b)
			}
			if x.path == "/big?n=1000" && r.ContentLength != 1000 {
				t.Errorf("HEAD: Content-Length %d", r.ContentLength)
			}
			if x.status == 204 && (r.Header.Get("Content-Length") != "" || len(r.TransferEncoding) > 0) {
				t.Errorf("204 with framing: %v %v", r.Header, r.TransferEncoding)
			}
		}
	})
	t.Run("early response", func(t *testing.T) {
		c := dial(t, addr)
		say(t, c, "POST /early HTTP/1.1\r\nHost: app\r\nContent-Length: 8000000\r\n\r\n")
		var sender sync.WaitGroup
		sender.Go(func() { io.CopyN(c, zeros{}, 8000000) }) // may fail: the answer came first
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != 413 {
			t.Errorf("%v, %v", r, err)
		} else if b := drainBody(t, r); !strings.Contains(b, "too large") {
			t.Errorf("body %q", b)
		}
		c.Close()
		sender.Wait()
	})
	t.Run("HTTP/1.0", func(t *testing.T) {
		r, b := exchange(t, addr, "GET", "GET /big?n=5 HTTP/1.0\r\nHost: app\r\n\r\n")
		if r.StatusCode != 200 || len(b) != 5 || !r.Close {
			t.Errorf("%v %q", r, b)
		}
	})
	t.Run("absolute form", func(t *testing.T) {
		// The target's host counts (RFC 9112, section 3.2.2), where Host says the same.
		if r, b := exchange(t, addr, "GET", "GET http://target/x?y=1 HTTP/1.1\r\nHost: other\r\n\r\n"); r.StatusCode != 400 {
			t.Errorf("two hosts: %d %q", r.StatusCode, b)
		}
		_, b := exchange(t, addr, "GET", "GET http://target/x?y=1 HTTP/1.1\r\nHost: TARGET:80\r\n\r\n")
		var got arrived
		if err := json.Unmarshal([]byte(b), &got); err != nil || got.Target != "/x?y=1" || got.Host != "target" {
			t.Errorf("%v %s", err, b)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for name, raw := range map[string]string{
			"two hosts":          "GET /x HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n",
			"no host":            "GET /x HTTP/1.1\r\n\r\n",
			"two lengths":        "POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
			"unknown TE":         "POST /x HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: gzip\r\n\r\n",
			"space before colon": "GET /x HTTP/1.1\r\nHost: app\r\nX-A : b\r\n\r\n",
			"encoded NUL":        "GET /%00 HTTP/1.1\r\nHost: app\r\n\r\n",
			"above the root":     "GET /../../x HTTP/1.1\r\nHost: app\r\n\r\n",
			"huge header":        "GET /x HTTP/1.1\r\nHost: app\r\nX-A: " + strings.Repeat("a", 100<<10) + "\r\n\r\n",
		} {
			t.Run(name, func(t *testing.T) {
				r, b := exchange(t, addr, "GET", raw)
				if r.StatusCode < 400 || r.StatusCode > 499 && r.StatusCode != 501 {
					t.Errorf("answered with %d %q", r.StatusCode, b)
				}
				if r.Header.Get("Proxy-Status") == "" {
					t.Errorf("no proxy-status: %v", r.Header)
				}
			})
		}
	})
	t.Run("paths unchanged", func(t *testing.T) {
		for _, p := range []string{"/a%20b", "/a+b?c=d&e=%2F", "/%E2%82%AC", "/a;b=c", "/a,b", "/~u", "/a?", "/a?b?c", "/caf%C3%A9", "/a:b@c", "/x?q=a|b", "/a%3Fb", "/a!$&'()*", "/x?%zz"} {
			_, b := exchange(t, addr, "GET", "GET "+p+" HTTP/1.1\r\nHost: app\r\n\r\n")
			var got arrived
			if err := json.Unmarshal([]byte(b), &got); err != nil || got.Target != p {
				t.Errorf("%s arrived as %q (%v, %s)", p, got.Target, err, b)
			}
		}
	})
	t.Run("many headers", func(t *testing.T) {
		var h strings.Builder
		for i := range 90 {
			fmt.Fprintf(&h, "X-H%d: %s\r\n", i, strings.Repeat("v", 300))
		}
		r, b := exchange(t, addr, "GET", "GET /x HTTP/1.1\r\nHost: app\r\n"+h.String()+"\r\n")
		var got arrived
		if err := json.Unmarshal([]byte(b), &got); err != nil || r.StatusCode != 200 || len(got.Header["X-H89"]) != 1 {
			t.Errorf("%d %v", r.StatusCode, err)
		}
	})
	t.Run("forged identity", func(t *testing.T) {
		_, b := exchange(t, addr, "GET", "GET /x HTTP/1.1\r\nHost: app\r\nX-Forwarded-Client-Cert: URI=spiffe://evil\r\nX_Forwarded_Client_Cert: URI=spiffe://evil\r\nX-Forwarded-For: 6.6.6.6\r\n"+
			"Connection: X-Forwarded-Client-Cert, X-Keep-Me-Not\r\nX-Keep-Me-Not: 1\r\nTransfer_Encoding: chunked\r\n\r\n")
		if strings.Contains(b, "evil") {
			t.Errorf("a forged identity arrived: %s", b)
		}
		var got arrived
		if err := json.Unmarshal([]byte(b), &got); err != nil {
			t.Fatal(err)
		}
		if x := got.Header.Get("X-Forwarded-Client-Cert"); !strings.Contains(x, "svc/web") {
			t.Errorf("XFCC %q does not name the caller", x)
		}
		if got.Header.Get("X-Keep-Me-Not") != "" {
			t.Errorf("a field that Connection names was forwarded: %v", got.Header)
		}
		t.Logf("%v", got.Header)
	})
	t.Run("cut response", func(t *testing.T) {
		r, err := http.Get(w.url("app", "/abort"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("a response that the application broke off looks complete: %q", b)
		}
		t.Log(w.logged(t, "web", "/abort"))
	})
	t.Run("large body", func(t *testing.T) {
		const n = 64 << 20
		h := sha256.New()
		r, err := http.Post(w.url("app", "/echo"), "application/octet-stream", io.TeeReader(io.LimitReader(zeros{}, 10<<20), h))
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256([]byte(drainBody(t, r))); string(got[:]) != string(h.Sum(nil)) {
			t.Error("an upload of 10 MB did not come back as it was")
		}
		r, err = http.Get(w.url("app", "/big?n="+strconv.Itoa(n)))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if got, err := io.Copy(io.Discard, r.Body); got != n || err != nil {
			t.Errorf("%d bytes, %v", got, err)
		}
	})
	t.Run("websocket", func(t *testing.T) {
		c := dial(t, addr)
		say(t, c, "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\nearly")
		br := bufio.NewReader(c)
		r, err := http.ReadResponse(br, nil)
		if err != nil || r.StatusCode != 101 || r.Header.Get("X-App") != "1" || r.Header.Get("Sec-Websocket-Accept") != "test" {
			t.Fatalf("%v, %v", r, err)
		}
		say(t, c, " frames")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(br)
		if string(b) != "helloearly framesbye" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("websocket refused", func(t *testing.T) {
		c := dial(t, addr)
		br := bufio.NewReader(c)
		for range 2 { // the connection stays usable
			say(t, c, "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Refuse: 1\r\n\r\n")
			r, err := http.ReadResponse(br, nil)
			if err != nil || r.StatusCode != 403 {
				t.Fatalf("%v, %v", r, err)
			}
			if b := drainBody(t, r); !strings.Contains(b, "no upgrade") {
				t.Errorf("%q", b)
			}
		}
	})
}

// testReuse: an application that closes a connection at the moment of its
// reuse shows at no client, and no POST is sent twice.
func testReuse(t *testing.T, w *world, a *app) {
	tr := &http.Transport{MaxIdleConnsPerHost: 32}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	var failed, posts atomic.Int64
	var first atomic.Value
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 150 {
				var r *http.Response
				var err error
				if i%5 == 0 {
					req, rerr := http.NewRequest("POST", w.url("closing", "/post"), strings.NewReader("x"))
					if rerr != nil {
						panic(rerr)
					}
					req.Header.Set("X-Id", fmt.Sprintf("%d-%d", worker, i))
					posts.Add(1)
					r, err = client.Do(req)
				} else {
					r, err = client.Get(w.url("closing", "/"))
				}
				if err == nil {
					_, err = io.Copy(io.Discard, r.Body)
					r.Body.Close()
					if err == nil && r.StatusCode != 200 && i%5 != 0 {
						err = fmt.Errorf("status %d, %v", r.StatusCode, r.Header)
					}
				}
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of 2400 requests failed, the first: %v", n, first.Load())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, n := range a.seen {
		if n > 1 {
			t.Errorf("POST %s reached the application %d times", id, n)
		}
	}
	t.Logf("%d of %d POSTs arrived", len(a.seen), posts.Load())
}

// closingApp answers HTTP/1.1 requests and closes each connection without a
// word a moment after its second answer.
func closingApp(a *app) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for range 2 {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if id := r.Header.Get("X-Id"); id != "" {
				a.mu.Lock()
				a.seen[id]++
				a.mu.Unlock()
			}
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	}
}
