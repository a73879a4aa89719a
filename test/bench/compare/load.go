package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Load is what a client says of one turn.
type Load struct {
	Rate    float64            // a second; Gbit/s for streams
	N       float64            // all of them; GB for streams
	Latency map[string]float64 // microseconds by name: p50, p90, p99, p999, mean
}

var (
	wrkDone     = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec:\s+([\d.]+)`)
	wrkQuantile = regexp.MustCompile(`(?m)^\s+(50|90|99)%\s+([\d.]+)(us|ms|s)\s*$`)
	wrkBad      = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx.*)$`)

	h2Finished = regexp.MustCompile(`(?m)^finished in [\d.]+m?s, ([\d.]+) req/s`)
	h2Requests = regexp.MustCompile(`(?m)^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	h2Codes    = regexp.MustCompile(`(?m)^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`)
	h2Mean     = regexp.MustCompile(`(?m)^time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)`)
)

// parseWrk reads what wrk --latency prints. Errors and answers that are not 2xx
// make the turn worthless.
func parseWrk(out string) (Load, error) {
	done, rate := wrkDone.FindStringSubmatch(out), wrkRate.FindStringSubmatch(out)
	if done == nil || rate == nil {
		return Load{}, fmt.Errorf("wrk said nothing that is known: %q", last(out))
	}
	if bad := wrkBad.FindStringSubmatch(out); bad != nil {
		return Load{}, fmt.Errorf("wrk: %s", bad[1])
	}
	l := Load{Rate: number(rate[1]), N: number(done[1]), Latency: map[string]float64{}}
	for _, q := range wrkQuantile.FindAllStringSubmatch(out, -1) {
		l.Latency["p"+q[1]] = micros(q[2], q[3])
	}
	return l, nil
}

// parseH2load reads what h2load prints.
func parseH2load(out string) (Load, error) {
	finished, requests, codes := h2Finished.FindStringSubmatch(out), h2Requests.FindStringSubmatch(out), h2Codes.FindStringSubmatch(out)
	if finished == nil || requests == nil || codes == nil {
		return Load{}, fmt.Errorf("h2load said nothing that is known: %q", last(out))
	}
	if sum(requests[5:8])+sum(codes[2:5]) > 0 {
		return Load{}, fmt.Errorf("h2load: %s; %s", requests[0], codes[0])
	}
	l := Load{Rate: number(finished[1]), N: number(requests[4]), Latency: map[string]float64{}}
	if m := h2Mean.FindStringSubmatch(out); m != nil {
		l.Latency["mean"] = micros(m[1], m[2])
	}
	return l, nil
}

// parseTool reads the line of JSON that the project's own tools print.
func parseTool(out string) (Load, error) {
	values := map[string]float64{}
	if err := json.Unmarshal([]byte(last(out)), &values); err != nil {
		return Load{}, fmt.Errorf("the tool printed no result: %q: %w", last(out), err)
	}
	l := Load{Rate: values["rate"], N: values["n"], Latency: map[string]float64{}}
	if l.N <= 0 || l.Rate <= 0 {
		return Load{}, fmt.Errorf("the tool did nothing: %q", last(out))
	}
	for k, v := range values {
		if k != "rate" && k != "n" {
			l.Latency[k] = v
		}
	}
	return l, nil
}

// last returns the last line.
func last(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// number reads digits that a pattern has matched.
func number(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0
	}
	return v
}

func sum(digits []string) float64 {
	s := 0.0
	for _, d := range digits {
		s += number(d)
	}
	return s
}

func micros(s, unit string) float64 {
	switch unit {
	case "ms":
		return number(s) * 1e3
	case "s":
		return number(s) * 1e6
	}
	return number(s)
}
