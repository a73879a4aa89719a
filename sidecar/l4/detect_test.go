package l4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// A line of a transcript: who says what. Protocol bytes are abridged where no
// sniffer looks.
type said struct {
	server bool
	bytes  string
}

func c(s string) said { return said{false, s} }
func s(s string) said { return said{true, s} }

// transcripts are how conversations begin in protocols that nobody declared.
var transcripts = []struct {
	name  string
	lines []said
	http  bool // goes to the engine for HTTP
}{
	{"MySQL", []said{s("\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00"), c("\x20\x00\x00\x01\x85\xae\xff\x01"), s("\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"), c("\x09\x00\x00\x00\x03SELECT 1"), s("\x01\x00\x00\x01\x01")}, false},
	{"PostgreSQL", []said{c("\x00\x00\x00\x08\x04\xd2\x16\x2f"), s("N"), c("\x00\x00\x00\x21\x00\x03\x00\x00user\x00app\x00database\x00app\x00\x00"), s("R\x00\x00\x00\x08\x00\x00\x00\x00"), c("Q\x00\x00\x00\x0dSELECT 1\x00"), s("T\x00\x00\x00\x21")}, false},
	{"SMTP", []said{s("220 mail ESMTP\r\n"), c("EHLO client\r\n"), s("250-mail\r\n250 STARTTLS\r\n"), c("STARTTLS\r\n"), s("220 go\r\n"), c("\x16\x03\x01\x00\x05hello"), s("\x16\x03\x03\x00\x05hello")}, false},
	{"FTP", []said{s("220 ready\r\n"), c("USER anonymous\r\n"), s("331 password\r\n"), c("PASS a@b\r\n"), s("230 in\r\n")}, false},
	{"Redis", []said{c("*1\r\n$4\r\nPING\r\n"), s("+PONG\r\n"), c("*2\r\n$3\r\nGET\r\n$1\r\na\r\n"), s("$-1\r\n")}, false},
	{"Redis, in line", []said{c("PING\r\n"), s("+PONG\r\n"), c("GET a\r\n"), s("$-1\r\n")}, false},
	{"NATS", []said{s("INFO {\"server_id\":\"n\"}\r\n"), c("CONNECT {\"verbose\":false}\r\nPING\r\n"), s("PONG\r\n")}, false},
	{"NATS, an eager client", []said{c("CONNECT {\"verbose\":false}\r\nPING\r\n"), s("INFO {\"server_id\":\"n\"}\r\nPONG\r\n")}, false},
	{"MongoDB", []said{c("\x3a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00isMaster"), s("\x30\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00")}, false},
	{"SSH, server first", []said{s("SSH-2.0-OpenSSH_9.2\r\n"), c("SSH-2.0-Go\r\n"), s("\x00\x00\x04\x3c\x0a\x14")}, false},
	{"SSH, client first", []said{c("SSH-2.0-Go\r\n"), s("SSH-2.0-OpenSSH_9.2\r\n"), c("\x00\x00\x04\x3c\x0a\x14"), s("\x00\x00\x04\x3c\x0a\x14")}, false},
	{"TLS", []said{c("\x16\x03\x01\x00\x05hello"), s("\x16\x03\x03\x00\x05hello"), c("\x17\x03\x03\x00\x01x"), s("\x17\x03\x03\x00\x01y")}, false},
	{"AMQP", []said{c("AMQP\x00\x00\x09\x01"), s("\x01\x00\x00\x00\x00\x01\xf6")}, false},
	{"memcached", []said{c("get key\r\n"), s("END\r\n")}, false},
	{"HTTP/1.1", []said{c("GET /a HTTP/1.1\r\nHost: api\r\n\r\n"), s("HTTP/1.1 200 OK\r\n\r\n")}, true},
	{"HTTP/1.0", []said{c("GET /a HTTP/1.0\r\n\r\n"), s("HTTP/1.0 200 OK\r\n\r\n")}, true},
	{"HTTP/2 with prior knowledge", []said{c("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), s("\x00\x00\x00\x04\x00\x00\x00\x00\x00")}, true},
	{"gRPC", []said{c("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00"), s("\x00\x00\x06\x04\x00\x00\x00\x00\x00")}, true},
	{"a proxy's CONNECT", []said{c("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), s("HTTP/1.1 200 OK\r\n\r\n")}, false},
}

// undeclared is an outbound listener of a service whose protocol nobody
// declared, in front of an application.
type undeclared struct {
	t           *testing.T
	set         *listener.Set
	client, app *netio.Host
	appL        netio.Listener
	http        chan *listener.Conn // connections that the engine for HTTP got
}

const delay = time.Millisecond // between any two hosts

func withUndeclared(t *testing.T, f func(u *undeclared)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := netio.NewMemory()
		m.SetLatency(delay)
		proxy := m.Host("proxy", "10.0.0.2")
		u := &undeclared{t: t, client: m.Host("client", "10.0.0.1"), app: m.Host("app", "10.0.0.3"), http: make(chan *listener.Conn, 8)}
		var err error
		if u.appL, err = u.app.Listen(t.Context(), "tcp", ":7000"); err != nil {
			t.Fatal(err)
		}
		tcp := &resource.FilterChain{Name: "tcp", TCP: &resource.TCPProxy{Cluster: "app"}}
		web := &resource.FilterChain{Name: "http", HTTP: &resource.HTTPManager{},
			Match: resource.ChainMatch{ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}}}
		e, err := New(Config{Proxy: tcp.TCP, Clusters: func(string) (Cluster, bool) { return dialer{proxy, "10.0.0.3:7000"}, true }}, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		u.set = listener.NewSet(listener.Deps{Net: proxy, Live: live.New(live.Config{})})
		l := &resource.Listener{Name: "out", Address: resource.Address{Host: "10.0.0.2", Port: 15001}, Direction: resource.Outbound,
			Chains: []resource.FilterChain{*web, *tcp}}
		errs := u.set.Update("1", []listener.Config{{Resource: l, Chains: map[string]*listener.Chain{
			"tcp":  {Resource: &l.Chains[1], Handler: e},
			"http": {Resource: &l.Chains[0], Handler: listener.HandlerFunc(u.serveHTTP)},
		}}})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- u.set.Run(ctx) }()
		f(u)
		cancel()
		<-done
		u.appL.Close()
		synctest.Wait()
		if n := proxy.Open(); n != 0 {
			t.Errorf("the proxy has %d connections open", n)
		}
		u.client.Kill()
		u.app.Kill()
	})
}

// serveHTTP stands for the engine of HTTP: it carries the bytes to an application
// of its own, and tells that it did.
func (u *undeclared) serveHTTP(ctx context.Context, c *listener.Conn) {
	u.http <- c
	select {
	case <-c.Draining.Done():
	case <-ctx.Done():
	}
}

func (u *undeclared) dial() netio.Conn {
	u.t.Helper()
	c, err := u.client.Dial(u.t.Context(), "tcp", "10.0.0.2:15001")
	if err != nil {
		u.t.Fatal(err)
	}
	return c
}

// talk plays a transcript, whose server is at the other end of to, and says how
// long the bytes were under way beyond what the network needs.
func (u *undeclared) talk(from, to io.ReadWriter, lines []said, hops time.Duration) time.Duration {
	u.t.Helper()
	var extra time.Duration
	for _, l := range lines {
		src, dst := from, to
		if l.server {
			src, dst = to, from
		}
		start := time.Now()
		if _, err := io.WriteString(src, l.bytes); err != nil {
			u.t.Fatalf("%q: %v", l.bytes, err)
		}
		got := make([]byte, len(l.bytes))
		if _, err := io.ReadFull(dst, got); err != nil || string(got) != l.bytes {
			u.t.Fatalf("%q arrived as %q: %v", l.bytes, got, err)
		}
		extra = max(extra, time.Since(start)-hops*delay)
	}
	return extra
}

// play opens a connection, and plays the transcript to whoever gets it.
func (u *undeclared) play(name string, lines []said, http bool) (extra time.Duration) {
	u.t.Helper()
	from := u.dial()
	defer from.Close()
	if !http {
		to, err := u.appL.AcceptConn()
		if err != nil {
			u.t.Fatal(err)
		}
		defer to.Close()
		return u.talk(from, to, lines, 2)
	}
	start := time.Now()
	if _, err := io.WriteString(from, lines[0].bytes); err != nil {
		u.t.Fatal(err)
	}
	to := <-u.http
	extra = time.Since(start) - delay
	got := make([]byte, len(lines[0].bytes))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != lines[0].bytes {
		u.t.Fatalf("%s: the engine for HTTP got %q: %v", name, got, err)
	}
	return max(extra, u.talk(from, to, lines[1:], 1))
}

// TestUndeclared is N10's promise: whatever is spoken, and whoever speaks first,
// nothing waits for a time-out; at first contact and when it is known.
func TestUndeclared(t *testing.T) {
	for _, tr := range transcripts {
		t.Run(tr.name, func(t *testing.T) {
			withUndeclared(t, func(u *undeclared) {
				go u.discard(tr.http)
				for i := range 3 {
					if extra := u.play(tr.name, tr.lines, tr.http); extra != 0 {
						t.Errorf("connection %d: bytes waited %s beyond the network's own time", i, extra)
					}
				}
			})
		})
	}
}

// discard accepts what the proxy opened for a client that then spoke HTTP.
func (u *undeclared) discard(http bool) {
	for http {
		c, err := u.appL.AcceptConn()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}()
	}
}

// TestUndeclaredByteByByte: what is clear only after some bytes arrives whole.
func TestUndeclaredByteByByte(t *testing.T) {
	for _, tr := range transcripts {
		if tr.lines[0].server {
			continue
		}
		t.Run(tr.name, func(t *testing.T) {
			withUndeclared(t, func(u *undeclared) {
				go u.discard(tr.http)
				from := u.dial()
				defer from.Close()
				var wg sync.WaitGroup
				wg.Go(func() {
					for _, b := range []byte(tr.lines[0].bytes) {
						_, _ = from.Write([]byte{b})
						time.Sleep(3 * delay)
					}
				})
				defer wg.Wait()
				var to io.Reader
				if tr.http {
					to = <-u.http
				} else {
					c, err := u.appL.AcceptConn()
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					to = c
				}
				got := make([]byte, len(tr.lines[0].bytes))
				if _, err := io.ReadFull(to, got); err != nil || string(got) != tr.lines[0].bytes {
					t.Fatalf("got %q: %v", got, err)
				}
			})
		})
	}
}

// TestUndeclaredChanges: what was learned is no verdict.
func TestUndeclaredChanges(t *testing.T) {
	withUndeclared(t, func(u *undeclared) {
		go func() { // it is called once for nothing: at first contact
			if c, err := u.appL.AcceptConn(); err == nil {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
		}()
		get := []said{c("GET / HTTP/1.1\r\n\r\n")}
		u.play("HTTP", get, true)
		u.play("HTTP", get, true)
		counts := u.set.Status()[0].Counts
		if counts.HTTP11 != 2 || counts.NotHTTP != 0 {
			t.Errorf("counted: %+v", counts)
		}
		// The service now greets its clients.
		start := time.Now()
		from := u.dial()
		defer from.Close()
		to, err := u.appL.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		if waited := time.Since(start); waited > 50*time.Millisecond {
			t.Errorf("the upstream was called after %s", waited)
		}
		u.talk(from, to, []said{s("220 hello\r\n"), c("QUIT\r\n")}, 2)
		if n := u.set.Status()[0].Counts.ServerFirst; n != 1 {
			t.Errorf("%d connections counted in which the server spoke first", n)
		}
		// And from then on at once.
		if extra := u.play("SMTP", []said{s("220 hello\r\n"), c("QUIT\r\n")}, false); extra != 0 {
			t.Errorf("waited %s", extra)
		}
	})
}

// TestUndeclaredHalfWord: the beginning of a request line, left as it is, gets
// to the application.
func TestUndeclaredHalfWord(t *testing.T) {
	withUndeclared(t, func(u *undeclared) {
		from := u.dial()
		defer from.Close()
		to, err := u.appL.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		start := time.Now()
		u.talk(from, to, []said{c("GET /unfinished")}, 2)
		if waited := time.Since(start); waited > 200*time.Millisecond {
			t.Errorf("waited %s", waited)
		}
		u.talk(from, to, []said{s("what?"), c(" nothing")}, 2)
	})
}

// TestUndeclaredUnreachable: a client of HTTP gets to its engine, which has an
// answer; any other is reset soon, silent or not.
func TestUndeclaredUnreachable(t *testing.T) {
	for name, first := range map[string]string{"HTTP": "GET / HTTP/1.1\r\n\r\n", "Redis": "*1\r\n", "silent": ""} {
		t.Run(name, func(t *testing.T) {
			withUndeclared(t, func(u *undeclared) {
				u.app.Kill()
				from := u.dial()
				defer from.Close()
				if name == "HTTP" {
					time.Sleep(10 * delay) // the upstream's failure is known by then
				}
				if _, err := io.WriteString(from, first); err != nil {
					t.Fatal(err)
				}
				if name == "HTTP" {
					<-u.http
					return
				}
				start := time.Now()
				if n, err := from.Read(make([]byte, 1)); err == nil {
					t.Errorf("read %d bytes", n)
				}
				if waited := time.Since(start); waited > 200*time.Millisecond {
					t.Errorf("told after %s", waited)
				}
			})
		})
	}
}

// TestUndeclaredIdle: connections of a pool that nobody uses yet stay open, and
// end with their client.
func TestUndeclaredIdle(t *testing.T) {
	withUndeclared(t, func(u *undeclared) {
		var from, to []netio.Conn
		for range 20 {
			from = append(from, u.dial())
			c, err := u.appL.AcceptConn()
			if err != nil {
				t.Fatal(err)
			}
			to = append(to, c)
		}
		time.Sleep(time.Hour)
		for i := range from[:10] {
			u.talk(from[i], to[i], []said{c("*1\r\n$4\r\nPING\r\n"), s("+PONG\r\n")}, 2)
		}
		for i, c := range from {
			_ = c.Close()
			if n, err := to[i].Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("connection %d: the application read %d bytes: %v", i, n, err)
			}
			_ = to[i].Close()
		}
		synctest.Wait()
		time.Sleep(10 * delay)
		if n := u.set.Status()[0].Counts.Active; n != 0 {
			t.Errorf("%d connections are left: %s", n, strings.TrimSpace(fmt.Sprintf("%+v", u.set.Status()[0])))
		}
	})
}
