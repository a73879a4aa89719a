package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc-xds:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	what := ""
	if len(args) > 0 {
		what, args = args[0], args[1:]
	}
	fs := flag.NewFlagSet("grpc-xds "+what, flag.ContinueOnError)
	switch what {
	case "server":
		listen := fs.String("listen", "127.0.0.1:50051", "address to listen on, as the catalogue has it")
		instance := fs.String("instance", "pricing-1", "name shown in answers")
		if err := fs.Parse(args); err != nil {
			return err
		}
		return serve(ctx, *listen, *instance, out)
	case "client":
		target := fs.String("target", "xds:///pricing", "xds:///SERVICE")
		count := fs.Int("count", 1, "how many quotes to ask for, one call each")
		stream := fs.Bool("stream", false, "ask in one streaming call")
		timeout := fs.Duration("timeout", 10*time.Second, "for everything together")
		if err := fs.Parse(args); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		return call(ctx, *target, *count, *stream, out)
	}
	return fmt.Errorf("%q: say server or client", what)
}
