package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// check is one thing that `demo --once` proves.
type check struct {
	name string
	run  func(ctx context.Context, w *world) error
}

// checks in their order: what looks on comes first, what breaks something last.
func (w *world) checks() []check {
	first, last := lookingOn(), breaking()
	if w.l.center != nil {
		first = append(first, capturedChecks()...)
	}
	return append(first, last...)
}

func lookingOn() []check {
	return []check{
		{"web calls api over HTTP, and api saw web's identity", pair("api", "web")},
		{"api calls orders over HTTP, and orders saw api's identity", pair("orders", "api")},
		{"api calls users over HTTP, and users saw api's identity", pair("users", "api")},
		{"api calls pricing over gRPC, and pricing saw api's identity", pair("pricing", "api")},
		{"api calls ledger over TCP, and ledger's sidecar saw api's identity", ledgerPeer},
		{"both versions of users answer", bothVersions},
		{"every sidecar has acknowledged its configuration", synced},
		{"explain says that web may call api, and web may not call users", explained},
		{"analyze finds nothing wrong", analyzed},
		{"plaintext to an inbound listener is refused", plaintextRefused},
		{"a TLS client without a certificate is refused", noCertificateRefused},
		{"the right identity is let in", rightIdentity},
		{"a wrong identity of this mesh is refused", wrongIdentity},
		{"an identity from another authority is refused", foreignIdentity},
		{"a client without identity gets no configuration", noIdentityNoConfig},
		{"a workload gets no configuration of another", otherNodeNoConfig},
		{"a used token is refused", usedToken},
		{"a forged caller identity is not passed on", forgedIdentity},
		{"metrics count the calls by identity", metricsCount},
		{"no private key in a sidecar's configuration dump", noKeyInDump},
	}
}

func breaking() []check {
	return []check{
		{"a killed instance gets no more traffic", killedInstance},
		{"an added instance gets traffic", addedInstance},
		{"an intention turned to deny ends an open connection within 1 s", denyEndsConnection},
		{"calls go on while the control plane is dead", controlPlaneDead},
		{"a restarted sidecar serves while the control plane is dead", sidecarRestarted},
		{"the control plane comes back and a change arrives", controlPlaneBack},
		{memoryCheck, memory},
	}
}

// checkAll runs all checks and prints a line for each.
func (w *world) checkAll(ctx context.Context) (passed, failed int, err error) {
	for _, c := range w.checks() {
		if c.name == memoryCheck && w.cfg.Consul {
			continue // the bound is for the mesh without Consul's server
		}
		cctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		start := time.Now()
		err := c.run(cctx, w)
		cancel()
		if ctx.Err() != nil {
			return passed, failed + 1, fmt.Errorf("demo: ended before its checks were done: %w", ctx.Err())
		}
		if err != nil {
			failed++
			fmt.Fprintf(w.cfg.Out, "FAIL  %s: %v\n", c.name, err)
			continue
		}
		passed++
		fmt.Fprintf(w.cfg.Out, "ok    %s (%d ms)\n", c.name, time.Since(start).Milliseconds())
	}
	if failed > 0 {
		return passed, failed, w.explainFailure(nil)
	}
	return passed, failed, nil
}

// pair asks the shop and compares the identity that a callee saw.
func pair(callee, caller string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		tree, err := w.ask(ctx)
		if err != nil {
			return err
		}
		a := tree.Find(callee)
		if a == nil {
			return fmt.Errorf("%s is not in the answer", callee)
		}
		if want := w.l.spiffeID(caller); a.Peer != want {
			return fmt.Errorf("%s saw %q, want %q", callee, a.Peer, want)
		}
		return nil
	}
}

// ledgerPeer: TCP carries no header, so what the callee's side saw is read from
// its sidecar's metrics.
func ledgerPeer(ctx context.Context, w *world) error {
	tree, err := w.ask(ctx)
	if err != nil {
		return err
	}
	if a := tree.Find("ledger"); a == nil || a.Instance != "ledger-1" {
		return fmt.Errorf("ledger did not answer: %+v", a)
	}
	return w.eventually(ctx, func() error {
		return w.metric(ctx, w.l.hostOf("ledger-1"), "istio_tcp_connections_opened_total",
			`reporter="destination"`, `source_principal="`+w.l.spiffeID("api")+`"`, `destination_service_name="ledger"`)
	})
}

// metric wants a sample above zero whose labels contain all of those given.
func (w *world) metric(ctx context.Context, h *host, name string, labels ...string) error {
	text, err := w.get(ctx, h.reach(0), h.adminURL()+"/stats/prometheus")
	if err != nil {
		return err
	}
sample:
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				continue sample
			}
		}
		if !strings.HasSuffix(line, " 0") {
			return nil
		}
	}
	return fmt.Errorf("%s has no sample above 0 with %s", name, strings.Join(labels, ", "))
}

func (w *world) get(ctx context.Context, f from, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client(f).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answered %s: %.200s", url, resp.Status, b)
	}
	return string(b), nil
}

// eventually repeats try until it succeeds or ctx ends, and then returns its
// last error.
func (w *world) eventually(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// usersURL is how api reaches users.
func (w *world) usersURL() string {
	return "http://" + w.l.find("api-1").upstream("users") + "/users"
}

// whoAnswers asks users n times and counts the answers by instance.
func (w *world) whoAnswers(ctx context.Context, n int) (map[string]int, error) {
	seen := map[string]int{}
	for range n {
		a, err := w.askURL(ctx, w.as("api-1"), w.usersURL())
		if err != nil {
			return seen, err
		}
		seen[a.Instance]++
	}
	return seen, nil
}

func bothVersions(ctx context.Context, w *world) error {
	return w.eventually(ctx, func() error {
		seen, err := w.whoAnswers(ctx, 20)
		if err != nil {
			return err
		}
		if seen["users-1"] == 0 || seen["users-2"] == 0 {
			return fmt.Errorf("of 20 answers: %v", seen)
		}
		return nil
	})
}

// forgedIdentity: what a client writes into the header that carries the
// caller's identity does not reach the callee.
func forgedIdentity(ctx context.Context, w *world) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.usersURL(), nil)
	if err != nil {
		return err
	}
	forged := "spiffe://" + w.l.trustDomain + "/ns/default/dc/dc1/svc/king"
	req.Header.Set("X-Forwarded-Client-Cert", "URI="+forged)
	resp, err := client(w.as("api-1")).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if strings.Contains(string(b), forged) || !strings.Contains(string(b), w.l.spiffeID("api")) {
		return fmt.Errorf("users answered %s: %s", resp.Status, b)
	}
	return nil
}

func metricsCount(ctx context.Context, w *world) error {
	for _, c := range []struct{ host, reporter, from, to, security string }{
		{"api-1", "destination", "web", "api", "mutual_tls"},
		{"web-1", "source", "web", "api", "unknown"}, // as Istio has it: the source does not tell
		{"users-1", "destination", "api", "users", "mutual_tls"},
	} {
		err := w.metric(ctx, w.l.hostOf(c.host), "istio_requests_total", `reporter="`+c.reporter+`"`,
			`source_principal="`+w.l.spiffeID(c.from)+`"`, `destination_principal="`+w.l.spiffeID(c.to)+`"`, `response_code="200"`,
			`connection_security_policy="`+c.security+`"`)
		if err != nil {
			return fmt.Errorf("host of %s: %w", c.host, err)
		}
	}
	return nil
}

func noKeyInDump(ctx context.Context, w *world) error {
	for _, h := range w.l.hosts {
		for _, path := range []string{"/config_dump", "/certs"} {
			text, err := w.get(ctx, h.reach(0), h.adminURL()+path)
			if err != nil {
				return err
			}
			if strings.Contains(text, "PRIVATE KEY") {
				return fmt.Errorf("%s%s holds a private key", h.adminURL(), path)
			}
			if path == "/config_dump" && !strings.Contains(text, "public_listener") {
				return fmt.Errorf("%s%s holds no public listener", h.adminURL(), path)
			}
		}
	}
	return nil
}

// killedInstance kills users-2; once its check has failed, nothing goes there.
func killedInstance(ctx context.Context, w *world) error {
	w.apps["users-2"].kill()
	return w.eventually(ctx, func() error {
		seen, err := w.whoAnswers(ctx, 30)
		if err != nil {
			return err
		}
		if seen["users-2"] > 0 || seen["users-1"] != 30 {
			return fmt.Errorf("of 30 answers: %v", seen)
		}
		return nil
	})
}

func addedInstance(ctx context.Context, w *world) error {
	if _, err := w.add(ctx, "users"); err != nil {
		return err
	}
	return w.eventually(ctx, func() error {
		seen, err := w.whoAnswers(ctx, 20)
		if err != nil {
			return err
		}
		if seen["users-3"] == 0 {
			return fmt.Errorf("of 20 answers: %v", seen)
		}
		return nil
	})
}

func controlPlaneDead(ctx context.Context, w *world) error {
	w.controlPlane.kill()
	for range 20 {
		if _, err := w.ask(ctx); err != nil {
			return err
		}
	}
	return nil
}

func sidecarRestarted(ctx context.Context, w *world) error {
	if w.controlPlane.alive() {
		return fmt.Errorf("the control plane still runs")
	}
	h := w.l.hostOf("web-1")
	w.sidecars[h.name].kill()
	if err := w.startSidecar(h); err != nil {
		return err
	}
	return w.eventually(ctx, func() error {
		_, err := w.ask(ctx)
		return err
	})
}

func controlPlaneBack(ctx context.Context, w *world) error {
	if err := w.startControlPlane(); err != nil {
		return err
	}
	if err := w.cat.put(ctx, intentionFile("orders"), intentions("orders", "deny", "api")); err != nil {
		return err
	}
	err := w.eventually(ctx, func() error {
		tree, err := w.ask(ctx)
		if err == nil {
			return errors.New("api may still call orders")
		}
		if a := tree.Find("orders"); a == nil || !strings.Contains(a.Error, "403") {
			return fmt.Errorf("orders is not what fails, or not with 403: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.cat.put(ctx, intentionFile("orders"), intentions("orders", "allow", "api")); err != nil {
		return err
	}
	return w.eventually(ctx, func() error {
		_, err := w.ask(ctx)
		return err
	})
}

const (
	memoryCheck = "the mesh stays under 250 MB"
	memoryBound = 250.0 // MB
)

// memory waits for the processes that were started last to settle.
func memory(ctx context.Context, w *world) error {
	var mb float64
	err := w.eventually(ctx, func() (err error) {
		if mb, err = w.procs.residentMB(); err == nil && mb > memoryBound {
			err = fmt.Errorf("all processes together hold %.0f MB", mb)
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w.cfg.Out, "      resident: %.0f MB in %d processes\n", mb, len(w.procs.running())+1)
	return nil
}
