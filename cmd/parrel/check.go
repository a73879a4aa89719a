package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func checkCommand() *cobra.Command {
	return group(&cobra.Command{Use: "check", Short: "Ask a sidecar how it is, for health checks"}, checkReadyCommand())
}

func checkReadyCommand() *cobra.Command {
	var (
		admin         string
		timeout, wait time.Duration
		quiet         bool
	)
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "End with 0 where the sidecar serves, else with 1 and what it lacks",
		Long: `Asks a sidecar's admin listener, or its readiness port, for GET /ready. The exit
code is 0 where every workload has its identity, its configuration and its open
listeners; else it is 1, and standard error says what is missing. It is the
health check of images that have no shell and no curl:

    HEALTHCHECK CMD ["/parrel", "check", "ready"]

--wait asks again until the sidecar is ready, so that what must not start before
it can: a unit's ExecStartPre, an entry point.

    parrel check ready --admin 127.0.0.1:15000 --wait 30s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			probe, err := newReadyProbe(admin)
			if err != nil {
				return err
			}
			if timeout <= 0 || wait < 0 {
				return fmt.Errorf("check ready: --timeout %s, --wait %s: give a time above zero (--wait 0s: ask once)", timeout, wait)
			}
			said, err := probe.until(cmd.Context(), timeout, wait)
			if err != nil {
				if quiet {
					return exitCode(1)
				}
				return fmt.Errorf("check ready: %w", err)
			}
			if !quiet {
				fmt.Fprintln(cmd.OutOrStdout(), said)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&admin, "admin", "127.0.0.1:15000", "the sidecar's --admin-bind or --ready-bind: HOST:PORT or unix:PATH")
	fs.DurationVar(&timeout, "timeout", 3*time.Second, "how long one answer may take")
	fs.DurationVar(&wait, "wait", 0, "ask again until it is ready, for so long; 0s: ask once")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print nothing: the exit code says it")
	return cmd
}

// readyProbe asks one sidecar whether it serves.
type readyProbe struct {
	address string // for messages
	url     string
	client  *http.Client
}

// errNotReady is a sidecar that answered, and is not ready.
var errNotReady = errors.New("the sidecar is not ready")

func newReadyProbe(address string) (*readyProbe, error) {
	client, base, err := adminClient("check ready", address)
	if err != nil {
		return nil, err
	}
	return &readyProbe{address: address, url: base + "/ready", client: client}, nil
}

// adminClient reads an address as --admin-bind and --ready-bind take it, for a
// command. An address that means all of the host's is asked on loopback.
func adminClient(command, address string) (client *http.Client, base string, err error) {
	t := &http.Transport{DisableKeepAlives: true}
	client = &http.Client{Transport: t}
	path, isUnix := strings.CutPrefix(address, "unix:")
	if isUnix || strings.HasPrefix(address, "/") {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
		return client, "http://localhost", nil
	}
	hostport := strings.TrimSuffix(strings.TrimPrefix(address, "http://"), "/")
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || port == "" {
		return nil, "", fmt.Errorf("%s: --admin %q is no address: write HOST:PORT, as in 127.0.0.1:15000, or unix:PATH", command, address)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if err == nil && ip.Is6() {
			host = "::1"
		}
	}
	return client, "http://" + net.JoinHostPort(host, port), nil
}

// ask asks once and gives what the sidecar said.
func (p *readyProbe) ask(ctx context.Context, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("no answer from a sidecar at %s: %w; is it running, and is this its --admin-bind or --ready-bind?", p.address, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("no whole answer from %s: %w", p.address, err)
	}
	said := strings.TrimSpace(string(body))
	switch resp.StatusCode {
	case http.StatusOK:
		return said, nil
	case http.StatusServiceUnavailable:
		return said, fmt.Errorf("%w: %s", errNotReady, said)
	}
	return said, fmt.Errorf("what answers at %s is no sidecar: GET /ready gave %s: %.200s", p.address, resp.Status, said)
}

// until asks until the sidecar is ready or the wait is over; the last answer is
// what it returns.
func (p *readyProbe) until(ctx context.Context, timeout, wait time.Duration) (string, error) {
	end := time.Now().Add(wait)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		said, err := p.ask(ctx, timeout)
		left := time.Until(end)
		if err == nil || ctx.Err() != nil || left <= 0 {
			return said, err
		}
		select {
		case <-ctx.Done():
			return said, err
		case <-time.After(min(pause, left)):
		}
	}
}
