package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

const (
	memSeries = "mem"
	memTitle  = "memory: idle, and with idle keep-alive connections (PSS)"
	hundred   = "parrel-100" // parrel with 100 services
	memPort   = 8991

	calm  = 1500 * time.Millisecond // after the start, before the first reading
	parks = 2500 * time.Millisecond // after the connections are open, before the second
)

var memTargets = []Target{{mIdle, 20, 16}, {mConn, 6, 2}}

// MemRow is the memory of one contender.
type MemRow struct {
	Name    string  `json:"name"`
	Idle    float64 `json:"idle"`     // MB of 2^20 bytes
	Loaded  float64 `json:"loaded"`   // MB with the connections
	PerConn float64 `json:"per_conn"` // KB of 2^10 bytes for each
}

// memory takes the proportional set size of each HTTP/1.1 proxy when it is idle
// and when it holds o.conns connections that have carried one request each.
// Nothing is pinned, and Go has two threads of work: this is how a proxy that
// nobody tunes stands on two cores.
func memory(b *run.Bench, o *options, all map[string]Contender) (*Result, error) {
	conns := o.conns
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return nil, err
	}
	if most := int(l.Cur)/2 - 500; conns > most { // a proxy may need two for each
		fmt.Fprintf(os.Stderr, "compare: %d idle connections instead of %d: the limit of open files is %d\n", most, conns, l.Cur)
		conns = most
	}
	server, err := b.Start("mem-server", "sh", "-c", "exec "+place(b, serveH1))
	if err != nil {
		return nil, err
	}
	defer b.Stop(server)
	parrel, ok := all["parrel"]
	if !ok {
		return nil, errors.New("no contender is named parrel")
	}
	many, err := services(b, 100)
	if err != nil {
		return nil, err
	}
	res := &Result{Series: memSeries, Title: memTitle, Client: fmt.Sprintf("tcp idle PORT %d", conns), Rounds: 1, Targets: memTargets}
	for _, x := range []struct {
		name string
		port int
		cmd  string
	}{
		{"haproxy", others["haproxy"].Ports[wH1], others["haproxy"].Cmds[0]},
		{"nginx", others["nginx"].Ports[wH1], others["nginx"].Cmds[0]},
		{"parrel", parrel.Ports[wH1], parrel.Cmds[0]},
		{hundred, memPort, many},
	} {
		if len(o.only) > 0 && !slices.Contains(o.only, x.name) {
			continue
		}
		row, err := weigh(b, x.name, x.port, x.cmd, conns)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
		fmt.Fprintf(os.Stderr, "mem: %-12s idle %.1f MB, with %d connections %.1f MB\n", row.Name, row.Idle, conns, row.Loaded)
		res.Mem = append(res.Mem, row)
	}
	return res, nil
}

func weigh(b *run.Bench, name string, port int, line string, conns int) (MemRow, error) {
	row := MemRow{Name: name}
	cmd, err := b.Start("mem-"+name, "sh", "-c", "export GOMAXPROCS=2; exec "+place(b, line))
	if err != nil {
		return row, err
	}
	defer b.Stop(cmd)
	for range 200 {
		if answers(port) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(calm)
	if row.Idle, err = pss(tree(cmd.Process.Pid)); err != nil {
		return row, err
	}
	opener := exec.Command(filepath.Join(tools(), "tcp"), "idle", strconv.Itoa(port), strconv.Itoa(conns))
	opener.Stderr = os.Stderr
	in, err := opener.StdinPipe()
	if err != nil {
		return row, err
	}
	out, err := opener.StdoutPipe()
	if err != nil {
		return row, err
	}
	if err := opener.Start(); err != nil {
		return row, err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "idle" {
		return row, errors.Join(errors.New("the connections could not be opened"), opener.Wait())
	}
	time.Sleep(parks)
	row.Loaded, err = pss(tree(cmd.Process.Pid))
	row.PerConn = (row.Loaded - row.Idle) * 1024 / float64(conns)
	in.Close() // now every connection is used again: idle must not have meant closed
	for lines.Scan() {
	}
	return row, errors.Join(err, opener.Wait())
}

// pss sums the proportional set sizes, in MB of 2^20 bytes.
func pss(pids []int) (float64, error) {
	sum := 0.0
	for _, p := range pids {
		mb, _, err := run.MemoryMB(p)
		if err != nil {
			return 0, err
		}
		sum += mb * 1e6 / (1 << 20)
	}
	return sum, nil
}

// services writes parrel's configuration of h1 with n more services, each with a
// virtual host and a cluster of its own, and returns the command that runs it.
func services(b *run.Bench, n int) (string, error) {
	text, err := os.ReadFile(filepath.Join(bench, "conf", "h1.yaml"))
	if err != nil {
		return "", err
	}
	doc := strings.NewReplacer("port_value: 8901", fmt.Sprintf("port_value: %d", memPort), "port_value: 9901", fmt.Sprintf("port_value: %d", memPort+1)).Replace(string(text))
	const hosts, clusters = "            virtual_hosts:\n", "  clusters:\n"
	if strings.Count(doc, hosts) != 1 || strings.Count(doc, clusters) != 1 {
		return "", errors.New("test/bench/conf/h1.yaml has not the form that 100 services are added to")
	}
	var vs, cs strings.Builder
	for i := range n {
		fmt.Fprintf(&vs, `            - name: s%03d
              domains: [s%03d.bench.local]
              routes:
              - match: { prefix: / }
                route: { cluster: s%03d, timeout: 15s, retry_policy: { retry_on: connect-failure, num_retries: 2 } }
`, i, i, i)
		fmt.Fprintf(&cs, `  - name: s%03d
    type: STATIC
    connect_timeout: 5s
    lb_policy: LEAST_REQUEST
    load_assignment:
      cluster_name: s%03d
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9001 } } }
        - endpoint: { address: { socket_address: { address: 127.0.0.2, port_value: 9001 } } }
        - endpoint: { address: { socket_address: { address: 127.0.0.3, port_value: 9001 } } }
`, i, i)
	}
	doc = strings.Replace(doc, hosts, hosts+vs.String(), 1)
	doc = strings.Replace(doc, clusters, clusters+cs.String(), 1)
	if err := b.Write("hundred.yaml", doc); err != nil {
		return "", err
	}
	return b.Parrel + " sidecar -c @RUN@/hundred.yaml", nil
}
