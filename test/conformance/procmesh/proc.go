package procmesh

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Proc is one process of a test.
type Proc struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
}

// Start runs a command in the mesh's folder until the test ends. Its output is
// shown where the test fails.
func (m *Mesh) Start(name string, env []string, bin string, args ...string) *Proc {
	m.t.Helper()
	log, err := os.CreateTemp(m.Dir, name+"-*.log")
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(bin, args...)
	cmd.Dir = m.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("starting %s: %v", name, err)
	}
	p := &Proc{name: name, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is the test's business: Alive, Output
		close(p.done)
	}()
	m.t.Cleanup(func() {
		p.Stop()
		if m.t.Failed() {
			m.t.Logf("=== %s (%s)\n%s", name, filepath.Base(p.log), tail(p.Output(), 6000))
		}
	})
	return p
}

// Pid is the process id.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Alive says whether it still runs.
func (p *Proc) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends it at once and waits.
func (p *Proc) Kill() {
	_ = p.cmd.Process.Kill() // already gone is as good
	<-p.done
}

// Stop asks it to end, and kills it when it has not within 30 s: a drain may
// take as long as it was told to.
func (p *Proc) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.Kill()
	}
}

// Output is what it has written so far.
func (p *Proc) Output() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + strings.ToValidUTF8(s[len(s)-n:], "")
}
