package interop

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Opcodes of RFC 6455, section 5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// frame is one frame of RFC 6455, section 5.2.
type frame struct {
	fin, rsv1 bool
	op        byte
	payload   []byte
}

func (f frame) String() string {
	return fmt.Sprintf("fin=%t rsv1=%t op=%x %d bytes", f.fin, f.rsv1, f.op, len(f.payload))
}

func (f frame) equal(g frame) bool {
	return f.fin == g.fin && f.rsv1 == g.rsv1 && f.op == g.op && bytes.Equal(f.payload, g.payload)
}

// appendTo writes the frame, masked as a client's where mask is set.
func (f frame) appendTo(b []byte, mask bool) []byte {
	first := f.op
	if f.fin {
		first |= 0x80
	}
	if f.rsv1 {
		first |= 0x40
	}
	var m byte
	if mask {
		m = 0x80
	}
	b = append(b, first)
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, m|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, m|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, m|127), uint64(n))
	}
	if !mask {
		return append(b, f.payload...)
	}
	key := [4]byte{0x12, 0x9c, 0x5e, 0xf1}
	b = append(b, key[:]...)
	for i, c := range f.payload {
		b = append(b, c^key[i%4])
	}
	return b
}

func readFrame(r io.Reader) (frame, error) {
	var h [2]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{fin: h[0]&0x80 != 0, rsv1: h[0]&0x40 != 0, op: h[0] & 0xf}
	n := uint64(h[1] & 0x7f)
	switch n {
	case 126:
		var l [2]byte
		if _, err := io.ReadFull(r, l[:]); err != nil {
			return f, err
		}
		n = uint64(binary.BigEndian.Uint16(l[:]))
	case 127:
		var l [8]byte
		if _, err := io.ReadFull(r, l[:]); err != nil {
			return f, err
		}
		n = binary.BigEndian.Uint64(l[:])
	}
	if n > 8<<20 {
		return f, fmt.Errorf("a frame of %d bytes", n)
	}
	var key [4]byte
	if h[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, key[:]); err != nil {
			return f, err
		}
	}
	f.payload = make([]byte, n)
	_, err := io.ReadFull(r, f.payload)
	for i := range f.payload {
		f.payload[i] ^= key[i%4]
	}
	return f, err
}

// accept is the answer to a key (RFC 6455, section 4.2.2).
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// webSocketApp echoes: data frames as they came, pings as pongs, a close as a
// close; text that is not UTF-8 is closed with 1007. Other paths: /no refuses
// the upgrade, /not pretends to accept it with 200, /cut resets the connection
// after the first frame.
func webSocketApp(t *testing.T) string {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/no":
			http.Error(w, "no", http.StatusForbidden)
			return
		case "/not":
			_, _ = io.WriteString(w, "ordinary")
			return
		}
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Sec-Websocket-Key") == "" {
			http.Error(w, "not a handshake", http.StatusBadRequest)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n", accept(r.Header.Get("Sec-Websocket-Key")))
		for _, h := range []string{"Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
			if v := r.Header.Get(h); v != "" {
				fmt.Fprintf(c, "%s: %s\r\n", h, v)
			}
		}
		_, _ = io.WriteString(c, "\r\n")
		echo(c, rw.Reader, r.URL.Path == "/cut")
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

func echo(c net.Conn, r io.Reader, cut bool) {
	var text []byte
	inText := false
	for {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		if cut {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		switch f.op {
		case opPing:
			f.op = opPong
		case opPong:
			continue
		case opText:
			text, inText = append(text[:0], f.payload...), !f.rsv1
		case opContinuation:
			text = append(text, f.payload...)
		}
		if f.fin && (f.op == opText || f.op == opContinuation) && inText && !utf8.Valid(text) {
			f = frame{fin: true, op: opClose, payload: binary.BigEndian.AppendUint16(nil, 1007)}
		}
		if _, err := c.Write(f.appendTo(nil, false)); err != nil || f.op == opClose {
			return
		}
	}
}

// dialer opens a WebSocket at a sidecar; it gives the answer's fields too.
type dialer func(t *testing.T, at, path string, fields ...string) (io.ReadWriteCloser, int, http.Header)

const wsKey = "dGhlIHNhbXBsZSBub25jZQ=="

// overHTTP1 is the handshake of RFC 6455, section 4.1.
func overHTTP1(t *testing.T, at, path string, fields ...string) (io.ReadWriteCloser, int, http.Header) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n", path, wsKey)
	for i := 0; i < len(fields); i += 2 {
		fmt.Fprintf(c, "%s: %s\r\n", fields[i], fields[i+1])
	}
	_, _ = io.WriteString(c, "\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == 101 && resp.Header.Get("Sec-Websocket-Accept") != accept(wsKey) {
		t.Errorf("Sec-WebSocket-Accept: %q", resp.Header.Get("Sec-Websocket-Accept"))
	}
	return struct {
		io.Reader
		io.Writer
		io.Closer
	}{br, c, c}, resp.StatusCode, resp.Header
}

// h2Stream is an extended CONNECT's stream (RFC 8441) on a connection of its
// own, by x/net's framer. One goroutine reads, one writes.
type h2Stream struct {
	c net.Conn
	f *http2.Framer // its writing half is guarded by mu

	in   bytes.Buffer
	over error

	mu     sync.Mutex
	opened sync.Cond
	conn   int64 // send windows, guarded by mu
	own    int64
	first  int64 // the peer's initial window
	failed bool  // guarded by mu: nothing more will open the windows
}

func (s *h2Stream) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		s.mu.Lock()
		for min(s.conn, s.own) <= 0 && !s.failed {
			s.opened.Wait()
		}
		if s.failed {
			s.mu.Unlock()
			return n, io.ErrClosedPipe
		}
		k := int(min(int64(len(p)), 16384, s.conn, s.own))
		s.conn, s.own = s.conn-int64(k), s.own-int64(k)
		err := s.f.WriteData(1, false, p[:k])
		s.mu.Unlock()
		if err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}

func (s *h2Stream) Read(p []byte) (int, error) {
	for s.in.Len() == 0 {
		if s.over != nil {
			return 0, s.over
		}
		s.next()
	}
	return s.in.Read(p)
}

// next handles one frame.
func (s *h2Stream) next() http2.Frame {
	f, err := s.f.ReadFrame()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.over = err
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		s.in.Write(f.Data())
		if n := uint32(len(f.Data())); n > 0 {
			_ = s.f.WriteWindowUpdate(0, n)
			_ = s.f.WriteWindowUpdate(1, n)
		}
		if f.StreamEnded() {
			s.over = io.EOF
		}
	case *http2.RSTStreamFrame:
		s.over = fmt.Errorf("reset: %s", f.ErrCode)
	case *http2.GoAwayFrame:
		s.over = fmt.Errorf("goaway: %s", f.ErrCode)
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			s.conn += int64(f.Increment)
		} else {
			s.own += int64(f.Increment)
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				s.own += int64(v) - s.first
				s.first = int64(v)
			}
			_ = s.f.WriteSettingsAck()
		}
	}
	s.failed = s.failed || s.over != nil
	s.opened.Broadcast()
	return f
}

func (s *h2Stream) Close() error { return s.c.Close() }

func overHTTP2(t *testing.T, at, path string, fields ...string) (io.ReadWriteCloser, int, http.Header) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	_, _ = io.WriteString(c, http2.ClientPreface)
	s := &h2Stream{c: c, f: http2.NewFramer(c, c), conn: 65535, own: 65535, first: 65535}
	s.opened.L = &s.mu
	s.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = s.f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
	_ = s.f.WriteWindowUpdate(0, 1<<24)
	for allowed := false; !allowed; { // a client waits for the server's SETTINGS (RFC 8441, section 3)
		if f, ok := s.next().(*http2.SettingsFrame); ok && !f.IsAck() {
			v, _ := f.Value(http2.SettingEnableConnectProtocol)
			if v != 1 {
				t.Fatal("SETTINGS_ENABLE_CONNECT_PROTOCOL is not offered")
			}
			allowed = true
		}
		if s.over != nil {
			t.Fatal(s.over)
		}
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	all := append([]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", path, ":authority", "app",
		"sec-websocket-version", "13"}, fields...)
	for i := 0; i < len(all); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: strings.ToLower(all[i]), Value: all[i+1]})
	}
	if err := s.f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	for s.over == nil {
		if f, ok := s.next().(*http2.MetaHeadersFrame); ok {
			h, status := http.Header{}, 0
			for _, field := range f.Fields {
				if field.Name == ":status" {
					_, _ = fmt.Sscan(field.Value, &status)
				} else {
					h.Add(field.Name, field.Value)
				}
			}
			if f.StreamEnded() {
				s.over = io.EOF
			}
			if status >= 200 {
				return s, status, h
			}
		}
	}
	t.Fatalf("no answer: %v", s.over)
	return nil, 0, nil
}

// TestWebSocket: every kind of frame, through one sidecar and through two, for
// clients of HTTP/1.1 and of HTTP/2.
func TestWebSocket(t *testing.T) {
	app := webSocketApp(t)
	certs := certificates(t)
	one, out, in := address(t), address(t), address(t)
	start(t, "one", bootstrap{Admin: address(t), Listeners: []tcpListener{{Address: one, HTTP: true, Cluster: "app"}},
		Clusters: []cluster{{Name: "app", Address: app}}})
	start(t, "far", bootstrap{Admin: address(t), Listeners: []tcpListener{{Address: in, HTTP: true, Cluster: "app", TLS: certs.server(true)}},
		Clusters: []cluster{{Name: "app", Address: app}}})
	start(t, "near", bootstrap{Admin: address(t), Listeners: []tcpListener{{Address: out, HTTP: true, Cluster: "peer"}},
		Clusters: []cluster{{Name: "peer", Address: in, Auto: true, TLS: certs.client()}}})
	for _, way := range []struct {
		name, at string
		dial     dialer
		accepted int
	}{
		{"h1, one sidecar", one, overHTTP1, 101}, {"h1, two sidecars", out, overHTTP1, 101},
		{"h2, one sidecar", one, overHTTP2, 200}, {"h2, two sidecars", out, overHTTP2, 200},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Run("frames", func(t *testing.T) { testFrames(t, way.at, way.accepted, way.dial) })
			t.Run("close", func(t *testing.T) { testClose(t, way.at, way.dial) })
			t.Run("deflate", func(t *testing.T) { testDeflate(t, way.at, way.dial) })
			t.Run("refused", func(t *testing.T) {
				if _, status, _ := way.dial(t, way.at, "/no"); status != 403 {
					t.Errorf("a refused upgrade: %d, the application said 403", status)
				}
			})
			t.Run("not accepted", func(t *testing.T) { testNotAccepted(t, way.at, way.name == "h1, one sidecar", way.dial) })
			t.Run("cut", func(t *testing.T) {
				ws, _, _ := way.dial(t, way.at, "/cut")
				if _, err := ws.Write(frame{fin: true, op: opText, payload: []byte("x")}.appendTo(nil, true)); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(ws); len(b) != 0 || errors.Is(err, net.ErrClosed) {
					t.Errorf("after the application's reset: %q, %v", b, err)
				}
			})
		})
	}
}

// exchange sends frames at once, in the pieces given, and wants the echoes.
func exchange(t *testing.T, ws io.ReadWriter, sent []frame, want []frame, piece int) {
	t.Helper()
	var b []byte
	for _, f := range sent {
		b = f.appendTo(b, true)
	}
	wrote := make(chan error, 1)
	go func() {
		for len(b) > 0 {
			k := len(b)
			if piece > 0 {
				k = min(k, piece)
			}
			if _, err := ws.Write(b[:k]); err != nil {
				wrote <- err
				return
			}
			b = b[k:]
		}
		wrote <- nil
	}()
	for i, w := range want {
		got, err := readFrame(ws)
		if err != nil {
			t.Fatalf("frame %d of %d: %v", i, len(want), err)
		}
		if !got.equal(w) {
			t.Fatalf("frame %d: %s, want %s", i, got, w)
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

func testFrames(t *testing.T, at string, accepted int, dial dialer) {
	ws, status, h := dial(t, at, "/", "Sec-WebSocket-Key", wsKey, "Sec-WebSocket-Protocol", "chat.v2")
	if status != accepted {
		t.Fatalf("status %d", status)
	}
	if p := h.Get("Sec-Websocket-Protocol"); p != "chat.v2" {
		t.Errorf("subprotocol %q", p)
	}
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
		for _, op := range []byte{opText, opBinary} {
			f := frame{fin: true, op: op, payload: bytes.Repeat([]byte("a"), n)}
			exchange(t, ws, []frame{f}, []frame{f}, 0)
		}
	}
	ping := frame{fin: true, op: opPing, payload: []byte("are you there")}
	pong := frame{fin: true, op: opPong, payload: ping.payload}
	exchange(t, ws, []frame{ping}, []frame{pong}, 0)
	exchange(t, ws, []frame{{fin: true, op: opPing}}, []frame{{fin: true, op: opPong}}, 0)
	exchange(t, ws, []frame{{fin: true, op: opPong, payload: []byte("unasked")}, ping}, []frame{pong}, 0)
	// Fragments, with a ping in between; UTF-8 whose characters are split.
	euro := []byte("grün 10 €")
	fragments := []frame{{op: opText, payload: euro[:3]}, ping, {op: opContinuation, payload: euro[3:10]}, {op: opContinuation}, {fin: true, op: opContinuation, payload: euro[10:]}}
	echoes := []frame{fragments[0], pong, fragments[2], fragments[3], fragments[4]}
	exchange(t, ws, fragments, echoes, 0)
	exchange(t, ws, fragments, echoes, 1) // byte by byte
	binaries := []frame{{op: opBinary, payload: []byte{0, 0xff, 0x80}}, {fin: true, op: opContinuation, payload: bytes.Repeat([]byte{0}, 70000)}}
	exchange(t, ws, binaries, binaries, 1000)
	// Many small ones in one write.
	var many []frame
	for i := range 500 {
		many = append(many, frame{fin: true, op: opText, payload: fmt.Appendf(nil, "message %d", i)})
	}
	exchange(t, ws, many, many, 0)
}

func testClose(t *testing.T, at string, dial dialer) {
	for name, tt := range map[string]struct{ sent, want frame }{
		"with code and reason": {frame{fin: true, op: opClose, payload: append([]byte{0x03, 0xe8}, "bye"...)}, frame{fin: true, op: opClose, payload: append([]byte{0x03, 0xe8}, "bye"...)}},
		"empty":                {frame{fin: true, op: opClose}, frame{fin: true, op: opClose}},
		"invalid UTF-8":        {frame{fin: true, op: opText, payload: []byte{0xc3, 0x28}}, frame{fin: true, op: opClose, payload: []byte{0x03, 0xef}}},
	} {
		ws, _, _ := dial(t, at, "/", "Sec-WebSocket-Key", wsKey)
		exchange(t, ws, []frame{tt.sent}, []frame{tt.want}, 0)
		if b, err := io.ReadAll(ws); len(b) != 0 || err != nil {
			t.Errorf("%s: after the close: %q, %v", name, b, err)
		}
	}
}

// permessage-deflate (RFC 7692) is between the ends.
func testDeflate(t *testing.T, at string, dial dialer) {
	const ext = "permessage-deflate; client_max_window_bits"
	ws, _, h := dial(t, at, "/", "Sec-WebSocket-Key", wsKey, "Sec-WebSocket-Extensions", ext)
	if got := h.Get("Sec-Websocket-Extensions"); got != ext {
		t.Errorf("extensions %q", got)
	}
	var z bytes.Buffer
	w, err := flate.NewWriter(&z, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, strings.Repeat("compress me ", 1000))
	_ = w.Flush()
	f := frame{fin: true, rsv1: true, op: opText, payload: bytes.TrimSuffix(z.Bytes(), []byte{0, 0, 0xff, 0xff})}
	exchange(t, ws, []frame{f}, []frame{f}, 0)
}

// An application that answers 200 has not accepted: to a client of HTTP/1.1 that
// is an ordinary response; where HTTP/2 is on the way, whose 200 says acceptance
// (RFC 8441, section 5), it is a failure.
func testNotAccepted(t *testing.T, at string, http1 bool, dial dialer) {
	ws, status, _ := dial(t, at, "/not", "Sec-WebSocket-Key", wsKey)
	if !http1 {
		if status < 400 {
			t.Errorf("status %d for an upgrade that was not accepted", status)
		}
		return
	}
	if status != 200 {
		t.Fatalf("status %d, the application said 200", status)
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(ws, b); err != nil || string(b) != "ordinary" {
		t.Errorf("body %q, %v", b, err)
	}
}
