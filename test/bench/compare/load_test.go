package main

import (
	"maps"
	"strings"
	"testing"
)

const wrkText = `Running 1s test @ http://127.0.0.1:9501/
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    49.12us  211.82us   4.15ms   98.89%
    Req/Sec   117.12k     3.64k  120.79k    72.73%
  Latency Distribution
     50%   29.00us
     75%   34.00us
     90%    1.20ms
     99%    2.00s
  127772 requests in 1.10s, 137.45MB read
Requests/sec: 116176.75
Transfer/sec:    124.98MB
`

const h2loadText = `starting benchmark...
spawning thread #0: 4 total client(s). 1000 total requests
Application protocol: http/1.1
progress: 100% done

finished in 10.59ms, 94428.71 req/s, 101.58MB/s
requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.08MB (1128000) total, 71.29KB (73000) headers (space savings 0.00%), 1000.00KB (1024000) data
                     min         max         mean         sd        +/- sd
time for request:       18us       130us      2.29ms        10us    83.40%
time for connect:       50us       242us       132us        81us    50.00%
`

func TestParsers(t *testing.T) {
	for _, c := range []struct {
		name  string
		parse func(string) (Load, error)
		out   string
		want  Load
		bad   string // what the error says; empty: none
	}{
		{"wrk", parseWrk, wrkText, Load{Rate: 116176.75, N: 127772, Latency: map[string]float64{"p50": 29, "p90": 1200, "p99": 2e6}}, ""},
		{"wrk errors", parseWrk, wrkText + "  Socket errors: connect 0, read 3, write 0, timeout 0\n", Load{}, "read 3"},
		{"wrk not 2xx", parseWrk, strings.Replace(wrkText, "Requests/sec", "  Non-2xx or 3xx responses: 17\nRequests/sec", 1), Load{}, "responses: 17"},
		{"wrk cannot connect", parseWrk, "unable to connect to 127.0.0.1:1 Connection refused\n", Load{}, "Connection refused"},
		{"h2load", parseH2load, h2loadText, Load{Rate: 94428.71, N: 1000, Latency: map[string]float64{"mean": 2290}}, ""},
		{"h2load failed", parseH2load, strings.Replace(h2loadText, "0 failed", "2 failed", 1), Load{}, "2 failed"},
		{"h2load 503", parseH2load, strings.Replace(h2loadText, "0 5xx", "1 5xx", 1), Load{}, "1 5xx"},
		{"h2load silent", parseH2load, "", Load{}, "nothing that is known"},
		{"tool", parseTool, `{"rate":4000.3,"n":8000,"p50":103.5}` + "\n", Load{Rate: 4000.3, N: 8000, Latency: map[string]float64{"p50": 103.5}}, ""},
		{"tool did nothing", parseTool, `{"rate":0,"n":0}`, Load{}, "did nothing"},
		{"tool failed", parseTool, "connect: refused", Load{}, "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.parse(c.out)
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Fatalf("error %v, want one that says %q", err, c.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Rate != c.want.Rate || got.N != c.want.N || !maps.Equal(got.Latency, c.want.Latency) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}
