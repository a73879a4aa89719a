package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/remote"
)

func svidCommand() *cobra.Command {
	var (
		c    remote.Config
		out  string
		once bool
		log  logFlags
	)
	cmd := &cobra.Command{
		Use:   "svid",
		Short: "Keep certificate files fresh for clients that speak mTLS themselves",
		Long: `Joins with a token and writes cert.pem, key.pem and ca.pem into a folder, then
renews them at half of their life until it is ended. The three files always
belong together. For grpc-go's xDS client, curl and others.

    parrel svid --service web --token "$(cat web.token)" --out /etc/web/tls`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return errors.New("svid: where to? Give --out, a folder for cert.pem, key.pem and ca.pem")
			}
			if c.Service == "" {
				return errors.New("svid: for which service? Give --service NAME, the name under which Consul knows it")
			}
			if c.DataDir == "" {
				c.DataDir = filepath.Join(out, ".parrel")
			}
			logger, err := log.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			c.Log = logger
			src, err := remote.New(c)
			if err != nil {
				return err
			}
			files, err := remote.NewFiles(out, src, c.Log)
			if err != nil {
				return err
			}
			if once {
				return svidOnce(cmd.Context(), src, files)
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			g.Go(func() error { return src.Run(ctx) })
			g.Go(func() error { return files.Run(ctx) })
			if err := g.Wait(); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Service, "service", "", "Consul's name of the service")
	f.StringVar(&c.Token, "token", "", "join token (see `parrel token create`); needed where --data-dir holds no identity")
	f.StringVar(&c.TokenFile, "token-file", "", "file that holds the join token")
	f.StringVar(&c.Address, "grpc-addr", "127.0.0.1:15012", "the control plane, HOST:PORT; several separated by commas")
	f.StringVar(&out, "out", "", "folder for cert.pem, key.pem and ca.pem")
	f.StringVar(&c.DataDir, "data-dir", "", "where key and SVID are kept for renewing (default: OUT/.parrel)")
	f.BoolVar(&once, "once", false, "write the files once and end")
	log.bind(cmd)
	return cmd
}

// svidOnce runs the source until it has an identity and writes the files.
func svidOnce(ctx context.Context, src *remote.Source, files *remote.Files) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- src.Run(rctx) }()
	for {
		changed := src.Changed()
		snap := src.Current()
		if _, err := mtls.Usable(snap, time.Now()); err == nil {
			stop()
			<-ended
			return files.Write(snap)
		}
		select {
		case <-changed:
		case err := <-ended:
			stop()
			return err
		case <-ctx.Done():
			stop()
			<-ended
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return errors.New("svid: ended before there was an identity; no file was written")
			}
			return fmt.Errorf("svid: no identity within a minute: %w", src.Current().Err)
		}
	}
}
