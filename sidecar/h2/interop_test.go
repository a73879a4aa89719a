package h2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// x/net's client against our server: bodies both ways, trailers, HEAD.
func TestXNetClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, sv := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			(&Server{Handler: &handlerFunc{exchange: echo}}).Serve(context.Background(), sv, netio.Pending{}, nil)
		}()
		cc := client(t, c)
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				body := bytes.Repeat([]byte{byte(i)}, 1+i*20000) // x/net never ends an empty one with trailers
				r, _ := http.NewRequestWithContext(context.Background(), "POST", "http://a/", bytes.NewReader(body))
				if i%2 == 0 {
					r.ContentLength = -1
				}
				r.Trailer = http.Header{"X-Sum": {fmt.Sprint(i)}}
				resp, err := cc.RoundTrip(r)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = resp.Body.Close() }()
				got, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes of %d, %v", len(got), len(body), err)
				}
				if s := resp.Trailer.Get("X-Sum"); s != fmt.Sprint(i) {
					t.Errorf("trailer %q", s)
				}
			})
		}
		all.Wait()
		_ = c.Close()
		<-over
	})
}

// Our client against x/net's server.
func TestXNetServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, sv := pair(t)
		over := make(chan struct{})
		go func() {
			defer close(over)
			(&http2.Server{}).ServeConn(sv, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "X-Sum")
				n, _ := io.Copy(w, r.Body)
				w.Header().Set("X-Sum", fmt.Sprint(n))
			})})
		}()
		cc := NewClientConn(c, ClientOptions{Wheel: wheel.New()})
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			cc.Run(context.Background())
		}()
		synctest.Wait()
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				body := bytes.Repeat([]byte{byte(i)}, i*20000)
				req := get("/")
				req.Head.Method, req.Head.ContentLength, req.Body = "POST", int64(len(body)), &limited{&textBody{}, body}
				resp, err := cc.Do(context.Background(), req)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = resp.Body.Close() }()
				got, err := readAll(resp.Body)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes of %d, %v", len(got), len(body), err)
				}
				if s := resp.Body.Trailers().Get("x-sum"); s != fmt.Sprint(len(body)) {
					t.Errorf("trailer %q", s)
				}
			})
		}
		all.Wait()
		cc.Close()
		<-ran
		<-over
	})
}

// grpcThrough is a gRPC server behind our server and client: grpc-go, our
// server, our client, grpc-go.
func grpcThrough(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	backend := grpc.NewServer()
	register(backend)
	bl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fl, err := netio.OS{}.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { _ = backend.Serve(bl) })
	up, err := netio.OS{}.Dial(context.Background(), "tcp", bl.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w := wheel.New()
	greeted := make(chan struct{}, 8)
	cc := NewClientConn(up, ClientOptions{Wheel: w, Changed: func(*ClientConn) { greeted <- struct{}{} }})
	all.Go(func() { cc.Run(context.Background()) })
	<-greeted
	all.Go(func() {
		for {
			c, err := fl.AcceptConn()
			if err != nil {
				return
			}
			all.Go(func() {
				(&Server{Handler: &forwarder{cc}, Wheel: w}).Serve(context.Background(), c, netio.Pending{}, nil)
			})
		}
	})
	conn, err := grpc.NewClient(fl.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = fl.Close()
		cc.Close()
		backend.Stop()
		all.Wait()
	})
	return conn
}

func TestGRPC(t *testing.T) {
	hs := health.NewServer()
	conn := grpcThrough(t, func(s *grpc.Server) {
		healthpb.RegisterHealthServer(s, hs)
		testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	hc := healthpb.NewHealthClient(conn)
	if r, err := hc.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatal(r, err)
	}
	if _, err := hc.Check(ctx, &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	watch, err := hc.Watch(short, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	// The cases of grpc-go's own interoperability client; each ends the test by
	// itself where it fails.
	tc := testgrpc.NewTestServiceClient(conn)
	interop.DoEmptyUnaryCall(ctx, tc)
	interop.DoLargeUnaryCall(ctx, tc)
	interop.DoClientStreaming(ctx, tc)
	interop.DoServerStreaming(ctx, tc)
	interop.DoPingPong(ctx, tc)
	interop.DoEmptyStream(ctx, tc)
	interop.DoTimeoutOnSleepingServer(ctx, tc)
	interop.DoCancelAfterBegin(ctx, tc)
	interop.DoCancelAfterFirstResponse(ctx, tc)
	interop.DoCustomMetadata(ctx, tc)
	interop.DoStatusCodeAndMessage(ctx, tc)
	interop.DoSpecialStatusMessage(ctx, tc)
	interop.DoUnimplementedMethod(ctx, conn)
	interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
	for range 200 { // much use, calls given up at once among it
		c, stop := context.WithCancel(ctx)
		s, err := tc.FullDuplexCall(c)
		if err != nil {
			t.Fatal(err)
		}
		stop()
		_, _ = s.Recv()
		interop.DoEmptyUnaryCall(ctx, tc)
		interop.DoEmptyUnaryCall(ctx, tc)
	}
}

// Extended CONNECT as x/net's client speaks it is covered by TestTunnel; here a
// plain CONNECT reaches the handler as such.
func TestPlainConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var head stream.RequestHead
		r, _, _, _ := rawClient(t, func(_ *stream.Scope, q *stream.Request, w stream.Responder) {
			head = q.Head
			head.Method, head.Authority = strings.Clone(head.Method), strings.Clone(head.Authority)
			_ = w.Head(&stream.ResponseHead{Status: 501, ContentLength: 0}, true)
		}, Server{})
		r.get(1, false, ":method", "CONNECT", ":authority", "a:443")
		synctest.Wait()
		if head.Method != "CONNECT" || head.Path != "" || head.Authority != "a:443" || r.heads[1] != "501" {
			t.Errorf("%+v, %q", head, r.heads[1])
		}
	})
}
