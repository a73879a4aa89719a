package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service pricing.Pricing: Quote(Empty) → StringValue, and Watch, which
// answers each Empty of the stream with a StringValue.
const (
	quoteMethod = "/pricing.Pricing/Quote"
	watchMethod = "/pricing.Pricing/Watch"
)

var watchDesc = grpc.StreamDesc{StreamName: "Watch", ServerStreams: true, ClientStreams: true}

// serve is an ordinary grpc-go server but for two lines: NewGRPCServer in place
// of grpc.NewServer, and xDS credentials. insecure is what they fall back to
// where the control plane asks for no TLS, which parrel's never does.
func serve(ctx context.Context, listen, instance string, out io.Writer) error {
	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	srv, err := xds.NewGRPCServer(grpc.Creds(creds), xds.ServingModeCallback(func(a net.Addr, m xds.ServingModeChangeArgs) {
		fmt.Fprintln(out, a, m.Mode, errText(m.Err))
	}))
	if err != nil {
		return err
	}
	srv.RegisterService(pricing(instance), nil)
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, srv.Stop)()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pricing describes the service by hand, which spares the example generated
// code.
func pricing(instance string) *grpc.ServiceDesc {
	quote := func(ctx context.Context) *wrapperspb.StringValue {
		return wrapperspb.String(fmt.Sprintf("42 from %s for %s", instance, caller(ctx)))
	}
	watch := watchDesc
	watch.Handler = func(_ any, s grpc.ServerStream) error {
		for {
			switch err := s.RecvMsg(new(emptypb.Empty)); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := s.SendMsg(quote(s.Context())); err != nil {
				return err
			}
		}
	}
	return &grpc.ServiceDesc{
		ServiceName: "pricing.Pricing",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Quote",
			Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				if err := dec(new(emptypb.Empty)); err != nil {
					return nil, err
				}
				return quote(ctx), nil
			},
		}},
		Streams: []grpc.StreamDesc{watch},
	}
}

// caller is the SPIFFE id that the mesh has verified.
func caller(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if c := t.State.PeerCertificates; len(c) > 0 && len(c[0].URIs) == 1 {
				return c[0].URIs[0].String()
			}
		}
	}
	return "nobody known"
}
