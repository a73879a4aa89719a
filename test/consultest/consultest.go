// Package consultest starts real Consul agents and clusters for tests, on free
// ports of the loopback interface, and ends them with the test.
//
// It speaks plain HTTP to them, so that a test sees what a user's curl sees.
// Stop and Start may be called in a test's course; everything is killed by its
// process id when the test ends.
package consultest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Binary finds Consul's binary: bin/consul at the root of the repository, else
// consul on the PATH. Where there is none the test fails: a skipped test is no
// test.
func Binary(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			bin := filepath.Join(d, "bin", "consul")
			if info, err := os.Stat(bin); err == nil && info.Mode()&0o111 != 0 {
				return bin
			}
			break
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	if bin, err := exec.LookPath("consul"); err == nil {
		return bin
	}
	t.Fatal("there is no Consul to test with: run \"make consul\"")
	return ""
}

// Options of an agent.
type Options struct {
	Durable bool   // keep state on disk over Stop and Start; otherwise -dev, which forgets everything
	HCL     string // more configuration, in Consul's own words
}

// Agent is one Consul server process.
type Agent struct {
	HTTP string // host:port of its HTTP API
	GRPC string // host:port of its gRPC API
	Node string
	Dir  string // its data and its log

	t     testing.TB
	bin   string
	args  []string
	ports agentPorts
	cmd   *exec.Cmd
	done  chan struct{}
}

type agentPorts struct{ http, grpc, server, lan, wan int }

// Dev starts one server agent and waits until it leads.
func Dev(t testing.TB, o Options) *Agent {
	t.Helper()
	a := newAgent(t, "node-1")
	if o.Durable {
		a.args = append(a.args, "-server", "-bootstrap-expect=1", "-data-dir="+filepath.Join(a.Dir, "data"))
	} else {
		a.args = append(a.args, "-dev")
	}
	if o.HCL != "" {
		a.args = append(a.args, "-hcl="+o.HCL)
	}
	a.Start()
	a.WaitLeader(60 * time.Second)
	return a
}

// Cluster starts n servers that have joined each other and waits for a leader.
func Cluster(t testing.TB, n int) []*Agent {
	t.Helper()
	agents := make([]*Agent, n)
	for i := range agents {
		agents[i] = newAgent(t, "node-"+strconv.Itoa(i+1))
	}
	for _, a := range agents {
		a.args = append(a.args, "-server", "-bootstrap-expect="+strconv.Itoa(n), "-data-dir="+filepath.Join(a.Dir, "data"))
		for _, b := range agents {
			if b != a {
				a.args = append(a.args, "-retry-join="+address(b.ports.lan))
			}
		}
		a.args = append(a.args, "-retry-interval=500ms")
		a.Start()
	}
	for _, a := range agents {
		a.WaitLeader(60 * time.Second)
	}
	return agents
}

func newAgent(t testing.TB, node string) *Agent {
	t.Helper()
	p := agentPorts{Port(t), Port(t), Port(t), Port(t), Port(t)}
	a := &Agent{
		HTTP: address(p.http), GRPC: address(p.grpc), Node: node, Dir: t.TempDir(),
		t: t, bin: Binary(t), ports: p,
	}
	a.args = []string{
		"agent", "-node=" + node, "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn",
		"-log-file=" + filepath.Join(a.Dir, "consul.log"), "-disable-host-node-id=true",
		"-http-port=" + strconv.Itoa(p.http), "-grpc-port=" + strconv.Itoa(p.grpc), "-grpc-tls-port=-1", "-dns-port=-1",
		"-server-port=" + strconv.Itoa(p.server), "-serf-lan-port=" + strconv.Itoa(p.lan), "-serf-wan-port=" + strconv.Itoa(p.wan),
		"-hcl=performance { raft_multiplier = 1 } connect { enabled = true } disable_update_check = true leave_on_terminate = false",
	}
	return a
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Start starts the process, again after Stop.
func (a *Agent) Start() {
	a.t.Helper()
	out, err := os.OpenFile(filepath.Join(a.Dir, "output"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(a.bin, a.args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		a.t.Fatalf("start consul: %v", err)
	}
	done := make(chan struct{})
	a.cmd, a.done = cmd, done
	go func() { _ = cmd.Wait(); close(done) }()
	a.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if a.t.Failed() && a.cmd == cmd {
			text, _ := os.ReadFile(filepath.Join(a.Dir, "output"))
			a.t.Logf("%s said at last:\n%s", a.Node, text[max(0, len(text)-4000):])
		}
	})
}

// Stop kills the process, as a crash does.
func (a *Agent) Stop() {
	a.t.Helper()
	_ = a.cmd.Process.Kill()
	<-a.done
}

// WaitLeader waits until the agent answers and knows a leader.
func (a *Agent) WaitLeader(most time.Duration) {
	a.t.Helper()
	for end := time.Now().Add(most); ; time.Sleep(50 * time.Millisecond) {
		// A catalogue with the agent itself in it, so that registrations stay.
		if body, err := a.try("GET", "/v1/health/node/"+a.Node, nil); err == nil && strings.Contains(body, "serfHealth") {
			return
		}
		select {
		case <-a.done:
			text, _ := os.ReadFile(filepath.Join(a.Dir, "output"))
			a.t.Fatalf("%s ended while starting:\n%s", a.Node, text)
		default:
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s has no leader after %s", a.Node, most)
		}
	}
}

// Leader gives the agent of the cluster that leads.
func Leader(t testing.TB, agents []*Agent) *Agent {
	t.Helper()
	for _, a := range agents {
		body, err := a.try("GET", "/v1/status/leader", nil)
		if err != nil {
			continue
		}
		for _, b := range agents {
			if strings.Contains(body, address(b.ports.server)) {
				return b
			}
		}
	}
	t.Fatal("the cluster has no leader")
	return nil
}

// Get reads a path of the HTTP API into out, which may be nil.
func (a *Agent) Get(path string, out any) {
	a.t.Helper()
	a.do("GET", path, nil, out)
}

// Put writes a path of the HTTP API; body is JSON text or a value to encode.
func (a *Agent) Put(path string, body any) {
	a.t.Helper()
	a.do("PUT", path, body, nil)
}

// Register registers a service, given as JSON text or as a value.
func (a *Agent) Register(service any) {
	a.t.Helper()
	a.Put("/v1/agent/service/register", service)
}

// Deregister takes a service of this agent away.
func (a *Agent) Deregister(id string) {
	a.t.Helper()
	a.Put("/v1/agent/service/deregister/"+id, nil)
}

// Entry writes a config entry.
func (a *Agent) Entry(entry any) {
	a.t.Helper()
	a.Put("/v1/config", entry)
}

// DeleteEntry deletes a config entry.
func (a *Agent) DeleteEntry(kind, name string) {
	a.t.Helper()
	a.do("DELETE", "/v1/config/"+kind+"/"+name, nil, nil)
}

func (a *Agent) do(method, path string, body, out any) {
	a.t.Helper()
	text, err := a.try(method, path, body)
	// An agent that has just come back, or lost its leader, cuts connections and
	// answers 500 for a while. Everything here may be said twice.
	for end := time.Now().Add(recovery); err != nil && passing(err) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		text, err = a.try(method, path, body)
	}
	if err == nil && out != nil {
		err = json.Unmarshal([]byte(text), out)
	}
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// recovery bounds how long an agent may take to be well again.
const recovery = 20 * time.Second

// passing says that an error is one that an agent gets over.
func passing(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return s.code >= 500
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED)
}

// statusError is an answer that is not 200.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

func (a *Agent) try(method, path string, body any) (string, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return "", err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, "http://"+a.HTTP+path, r)
	if err != nil {
		return "", err
	}
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &statusError{resp.StatusCode, string(text)}
	}
	return string(text), err
}

// Server is the address by which the other servers know this one.
func (a *Agent) Server() string { return address(a.ports.server) }
