package lifecycle

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// starts is how many real processes TestFirstMillisecond starts: 100, or what
// LIFECYCLE_STARTS says. TestFirstMillisecond of test/sim starts 1,000 in virtual
// time.
func starts(t *testing.T) int {
	if s := os.Getenv("LIFECYCLE_STARTS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("LIFECYCLE_STARTS: %v", err)
		}
		return n
	}
	return 100
}

// TestFirstMillisecond: an application whose first act is a call to an upstream
// never fails, neither when its sidecar joins for the first time nor when it
// starts again from its data directory (Z2).
func TestFirstMillisecond(t *testing.T) {
	const slots = 4
	app, proxy := rig.Port(t), rig.Port(t)
	definitions := []any{rig.Define("api", "api-1", app, proxy), rig.Protocol("api", "http"), rig.Intentions("api", "web", "allow")}
	var ports [slots]int
	for i := range slots {
		ports[i] = rig.Port(t)
		definitions = append(definitions, rig.Define("web", fmt.Sprintf("web-%d", i), rig.Port(t), rig.Port(t), rig.Upstream{Service: "api", Port: ports[i]}))
	}
	m := newMesh(t, definitions...)
	api := m.AppAt("api-1", app)
	m.Sidecar(m.cp.XDS, []string{"api-1=api"}).Ready(soon)

	n := starts(t)
	var procs [slots]*rig.Process
	for i := range procs {
		procs[i] = m.runs(fmt.Sprintf("web-%d", i), "web", []string{"--admin-bind", "", "--shutdown-delay", "0s", "--start-timeout", soon.String()}, dialer, strconv.Itoa(ports[i]))
	}
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for _, p := range procs {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				p.Start()
				if !p.Wait(soon) {
					t.Errorf("%s does not end", p.Name)
					return
				}
				if p.ExitCode() != 0 {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d starts in %s, %d of them with a new identity", n, time.Since(begin).Round(time.Millisecond), slots)
	if failed.Load() > 0 {
		t.Errorf("%d of %d applications failed", failed.Load(), n)
	}
	if hits := api.Hits.Load(); hits != int64(n) {
		t.Errorf("the upstream was called %d times by %d applications", hits, n)
	}
}

// TestInboundOpensLast: callers are refused a connection until the application
// listens; then the sidecar is ready, and says so.
func TestInboundOpensLast(t *testing.T) {
	app, proxy, admin := rig.Port(t), rig.Port(t), rig.Addr(rig.Port(t))
	m := newMesh(t, rig.Define("api", "api-1", app, proxy), rig.Protocol("api", "http"))
	p := m.runs("api-1", "api", []string{"--admin-bind", admin}, os.Args[0])
	gate := m.Dir + "/gate"
	p.Env = []string{asApplication + "=http", "APP_PORT=" + strconv.Itoa(app), "APP_GATE=" + gate, "APP_STATS=" + m.Dir + "/stats"}
	p.Start()
	p.Logged(soon, "run: the application has started")
	_, _, err := m.Command("check", "ready", "--admin", admin)
	if err == nil {
		t.Error("it is ready although its application does not listen")
	}
	_, stderr, _ := m.Command("check", "ready", "--admin", admin)
	if !strings.Contains(stderr, "the application does not answer yet") {
		t.Errorf("check ready says %q", stderr)
	}
	if open := dials(proxy); open {
		t.Error("callers are let in although the application does not listen")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := m.Command("check", "ready", "--admin", admin, "--wait", soon.String()); err != nil {
		t.Errorf("it does not become ready: %v %s", err, stderr)
	}
	if !dials(proxy) {
		t.Error("it is ready, and callers are not let in")
	}
	m.Step("the end, by POST /quitquitquit, is the application's too")
	if _, stderr, err := m.Command("drain", "--inbound-only", "--admin", admin); err != nil {
		t.Errorf("drain: %v %s", err, stderr)
	}
	if dials(proxy) {
		t.Error("callers are let in after the drain")
	}
	if !p.Alive() {
		t.Fatal("the drain of inbound traffic has ended the application")
	}
	if err := rig.Post("http://" + admin + "/quitquitquit"); err != nil {
		t.Error(err)
	}
	if !p.Wait(soon) || p.ExitCode() != 0 {
		t.Errorf("it has not ended well: %d", p.ExitCode())
	}
}

// TestStartTimeout: what is missing is named, and the application has not run.
func TestStartTimeout(t *testing.T) {
	m := newMesh(t)
	p := m.runs("web-1", "web", []string{"--admin-bind", "", "--start-timeout", "1s"}, "/bin/sh", "-c", "echo it ran")
	p.Start()
	if !p.Wait(soon) || p.ExitCode() != 125 {
		t.Fatalf("exit code %d", p.ExitCode())
	}
	if log := p.Log(); !strings.Contains(log, "the application was not started: sidecar: not ready: web-1-sidecar-proxy: no complete configuration yet") || strings.Contains(log, "it ran") {
		t.Error("the sentence does not say what is missing, or the application ran")
	}
}

func dials(port int) bool {
	c, err := net.DialTimeout("tcp", rig.Addr(port), 5*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
