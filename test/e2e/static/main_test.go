package static

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// parrel is the binary that all tests run; set once, before they do.
var parrel string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	binary, remove, err := rig.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/static:", err)
		return 1
	}
	defer remove()
	parrel = binary
	return m.Run()
}

// soon bounds what should take a fraction of a second, on a busy machine.
const soon = 30 * time.Second

const examples = "../../../examples/static/"

// proxy is one process with the ports that stand in its file.
type proxy struct {
	*rig.Process
	ports map[string]string // port of the example: address here
}

func (p *proxy) at(port int) string { return p.ports[strconv.Itoa(port)] }

var portValue = regexp.MustCompile(`port_value: (\d+)`)

// start runs an example with ports of this test: those of to are given, others
// are found. Files of certificates are those of the rig's folder.
func start(r *rig.Rig, example string, to map[int]int, edits ...string) *proxy {
	r.T.Helper()
	text, err := os.ReadFile(examples + example)
	if err != nil {
		r.T.Fatal(err)
	}
	p := &proxy{ports: map[string]string{}}
	mine := portValue.ReplaceAllStringFunc(strings.NewReplacer(edits...).Replace(string(text)), func(m string) string {
		old := strings.Fields(m)[1]
		if p.ports[old] == "" {
			n, _ := strconv.Atoi(old)
			if to[n] == 0 {
				p.ports[old] = rig.Addr(rig.Port(r.T))
			} else {
				p.ports[old] = rig.Addr(to[n])
			}
		}
		return "port_value: " + strings.TrimPrefix(p.ports[old], "127.0.0.1:")
	})
	mine = strings.NewReplacer("filename: ", "filename: "+r.Dir+"/").Replace(mine)
	file := filepath.Join(r.Dir, example)
	if err := os.WriteFile(file, []byte(mine), 0o600); err != nil {
		r.T.Fatal(err)
	}
	p.Process = r.Process(strings.TrimSuffix(example, ".yaml"), "sidecar", "-c", file, "--drain-time", "5s")
	p.Start()
	p.ready(r)
	return p
}

func (p *proxy) admin() string {
	for _, port := range []int{9901, 9902} {
		if a := p.at(port); a != "" {
			return "http://" + a
		}
	}
	return ""
}

func (p *proxy) ready(r *rig.Rig) {
	r.T.Helper()
	r.Eventually(soon, p.Name+" is ready", func() error {
		body, err := rig.Fetch(p.admin() + "/ready")
		if err == nil && strings.TrimSpace(body) != "LIVE" {
			err = errors.New(body)
		}
		if err != nil && !p.Alive() {
			r.T.Fatalf("%s has ended", p.Name)
		}
		return err
	})
}

var requestsTotal = regexp.MustCompile(`(?m)^istio_requests_total\{(.*)\} (\d+)$`)

// requests sums the process's requests by their status.
func (p *proxy) requests(r *rig.Rig) map[string]int {
	r.T.Helper()
	page, err := rig.Fetch(p.admin() + "/stats/prometheus")
	if err != nil {
		r.T.Fatal(err)
	}
	out := map[string]int{}
	for _, m := range requestsTotal.FindAllStringSubmatch(page, -1) {
		_, rest, _ := strings.Cut(m[1], `response_code="`)
		code, _, _ := strings.Cut(rest, `"`)
		n, _ := strconv.Atoi(m[2])
		out[code] += n
	}
	return out
}

// app is an HTTP application that says what it saw.
type app struct {
	port  int
	conns atomic.Int64 // opened to it
}

func startApp(r *rig.Rig) *app {
	r.T.Helper()
	ln, port := rig.Listen(r.T)
	a := &app{port: port}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/slow" {
				time.Sleep(700 * time.Millisecond)
			}
			fmt.Fprintf(w, "%s %s %s", req.Proto, req.Method, req.URL.Path)
		}),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				a.conns.Add(1)
			}
		},
	}
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(ln) })
	r.T.Cleanup(func() { _ = srv.Close(); done.Wait() })
	return a
}

// client makes a client of one version of HTTP.
func client(t testing.TB, h2 bool, conf *tls.Config) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!h2)
	p.SetHTTP2(h2 && conf != nil)
	p.SetUnencryptedHTTP2(h2 && conf == nil)
	tr := &http.Transport{Protocols: &p, TLSClientConfig: conf, MaxIdleConnsPerHost: 100,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			// gw.example is this machine, on whatever port.
			return new(net.Dialer).DialContext(ctx, network, strings.Replace(address, "gw.example", "127.0.0.1", 1))
		}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: soon}
}

func get(t testing.TB, c *http.Client, url string) (int, string, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Proto, string(body)
}

// relay passes connections on and counts them.
type relay struct {
	port  int
	conns atomic.Int64
}

func startRelay(r *rig.Rig, to string) *relay {
	r.T.Helper()
	ln, port := rig.Listen(r.T)
	x := &relay{port: port}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			x.conns.Add(1)
			wg.Go(func() { pass(ctx, c, to) })
		}
	})
	r.T.Cleanup(func() { _ = ln.Close(); cancel(); wg.Wait() })
	return x
}

func pass(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close(); _ = up.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, d := range [][2]net.Conn{{c, up}, {up, c}} {
		wg.Go(func() {
			_, _ = io.Copy(d[0], d[1])
			_ = d[0].Close()
		})
	}
	wg.Wait()
}

// line reads one line of a connection.
func line(t testing.TB, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(soon))
	s, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return s
}
