package attack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2raw is a client, or a server, that writes frames as it likes.
type h2raw struct {
	t testing.TB
	net.Conn
	f   *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

// connectH2 opens HTTP/2 with prior knowledge, and sends the preface and its
// settings.
func connectH2(t testing.TB, address string, settings ...http2.Setting) *h2raw {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	h := newH2(t, c)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.f.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return h
}

func newH2(t testing.TB, c net.Conn) *h2raw {
	h := &h2raw{t: t, Conn: c, f: http2.NewFramer(c, c)}
	h.f.AllowIllegalWrites = true
	h.f.SetMaxReadFrameSize(1 << 20)
	h.enc = hpack.NewEncoder(&h.buf)
	h.f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return h
}

// block encodes name, value, name, value …
func (h *h2raw) block(fields ...string) []byte {
	h.buf.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(h.buf.Bytes())
}

// request is the usual head.
func request(method, path string, more ...string) []string {
	return append([]string{":method", method, ":scheme", "http", ":authority", "a.example", ":path", path}, more...)
}

// headers sends one HEADERS frame; an error of the connection shows when it is
// read.
func (h *h2raw) headers(stream uint32, end bool, fields ...string) {
	_ = h.f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.block(fields...), EndHeaders: true, EndStream: end})
}

// outcome is how one stream ended, as the client saw it.
type outcome struct {
	status  string // of the response; "" where there was none
	body    string
	ended   bool          // the response is complete
	reset   http2.ErrCode // where it was reset
	isReset bool
	goAway  http2.ErrCode // where the connection was given up
	over    bool          // the connection is over
}

func (o outcome) refused() bool {
	return o.isReset || o.over || o.status == "400" || o.status == "431" || o.status == "413" || o.status == "421" || o.status == "501"
}

// wait reads until the stream has ended, or the connection has.
func (h *h2raw) wait(stream uint32) (o outcome, err error) {
	for {
		f, err := h.f.ReadFrame()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				return o, fmt.Errorf("neither the stream nor the connection ended: %w", err)
			}
			o.over = true
			return o, nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = h.f.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			o.goAway = f.ErrCode
			if f.ErrCode != http2.ErrCodeNo {
				o.over = true
				return o, nil
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				o.isReset, o.reset = true, f.ErrCode
				return o, nil
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID != stream {
				continue
			}
			if s := f.PseudoValue("status"); s != "" && s[0] != '1' {
				o.status = s
			}
			if f.StreamEnded() {
				o.ended = true
				return o, nil
			}
		case *http2.DataFrame:
			if f.StreamID != stream {
				continue
			}
			o.body += string(f.Data())
			if n := f.Length; n > 0 {
				_ = h.f.WriteWindowUpdate(0, n)
			}
			if f.StreamEnded() {
				o.ended = true
				return o, nil
			}
		}
	}
}

// alone says that everything is well on a connection: a request on the stream is
// answered.
func (h *h2raw) alone(stream uint32) error {
	h.headers(stream, true, request("GET", "/canary")...)
	o, err := h.wait(stream)
	if err != nil {
		return err
	}
	if o.status != "200" || o.body != "echo GET /canary 0" {
		return fmt.Errorf("the next stream: %+v", o)
	}
	return nil
}
