package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// Workloads: what a port of a contender carries.
const (
	wH1    = "h1"    // HTTP/1.1 to back
	wHTTPS = "https" // HTTPS to back
	wH2    = "h2"    // HTTP/2 without TLS to nghttpd
	wSink  = "sink"  // bytes to tcp sink
	wEcho  = "echo"  // bytes to tcp echo
)

// Contender is a proxy, or a pair of them, that series can be run through.
type Contender struct {
	Cmds   []string       `json:"cmds"`   // of a shell, at the module's root; started in this order
	Ports  map[string]int `json:"ports"`  // by workload, on 127.0.0.1
	Series []string       `json:"series"` // that it takes part in
	// Admin are the ports of its administration APIs whose count of requests must
	// equal the client's.
	Admin []int `json:"admin"`
}

const direct = "direct" // the client at the server, without a proxy

// others are the contenders that every run has. @RUN@ is the run's folder.
var others = map[string]Contender{
	direct: {
		Ports:  map[string]int{wH1: 9001, wH2: 9002, wSink: 9003, wEcho: 9004},
		Series: []string{"h1", "h2", "grpc", "l4-1", "l4-16", "ping-1", "ping-64", "lat", "lat-mtls"},
	},
	"haproxy": {
		Cmds:   []string{"haproxy -db -f @RUN@/haproxy.cfg"},
		Ports:  map[string]int{wH1: 8801, wH2: 8802, wSink: 8803, wEcho: 8804, wHTTPS: 8807},
		Series: []string{"h1", "h2", "grpc", "https", "hs", "l4-1", "l4-16", "ping-1", "ping-64", "lat", memSeries},
	},
	"haproxy-splice": {
		Cmds:   []string{"haproxy -db -f @RUN@/haproxy-splice.cfg"},
		Ports:  map[string]int{wSink: 8808},
		Series: []string{"l4-1", "l4-16"},
	},
	"haproxy-pair": {
		Cmds:   []string{"haproxy -db -f @RUN@/haproxy-pair-b.cfg", "haproxy -db -f @RUN@/haproxy-pair-a.cfg"},
		Ports:  map[string]int{wH1: 8805},
		Series: []string{"mtls", "lat-mtls"},
	},
	"haproxy-l4tls": {
		Cmds:   []string{"haproxy -db -f @RUN@/haproxy-l4tls.cfg"},
		Ports:  map[string]int{wSink: 8825, wEcho: 8827},
		Series: []string{"l4tls", "l4tls-ping"},
	},
	"nginx": {
		Cmds:   []string{"nginx -c @RUN@/nginx.conf"},
		Ports:  map[string]int{wH1: 8701, wH2: 8702, wSink: 8703, wEcho: 8704, wHTTPS: 8707},
		Series: []string{"h1", "h2", "grpc", "https", "hs", "l4-1", "l4-16", "ping-1", "ping-64", "lat", memSeries},
	},
	"nginx-pair": {
		Cmds:   []string{"nginx -c @RUN@/nginx-pair-b.conf", "nginx -c @RUN@/nginx-pair-a.conf"},
		Ports:  map[string]int{wH1: 8705},
		Series: []string{"mtls", "lat-mtls"},
	},
}

// order is the order of contenders in a round and in tables; those that do not
// stand here come last, by name.
var order = []string{direct, "haproxy", "haproxy-splice", "haproxy-pair", "haproxy-l4tls", "nginx", "nginx-pair"}

// loadContenders joins the contenders of a file with those that every run has.
func loadContenders(path string) (map[string]Contender, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := map[string]Contender{}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for name, c := range all {
		if len(c.Cmds) == 0 || len(c.Ports) == 0 {
			return nil, fmt.Errorf("%s: %s has no commands or no ports", path, name)
		}
		if _, ok := others[name]; ok {
			return nil, fmt.Errorf("%s: %s is the name of a contender that every run has", path, name)
		}
		for _, s := range c.Series {
			at := slices.IndexFunc(table, func(t Series) bool { return t.name == s })
			if at < 0 {
				return nil, fmt.Errorf("%s: %s names the series %q, which does not exist", path, name, s)
			}
			if c.Ports[table[at].workload] == 0 {
				return nil, fmt.Errorf("%s: %s has no port %q, which the series %s asks", path, name, table[at].workload, s)
			}
		}
	}
	for name, c := range others {
		all[name] = c
	}
	return all, nil
}

// taking lists who takes part in a series, in order. With only, those alone and
// the anchors.
func taking(all map[string]Contender, series string, anchors, only []string) []string {
	var out []string
	for name, c := range all {
		if slices.Contains(c.Series, series) && (len(only) == 0 || slices.Contains(only, name) || slices.Contains(anchors, name)) {
			out = append(out, name)
		}
	}
	rank := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(out, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		if a < b {
			return -1
		}
		return 1
	})
	return out
}
