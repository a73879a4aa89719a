package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func drainCommand() *cobra.Command {
	var (
		admin       string
		inboundOnly bool
		wait        time.Duration
	)
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Let a sidecar's traffic end, and wait for that",
		Long: `Asks a sidecar's admin listener to end its traffic: the catalogue is told, so
that callers go elsewhere, listeners close, and what is in hand ends within the
sidecar's --drain-time. The sidecar stays, and serves no new traffic until it is
started again. The command returns when the traffic has ended, or with 1 when it
has not within --wait.

With --inbound-only outbound traffic goes on. That is what an application's unit
does before the application gets its signal:

    ExecStop=/usr/local/bin/parrel drain --inbound-only --admin unix:/run/parrel-web-1/admin.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait < 0 {
				return fmt.Errorf("drain: --wait %s is below zero: give 0s (do not wait) or more", wait)
			}
			return drain(cmd.Context(), admin, inboundOnly, wait)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&admin, "admin", "127.0.0.1:15000", "the sidecar's --admin-bind: HOST:PORT or unix:PATH")
	fs.BoolVar(&inboundOnly, "inbound-only", false, "end inbound traffic only")
	fs.DurationVar(&wait, "wait", time.Minute, "how long to wait for the end of the traffic; 0s: not at all")
	return cmd
}

func drain(ctx context.Context, admin string, inboundOnly bool, wait time.Duration) error {
	q := url.Values{}
	if inboundOnly {
		q.Set("inboundonly", "")
	}
	limit := 5 * time.Second
	if wait > 0 {
		q.Set("wait", wait.String())
		limit += wait
	}
	client, base, err := adminClient("drain", admin)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/drain_listeners?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("drain: no answer from a sidecar at %s: %w; is it running, and is this its --admin-bind?", admin, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	switch {
	case err != nil:
		return fmt.Errorf("drain: no whole answer from %s: %w", admin, err)
	case resp.StatusCode == http.StatusGatewayTimeout:
		return fmt.Errorf("drain: the traffic has not ended within %s: it is cut when the sidecar's --drain-time is over", wait)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("drain: what answers at %s said %s: %.200s", admin, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
