package file

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/parrel-mesh/parrel/discovery"
)

// maxOutput bounds what is kept of an answer, as Consul's agent does.
const maxOutput = 4 << 10

// dialFunc makes the connections of checks.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// prober makes one run of one check.
type prober struct{ dial dialFunc }

// run gives the state that one run found. It never blocks longer than the
// check's timeout.
func (p *prober) run(ctx context.Context, c discovery.CheckDefinition) (discovery.Health, string) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	switch c.Type {
	case discovery.CheckTCP:
		return p.tcp(ctx, c)
	case discovery.CheckHTTP:
		return p.http(ctx, c)
	case discovery.CheckGRPC:
		return p.grpc(ctx, c)
	}
	return discovery.Critical, "a check of type " + string(c.Type) + " is not run"
}

// runs says whether the prober makes this type of check.
func runs(t discovery.CheckType) bool {
	return t == discovery.CheckTCP || t == discovery.CheckHTTP || t == discovery.CheckGRPC
}

func tlsConfig(c discovery.CheckDefinition) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: c.TLSServerName,
		// The user asks for it by tls_skip_verify; a check carries no secret.
		InsecureSkipVerify: c.TLSSkipVerify, //nolint:gosec // see above
	}
}

func (p *prober) tcp(ctx context.Context, c discovery.CheckDefinition) (discovery.Health, string) {
	conn, err := p.dial(ctx, "tcp", c.Target)
	if err != nil {
		return discovery.Critical, "dial tcp " + c.Target + ": " + err.Error()
	}
	defer conn.Close()
	if c.UseTLS {
		cfg := tlsConfig(c)
		if cfg.ServerName == "" {
			cfg.ServerName, _, _ = net.SplitHostPort(c.Target)
		}
		if err := tls.Client(conn, cfg).HandshakeContext(ctx); err != nil {
			return discovery.Critical, "TLS to " + c.Target + ": " + err.Error()
		}
	}
	return discovery.Passing, "TCP connect " + c.Target + ": Success"
}

// http makes one request. Redirects are not followed: an answer that leads
// elsewhere says nothing of this instance, and a check must not be a way to
// make requests to other hosts.
func (p *prober) http(ctx context.Context, c discovery.CheckDefinition) (discovery.Health, string) {
	req, err := http.NewRequestWithContext(ctx, c.Method, c.Target, strings.NewReader(c.Body))
	if err != nil {
		return discovery.Critical, err.Error()
	}
	for k, vs := range c.Header {
		for _, v := range vs {
			req.Header.Add(k, v)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "Consul Health Check")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/plain, text/*, */*")
	}
	t := &http.Transport{DialContext: p.dial, DisableKeepAlives: true, TLSClientConfig: tlsConfig(c)}
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return discovery.Critical, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil {
		return discovery.Critical, err.Error()
	}
	out := fmt.Sprintf("HTTP %s %s: %s Output: %s", c.Method, c.Target, resp.Status, body)
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode <= 299:
		return discovery.Passing, out
	case resp.StatusCode == http.StatusTooManyRequests:
		return discovery.Warning, out
	}
	return discovery.Critical, out
}

// grpc asks grpc.health.v1.Health/Check; the target is host:port or
// host:port/service.
func (p *prober) grpc(ctx context.Context, c discovery.CheckDefinition) (discovery.Health, string) {
	address, service, _ := strings.Cut(c.Target, "/")
	creds := insecure.NewCredentials()
	if c.UseTLS {
		creds = credentials.NewTLS(tlsConfig(c))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.dial(ctx, "tcp", addr) }))
	if err != nil {
		return discovery.Critical, err.Error()
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	switch {
	case err != nil:
		return discovery.Critical, "gRPC check " + c.Target + ": " + err.Error()
	case resp.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return discovery.Critical, "gRPC check " + c.Target + ": " + resp.GetStatus().String()
	}
	return discovery.Passing, "gRPC check " + c.Target + ": success"
}

// counter turns runs into a state by Consul's thresholds (agent/checks:
// StatusHandler): a state changes after so many runs alike.
type counter struct {
	successes, failures int
}

func (n *counter) next(c discovery.CheckDefinition, before, found discovery.Health) discovery.Health {
	if found.Usable() {
		n.successes, n.failures = n.successes+1, 0
		if n.successes >= c.SuccessBeforePassing {
			return found
		}
		return before
	}
	n.successes, n.failures = 0, n.failures+1
	warn := c.FailuresBeforeWarning
	if warn == 0 {
		warn = c.FailuresBeforeCritical
	}
	switch {
	case n.failures >= c.FailuresBeforeCritical:
		return discovery.Critical
	case n.failures >= warn:
		return discovery.Warning
	}
	return before
}

// result is the state of one check after a run.
type result struct {
	key    checkKey
	health discovery.Health
	output string
}

type checkKey struct{ instance, check string }

// repeat runs a check at once and then at its interval, and sends each result,
// until ctx ends.
func (p *prober) repeat(ctx context.Context, key checkKey, c discovery.CheckDefinition, out chan<- result) {
	var n counter
	state := c.Health
	timer := time.NewTicker(c.Interval)
	defer timer.Stop()
	for {
		found, output := p.run(ctx, c)
		if ctx.Err() != nil {
			return
		}
		state = n.next(c, state, found)
		select {
		case out <- result{key, state, output}:
		case <-ctx.Done():
			return
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}
