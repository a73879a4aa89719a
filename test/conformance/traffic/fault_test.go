package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

// testFaults: what the client is told and what the log says is what happened.
func testFaults(t *testing.T, w *world) {
	for _, f := range []struct {
		name, service    string
		status           int
		code, says, flag string
	}{
		{"denied", "denied", 403, "rbac_denied", "intention", "RBAC"},
		{"application down", "down", 503, "upstream_connect_failure", "", "UF"},
		{"no instance", "none", 503, "no_healthy_upstream", "", "UH"},
	} {
		t.Run(f.name, func(t *testing.T) {
			r, err := http.Get(w.url(f.service, "/fault"))
			if err != nil {
				t.Fatal(err)
			}
			body := drainBody(t, r)
			if r.StatusCode != f.status || !strings.Contains(strings.Join(r.Header["Proxy-Status"], ","), f.code) || !strings.Contains(body, f.says) {
				t.Errorf("%d, %v, %q", r.StatusCode, r.Header, body)
			}
			t.Logf("%s: %s", strings.TrimSpace(body), r.Header["Proxy-Status"])
			from := f.service
			if f.service == "none" {
				from = "web"
			}
			t.Log(w.logged(t, from, "/fault", f.flag, f.code))
		})
	}
	for _, service := range []string{"deniedtcp", "downtcp"} {
		t.Run(service, func(t *testing.T) {
			// The sidecar is there, and resets a connection that cannot be carried: whether
			// the client learns of it when it dials or when it reads is chance.
			c, err := net.DialTimeout("tcp", w.upstream[service], 20*time.Second)
			if err != nil {
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Error(err)
				}
				return
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// testPlaintext: probes that are not TLS leave a bounded log.
func testPlaintext(t *testing.T, w *world) {
	const probes = 500
	for range probes {
		c := dial(t, w.proxy["app-1"])
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") // a reset is an end, too
		if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("plaintext is neither answered nor ended")
		} else if len(b) > 0 {
			t.Fatalf("plaintext was answered with %q", b)
		}
		c.Close()
	}
	lines := strings.Count(w.sidecars["app"].Output(), "connection refused")
	if lines == 0 || lines > 50 {
		t.Errorf("%d probes left %d lines in the log", probes, lines)
	}
}

// testCounts: after a load the metrics of both sidecars say what the client
// counted.
func testCounts(t *testing.T, w *world) {
	const workers, each = 20, 250
	before := map[string]int{}
	for _, s := range []string{"web", "app"} {
		before[s] = w.requests(t, s)
	}
	tr := &http.Transport{MaxIdleConnsPerHost: workers}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range workers {
		wg.Go(func() {
			for range each {
				r, err := client.Get(w.url("app", "/status/200"))
				if err != nil || r.StatusCode != 200 {
					failed.Add(1)
				}
				if err == nil {
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d requests failed", n)
	}
	for _, s := range []string{"web", "app"} {
		procmesh.Eventually(t, func() error {
			if got := w.requests(t, s) - before[s]; got != workers*each {
				return fmt.Errorf("%s counted %d of %d requests", s, got, workers*each)
			}
			return nil
		})
	}
}

var requestsLine = regexp.MustCompile(`(?m)^istio_requests_total\{[^\n]*destination_service_name="app"[^\n]*\} ([0-9.e+]+)$`)

// requests is what a sidecar counted of requests to app.
func (w *world) requests(t *testing.T, name string) int {
	t.Helper()
	_, body, err := w.ask(name, "/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	n := 0.0
	for _, m := range requestsLine.FindAllStringSubmatch(body, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		n += v
	}
	return int(n)
}

// testLeaks: many short connections leave nothing behind.
func testLeaks(t *testing.T, w *world) {
	churn := func(n int) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				tr := &http.Transport{DisableKeepAlives: true}
				client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
				for range n / 8 {
					r, err := client.Get(w.url("app", "/status/200"))
					if err != nil {
						t.Error(err)
						return
					}
					r.Body.Close()
				}
			})
		}
		wg.Wait()
	}
	churn(800)
	fds, goroutines := w.descriptors(t, "web")+w.descriptors(t, "app"), w.goroutines(t)
	churn(6000)
	procmesh.Eventually(t, func() error {
		if f, g := w.descriptors(t, "web")+w.descriptors(t, "app"), w.goroutines(t); f > fds+20 || g > goroutines+40 {
			return fmt.Errorf("file descriptors %d → %d, goroutines %d → %d", fds, f, goroutines, g)
		}
		return nil
	})
}

func (w *world) descriptors(t *testing.T, name string) int {
	t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.sidecars[name].Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

var goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines ([0-9]+)$`)

func (w *world) goroutines(t *testing.T) int {
	t.Helper()
	n := 0
	for _, s := range []string{"web", "app"} {
		_, body, err := w.ask(s, "/stats/prometheus")
		if err != nil {
			t.Fatal(err)
		}
		m := goroutinesLine.FindStringSubmatch(body)
		if m == nil {
			t.Fatal("no go_goroutines")
		}
		v, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n += v
	}
	return n
}
