package l7

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	"github.com/parrel-mesh/parrel/sidecar/cluster"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// raw sends bytes as messages.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return []byte(*v.(*string)), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*string) = string(b); return nil }
func (raw) Name() string                    { return "raw" }

var _ encoding.Codec = raw{}

// grpcClient is grpc-go's own client on the rig's network.
func (g *rig) grpc() *grpc.ClientConn {
	g.t.Helper()
	c, err := grpc.NewClient("passthrough:///app", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.host.Dial(ctx, "tcp", "10.0.0.1:80") }))
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// frame is one gRPC message on the wire.
func frame(s string) string { return string([]byte{0, 0, 0, 0, byte(len(s))}) + s }

// grpcApp is an application that speaks gRPC by hand: it gives each message back
// and ends with a status.
func grpcApp(ctx context.Context, req *stream.Request) (*stream.Response, error) {
	head := stream.ResponseHead{Status: 200, ContentLength: -1, Header: stream.Header{{Name: "content-type", Value: "application/grpc"}}}
	switch req.Head.Path {
	case "/s/TrailersOnly":
		head.Header.Add("grpc-status", "5")
		head.Header.Add("grpc-message", "none such")
		return &stream.Response{Head: head}, nil
	case "/s/Hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "/s/Down":
		return nil, &cluster.Error{Code: telemetry.NoHealthyUpstream}
	case "/s/Dies":
		p := newParts(ctx, frame("half"))
		p.err = errors.New("reset")
		close(p.c)
		return &stream.Response{Head: head, Body: p}, nil
	}
	p := newParts(ctx)
	p.trailers = stream.Header{{Name: "grpc-status", Value: "0"}, {Name: "x-end", Value: "1"}}
	go func() {
		defer close(p.c)
		for {
			var h [5]byte
			if _, err := io.ReadFull(struct{ io.Reader }{req.Body}, h[:]); err != nil {
				return
			}
			m := make([]byte, h[4])
			if _, err := io.ReadFull(struct{ io.Reader }{req.Body}, m); err != nil {
				return
			}
			p.c <- frame("<" + string(m) + ">")
		}
	}()
	return &stream.Response{Head: head, Body: p}, nil
}

func TestGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, grpcApp, nil)
		cc := g.grpc()
		defer func() { _ = cc.Close() }()
		in, out := "hello", ""

		if err := cc.Invoke(t.Context(), "/s/Unary", &in, &out); err != nil || out != "<hello>" {
			t.Fatalf("unary: %q %v", out, err)
		}
		synctest.Wait()
		if r := g.rec.last(t); r.Protocol != "grpc" || r.GRPCStatus != 0 || r.Status != 200 || r.Trailer.Get("x-end") != "1" {
			t.Errorf("unary: %+v", r)
		}
		for method, want := range map[string]struct {
			code codes.Code
			rec  telemetry.Code
			text string
		}{
			"/s/TrailersOnly": {codes.NotFound, telemetry.OK, "none such"},
			"/s/Down":         {codes.Unavailable, telemetry.NoHealthyUpstream, "parrel: no_healthy_upstream"},
			"/s/Dies":         {codes.Unavailable, telemetry.UpstreamConnectionTermination, "parrel: upstream_connection_termination"},
		} {
			err := cc.Invoke(t.Context(), method, &in, &out)
			if status.Code(err) != want.code || !strings.Contains(status.Convert(err).Message(), want.text) {
				t.Errorf("%s: %v", method, err)
			}
			synctest.Wait()
			if r := g.rec.last(t); r.Code != want.rec || r.GRPCStatus != int(want.code) {
				t.Errorf("%s: %+v", method, r)
			}
		}

		bidi, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/s/Bidi")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // each answer before the next question, for longer than the route's time-out
			time.Sleep(10 * time.Second)
			if err := bidi.SendMsg(&in); err != nil {
				t.Fatal(err)
			}
			if err := bidi.RecvMsg(&out); err != nil || out != "<hello>" {
				t.Fatalf("bidi: %q %v", out, err)
			}
		}
		_ = bidi.CloseSend()
		if err := bidi.RecvMsg(&out); err != io.EOF {
			t.Fatalf("bidi's end: %v", err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		began := time.Now()
		err = cc.Invoke(ctx, "/s/Hang", &in, &out)
		cancel()
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) > 3*time.Second {
			t.Errorf("deadline: %v after %v", err, time.Since(began))
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := cc.Invoke(ctx, "/s/Hang", &in, &out); status.Code(err) != codes.Canceled {
			t.Errorf("cancel: %v", err)
		}
		cancel()
		synctest.Wait()
		if r := g.rec.last(t); r.Code != telemetry.DownstreamReset {
			t.Errorf("cancel: %+v", r)
		}
	})
}

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[string]time.Duration{"1S": time.Second, "100m": 100 * time.Millisecond, "5n": 5, "2H": 2 * time.Hour, "99999999H": 1<<63 - 1, "0S": 0} {
		if d, ok := parseGRPCTimeout(in); !ok || d != want {
			t.Errorf("%s: %v %v", in, d, ok)
		}
	}
	for _, in := range []string{"", "S", "1", "1x", "-1S", "123456789S", "+1S"} {
		if d, ok := parseGRPCTimeout(in); ok {
			t.Errorf("%q: %v", in, d)
		}
	}
	for d, want := range map[time.Duration]string{time.Second: "1000000u", 5: "5n", time.Hour: "3600000m", 100 * 24 * time.Hour: "8640000S"} {
		if s := formatGRPCTimeout(d); s != want {
			t.Errorf("%v: %s", d, s)
		}
	}
}
