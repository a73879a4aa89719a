package main

import "fmt"

// Series is one kind of load.
type Series struct {
	name, title string
	workload    string
	server      string // command behind the proxies; @BIN@ and @RUN@ are filled in
	client      string // command; {port} and {secs} are filled in too
	parse       func(stdout string) (Load, error)
	unit        string  // what CPU is quoted for
	per         float64 // that many of Load.N
	anchor      string  // ratios are to this contender
	targets     []Target
	exact       string // a client of a fixed number of requests; empty: counts are not compared
	// slack is how many requests the timed client may have sent and forgotten at
	// its end: the count at the proxy lies between the client's and that much more.
	slack float64
}

// Target is what a ratio of parrel to the anchor has to reach.
type Target struct {
	Metric   metric  `json:"metric"`
	Required float64 `json:"required"` // 0: none
	Goal     float64 `json:"goal"`
}

// metric is a column whose ratio to the anchor's is judged.
type metric string

const (
	mCPU   metric = "CPU"             // of the proxy's processes
	mCore  metric = "proxy core busy" // by anything, softirq and kernel threads included
	mRate  metric = "rate"            // the more the better
	mAdded metric = "added p50"       // over the direct one's
	mIdle  metric = "idle MB with 100 services"
	mConn  metric = "KB per idle connection"
)

func (m metric) atLeast() bool { return m == mRate }

const (
	serveH1   = "@BIN@/back 9001 1024"
	serveH2   = "nghttpd --no-tls -d @BIN@/www --echo-upload 9002"
	serveSink = "@BIN@/tcp sink 9003"
	serveEcho = "@BIN@/tcp echo 9004"

	wrkClient = "wrk -t1 -c64 -d{secs}s --latency http://127.0.0.1:{port}/"
	// exactCount is the number of requests of the exact clients.
	exactCount = 20000
	exactH1    = "h2load --h1 -t1 -c64 -n20000 http://127.0.0.1:{port}/"
	grpcLoad   = ` -d @BIN@/www/1k.txt -H "content-type: application/grpc" -H "te: trailers" http://127.0.0.1:{port}/bench.Echo/Unary`
)

var table = []Series{
	{
		name: "h1", title: "HTTP/1.1, 1 KB, 64 connections", workload: wH1, server: serveH1,
		client: wrkClient, parse: parseWrk, unit: "10k requests", per: 1e4, anchor: "haproxy",
		targets: []Target{{mCPU, 0.90, 0.80}}, exact: exactH1, slack: 64,
	},
	{
		name: "h2", title: "HTTP/2, 1 KB, 8 connections of 8 streams", workload: wH2, server: serveH2,
		client: "h2load -t1 -c8 -m8 -D{secs} http://127.0.0.1:{port}/1k.txt", parse: parseH2load, unit: "10k requests", per: 1e4, anchor: "haproxy",
		targets: []Target{{mCPU, 0.85, 0.75}}, exact: "h2load -t1 -c8 -m8 -n20000 http://127.0.0.1:{port}/1k.txt", slack: 64,
	},
	{
		name: "grpc", title: "gRPC unary, 1 KB each way, 8 connections of 8 streams", workload: wH2, server: serveH2,
		client: "h2load -t1 -c8 -m8 -D{secs}" + grpcLoad, parse: parseH2load, unit: "10k requests", per: 1e4, anchor: "haproxy",
		targets: []Target{{mCore, 1.1, 1.0}}, exact: "h2load -t1 -c8 -m8 -n20000" + grpcLoad, slack: 64,
	},
	{
		name: "mtls", title: "HTTP/1.1 through two proxies with mTLS between them", workload: wH1, server: serveH1,
		client: wrkClient, parse: parseWrk, unit: "10k requests", per: 1e4, anchor: "haproxy-pair",
		targets: []Target{{mCPU, 0.70, 0.60}, {mRate, 1.5, 1.7}}, exact: exactH1, slack: 64,
	},
	{
		name: "https", title: "HTTPS in, HTTP/1.1 out, 64 connections", workload: wHTTPS, server: serveH1,
		client: "h2load --h1 -t1 -c64 -D{secs} https://127.0.0.1:{port}/", parse: parseH2load, unit: "10k requests", per: 1e4, anchor: "haproxy",
		targets: []Target{{mCPU, 1.0, 0.90}}, exact: "h2load --h1 -t1 -c64 -n20000 https://127.0.0.1:{port}/", slack: 64,
	},
	{
		name: "hs", title: "TLS 1.3 handshakes, P-256 certificate, X25519", workload: wHTTPS, server: serveH1,
		client: "@BIN@/handshake {port} {secs}", parse: parseTool, unit: "1k handshakes", per: 1e3, anchor: "haproxy",
		targets: []Target{{mCPU, 1.05, 0.95}},
	},
	{
		name: "l4-1", title: "bytes one way, 1 connection (rate in Gbit/s)", workload: wSink, server: serveSink,
		client: "@BIN@/tcp send {port} 1 {secs}", parse: parseTool, unit: "GB", per: 1, anchor: "haproxy-splice",
		targets: []Target{{mCore, 0.90, 0.75}, {mRate, 0.95, 0.95}},
	},
	{
		name: "l4-16", title: "bytes one way, 16 connections (rate in Gbit/s)", workload: wSink, server: serveSink,
		client: "@BIN@/tcp send {port} 16 {secs}", parse: parseTool, unit: "GB", per: 1, anchor: "haproxy-splice",
		targets: []Target{{mCore, 0.90, 0.75}, {mRate, 0.95, 0.95}},
	},
	{
		name: "ping-1", title: "64 bytes each way in turns, 1 connection", workload: wEcho, server: serveEcho,
		client: "@BIN@/tcp ping {port} 1 {secs} 64", parse: parseTool, unit: "10k round trips", per: 1e4, anchor: "haproxy",
	},
	{
		name: "ping-64", title: "64 bytes each way in turns, 64 connections", workload: wEcho, server: serveEcho,
		client: "@BIN@/tcp ping {port} 64 {secs} 64", parse: parseTool, unit: "10k round trips", per: 1e4, anchor: "haproxy",
	},
	{
		name: "l4tls", title: "bytes one way through both ends of mTLS, 4 connections (rate in Gbit/s)", workload: wSink, server: serveSink,
		client: "@BIN@/tcp send {port} 4 {secs}", parse: parseTool, unit: "GB", per: 1, anchor: "haproxy-l4tls",
		targets: []Target{{mCPU, 1.0, 0.92}},
	},
	{
		name: "l4tls-ping", title: "64 bytes each way in turns through both ends of mTLS, 16 connections", workload: wEcho, server: serveEcho,
		client: "@BIN@/tcp ping {port} 16 {secs} 64", parse: parseTool, unit: "10k round trips", per: 1e4, anchor: "haproxy-l4tls",
	},
	{
		name: "lat", title: "HTTP/1.1 at 4,000 requests a second, 32 connections, open loop", workload: wH1, server: serveH1,
		client: "@BIN@/lat {port} 32 4000 {secs}", parse: parseTool, unit: "10k requests", per: 1e4, anchor: "haproxy",
		targets: []Target{{mAdded, 1.0, 0.9}, {mCore, 1.05, 1.0}}, exact: exactH1,
	},
	{
		name: "lat-mtls", title: "the pair of mtls at 2,000 requests a second, 32 connections, open loop", workload: wH1, server: serveH1,
		client: "@BIN@/lat {port} 32 2000 {secs}", parse: parseTool, unit: "10k requests", per: 1e4, anchor: "haproxy-pair",
		targets: []Target{{mAdded, 1.0, 0.9}, {mCore, 1.05, 1.0}}, exact: exactH1,
	},
}

// judge says how a ratio stands to a target.
func (t Target) judge(v float64) string {
	better := func(limit float64) bool {
		if t.Metric.atLeast() {
			return v >= limit
		}
		return v <= limit
	}
	switch {
	case v == 0:
		return "not measured"
	case better(t.Goal):
		return "goal reached"
	case better(t.Required):
		return "reached"
	}
	return "MISSED"
}

func (t Target) limit(v float64) string {
	if t.Metric.atLeast() {
		return fmt.Sprintf("≥ %g", v)
	}
	return fmt.Sprintf("≤ %g", v)
}
