package rig

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
)

// Process is a child that may be ended and started again. Its methods belong to
// the test's goroutine.
type Process struct {
	Name string
	Args []string // of the next Start
	Env  []string // beside the parent's, of the next Start
	// Child changes how the next Start makes the process; nil: as it is.
	Child func(*syscall.SysProcAttr)

	r    *Rig
	bin  string
	log  string // file
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
}

// Start starts the process, again after Kill or Stop.
func (p *Process) Start() {
	p.r.T.Helper()
	if p.cmd != nil && p.Alive() {
		p.r.T.Fatalf("%s runs already", p.Name)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.r.T.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(p.bin, p.Args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(environment(), p.Env...)
	cmd.SysProcAttr = child()
	if p.Child != nil {
		p.Child(cmd.SysProcAttr)
	}
	if err := spawn(cmd); err != nil {
		p.r.T.Fatalf("start %s: %v", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait() // how it ended is in its ProcessState
		close(done)
	}()
}

// Alive says whether it still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Pid is the number of the process that Start started.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill ends it as a crash does (kill -9) and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // already gone is as good
	<-p.done
}

// Stop asks it to end (SIGTERM) and wants it ended in time.
func (p *Process) Stop(within time.Duration) {
	p.r.T.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // already gone is as good
	if !p.Wait(within) {
		p.r.T.Errorf("%s has not ended %s after SIGTERM", p.Name, within)
		p.Kill()
	}
}

// Wait waits until it has ended by itself, and says whether it has.
func (p *Process) Wait(within time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(within):
		return false
	}
}

// ExitCode is that of a process that has ended.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Log is everything that it has written so far, over all its lives.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.r.T.Fatal(err)
	}
	return string(text)
}

// Logged waits for a line of the log that holds all these texts.
func (p *Process) Logged(within time.Duration, texts ...string) string {
	p.r.T.Helper()
	var found string
	p.r.Eventually(within, fmt.Sprintf("the log of %s says %q", p.Name, texts), func() error {
	line:
		for line := range strings.Lines(p.Log()) {
			for _, t := range texts {
				if !strings.Contains(line, t) {
					continue line
				}
			}
			found = line
			return nil
		}
		return fmt.Errorf("no such line")
	})
	return found
}

// environment is the parent's without what would lead a child to another
// Consul.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CONSUL_") && !strings.HasPrefix(e, "PARREL_") {
			env = append(env, e)
		}
	}
	return env
}

var (
	thread   sync.Once
	spawning = make(chan func())
)

// spawn starts a child from a thread that lives as long as this process:
// PR_SET_PDEATHSIG follows the thread that forked.
func spawn(cmd *exec.Cmd) error {
	thread.Do(func() {
		go func() {
			runtime.LockOSThread() // never unlocked
			for f := range spawning {
				f()
			}
		}()
	})
	started := make(chan error)
	spawning <- func() { started <- cmd.Start() }
	return <-started
}

// Port finds a port of loopback that nobody listens on, each time another one.
func Port(t testing.TB) int { return consultest.Port(t) }

// Listen opens a port of loopback.
func Listen(t testing.TB) (net.Listener, int) {
	t.Helper()
	for range 20 { // somebody else may be quicker
		port := Port(t)
		if l, err := net.Listen("tcp", Addr(port)); err == nil {
			return l, port
		}
	}
	t.Fatal("no free port")
	return nil, 0
}

// Addr is a port of loopback.
func Addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// Build builds parrel into a temporary folder, which remove takes away.
func Build() (binary string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "parrel-e2e-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	binary = filepath.Join(dir, "parrel")
	cmd := exec.Command("go", "build", "-o", binary, "github.com/parrel-mesh/parrel/cmd/parrel")
	if out, err := cmd.CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, remove, nil
}
