package listener

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// byName is a listener that tells chains apart by what a ClientHello says.
func (b *bench) byName() Config {
	c := b.public("a", "web")
	l := c.Resource
	base := l.Chains[0]
	chain := func(name string, m resource.ChainMatch, tls bool) resource.FilterChain {
		fc := base
		fc.Name, fc.Match, fc.Network = name, m, nil
		if !tls {
			fc.TLS = nil
		}
		return fc
	}
	l.Chains = []resource.FilterChain{
		chain("named", resource.ChainMatch{TransportProtocol: "tls", ServerNames: []string{"api.test"}}, true),
		chain("h2", resource.ChainMatch{TransportProtocol: "tls", ServerNames: []string{"multi.test"}, ApplicationProtocols: []string{"h2"}}, true),
		chain("passed", resource.ChainMatch{TransportProtocol: "tls", ServerNames: []string{"*.pass.test"}}, false),
		chain("plain", resource.ChainMatch{TransportProtocol: "raw_buffer"}, false),
	}
	l.Chains[1].TLS.ALPN = []string{"h2"}
	trust := c.Chains["public"].Trust
	c.Chains = map[string]*Chain{}
	for i := range l.Chains {
		c.Chains[l.Chains[i].Name] = &Chain{Resource: &l.Chains[i], Handler: HandlerFunc(who), Equal: "1", Trust: trust}
	}
	return c
}

func (b *bench) tlsTo(name string, alpn ...string) *tls.Config {
	c := mtls.ClientConfig(mtls.ClientParams{SNI: name, Params: mtls.Params{Identity: b.pki.Identity("web"), Trust: b.pki.Bundles, ALPN: alpn}})
	return c
}

func TestChainsBySNIAndALPN(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.byName())
		for _, tt := range []struct{ sni, alpn, want string }{
			{"api.test", "", "named api.test"}, {"API.test", "", "named"}, {"multi.test", "h2", "h2 multi.test"},
		} {
			var alpn []string
			if tt.alpn != "" {
				alpn = []string{tt.alpn}
			}
			c := tls.Client(b.dial(21000), b.tlsTo(tt.sni, alpn...))
			got, err := io.ReadAll(c)
			if err != nil || !strings.HasPrefix(string(got), tt.want) {
				t.Errorf("%s %s: %q, %v; want %q", tt.sni, tt.alpn, got, err, tt.want)
			}
		}
		t.Log("a name that nobody has")
		if err := tls.Client(b.dial(21000), b.tlsTo("nobody.test")).Handshake(); err == nil {
			t.Error("served")
		}
		b.oneRecord(telemetry.NoFilterChain, "no filter chain of the listener takes a tls connection")
	})
}

// who says which chain and name a connection came by.
func who(_ context.Context, c *Conn) {
	_, _ = io.WriteString(c, c.Chain+" "+c.ServerName)
	_ = c.Close()
}

// collect reads everything.
func collect(got chan<- []byte) Handler {
	return HandlerFunc(func(_ context.Context, c *Conn) {
		all, _ := io.ReadAll(c)
		got <- all
	})
}

// gone waits until the other side has ended the connection.
func (b *bench) gone(c net.Conn) {
	b.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	var ne net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &ne) && ne.Timeout() {
		b.t.Fatalf("still open after a minute: %v", err)
	}
}

func TestSplitHelloIsReplayed(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		cfg := b.byName()
		got := make(chan []byte, 1)
		cfg.Chains["passed"].Handler = collect(got)
		b.update("1", cfg)
		hello := clientHello(t, "x.pass.test")
		c := b.dial(21000)
		for i := range hello { // one byte at a time, slowly
			if _, err := c.Write(hello[i : i+1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		_, _ = c.Write([]byte("and more"))
		_ = c.CloseWrite()
		if all := <-got; !bytes.Equal(all, append(hello, "and more"...)) {
			t.Errorf("the engine saw %d bytes, want the %d that were sent", len(all), len(hello)+8)
		}
	})
}

// A ClientHello chooses the same chain wherever TCP cuts it and however many
// records carry it, in one write or many.
func TestSplitHelloChoosesTheSameChain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		cfg := b.byName()
		got, other := make(chan []byte, 1), make(chan []byte, 1)
		cfg.Chains["passed"].Handler = collect(got)
		cfg.Chains["plain"].Handler = collect(other)
		b.update("1", cfg)
		hello := clientHello(t, "x.pass.test")
		try := func(what string, at int, sent []byte) {
			t.Helper()
			c := b.dial(21000)
			_, _ = c.Write(sent[:at])
			synctest.Wait()
			_, _ = c.Write(sent[at:])
			_ = c.CloseWrite()
			select {
			case all := <-got:
				if !bytes.Equal(all, sent) {
					t.Fatalf("%s: the engine saw %d bytes, want the %d that were sent", what, len(all), len(sent))
				}
			case <-other:
				t.Fatalf("%s: taken for another chain", what)
			case <-time.After(time.Minute):
				t.Fatalf("%s: no chain; records %+v", what, b.rec.take())
			}
			c.Close()
		}
		body := hello[5:]
		for at := 1; at < len(hello); at++ {
			try(fmt.Sprintf("cut after %d bytes", at), at, hello)
		}
		record := func(p []byte) []byte { return append([]byte{22, 3, 1, byte(len(p) >> 8), byte(len(p))}, p...) }
		for at := 1; at < len(body); at++ {
			two := append(record(body[:at]), record(body[at:])...)
			try(fmt.Sprintf("two records, the first of %d bytes", at), at+5, two)
			try(fmt.Sprintf("two records, the first of %d bytes, cut in the second's head", at), at+8, two)
		}
		var many []byte
		for rest := body; len(rest) > 0; {
			n := min(20, len(rest))
			many, rest = append(many, record(rest[:n])...), rest[n:]
		}
		try("records of 20 bytes", len(many)/2, many)
	})
}

// A name is the same in any case; a wildcard stands for one label or more, as in
// Envoy, and not for none; a name with a trailing dot is none (RFC 6066, 3).
func TestNamesOfHellos(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		cfg := b.byName()
		got := make(chan []byte, 1)
		cfg.Chains["passed"].Handler = collect(got)
		b.update("1", cfg)
		for name, want := range map[string]bool{
			"x.pass.test": true, "X.Pass.TEST": true, "x.y.pass.test": true, "x.pass.test.": false, "pass.test": false, "xpass.test": false, ".pass.test": false,
		} {
			c := b.dial(21000)
			_, _ = c.Write(clientHelloRaw(t, name))
			_ = c.CloseWrite()
			select {
			case <-got:
				if !want {
					t.Errorf("%s: taken", name)
				}
			case <-time.After(time.Minute):
				if want {
					t.Errorf("%s: not taken", name)
				}
			}
			c.Close()
		}
	})
}

// clientHelloRaw is a ClientHello with a name that crypto/tls would not send as
// it is.
func clientHelloRaw(t *testing.T, name string) []byte {
	t.Helper()
	stand := strings.Repeat("q", len(name)-2) + ".z"
	return bytes.Replace(clientHello(t, stand), []byte(stand), []byte(name), 1)
}

func TestHelloThatStopsIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.byName())
		hello := clientHello(t, "api.test")
		c := b.dial(21000)
		_, _ = c.Write(hello[:len(hello)/2])
		start := time.Now()
		b.gone(c)
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("ended after %s", d)
		}
		b.oneRecord(telemetry.DownstreamTLSFailure, "no complete ClientHello: not complete after 10s")
	})
}

func TestPlaintextGoesToItsChain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		cfg := b.byName()
		got := make(chan []byte, 1)
		cfg.Chains["plain"].Handler = collect(got)
		b.update("1", cfg)
		c := b.dial(21000)
		_, _ = io.WriteString(c, "GET /")
		_ = c.CloseWrite()
		if all := <-got; string(all) != "GET /" {
			t.Errorf("the engine saw %q", all)
		}

		t.Log("a client that waits for the server to speak first")
		c = b.dial(21000)
		time.Sleep(11 * time.Second)
		_, _ = io.WriteString(c, "late")
		_ = c.CloseWrite()
		if all := <-got; string(all) != "late" {
			t.Errorf("the engine saw %q", all)
		}

		t.Log("0x16 that is no TLS")
		c = b.dial(21000)
		_, _ = c.Write([]byte{0x16, 'n', 'o', 't', 'l', 's', '!', '!'})
		_ = c.CloseWrite()
		if all := <-got; string(all) != "\x16notls!!" {
			t.Errorf("the engine saw %q", all)
		}
	})
}

func TestHelloOverTheLimitIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.set.Limits.Hello = 100
		b.update("1", b.byName())
		c := b.dial(21000)
		_, _ = c.Write(clientHello(t, "api.test"))
		b.gone(c)
		b.oneRecord(telemetry.DownstreamTLSFailure, "larger than the limit")
	})
}

// clientHello is the first flight of a client.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	w := &firstWrite{}
	_ = tls.Client(w, &tls.Config{ServerName: name}).Handshake()
	if len(w.b) < 100 {
		t.Fatalf("no ClientHello: %x", w.b)
	}
	return w.b
}

type firstWrite struct {
	net.Conn
	b []byte
}

func (w *firstWrite) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }
func (w *firstWrite) Read([]byte) (int, error)    { return 0, io.EOF }
func (w *firstWrite) Close() error                { return nil }
