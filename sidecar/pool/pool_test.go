package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) {
	stream.Poison = true
	goleak.VerifyTestMain(m)
}

// with runs a test on a pool to a server that answers with h.
func with(t *testing.T, c Config, h http.HandlerFunc, f func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := netio.NewMemory()
		client, server := m.Host("client", "10.0.0.1"), m.Host("server", "10.0.0.2")
		l, err := server.Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0)}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		go s.Serve(l)
		c.Network, c.Address = "tcp", "10.0.0.2:80"
		p := New(c, Deps{Net: client})
		f(t, m, p, client, server)
		p.Close()
		s.Close()
		time.Sleep(time.Minute)
		if n := p.Conns(); n != 0 {
			t.Errorf("%d connections are counted after Close", n)
		}
	})
}

func get(path string) *stream.Request {
	return &stream.Request{Head: stream.RequestHead{Method: "GET", Scheme: "http", Authority: "a.test", Path: path, ContentLength: -1}}
}

func do(t *testing.T, p *Pool, r *stream.Request) string {
	t.Helper()
	resp, err := p.Do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.End()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func kindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

var protocols = []resource.Protocol{resource.ProtocolHTTP1, resource.ProtocolHTTP2}

func TestConnectionsAreReused(t *testing.T) {
	for _, proto := range protocols {
		hello := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }
		with(t, Config{Protocol: proto}, hello, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			for range 200 {
				if s := do(t, p, get("/")); s != "hello" {
					t.Fatalf("got %q", s)
				}
				synctest.Wait()
				if n := p.Conns(); n != 1 {
					t.Fatalf("%d connections for one request at a time", n)
				}
			}
		})
	}
}

func TestIdleTimeout(t *testing.T) {
	for _, proto := range protocols {
		with(t, Config{Protocol: proto, IdleTimeout: time.Minute}, func(http.ResponseWriter, *http.Request) {},
			func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
				do(t, p, get("/"))
				time.Sleep(59 * time.Second)
				if n := p.Conns(); n != 1 {
					t.Errorf("%v: %d connections before the idle time-out", proto, n)
				}
				time.Sleep(2 * time.Second)
				if n := p.Conns(); n != 0 {
					t.Errorf("%v: %d connections after the idle time-out", proto, n)
				}
			})
	}
}

func TestPathsArriveAsSent(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) }
	for _, proto := range protocols {
		with(t, Config{Protocol: proto}, echo, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			for _, path := range []string{"/", "/a%2Fb%20c", "/a?b=c&d", "/a?", "//double/x?q=//", "/%7Euser/ä%C3%A4", "/a/../b"} {
				if got := do(t, p, get(path)); got != path {
					t.Errorf("%v: %q arrived as %q", proto, path, got)
				}
			}
		})
	}
}

func TestFailuresAreTyped(t *testing.T) {
	abort := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	for _, proto := range protocols {
		with(t, Config{Protocol: proto, ConnectTimeout: time.Second}, abort,
			func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
				_, err := p.Do(t.Context(), get("/"))
				var e *Error
				if !errors.As(err, &e) || e.Kind != Reset || !e.Sent {
					t.Errorf("aborted: %+v", err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := p.Do(ctx, get("/")); kindOf(err) != Cancelled {
					t.Errorf("cancelled: %v", err)
				}
				server.Kill()
				time.Sleep(time.Second)
				_, err = p.Do(t.Context(), get("/"))
				if !errors.As(err, &e) || e.Kind != Connect || e.Sent {
					t.Errorf("refused: %+v", err)
				}
				server.Unplug()
				start := time.Now()
				if _, err := p.Do(t.Context(), get("/")); kindOf(err) != ConnectTimeout || time.Since(start) != time.Second {
					t.Errorf("silent: %v after %v", err, time.Since(start))
				}
				p.Drain()
				if _, err := p.Do(t.Context(), get("/")); kindOf(err) != Gone {
					t.Errorf("drained: %v", err)
				}
				if _, _, err := p.Connect(t.Context()); kindOf(err) != Gone {
					t.Errorf("drained: %v", err)
				}
			})
	}
}

func TestGarbageIsAProtocolError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := netio.NewMemory().Host("h")
		l, _ := h.Listen(t.Context(), "tcp", "localhost:80")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Read(make([]byte, 4096))
				io.WriteString(c, "SSH-2.0-OpenSSH\r\n\r\n")
				c.Close()
			}
		}()
		p := New(Config{Network: "tcp", Address: "127.0.0.1:80"}, Deps{Net: h})
		if _, err := p.Do(t.Context(), get("/")); kindOf(err) != Protocol || !strings.Contains(err.Error(), "status line") {
			t.Errorf("%v", err)
		}
		p.Close()
		l.Close()
	})
}

// A slow reader of a response stops the server after the windows are full.
func TestBackPressure(t *testing.T) {
	for _, proto := range protocols {
		var wrote int
		flood := func(w http.ResponseWriter, r *http.Request) {
			for wrote < 64<<20 {
				n, err := w.Write(make([]byte, 64<<10))
				wrote += n
				if err != nil {
					return
				}
			}
		}
		with(t, Config{Protocol: proto}, flood, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			resp, err := p.Do(t.Context(), get("/"))
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if wrote > 1<<20 {
				t.Errorf("%v: the server could send %d bytes that nobody reads", proto, wrote)
			}
			resp.Body.Close()
			synctest.Wait()
		})
	}
}

func TestDownstreamProtocol(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }
	with(t, Config{Protocol: resource.ProtocolDownstream}, echo, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
		for proto, want := range map[stream.Protocol]string{stream.HTTP1: "HTTP/1.1", stream.HTTP2: "HTTP/2.0"} {
			r := get("/")
			r.Head.Protocol = proto
			if got := do(t, p, r); got != want {
				t.Errorf("a request that came by %s went by %s", proto, got)
			}
		}
	})
}

func TestInterimResponsesAreTold(t *testing.T) {
	for _, proto := range protocols {
		hints := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			io.WriteString(w, "hello")
		}
		with(t, Config{Protocol: proto}, hints, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			var told []stream.ResponseHead
			r := get("/")
			r.Informational = func(h *stream.ResponseHead) {
				told = append(told, stream.ResponseHead{Status: h.Status, Header: stream.Header{{Name: "link", Value: strings.Clone(h.Header.Get("link"))}}})
			}
			if s := do(t, p, r); s != "hello" {
				t.Errorf("%v: got %q", proto, s)
			}
			if len(told) != 1 || told[0].Status != 103 || told[0].Header.Get("link") == "" {
				t.Errorf("%v: told %v", proto, told)
			}
		})
	}
}

// TestSilentPeer: a request on an HTTP/2 connection whose peer went silent ends
// after a ping without an answer, long before any time-out of its own.
func TestSilentPeer(t *testing.T) {
	with(t, Config{Protocol: resource.ProtocolHTTP2}, func(http.ResponseWriter, *http.Request) {},
		func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
			do(t, p, get("/"))
			m.Partition(client, server)
			start := time.Now()
			_, err := p.Do(t.Context(), get("/"))
			took := time.Since(start)
			if kindOf(err) != Reset || took > pingAfter+pingTimeout+2*wheel.Tick {
				t.Errorf("after %v: %v", took, err)
			}
			m.Heal(client, server)
			do(t, p, get("/"))
		})
}

// TestResetWhileIdle: a connection that its endpoint reset while nobody used it
// costs no request anything, and is not kept.
func TestResetWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pki := testpki.New(t, "mesh.test")
		conf := mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: pki.Identity("web"), ALPN: []string{"http/1.1"}}})
		m := netio.NewMemory()
		client, server := m.Host("client", "10.0.0.1"), m.Host("server", "10.0.0.2")
		l, err := server.Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.AcceptConn()
				if err != nil {
					return
				}
				s := tls.Server(c, conf)
				if _, err := http.ReadRequest(bufio.NewReader(s)); err != nil {
					t.Error(err)
				}
				io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				time.Sleep(time.Second)
				c.Reset()
			}
		}()
		p := New(Config{Network: "tcp", Address: "10.0.0.2:80", Protocol: resource.ProtocolHTTP1,
			TLS: mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: pki.Identity("caller")}})}, Deps{Net: blind{client}})
		for range 5 {
			if got := do(t, p, get("/")); got != "ok" {
				t.Errorf("got %q", got)
			}
			time.Sleep(1010 * time.Millisecond) // the next comes before the pool has looked
		}
		p.Close()
		l.Close()
		synctest.Wait()
	})
}

// blind is a network on whose connections nobody can look before they are used.
type blind struct{ netio.Net }

func (b blind) Dial(ctx context.Context, network, address string) (netio.Conn, error) {
	c, err := b.Net.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return struct{ netio.Conn }{c}, nil
}
