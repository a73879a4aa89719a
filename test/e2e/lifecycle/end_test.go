package lifecycle

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// TestNotify: a service manager hears what the unit waits for, that it serves,
// again and again that it is alive, and that it leaves; in this order.
func TestNotify(t *testing.T) {
	app, admin := rig.Port(t), rig.Addr(rig.Port(t))
	m := newMesh(t, rig.Define("api", "api-1", app, rig.Port(t)), rig.Protocol("api", "http"))
	gate, stats := filepath.Join(m.Dir, "gate"), filepath.Join(m.Dir, "stats")
	for _, c := range []struct {
		name string
		p    *rig.Process
	}{
		{"run", m.runs("api-1", "api", []string{"--admin-bind", admin}, os.Args[0])},
		{"sidecar", m.Process("sidecar", "sidecar", "--sidecar-for", "api-1=api", "--grpc-addr", m.cp.XDS, "--admin-bind", admin,
			"--data-dir", filepath.Join(m.Dir, "data-api-1"))}, // as run has left it
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "notify")
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			heard := make(chan string, 10000)
			go func() {
				defer close(heard)
				b := make([]byte, 4096)
				for {
					n, err := l.Read(b)
					if err != nil {
						return
					}
					heard <- string(b[:n])
				}
			}()
			until := func(prefix string, never ...string) {
				t.Helper()
				after := time.After(soon)
				for {
					select {
					case got := <-heard:
						for _, n := range never {
							if strings.HasPrefix(got, n) {
								t.Errorf("%q is told before %q", got, prefix)
							}
						}
						if strings.HasPrefix(got, prefix) {
							return
						}
					case <-after:
						t.Fatalf("%q is not told", prefix)
					}
				}
			}
			c.p.Env = []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=40000", asApplication + "=http", "APP_PORT=" + strconv.Itoa(app), "APP_GATE=" + gate, "APP_STATS=" + stats}
			c.p.Start()
			if c.name == "run" {
				c.p.Logged(soon, "run: the application has started")
				until("WATCHDOG=1", "READY=1")
				if err := os.WriteFile(gate, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if env := environ(t, childOf(t, c.p.Pid())); strings.Contains(env, "NOTIFY_SOCKET=") || strings.Contains(env, "WATCHDOG_USEC=") || !strings.Contains(env, "APP_PORT=") {
					t.Errorf("the application's environment: %q", env)
				}
			}
			until("READY=1", "STOPPING=1")
			for range 3 {
				until("WATCHDOG=1", "STOPPING=1")
			}
			if err := syscall.Kill(c.p.Pid(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			until("STOPPING=1", "READY=1")
			if !c.p.Wait(soon) || c.p.ExitCode() != 0 {
				t.Errorf("it has not ended well: %d", c.p.ExitCode())
			}
		})
	}
}

// childOf is the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var children []string
	if err == nil {
		children = strings.Fields(string(b))
	}
	if len(children) == 0 { // another thread's
		all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			if b, err := os.ReadFile(path); err == nil {
				children = append(children, strings.Fields(string(b))...)
			}
		}
	}
	if len(children) != 1 {
		t.Fatalf("children %q", children)
	}
	n, err := strconv.Atoi(children[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func environ(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestWaitForApp: a sidecar and its application get SIGTERM at the same moment;
// the application's calls work until it has exited, by each way to know of that.
// A second signal does not wait.
func TestWaitForApp(t *testing.T) {
	app, up, ledger := rig.Port(t), rig.Port(t), rig.Port(t)
	m := newMesh(t, rig.Define("api", "api-1", app, rig.Port(t), rig.Upstream{Service: "ledger", Port: up}), rig.Protocol("api", "http"),
		rig.Define("ledger", "ledger-1", ledger, rig.Port(t)), rig.Protocol("ledger", "http"), rig.Intentions("ledger", "api", "allow"))
	m.AppAt("ledger-1", ledger)
	m.Sidecar(m.cp.XDS, []string{"ledger-1=ledger"}, "--admin-access-log-path", "").Ready(soon)
	pidfile := filepath.Join(m.Dir, "pid")
	stats := filepath.Join(m.Dir, "stats")
	env := []string{asApplication + "=http", "APP_PORT=" + strconv.Itoa(app), "APP_UPSTREAM=" + strconv.Itoa(up), "APP_STATS=" + stats}
	start := func(what string) (*rig.Sidecar, *rig.Process) {
		t.Helper()
		s := m.Sidecar(m.cp.XDS, []string{"api-1=api"}, "--wait-for-app", what, "--drain-time", soon.String(), "--shutdown-delay", "0s")
		s.Ready(soon)
		a := m.Program("application", os.Args[0])
		a.Env = env
		a.Start()
		m.Eventually(soon, "the application listens", func() error {
			if !dials(app) {
				return fmt.Errorf("it does not")
			}
			return nil
		})
		if err := os.WriteFile(pidfile, fmt.Appendln(nil, a.Pid()), 0o600); err != nil {
			t.Fatal(err)
		}
		return s, a
	}
	for n, what := range []string{"pidfile:" + pidfile, "port", "port:" + strconv.Itoa(app)} {
		s, a := start(what)
		for _, p := range []int{s.Pid(), a.Pid()} {
			if err := syscall.Kill(p, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		if !a.Wait(soon) || !s.Wait(soon) {
			t.Fatalf("%s: not both have ended", what)
		}
		sum, lives, err := readStats(stats)
		if err != nil || lives != n+1 {
			t.Fatalf("%s: %d lives: %v", what, lives, err)
		}
		if sum.Failed > 0 || sum.Calls != int64(10*(n+1)) {
			t.Errorf("%s: %d of %d calls failed: %s", what, sum.Failed, sum.Calls, sum.Reason)
		}
		if s.ExitCode() != 0 {
			t.Errorf("%s: exit code %d", what, s.ExitCode())
		}
	}

	m.Step("a second signal")
	s, a := start("pidfile:" + pidfile)
	if err := syscall.Kill(s.Pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.Logged(soon, "waiting for the application to go")
	if !s.Alive() {
		t.Error("it has not waited")
	}
	if err := syscall.Kill(s.Pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !s.Wait(soon) || !a.Alive() {
		t.Errorf("the second signal has not ended it, or the application has gone")
	}
	a.Kill()

	_, stderr, err := m.Command("sidecar", "--sidecar-for", "api-1=api", "--data-dir", filepath.Join(m.Dir, "x"), "--wait-for-app", "web")
	if err == nil || !strings.Contains(stderr, `--wait-for-app: "web" is no way to find an application: write port`) {
		t.Errorf("%v %s", err, stderr)
	}
}
