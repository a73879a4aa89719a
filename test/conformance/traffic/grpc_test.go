package traffic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcApp has one bidirectional method for any name: what it does is in the
// method's name.
type grpcApp struct{ cancelled atomic.Int64 }

func (a *grpcApp) serve(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	in := new(wrapperspb.BytesValue)
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "Echo":
		md, _ := metadata.FromIncomingContext(s.Context())
		s.SetTrailer(metadata.Pairs("x-back", strings.Join(md.Get("x-there"), ","), "bin-bin", string([]byte{0, 255})))
		for {
			if err := s.RecvMsg(in); err != nil {
				if err == io.EOF {
					return nil
				}
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	case "Fail":
		return status.Error(codes.FailedPrecondition, "späte Absage 100%")
	case "Deadline":
		d, ok := s.Context().Deadline()
		if !ok {
			return status.Error(codes.Internal, "no deadline")
		}
		return s.SendMsg(wrapperspb.Bytes([]byte(time.Until(d).String())))
	case "Wait":
		if err := s.SendMsg(wrapperspb.Bytes(nil)); err != nil {
			return err
		}
		<-s.Context().Done()
		a.cancelled.Add(1)
		return s.Context().Err()
	case "Slow": // server streaming for longer than the default route time-out
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		for range 17 {
			if err := s.SendMsg(in); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	}
	return status.Error(codes.Unimplemented, method)
}

func serveGRPC(t *testing.T, a *grpcApp) string {
	t.Helper()
	l := listen(t)
	s := grpc.NewServer(grpc.UnknownServiceHandler(a.serve), grpc.MaxRecvMsgSize(64<<20))
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) }) // ends with Stop
	t.Cleanup(func() { s.Stop(); wg.Wait() })
	return l.Addr().String()
}

func dialGRPC(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

func testGRPC(t *testing.T, w *world, a *grpcApp) {
	cc := dialGRPC(t, w.upstream["grpc"])
	within := func(t *testing.T, d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("unary, metadata, 10 MB", func(t *testing.T) {
		t.Parallel()
		big := bytes.Repeat([]byte("0123456789"), 1<<20)
		var out wrapperspb.BytesValue
		var tr metadata.MD
		ctx := metadata.AppendToOutgoingContext(within(t, 60*time.Second), "x-there", "a", "x-there", "b")
		if err := cc.Invoke(ctx, "/t.T/Echo", wrapperspb.Bytes(big), &out, grpc.Trailer(&tr)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Value, big) || fmt.Sprint(tr.Get("x-back")) != "[a,b]" || fmt.Sprint(tr.Get("bin-bin")) != fmt.Sprint([]string{"\x00\xff"}) {
			t.Errorf("%d bytes, trailers %q", len(out.Value), tr)
		}
	})
	t.Run("error of trailers only", func(t *testing.T) {
		t.Parallel()
		err := cc.Invoke(within(t, 60*time.Second), "/t.T/Fail", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "späte Absage 100%" {
			t.Errorf("%v", err)
		}
	})
	t.Run("deadline travels", func(t *testing.T) {
		t.Parallel()
		var out wrapperspb.BytesValue
		if err := cc.Invoke(within(t, 60*time.Second), "/t.T/Deadline", wrapperspb.Bytes(nil), &out); err != nil {
			t.Fatal(err)
		}
		if d, err := time.ParseDuration(string(out.Value)); err != nil || d > 60*time.Second || d < 30*time.Second {
			t.Errorf("%v, %v", d, err)
		}
	})
	t.Run("deadline passes, cancellation", func(t *testing.T) {
		t.Parallel()
		before := a.cancelled.Load()
		s, err := cc.NewStream(within(t, 5*time.Second), bidi, "/t.T/Wait")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithCancel(within(t, 60*time.Second))
		s, err = cc.NewStream(ctx, bidi, "/t.T/Wait")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			t.Fatal(err)
		}
		cancel()
		for end := time.Now().Add(30 * time.Second); a.cancelled.Load() < before+2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the application saw %d of 2 cancellations", a.cancelled.Load()-before)
			}
		}
	})
	t.Run("1000 streams", func(t *testing.T) {
		t.Parallel()
		ctx := within(t, 90*time.Second)
		var wg sync.WaitGroup
		var failed atomic.Int64
		var first atomic.Value
		for i := range 1000 {
			wg.Go(func() {
				if err := pingPong(ctx, cc, i); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
			})
		}
		wg.Wait()
		if n := failed.Load(); n > 0 {
			t.Errorf("%d streams failed, the first: %v", n, first.Load())
		}
	})
	t.Run("longer than 15 s", func(t *testing.T) {
		t.Parallel()
		s, err := cc.NewStream(within(t, 90*time.Second), &grpc.StreamDesc{ServerStreams: true}, "/t.T/Slow")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(wrapperspb.Bytes([]byte("x"))); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			err := s.RecvMsg(new(wrapperspb.BytesValue))
			if err == io.EOF && n == 17 {
				return
			}
			if err != nil {
				t.Fatalf("after %d messages: %v", n, err)
			}
		}
	})
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		err := dialGRPC(t, w.upstream["deniedgrpc"]).Invoke(within(t, 60*time.Second), "/t.T/Echo", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "intention") {
			t.Errorf("%v", err)
		}
	})
	t.Run("application down", func(t *testing.T) {
		t.Parallel()
		err := dialGRPC(t, w.upstream["downgrpc"]).Invoke(within(t, 60*time.Second), "/t.T/Echo", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
		t.Log(err)
	})
}

// pingPong sends three messages and waits for each to come back.
func pingPong(ctx context.Context, cc *grpc.ClientConn, i int) error {
	s, err := cc.NewStream(ctx, bidi, "/t.T/Echo")
	if err != nil {
		return err
	}
	for n := range 3 {
		want := fmt.Sprint(i, n)
		if err := s.SendMsg(wrapperspb.Bytes([]byte(want))); err != nil {
			return err
		}
		var out wrapperspb.BytesValue
		if err := s.RecvMsg(&out); err != nil {
			return err
		}
		if string(out.Value) != want {
			return fmt.Errorf("sent %q, got %q", want, out.Value)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream's end: %w", err)
	}
	return nil
}
