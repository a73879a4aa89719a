// Package rig starts, breaks and mends the parts of a mesh for test/e2e:
// processes of parrel, applications in the test's own process, and questions to
// them.
//
// Owns: processes by their ids, ports, folders, logs; everything is taken down
// with the test. Does not know: what a test wants to prove.
package rig

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/api"
)

// TrustDomain of every mesh here.
const TrustDomain = "e2e.parrel"

// Rig is one mesh. Its methods belong to the test's goroutine unless they say
// otherwise.
type Rig struct {
	T      testing.TB
	Dir    string
	Parrel string // the binary

	mu    sync.Mutex
	procs []*Process // guarded by mu
}

// New makes a rig that is taken down with the test.
func New(t testing.TB, parrel string) *Rig {
	r := &Rig{T: t, Dir: t.TempDir(), Parrel: parrel}
	t.Cleanup(r.close)
	return r
}

func (r *Rig) close() {
	for _, p := range slices.Backward(r.procs) {
		if p.cmd != nil {
			p.Kill()
		}
	}
	if !r.T.Failed() {
		return
	}
	for _, p := range r.procs {
		text := p.Log()
		r.T.Logf("--- %s %s\n%s", p.Name, strings.Join(p.Args, " "), text[max(0, len(text)-6000):])
	}
}

// Process prepares a process of parrel; Start starts it.
func (r *Rig) Process(name string, args ...string) *Process {
	p := &Process{Name: name, Args: args, r: r, bin: r.Parrel, log: filepath.Join(r.Dir, fmt.Sprintf("%s-%d.log", name, len(r.procs)))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.procs = append(r.procs, p)
	return p
}

// Program is Process of another binary.
func (r *Rig) Program(name, bin string, args ...string) *Process {
	p := r.Process(name, args...)
	p.bin = bin
	return p
}

// Command runs parrel to its end and returns what it printed, and its error.
func (r *Rig) Command(args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(r.Parrel, args...)
	cmd.Env = environment()
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// Step narrates what the test does next.
func (r *Rig) Step(format string, args ...any) {
	r.T.Helper()
	r.T.Logf("— "+format, args...)
}

// Eventually repeats try until it succeeds, and says how long that took.
func (r *Rig) Eventually(within time.Duration, what string, try func() error) time.Duration {
	r.T.Helper()
	start := time.Now()
	for {
		err := try()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > within {
			r.T.Fatalf("not within %s: %s: %v", within, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// CADir is where the CA of the rig's control planes lives.
func (r *Rig) CADir() string { return filepath.Join(r.Dir, "ca") }

// Token makes a join token by the command that users run.
func (r *Rig) Token(services ...string) string {
	r.T.Helper()
	return r.TokenOf(r.CADir(), services)
}

// TokenOf is Token of another CA, or with more flags.
func (r *Rig) TokenOf(caDir string, services []string, flags ...string) string {
	r.T.Helper()
	args := append([]string{"token", "create", "--ca-dir", caDir, "--trust-domain", TrustDomain}, flags...)
	for _, s := range services {
		args = append(args, "--service", s)
	}
	out, errs, err := r.Command(args...)
	if err != nil {
		r.T.Fatalf("token create: %v: %s", err, errs)
	}
	return strings.TrimSpace(out)
}

// ControlPlane is a control plane process; its addresses survive restarts.
type ControlPlane struct {
	*Process
	XDS, API string // host:port
}

// ControlPlane starts one that reads the Consul agent at consul, and waits until
// it has read it.
func (r *Rig) ControlPlane(consul string, flags ...string) *ControlPlane {
	r.T.Helper()
	c := &ControlPlane{XDS: Addr(Port(r.T)), API: Addr(Port(r.T))}
	args := append([]string{"controlplane", "--ca-dir", r.CADir(), "--trust-domain", TrustDomain,
		"--grpc-bind", c.XDS, "--http-bind", c.API, "--http-addr", consul, "--drain-time", "1s"}, flags...)
	c.Process = r.Process("controlplane", args...)
	c.Start()
	c.Ready()
	return c
}

// Ready waits until the control plane has read its catalogue.
func (c *ControlPlane) Ready() {
	c.r.T.Helper()
	c.r.Eventually(60*time.Second, "the control plane is ready", func() error {
		s, err := c.Status()
		if err == nil && !s.ControlPlane.Ready {
			err = fmt.Errorf("it is not: %+v", s.Source)
		}
		if err != nil && !c.Alive() {
			c.r.T.Fatalf("the control plane has ended")
		}
		return err
	})
}

// Status asks the API.
func (c *ControlPlane) Status() (api.Status, error) {
	var s api.Status
	body, err := Fetch("http://" + c.API + "/v1/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	return s, err
}

// InSync waits until the sidecars with these node ids are connected and have
// acknowledged everything.
func (c *ControlPlane) InSync(nodes ...string) {
	c.r.T.Helper()
	c.r.Eventually(60*time.Second, fmt.Sprintf("%q in sync", nodes), func() error {
		s, err := c.Status()
		if err != nil {
			return err
		}
		for _, n := range nodes {
			i := slices.IndexFunc(s.Sidecars, func(sc api.Sidecar) bool { return sc.Node == n && sc.Connected && sc.InSync && len(sc.Types) > 0 })
			if i < 0 {
				return fmt.Errorf("%s is not: %+v", n, s.Sidecars)
			}
		}
		return nil
	})
}

var plain = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Fetch gets a page that must be there.
func Fetch(url string) (string, error) {
	resp, err := plain.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %.300s", url, resp.Status, body)
	}
	return string(body), err
}

// Post posts nothing to a page that must be there.
func Post(url string) error {
	resp, err := plain.Post(url, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return nil
}
