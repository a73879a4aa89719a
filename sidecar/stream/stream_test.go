package stream

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStripHopByHop(t *testing.T) {
	for name, tt := range map[string]struct{ in, want Header }{
		"plain": {Header{{"accept", "*/*"}}, Header{{"accept", "*/*"}}},
		"all": {Header{{"connection", "close"}, {"keep-alive", "1"}, {"te", "gzip"}, {"upgrade", "x"}, {"transfer-encoding", "chunked"},
			{"proxy-connection", "x"}, {"http2-settings", "x"}, {"a", "1"}}, Header{{"a", "1"}}},
		"named":             {Header{{"connection", "X-A ,x-b"}, {"connection", "x-c"}, {"x-a", "1"}, {"x-b", "1"}, {"x-c", "1"}, {"x-ab", "1"}}, Header{{"x-ab", "1"}}},
		"cannot name away":  {Header{{"connection", "authorization, x-forwarded-for, forwarded, cookie"}, {"authorization", "1"}, {"x-forwarded-for", "1"}, {"forwarded", "1"}, {"cookie", "1"}}, Header{{"authorization", "1"}, {"x-forwarded-for", "1"}, {"forwarded", "1"}, {"cookie", "1"}}},
		"te trailers stays": {Header{{"te", "gzip;q=1, Trailers"}}, Header{{"te", "trailers"}}},
	} {
		got := tt.in.Clone()
		got.StripHopByHop()
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestStripTrailers(t *testing.T) {
	h := Header{{"grpc-status", "0"}, {"x-sum", "1"}, {"content-length", "5"}, {"transfer-encoding", "chunked"}, {"host", "x"}, {"set-cookie", "a"}, {"x-forwarded-for", "1"}}
	h.StripTrailers()
	if d := cmp.Diff(Header{{"grpc-status", "0"}, {"x-sum", "1"}}, h); d != "" {
		t.Error(d)
	}
}

func TestHeader(t *testing.T) {
	var h Header
	h.Add("a", "1")
	h.Add("b", "2")
	h.Add("a", "3")
	if v, ok := h.Values("a"); v != "1,3" || !ok {
		t.Errorf("%q", v)
	}
	if _, ok := h.Values("none"); ok {
		t.Error("a field that is not there")
	}
	h.Set("a", "4")
	if d := cmp.Diff(Header{{"b", "2"}, {"a", "4"}}, h); d != "" {
		t.Error(d)
	}
	if !(Header{{"connection", "Keep-Alive, UPGRADE"}}).HasToken("connection", "upgrade") || (Header{{"connection", "upgrades"}}).HasToken("connection", "upgrade") {
		t.Error("tokens")
	}
	if n := testing.AllocsPerRun(100, func() { h.Values("b") }); n != 0 {
		t.Errorf("one value allocates %v times", n)
	}
}

func TestGRPC(t *testing.T) {
	for ct, want := range map[string]bool{"application/grpc": true, "application/grpc+proto": true, "Application/gRPC; x": true,
		"application/grpc-web": false, "application/grpcx": false, "text/plain": false, "": false} {
		if GRPC(ct) != want {
			t.Errorf("%q", ct)
		}
	}
}

// closing counts its Closes.
type closing struct{ n int }

func (c *closing) Read([]byte) (int, error)    { return 0, nil }
func (c *closing) Write(p []byte) (int, error) { return len(p), nil }
func (c *closing) Trailers() Header            { return nil }
func (c *closing) CloseWrite() error           { return nil }
func (c *closing) Close() error                { c.n++; return nil }

func TestResponseEnd(t *testing.T) {
	var b, u closing
	(*Response)(nil).End()
	(&Response{}).End()
	(&Response{Body: &b}).End()
	(&Response{Tunnel: &u}).End()
	if b.n != 1 || u.n != 1 {
		t.Errorf("body closed %d times, tunnel %d times", b.n, u.n)
	}
}
