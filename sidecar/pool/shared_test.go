package pool

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/h2"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// echoing answers with what it got, upgrades included.
type echoing struct{}

func (echoing) Exchange(_ *stream.Scope, req *stream.Request, w stream.Responder) {
	if req.Head.Upgrade != "" {
		t, err := w.Accept(&stream.ResponseHead{Status: 200, ContentLength: -1})
		if err != nil {
			return
		}
		b := make([]byte, 100)
		for {
			n, err := t.Read(b)
			if err != nil {
				break
			}
			if _, err := t.Write(b[:n]); err != nil {
				break
			}
		}
		_ = t.Close()
		return
	}
	_ = w.Head(&stream.ResponseHead{Status: 200, ContentLength: 2}, false)
	_, _ = io.WriteString(w, "ok")
	_ = w.Finish(nil)
}

func (echoing) Refused(stream.Refusal) *stream.Response { return nil }

// Between sidecars a tunnel is a stream of the shared connection beside the
// requests.
func TestUpgradeSharesTheConnection(t *testing.T) {
	w := func() *wheel.Wheel { return wheel.New() }
	raw(t, Config{Protocol: resource.ProtocolHTTP2}, func(s *script, c netio.Conn, _ *bufio.Reader) {
		(&h2.Server{Handler: echoing{}, Wheel: w()}).Serve(context.Background(), c, netio.Pending{}, nil)
	}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		var tunnels []*stream.Response
		for i := range 5 {
			r := get("/ws")
			r.Head.Upgrade = "websocket"
			resp, err := p.Do(t.Context(), r)
			if err != nil || resp.Tunnel == nil {
				t.Fatalf("%+v %v", resp, err)
			}
			tunnels = append(tunnels, resp)
			if b, err := once(t, p, get("/")); b != "ok" || err != nil {
				t.Errorf("%q %v", b, err)
			}
			for j, tn := range tunnels {
				want := fmt.Sprint(i, j)
				_, _ = io.WriteString(tn.Tunnel, want)
				b := make([]byte, len(want))
				if _, err := io.ReadFull(tn.Tunnel, b); string(b) != want {
					t.Errorf("%q %v", b, err)
				}
			}
		}
		if n := p.Conns(); n != 1 {
			t.Errorf("%d connections", n)
		}
		for _, r := range tunnels {
			r.End()
		}
	})
}

// Where the endpoint takes no extended CONNECT, an upgrade goes by HTTP/1.1 on a
// connection of its own.
func TestUpgradeFallsBack(t *testing.T) {
	with(t, Config{Protocol: resource.ProtocolHTTP2}, func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			fmt.Fprint(w, r.Proto)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
	}, func(t *testing.T, m *netio.Memory, p *Pool, client, server *netio.Host) {
		if b := do(t, p, get("/")); b != "HTTP/2.0" {
			t.Errorf("%q", b)
		}
		r := get("/")
		r.Head.Upgrade = "websocket"
		resp, err := p.Do(t.Context(), r)
		if err != nil || resp.Tunnel == nil {
			t.Fatalf("%+v %v", resp, err)
		}
		b, _ := io.ReadAll(resp.Tunnel)
		resp.End()
		if string(b) != "hi" {
			t.Errorf("%q", b)
		}
	})
}

// ALPN decides: requests wait for what the first connection agrees on, and the
// identity that the endpoint proved is known of each.
func TestALPN(t *testing.T) {
	pki := testpki.New(t, "mesh.test")
	for _, alpn := range []string{"h2", "http/1.1"} {
		server := mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: pki.Identity("web"), ALPN: []string{alpn}}})
		l, err := (netio.OS{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		h := &http.Server{TLSConfig: server, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, r.Proto)
		})}
		h.Protocols.SetHTTP1(alpn != "h2")
		h.Protocols.SetHTTP2(alpn == "h2")
		var serving sync.WaitGroup
		serving.Go(func() { _ = h.Serve(tls.NewListener(l, server)) })
		p := New(Config{Network: "tcp", Address: l.Addr().String(), Protocol: resource.ProtocolAuto,
			TLS: mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: pki.Identity("caller")}})}, Deps{Net: netio.OS{}})
		want := map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"}[alpn]
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				for range 5 {
					r := get("/")
					resp, x, err := p.RoundTrip(t.Context(), r)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					if string(b) != want || err != nil || !x.TLS || !strings.HasSuffix(x.Peer, "/svc/web") {
						t.Errorf("%q %v %+v", b, err, x)
					}
					resp.End()
				}
			})
		}
		wg.Wait()
		if n := p.Conns(); alpn == "h2" && n != 1 || n < 1 || n > 30 {
			t.Errorf("%s: %d connections", alpn, n)
		}
		p.Close()
		h.Close()
		serving.Wait()
	}
}

// TestDownstreamProtocolTLS: an endpoint that offers both versions is spoken to
// in the one in which the request came, and in both at a time: the application
// behind it may know but one.
func TestDownstreamProtocolTLS(t *testing.T) {
	pki := testpki.New(t, "mesh.test")
	server := mtls.ServerConfig(mtls.ServerParams{Params: mtls.Params{Identity: pki.Identity("web"), ALPN: []string{"h2", "http/1.1"}}})
	l, err := (netio.OS{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{TLSConfig: server, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })}
	var serving sync.WaitGroup
	serving.Go(func() { _ = h.ServeTLS(l, "", "") })
	p := New(Config{Network: "tcp", Address: l.Addr().String(), Protocol: resource.ProtocolDownstream,
		TLS: mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: pki.Identity("caller")}})}, Deps{Net: netio.OS{}})
	for range 3 {
		for proto, want := range map[stream.Protocol]string{stream.HTTP1: "HTTP/1.1", stream.HTTP2: "HTTP/2.0"} {
			r := get("/")
			r.Head.Protocol = proto
			if got := do(t, p, r); got != want {
				t.Errorf("a request that came by %s went by %s", proto, got)
			}
		}
	}
	if n := p.Conns(); n != 2 {
		t.Errorf("%d connections, want one of each", n)
	}
	p.Close()
	h.Close()
	serving.Wait()
}

// Whatever an endpoint sends on HTTP/2, every request ends, and nothing stays.
func TestHostileSharedEndpoint(t *testing.T) {
	head := func(fr *http2.Framer, id uint32, end bool, fields ...string) {
		var b strings.Builder
		e := hpack.NewEncoder(&b)
		for i := 0; i < len(fields); i += 2 {
			_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(b.String()), EndHeaders: true, EndStream: end})
	}
	for name, tt := range map[string]struct {
		play func(fr *http2.Framer, id uint32) error
		kind Kind // 0: a response whose body fails
	}{
		"ping flood":     {func(fr *http2.Framer, _ uint32) error { return fr.WritePing(false, [8]byte{}) }, Reset},
		"settings flood": {func(fr *http2.Framer, _ uint32) error { return fr.WriteSettings() }, Reset},
		"endless 1xx": {func(fr *http2.Framer, id uint32) error {
			head(fr, id, false, ":status", "103")
			return fr.WriteWindowUpdate(0, 1)
		}, 255},
		"unknown streams": {func(fr *http2.Framer, id uint32) error { return fr.WriteData(id+200, false, []byte("x")) }, Reset},
		"goes away":       {func(fr *http2.Framer, _ uint32) error { _ = fr.WriteGoAway(0, http2.ErrCodeNo, nil); return io.EOF }, 255},
		"refuses": {func(fr *http2.Framer, id uint32) error {
			_ = fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			return io.EOF
		}, 255},
		"resets": {func(fr *http2.Framer, id uint32) error {
			_ = fr.WriteRSTStream(id, http2.ErrCodeInternal)
			return io.EOF
		}, Reset},
		"no status": {func(fr *http2.Framer, id uint32) error { head(fr, id, true, "server", "x"); return io.EOF }, 255},
		"more than its length": {func(fr *http2.Framer, id uint32) error {
			head(fr, id, false, ":status", "200", "content-length", "1")
			_ = fr.WriteData(id, true, []byte("evil"))
			return io.EOF
		}, 255},
		"less than its length": {func(fr *http2.Framer, id uint32) error {
			head(fr, id, false, ":status", "200", "content-length", "9")
			_ = fr.WriteData(id, true, []byte("evil"))
			return io.EOF
		}, 255},
		"not HTTP/2": {func(fr *http2.Framer, id uint32) error {
			return fr.WriteRawFrame(0xfe, 0xff, 1<<31-1, make([]byte, 16000))
		}, 255},
		"headers without an end": {func(fr *http2.Framer, id uint32) error {
			_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			for {
				if err := fr.WriteContinuation(id, false, nil); err != nil {
					return err
				}
			}
		}, Reset},
	} {
		t.Run(name, func(t *testing.T) {
			raw(t, Config{Protocol: resource.ProtocolHTTP2}, func(s *script, c netio.Conn, r *bufio.Reader) {
				preface := make([]byte, len(http2.ClientPreface))
				if _, err := io.ReadFull(r, preface); err != nil {
					return
				}
				fr := http2.NewFramer(c, r)
				_ = fr.WriteSettings()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := f.(*http2.HeadersFrame); ok {
						s.requests.Add(1)
						for {
							if err := tt.play(fr, h.StreamID); err != nil {
								break
							}
						}
					}
				}
			}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
				var life stream.Scope
				time.AfterFunc(time.Minute, func() { life.Cancel(nil) })
				start := time.Now()
				resp, err := p.Do(&life, get("/"))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.End()
				}
				var want = tt.kind
				if err == nil || want != 255 && kindOf(err) != want {
					t.Errorf("kind %v: %v", kindOf(err), err)
				}
				if n := s.requests.Load(); n > maxReplays+1 || time.Since(start) > 30*time.Second {
					t.Errorf("sent %d times, %v", n, time.Since(start))
				}
			})
		})
	}
}

// An endpoint that allows no streams at all does not make the pool open
// connections for ever.
func TestNoStreamsAllowed(t *testing.T) {
	raw(t, Config{Protocol: resource.ProtocolHTTP2}, func(s *script, c netio.Conn, r *bufio.Reader) {
		fr := http2.NewFramer(c, r)
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		_, _ = io.Copy(io.Discard, r)
	}, func(t *testing.T, m *netio.Memory, p *Pool, s *script) {
		var wg sync.WaitGroup
		var life stream.Scope
		time.AfterFunc(time.Minute, func() { life.Cancel(nil) })
		for range 20 {
			wg.Go(func() {
				if _, err := once2(&life, p, get("/")); err == nil {
					t.Error("answered")
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := s.accepted.Load(); n > maxLooks+1 {
			t.Errorf("%d connections were opened", n)
		}
	})
}

func once2(ctx context.Context, p *Pool, r *stream.Request) (string, error) {
	resp, err := p.Do(ctx, r)
	if err != nil {
		return "", err
	}
	defer resp.End()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
