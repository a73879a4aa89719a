package attack

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestSlow: DP13. Whoever sends a head, a body, a handshake or the first bytes
// too slowly, or takes a response too slowly, is ended by the timer of just
// that, with its code, though bytes come all the time; and others wait for
// nothing.
func TestSlow(t *testing.T) {
	const (
		headTime    = 300 * time.Millisecond
		requestTime = 600 * time.Millisecond
		idleTime    = 400 * time.Millisecond
		shakeTime   = 350 * time.Millisecond
	)
	large := strings.Repeat("x", 64<<20)
	b := newBackend(t)
	b.answer = func(c net.Conn, s seen) bool {
		text := fmt.Sprintf("echo %s %s %d", s.method, s.target, len(s.body))
		if s.target == "/large" {
			text = large
		}
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	}
	on := func(name string, change func(*resource.Listener, *resource.HTTPManager)) (string, *resource.Listener) {
		m := manager("x")
		address := freeAddress(t)
		l := inbound(name, address, m)
		change(l, m)
		return address, l
	}
	head, headL := on("head", func(_ *resource.Listener, m *resource.HTTPManager) { m.RequestHeadersTimeout = headTime })
	body, bodyL := on("body", func(_ *resource.Listener, m *resource.HTTPManager) { m.RequestTimeout = requestTime })
	idle, idleL := on("idle", func(_ *resource.Listener, m *resource.HTTPManager) { m.StreamIdleTimeout = idleTime })
	tlsParams := &resource.DownstreamTLS{RequireClientCert: true, TLSParams: resource.TLSParams{ALPN: []string{"h2"},
		Certificate: resource.CertSource{SDS: resource.SecretIdentity}, Trust: resource.CertSource{SDS: resource.SecretTrust}}}
	shake, shakeL := on("shake", func(l *resource.Listener, _ *resource.HTTPManager) {
		l.Chains[0].TLS, l.Chains[0].HandshakeTimeout = tlsParams, shakeTime
	})
	sniff, sniffL := on("sniff", func(l *resource.Listener, _ *resource.HTTPManager) {
		l.Chains[0].TLS = tlsParams
		l.Chains[0].Match.ServerNames = []string{"a.example"}
	})
	e := start(t, nil, cluster("x", b.address(), resource.ProtocolHTTP1), headL, bodyL, idleL, shakeL, sniffL)

	drip := func(c net.Conn, text string) (end func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i = (i + 1) % len(text) {
				if _, err := c.Write([]byte(text[i : i+1])); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		return func() { _ = c.Close(); <-done }
	}
	// ends reads to the end of the connection and says when that was.
	ends := func(t *testing.T, c *raw, began time.Time, min, max time.Duration, status int) {
		t.Helper()
		statuses, err := c.rest("GET")
		if took := time.Since(began); err != nil || took < min || took > max || len(statuses) > 1 || len(statuses) == 1 && statuses[0] != status {
			t.Errorf("it ended after %s with %v, %v; want %s to %s and %d", took, statuses, err, min, max, status)
		}
	}
	for _, tt := range []struct {
		name, address, code string
		do                  func(t *testing.T, address string)
	}{
		{"head", head, "request_header_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			defer drip(c, "GET /p HTTP/1.1\r\nHost: a.example\r\nX: "+strings.Repeat("y", 10_000))()
			ends(t, c, began, headTime, late, 408)
		}},
		{"second head", head, "request_header_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			c.send("GET /p HTTP/1.1\r\nHost: a.example\r\n\r\n")
			if r, err := c.read("GET"); err != nil || r.status != 200 {
				t.Fatalf("%v %v", r, err)
			}
			time.Sleep(2 * headTime) // idle is not slow
			began := time.Now()
			defer drip(c, "GET /p HTTP/1.1\r\nHost: a.example\r\nX: "+strings.Repeat("y", 10_000))()
			ends(t, c, began, headTime, late, 408)
		}},
		{"preface", head, "", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			c.send("PR")
			ends(t, c, began, headTime, late, 408)
		}},
		{"half a preface", head, "", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			c.send(http2.ClientPreface[:20])
			ends(t, c, began, headTime, late, 408)
		}},
		{"body", body, "request_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			c.send("POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n")
			defer drip(c, "x")()
			ends(t, c, began, requestTime, late, 408)
		}},
		{"chunked body", body, "request_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			c.send("POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n")
			defer drip(c, "1\r\nx\r\n")()
			ends(t, c, began, requestTime, late, 408)
		}},
		{"body of HTTP/2", body, "request_timeout", func(t *testing.T, a string) {
			c := connectH2(t, a)
			began := time.Now()
			c.headers(1, false, request("POST", "/p")...)
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						_ = c.f.WriteData(1, false, []byte("x"))
					}
				}
			}()
			o, err := c.wait(1)
			if took := time.Since(began); err != nil || o.status != "408" && !o.isReset || took < requestTime || took > late {
				t.Errorf("%+v after %s, %v", o, took, err)
			}
		}},
		{"body that stops", idle, "stream_idle_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			c.send("POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\nx")
			ends(t, c, began, idleTime, late, 504)
		}},
		{"reader", idle, "stream_idle_timeout", func(t *testing.T, a string) {
			c := connect(t, a)
			c.send("GET /large HTTP/1.1\r\nHost: a.example\r\n\r\n")
			began := time.Now()
			for !reset(c.Conn) {
				if time.Since(began) > late {
					t.Fatalf("a client that reads nothing is served for %s", time.Since(began))
				}
				time.Sleep(5 * time.Millisecond)
			}
			if took := time.Since(began); took < idleTime {
				t.Errorf("it ended after %s", took)
			}
		}},
		{"reader of HTTP/2", idle, "stream_idle_timeout", func(t *testing.T, a string) {
			c := connectH2(t, a, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
			began := time.Now()
			c.headers(1, true, request("GET", "/large")...)
			o, err := c.wait(1)
			if took := time.Since(began); err != nil || !o.isReset && !o.over || took < idleTime || took > late {
				t.Errorf("%+v after %s, %v", o, took, err)
			}
		}},
		{"handshake", shake, "downstream_tls_failure", func(t *testing.T, a string) {
			c := connect(t, a)
			began := time.Now()
			defer drip(c, "\x16\x03\x01\x40\x00"+strings.Repeat("\x01", 16<<10))()
			ends(t, c, began, shakeTime, late, 0)
		}},
		{"silent handshake", shake, "downstream_tls_failure", func(t *testing.T, a string) {
			c := connect(t, a)
			ends(t, c, time.Now(), shakeTime, late, 0)
		}},
		{"ClientHello", sniff, "downstream_tls_failure", func(t *testing.T, a string) {
			c := connect(t, a)
			_ = c.SetDeadline(time.Now().Add(2 * patience))
			began := time.Now()
			defer drip(c, "\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb"+strings.Repeat("\x03", 16<<10))()
			ends(t, c, began, 9*time.Second, 10*time.Second+late, 0) // the listener's limit is 10 s
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := 0.0
			if tt.code != "" {
				before = e.errorsOf(tt.code)
			}
			tt.do(t, tt.address)
			if tt.code != "" {
				eventually(t, "the code is counted", func() error {
					if n := e.errorsOf(tt.code); n <= before {
						return fmt.Errorf("%s: %v, as before", tt.code, n)
					}
					return nil
				})
			}
			if tt.address != shake && tt.address != sniff {
				if err := ask(tt.address, "/canary"); err != nil {
					t.Errorf("somebody else: %v", err)
				}
			}
		})
	}
}
