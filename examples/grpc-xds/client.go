package main

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	_ "google.golang.org/grpc/xds" // the scheme xds:///
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// call asks for quotes and prints them. Again, only the credentials and the
// target are different from any grpc-go client.
func call(ctx context.Context, target string, count int, stream bool, out io.Writer) error {
	creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	defer conn.Close()
	ask := func() (*wrapperspb.StringValue, error) {
		quote := new(wrapperspb.StringValue)
		return quote, conn.Invoke(ctx, quoteMethod, new(emptypb.Empty), quote)
	}
	if stream {
		s, err := conn.NewStream(ctx, &watchDesc, watchMethod)
		if err != nil {
			return err
		}
		ask = func() (*wrapperspb.StringValue, error) {
			quote := new(wrapperspb.StringValue)
			if err := s.SendMsg(new(emptypb.Empty)); err != nil && err != io.EOF {
				return nil, err // after io.EOF, RecvMsg has the reason
			}
			return quote, s.RecvMsg(quote)
		}
	}
	for range count {
		quote, err := ask()
		if err != nil {
			return err
		}
		fmt.Fprintln(out, quote.Value)
	}
	return nil
}
