package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// errCount says that a proxy counted other requests than the client sent.
var errCount = errors.New("the proxy's count is not the client's")

const requestsTotal = "istio_requests_total"

// recorded is how long the last requests of a client may take to be counted.
const recorded = 2 * time.Second

// requestCount sums the requests that a page of /stats/prometheus counts.
func requestCount(page string) (float64, error) {
	sum := 0.0
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, requestsTotal)
		if !ok || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		f := strings.Fields(rest[strings.LastIndexByte(rest, '}')+1:])
		if len(f) == 0 {
			return 0, fmt.Errorf("a sample without a value: %q", line)
		}
		v, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

// counts asks each administration API; nil where the series compares no counts.
func counts(admin []int, t *Series) ([]float64, error) {
	if t.exact == "" {
		return nil, nil
	}
	var out []float64
	c := &http.Client{Timeout: 5 * time.Second}
	defer c.CloseIdleConnections()
	for _, port := range admin {
		resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", port))
		if err != nil {
			return nil, err
		}
		page, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("/stats/prometheus at port %d answered %s", port, resp.Status)
		}
		v, err := requestCount(string(page))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// agree compares what was counted since before with what the client counted.
// Slack is for a client that forgot what was under way when its time was over. A
// request is counted when it is over, so the last ones may take up to patience.
func agree(admin []int, t *Series, before []float64, n, slack float64, patience time.Duration) error {
	until := time.Now().Add(patience)
	for {
		now, err := counts(admin, t)
		if err != nil {
			return err
		}
		var wrong error
		for i := range now {
			if d := now[i] - before[i]; d < n || d > n+slack {
				wrong = fmt.Errorf("%w: port %d counted %.0f of %.0f", errCount, admin[i], d, n)
			}
		}
		if wrong == nil || time.Now().After(until) {
			return wrong
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// exact sends a fixed number of requests, of which every one must be counted once.
func exact(b *run.Bench, c Contender, t *Series, name string) error {
	if t.exact == "" || len(c.Admin) == 0 {
		return nil
	}
	before, err := counts(c.Admin, t)
	if err != nil {
		return err
	}
	out, err := client(b, t.exact, c.Ports[t.workload], 0)
	if err != nil {
		return err
	}
	l, err := parseH2load(out)
	if err != nil {
		return err
	}
	if l.N != exactCount {
		return fmt.Errorf("%s: %.0f of %d requests were answered", name, l.N, exactCount)
	}
	return agree(c.Admin, t, before, exactCount, 0, recorded)
}
