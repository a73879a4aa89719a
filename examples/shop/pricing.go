package shop

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const quoteMethod = "/shop.Pricing/Quote"

// servePricing is the gRPC service shop.Pricing: Quote(Empty) → StringValue
// that holds an Answer in JSON. It also serves grpc.health.v1.
func servePricing(ctx context.Context, c Config, l net.Listener) error {
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "shop.Pricing",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Quote", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := dec(new(emptypb.Empty)); err != nil {
				return nil, err
			}
			md, _ := metadata.FromIncomingContext(ctx)
			b, err := json.Marshal(Answer{Service: "pricing", Instance: c.Instance, Version: c.Version, Path: quoteMethod,
				Peer: PeerURI(md.Get("x-forwarded-client-cert"))})
			return wrapperspb.String(string(b)), err
		}}},
	}, nil)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	stop := context.AfterFunc(ctx, srv.GracefulStop)
	defer stop()
	if err := srv.Serve(l); err != nil {
		return fmt.Errorf("shop: pricing: %w", err)
	}
	return nil
}

type pricingClient struct{ *grpc.ClientConn }

func newPricingClient(addr string) (*pricingClient, error) {
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("shop: pricing at %s: %w", addr, err)
	}
	return &pricingClient{cc}, nil
}

// Quote asks the service.
func (p *pricingClient) Quote(ctx context.Context) (*Answer, error) {
	var out wrapperspb.StringValue
	if err := p.Invoke(ctx, quoteMethod, new(emptypb.Empty), &out, grpc.WaitForReady(true)); err != nil {
		return nil, err
	}
	var ans Answer
	if err := json.Unmarshal([]byte(out.Value), &ans); err != nil {
		return nil, fmt.Errorf("pricing: %w", err)
	}
	return &ans, nil
}
