package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// childEnv, where set, makes the test binary a sidecar: its value is a
// childConfig as JSON.
const childEnv = "PARREL_ATTACK_SIDECAR"

// childConfig is what a sidecar of its own process is to be.
type childConfig struct {
	Admin, Listen, Backend string
	H2                     bool // to the backend
	Descriptors            int  // RLIMIT_NOFILE; 0: as it is
	Limits                 overload.Config
	HeaderTimeout          time.Duration // of requests' heads; 0: the default
	StreamIdle             time.Duration
	// Control is dialled over and over, each time anew, as a control plane that
	// does not stay; "": none is.
	Control string
}

func (c childConfig) resources() []resource.Resource {
	p := resource.ProtocolHTTP1
	if c.H2 {
		p = resource.ProtocolHTTP2
	}
	m := manager("x")
	m.RequestHeadersTimeout, m.StreamIdleTimeout = c.HeaderTimeout, c.StreamIdle
	return []resource.Resource{cluster("x", c.Backend, p), inbound("x", c.Listen, m)}
}

// endTime is how long the process may take to end; its drain takes a second.
const endTime = 10 * time.Second

// child is the process: it serves until its input ends.
func child() int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var c childConfig
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		return fail(err)
	}
	if c.Descriptors > 0 {
		l := unix.Rlimit{Cur: uint64(c.Descriptors), Max: uint64(c.Descriptors)}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return fail(err)
		}
	}
	n, err := overload.RaiseDescriptors()
	if err != nil {
		return fail(err)
	}
	c.Limits.Descriptors = n
	id, err := newIdentity()
	if err != nil {
		return fail(err)
	}
	conf, deps := config(c.Admin, c.resources(), id, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	conf.Limits = c.Limits
	deps.MemoryLimit = func(bytes int64) { debug.SetMemoryLimit(bytes) }
	s, err := sidecar.New(conf, deps)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer time.AfterFunc(endTime, func() {
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			os.Exit(3)
		})
		defer cancel()
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			debug.FreeOSMemory()
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if c.Control != "" {
		wg.Go(func() {
			for ctx.Err() == nil {
				if conn, err := deps.Net.Dial(ctx, "tcp", c.Control); err == nil {
					_, _ = conn.Read(make([]byte, 1))
					_ = conn.Close()
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	if err := s.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// process is a running child.
type process struct {
	childConfig
	t   testing.TB
	pid int
	in  io.Writer
}

// spawn runs a sidecar in a process of its own until the test ends. It must end
// orderly: a crash is a failure.
func spawn(t testing.TB, c childConfig) *process {
	t.Helper()
	c.Admin, c.Listen = freeAddress(t), freeAddress(t)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+string(b))
	l := &log{}
	cmd.Stderr = l
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		kill := time.AfterFunc(endTime+patience, func() { _ = cmd.Process.Kill() }) // it should have ended itself
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the sidecar's process: %v", err)
		}
		if t.Failed() {
			t.Logf("the sidecar's log:\n%s", tail(l.String(), 8000))
		}
	})
	p := &process{childConfig: c, t: t, pid: cmd.Process.Pid, in: in}
	eventually(t, "the sidecar is ready", func() error {
		status, body, err := get(p.Admin, "/ready")
		if err == nil && status != 200 {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	return p
}

// memory is what the process has of its own in memory: pages of the binary are
// the page cache's.
func (p *process) memory() int64 {
	p.t.Helper()
	n, err := p.status("RssAnon")
	if err != nil {
		p.t.Fatal(err)
	}
	return n << 10
}

// collect makes the process give back what it does not use.
func (p *process) collect() {
	if _, err := io.WriteString(p.in, "collect\n"); err != nil {
		p.t.Error(err)
	}
}

// status is a number of /proc/PID/status (proc_pid_status(5)).
func (p *process) status(key string) (n int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), key+":"); ok {
			_, err := fmt.Sscan(v, &n)
			return n, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s: the process has ended", p.pid, key)
}

// descriptors is how many the process has open.
func (p *process) descriptors() int {
	p.t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(d)
}

// stat is the sum of the samples in /stats whose line begins so.
func (p *process) stat(prefix string) float64 {
	p.t.Helper()
	v, err := stat(p.Admin, prefix)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// peak watches the process's memory until stopped, or the test ends, and gives
// the most that it had.
func (p *process) peak() (stop func() int64) {
	p.t.Helper()
	most := p.memory()
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			n, err := p.status("RssAnon")
			if err != nil { // it has ended: its test says so
				return
			}
			most = max(most, n<<10)
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	end := sync.OnceFunc(func() { close(done) })
	p.t.Cleanup(end)
	return func() int64 {
		end()
		<-over
		return most
	}
}

func tail(s string, n int) string { return s[max(len(s)-n, 0):] }

func mb(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/math.Pow(2, 20)) }
