package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// script is a raw HTTP/1.1 server: play has each connection from its first byte.
type script struct {
	l    netio.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[netio.Conn]bool
	// Counts of what happened.
	accepted, requests, quit atomic.Int64
}

func scripted(t testing.TB, n netio.Net, address string, play func(s *script, c netio.Conn, r *bufio.Reader)) *script {
	t.Helper()
	l, err := n.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{l: l, open: map[netio.Conn]bool{}}
	s.wg.Go(func() {
		for {
			c, err := l.AcceptConn()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			s.mu.Lock()
			s.open[c] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				play(s, c, bufio.NewReader(c))
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
				c.Close()
			})
		}
	})
	return s
}

// close ends the server and its connections.
func (s *script) close() {
	s.l.Close()
	s.mu.Lock()
	for c := range s.open {
		c.Reset()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// request reads one request whole; false at the connection's end.
func (s *script) request(r *bufio.Reader) bool {
	hr, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, hr.Body); err != nil {
		return false
	}
	s.requests.Add(1)
	return true
}

const okResponse = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// raw runs a test with a pool to a scripted server on the memory network.
func raw(t *testing.T, conf Config, play func(s *script, c netio.Conn, r *bufio.Reader), f func(t *testing.T, m *netio.Memory, p *Pool, s *script)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := netio.NewMemory()
		client, server := m.Host("client", "10.0.0.1"), m.Host("server", "10.0.0.2")
		s := scripted(t, server, ":80", play)
		conf.Network, conf.Address = "tcp", "10.0.0.2:80"
		p := New(conf, Deps{Net: client})
		f(t, m, p, s)
		p.Close()
		s.close()
		synctest.Wait()
		if n, open := p.Conns(), client.Open(); n != 0 || open != 0 {
			t.Errorf("after Close %d connections are counted and %d open", n, open)
		}
	})
}

// again is a body that can be sent again.
type again struct {
	text string
	*strings.Reader
}

func newAgain(s string) *again              { return &again{s, strings.NewReader(s)} }
func (b *again) Again() (stream.Body, bool) { return newAgain(b.text), true }
func (b *again) Trailers() stream.Header    { return nil }
func (b *again) Close() error               { return nil }
func (b *again) Next() ([]byte, error) {
	p := make([]byte, 1024)
	n, err := b.Read(p)
	return p[:n], err
}
func (b *again) Ready() bool { return true }
func post(path, text string) *stream.Request {
	r := get(path)
	r.Head.Method, r.Head.ContentLength, r.Body = "POST", int64(len(text)), newAgain(text)
	return r
}

// once sends a request and reads the response to its end.
func once(t testing.TB, p *Pool, r *stream.Request) (string, error) {
	resp, err := p.Do(t.Context(), r)
	if err != nil {
		return "", err
	}
	defer resp.End()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// idleFor answers until the connection was idle for d, then closes it.
func idleFor(d time.Duration) func(s *script, c netio.Conn, r *bufio.Reader) {
	return func(s *script, c netio.Conn, r *bufio.Reader) {
		for {
			c.SetReadDeadline(time.Now().Add(d))
			if _, err := r.Peek(1); err != nil {
				s.quit.Add(1)
				return
			}
			c.SetReadDeadline(time.Time{})
			if !s.request(r) {
				return
			}
			io.WriteString(c, okResponse)
		}
	}
}

// The endpoint closes idle connections at the very instant that requests come:
// a thousand times, none fails.
func TestIdleRace(t *testing.T) {
	for _, method := range []string{"GET", "PUT"} {
		raw(t, Config{}, idleFor(50*time.Millisecond), func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
			m.SetLatency(time.Millisecond)
			for i := 0; s.quit.Load() < 1000; i++ {
				r := get("/")
				if method == "PUT" {
					r = post("/", "body")
					r.Head.Method = method
				}
				if b, err := once(t, p, r); b != "ok" || err != nil {
					t.Fatalf("%s %d: %q %v", method, i, b, err)
				}
				p.mu.Lock()
				p.learned = learned{} // else it learns to avoid the race
				p.mu.Unlock()
				time.Sleep(48*time.Millisecond + time.Duration(i%30)*100*time.Microsecond)
			}
		})
	}
}

// The same over the kernel's sockets, where nobody can say when.
func TestIdleRaceOfRealSockets(t *testing.T) {
	var closing atomic.Pointer[chan struct{}]
	s := scripted(t, netio.OS{}, "127.0.0.1:0", func(s *script, c netio.Conn, r *bufio.Reader) {
		if s.request(r) {
			now := *closing.Load()
			io.WriteString(c, okResponse)
			<-now
			s.quit.Add(1)
		}
	})
	defer s.close()
	p := New(Config{Network: "tcp", Address: s.l.Addr().String()}, Deps{Net: netio.OS{}})
	defer p.Close()
	for i := range 1000 {
		now := make(chan struct{})
		closing.Store(&now)
		if b, err := once(t, p, get("/")); b != "ok" || err != nil { // opens
			t.Fatalf("%d: %q %v", i, b, err)
		}
		before := s.requests.Load()
		go func() {
			for range i % 40 * 50 {
			}
			close(now)
		}()
		for range (i / 40) % 40 * 50 {
		}
		if b, err := once(t, p, get("/")); b != "ok" || err != nil {
			t.Fatalf("%d: %q %v", i, b, err)
		}
		if n := s.requests.Load() - before; n != 1 {
			t.Fatalf("%d: carried out %d times", i, n)
		}
	}
}

// lateNet's connections call before each write of theirs but the first.
type lateNet struct {
	netio.OS
	before func()
}

type lateConn struct {
	netio.Conn
	before func()
	n      int
}

func (n *lateNet) Dial(ctx context.Context, network, address string) (netio.Conn, error) {
	c, err := n.OS.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &lateConn{Conn: c, before: n.before}, nil
}

func (c *lateConn) Unwrap() netio.Conn { return c.Conn }

func (c *lateConn) Write(p []byte) (int, error) {
	if c.n++; c.n > 1 {
		c.before()
	}
	return c.Conn.Write(p)
}

// A request that must not be carried out twice, on a connection that the
// endpoint closes after it was looked at and before the request is written: the
// kernel knows that none of it was acknowledged, and it is sent elsewhere.
func TestPostMeetsTheEnd(t *testing.T) {
	closing, closed := make(chan struct{}), make(chan struct{})
	s := scripted(t, netio.OS{}, "127.0.0.1:0", func(s *script, c netio.Conn, r *bufio.Reader) {
		if s.request(r) {
			io.WriteString(c, okResponse)
			<-closing
			c.Close()
			closed <- struct{}{}
		}
	})
	p := New(Config{Network: "tcp", Address: s.l.Addr().String()}, Deps{Net: &lateNet{before: func() { closing <- struct{}{}; <-closed }}})
	for i := range 1000 {
		before := s.requests.Load()
		if b, err := once(t, p, post("/", "body")); b != "ok" || err != nil || s.requests.Load() != before+1 {
			t.Fatalf("%d: %q %v, carried out %d times", i, b, err, s.requests.Load()-before)
		}
	}
	p.Close()
	close(closing)
	<-closed
	s.close()
}

// A request that may have been carried out is not sent again where its method
// is not idempotent: the endpoint reads it and goes.
func TestPostIsNotSentTwice(t *testing.T) {
	for name, end := range map[string]func(netio.Conn){"close": func(c netio.Conn) { c.Close() }, "reset": func(c netio.Conn) { c.Reset() }} {
		t.Run(name, func(t *testing.T) {
			s := scripted(t, netio.OS{}, "127.0.0.1:0", func(s *script, c netio.Conn, r *bufio.Reader) {
				for n := 0; s.request(r); n++ {
					if n == 1 {
						end(c)
						return
					}
					io.WriteString(c, okResponse)
				}
			})
			defer s.close()
			p := New(Config{Network: "tcp", Address: s.l.Addr().String()}, Deps{Net: netio.OS{}})
			defer p.Close()
			for range 50 {
				if _, err := once(t, p, get("/")); err != nil {
					t.Fatal(err)
				}
				before := s.requests.Load()
				_, err := once(t, p, post("/", "body"))
				var e *Error
				if !errors.As(err, &e) || e.Kind != Reset || !e.Sent || s.requests.Load() != before+1 {
					t.Fatalf("%v, %d requests", err, s.requests.Load()-before)
				}
			}
		})
	}
}

// The pool learns how long the endpoint keeps idle connections and is done with
// them before that; it forgets slowly, and a restart teaches nothing.
func TestKeepAliveIsLearned(t *testing.T) {
	raw(t, Config{}, idleFor(5*time.Second), func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		m.SetLatency(time.Millisecond)
		for range 4 {
			once(t, p, get("/"))
			time.Sleep(20 * time.Second)
			if n := p.Conns(); n != 0 {
				t.Errorf("%d connections that the endpoint has closed", n)
			}
		}
		if l := p.learned.limit; l < 3*time.Second || l >= 5*time.Second {
			t.Fatalf("learned %v", l)
		}
		if p.armed {
			t.Error("the wheel turns though nothing is idle")
		}
		quit := s.quit.Load()
		for range 20 {
			once(t, p, get("/"))
			time.Sleep(6 * time.Second)
		}
		// The script's wait also ends when we close.
		if n := s.quit.Load() - quit; n != 20 {
			t.Errorf("%d connections ended", n)
		}
		if l := p.learned; l.limit < 3*time.Second || l.limit >= 5*time.Second {
			t.Errorf("learned %v afterwards", l.limit)
		}
		if k := p.learned; k.keep(p.d.Wheel.Now()+int64(24*time.Hour), time.Hour) != time.Hour {
			t.Errorf("never forgotten: %v", k.limit)
		}
	})
	raw(t, Config{}, func(s *script, c netio.Conn, r *bufio.Reader) {
		for s.request(r) {
			time.Sleep(time.Millisecond)
			io.WriteString(c, okResponse)
		}
	}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		for range 3 { // restarts, with connections of many ages
			for n := 10; n > 0; n-- {
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() { once(t, p, get("/")) })
				}
				wg.Wait()
				time.Sleep(700 * time.Millisecond)
			}
			s.mu.Lock()
			for c := range s.open {
				c.Reset()
			}
			s.mu.Unlock()
			time.Sleep(20 * time.Second)
		}
		if p.learned.limit != 0 {
			t.Errorf("restarts taught %v", p.learned.limit)
		}
	})
}

// What is idle and what the endpoint closed leaves nothing: no socket, no
// goroutine, no turning wheel.
func TestNothingStays(t *testing.T) {
	raw(t, Config{IdleTimeout: 30 * time.Second}, idleFor(20*time.Second), func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		m.SetLatency(time.Millisecond)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := once(t, p, get("/")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := p.Conns(); n < 2 {
			t.Errorf("%d connections after 100 requests at a time", n)
		}
		time.Sleep(20*time.Second + sweepMax)
		if n := p.Conns(); n != 0 || p.armed {
			t.Errorf("%d connections, armed %v", n, p.armed)
		}
	})
}

// Requests that wait for a connection take the first that becomes free, and all
// of a storm are answered; opening goes on beside it.
func TestDialStorm(t *testing.T) {
	raw(t, Config{}, func(s *script, c netio.Conn, r *bufio.Reader) {
		for s.request(r) {
			io.WriteString(c, okResponse)
		}
	}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		m.SetLatency(10 * time.Millisecond)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				if b, err := once(t, p, get("/")); b != "ok" || err != nil {
					t.Errorf("%q %v", b, err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := p.Conns(); n > 500 || int64(n) != s.accepted.Load() {
			t.Errorf("%d connections, %d accepted", n, s.accepted.Load())
		}
		p.mu.Lock()
		idle, waiting := len(p.main.idle), len(p.main.waiters)
		p.mu.Unlock()
		if idle != p.Conns() || waiting != 0 {
			t.Errorf("%d of %d idle, %d waiting", idle, p.Conns(), waiting)
		}
	})
}

// Requests that are given up while they wait leave nothing behind.
func TestGivenUpWhileWaiting(t *testing.T) {
	for _, proto := range protocols {
		with(t, Config{Protocol: proto, ConnectTimeout: time.Second}, func(http.ResponseWriter, *http.Request) {},
			func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
				server.Unplug()
				var life stream.Scope
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						if _, err := p.Do(&life, get("/")); kindOf(err) != Cancelled {
							t.Errorf("%v: %v", proto, err)
						}
					})
				}
				synctest.Wait()
				life.Cancel(nil)
				wg.Wait()
				p.mu.Lock()
				if n := len(p.main.waiters); n != 0 {
					t.Errorf("%v: %d still wait", proto, n)
				}
				p.mu.Unlock()
			})
	}
}

// A connection that was switched to another protocol, or refused to, is not used
// for requests.
func TestUpgradedConnectionsAreNotPooled(t *testing.T) {
	for _, accept := range []bool{true, false} {
		raw(t, Config{}, func(s *script, c netio.Conn, r *bufio.Reader) {
			for n := 0; ; n++ {
				hr, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				s.requests.Add(1)
				switch up := hr.Header.Get("Upgrade"); {
				case n > 0:
					t.Error("a second request on the connection")
				case up == "websocket" && accept:
					io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
				default:
					io.WriteString(c, okResponse)
				}
			}
		}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
			for range 3 {
				r := get("/")
				r.Head.Upgrade = "websocket"
				resp, err := p.Do(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if (resp.Tunnel != nil) != accept {
					t.Errorf("tunnel %v", resp.Tunnel)
				}
				if accept {
					b := make([]byte, 5)
					if _, err := io.ReadFull(resp.Tunnel, b); string(b) != "hello" {
						t.Errorf("%q %v", b, err)
					}
				}
				resp.End()
			}
			synctest.Wait()
			if n := p.Conns(); n != 0 {
				t.Errorf("%d connections stay", n)
			}
		})
	}
}

// Whatever an endpoint sends, the request ends, and with its kind.
func TestHostileEndpoint(t *testing.T) {
	endless := func(head, part string) func(s *script, c netio.Conn, r *bufio.Reader) {
		return func(s *script, c netio.Conn, r *bufio.Reader) {
			s.request(r)
			io.WriteString(c, head)
			for {
				if _, err := io.WriteString(c, part); err != nil {
					return
				}
			}
		}
	}
	say := func(text string) func(s *script, c netio.Conn, r *bufio.Reader) {
		return func(s *script, c netio.Conn, r *bufio.Reader) {
			s.request(r)
			io.WriteString(c, text)
		}
	}
	for name, c := range map[string]struct {
		play func(s *script, c netio.Conn, r *bufio.Reader)
		kind Kind   // of Do's error; 0: a response
		body string // of the response, where it can be read to its end
	}{
		"endless 1xx":           {endless("", "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"), Protocol, ""},
		"endless fields":        {endless("HTTP/1.1 200 OK\r\n", "A: b\r\n"), Protocol, ""},
		"endless field":         {endless("HTTP/1.1 200 OK\r\nA: ", "bbbbbbbbbbbbbbbb"), Protocol, ""},
		"endless status line":   {endless("HTTP/1.1 200 ", "OK "), Protocol, ""},
		"not HTTP":              {say("SSH-2.0-OpenSSH\r\n\r\n"), Protocol, ""},
		"bare LF and CL twice":  {say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"), Protocol, ""},
		"CL with TE":            {say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Protocol, ""},
		"101 unasked":           {say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), Protocol, ""},
		"ends in the head":      {say("HTTP/1.1 200 OK\r\nContent-"), Reset, ""},
		"ends at once":          {say(""), Reset, ""},
		"shorter than its CL":   {say("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nabc"), 0, ""},
		"a chunk that is none":  {say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), 0, ""},
		"longer than its CL":    {say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), 0, "ok"},
		"until the end, no CL":  {say("HTTP/1.1 200 OK\r\n\r\nok"), 0, "ok"},
		"an answer to nothing":  {say(okResponse + okResponse), 0, "ok"},
		"204 with something on": {say("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			raw(t, Config{}, c.play, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
				for range 2 { // the second must not get what is left of the first
					resp, err := p.Do(t.Context(), get("/"))
					if kindOf(err) != c.kind {
						t.Fatalf("kind %v of %v, want %v", kindOf(err), err, c.kind)
					}
					if err != nil {
						continue
					}
					b, err := io.ReadAll(resp.Body)
					whole := c.body != "" || strings.HasPrefix(name, "204")
					if whole && (err != nil || string(b) != c.body) || !whole && err == nil {
						t.Errorf("%q %v", b, err)
					}
					resp.End()
					synctest.Wait()
				}
			})
		})
	}
}

// A response whose head does not come ends with the caller's patience, and its
// connection with it.
func TestSlowHead(t *testing.T) {
	raw(t, Config{}, func(s *script, c netio.Conn, r *bufio.Reader) {
		s.request(r)
		for _, b := range "HTTP/1.1 200 OK\r\n" {
			time.Sleep(time.Second)
			fmt.Fprintf(c, "%c", b)
		}
	}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		var life stream.Scope
		time.AfterFunc(5*time.Second, func() { life.Cancel(nil) })
		start := time.Now()
		if _, err := p.Do(&life, get("/")); kindOf(err) != Cancelled || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		synctest.Wait()
		if n := p.Conns(); n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// Many requests at a time share one HTTP/2 connection until the endpoint's limit
// of streams; then as few more as hold them.
func TestSharing(t *testing.T) {
	for _, c := range []struct{ limit, requests, conns int }{{0, 90, 1}, {100, 100, 1}, {10, 100, 10}, {10, 35, 4}} {
		synctest.Test(t, func(t *testing.T) {
			m := netio.NewMemory()
			m.SetLatency(time.Millisecond)
			client, server := m.Host("client", "10.0.0.1"), m.Host("server", "10.0.0.2")
			l, _ := server.Listen(t.Context(), "tcp", ":80")
			h := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: c.limit},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second); io.WriteString(w, "ok") })}
			h.Protocols.SetUnencryptedHTTP2(true)
			go h.Serve(l)
			p := New(Config{Network: "tcp", Address: "10.0.0.2:80", Protocol: resource.ProtocolHTTP2}, Deps{Net: client})
			if _, err := once(t, p, get("/")); err != nil { // the limit is known
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range c.requests {
				wg.Go(func() {
					if b, err := once(t, p, get("/")); b != "ok" || err != nil {
						t.Errorf("%q %v", b, err)
					}
				})
			}
			time.Sleep(500 * time.Millisecond)
			if n := p.Conns(); n > c.conns {
				t.Errorf("%d requests at a time, %d streams to a connection: %d connections, want %d", c.requests, c.limit, n, c.conns)
			}
			wg.Wait()
			p.Close()
			h.Close()
			time.Sleep(time.Minute)
		})
	}
}

// An endpoint that restarts in order, again and again, under load: no request
// fails.
func TestGoAwayUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := netio.NewMemory()
		m.SetLatency(time.Millisecond)
		client, server := m.Host("client", "10.0.0.1"), m.Host("server", "10.0.0.2")
		serve := func() *http.Server {
			l, err := server.Listen(t.Context(), "tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			h := &http.Server{Protocols: new(http.Protocols),
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					time.Sleep(3 * time.Millisecond)
					io.WriteString(w, "ok")
				})}
			h.Protocols.SetUnencryptedHTTP2(true)
			go h.Serve(l)
			return h
		}
		h := serve()
		p := New(Config{Network: "tcp", Address: "10.0.0.2:80", Protocol: resource.ProtocolHTTP2}, Deps{Net: client})
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var done atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					r := get("/")
					if i%2 == 0 {
						r = post("/", "body")
					}
					if b, err := once(t, p, r); b != "ok" || err != nil {
						t.Errorf("%s: %q %v", r.Head.Method, b, err)
					}
					done.Add(1)
				}
			})
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			old := h
			old.SetKeepAlivesEnabled(true)
			var ended sync.WaitGroup
			ended.Go(func() { old.Shutdown(t.Context()) })
			time.Sleep(0)
			synctest.Wait()
			h = serve()
			ended.Wait()
		}
		close(stop)
		wg.Wait()
		if done.Load() < 1000 {
			t.Errorf("%d requests", done.Load())
		}
		p.Close()
		h.Close()
		time.Sleep(time.Minute)
	})
}

// A pool that drains while connections are being opened: who waits for one gets
// it, and nothing is left after the last response. Close ends those who wait.
func TestDrainWhileOpening(t *testing.T) {
	for _, proto := range protocols {
		slow := func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Second); io.WriteString(w, "ok") }
		for after := range 12 { // the connection is open after 20 ms, its settings come after 40
			drainAfter(t, proto, time.Duration(after)*5*time.Millisecond, slow)
		}
		with(t, Config{Protocol: proto}, slow, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			server.Unplug()
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					if _, err := once(t, p, get("/")); kindOf(err) != Gone {
						t.Errorf("%v: %v", proto, err)
					}
				})
			}
			synctest.Wait()
			start := time.Now()
			p.Close()
			wg.Wait()
			if time.Since(start) != 0 {
				t.Errorf("%v: Close took %v", proto, time.Since(start))
			}
		})
	}
}

func drainAfter(t *testing.T, proto resource.Protocol, d time.Duration, slow http.HandlerFunc) {
	with(t, Config{Protocol: proto}, slow, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
		m.SetLatency(10 * time.Millisecond)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if b, err := once(t, p, get("/")); b != "ok" || err != nil {
					t.Errorf("%v after %v: %q %v", proto, d, b, err)
				}
			})
		}
		time.Sleep(d)
		synctest.Wait()
		p.Drain()
		if _, err := p.Do(t.Context(), get("/")); kindOf(err) != Gone {
			t.Errorf("%v after %v: %v", proto, d, err)
		}
		wg.Wait()
		time.Sleep(sweepMax)
		if n := p.Conns(); n != 0 {
			t.Errorf("%v after %v: %d connections after the last response of a drained pool", proto, d, n)
		}
	})
}
