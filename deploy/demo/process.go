package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// process is one child.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was waited for
	err  error         // read-only after done
}

// pid is the child's process id.
func (p *process) pid() int { return p.cmd.Process.Pid }

// alive says whether it still runs.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends it at once and waits.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // already gone is as good
	<-p.done
}

// stop asks it to end, and kills it when it has not after grace.
func (p *process) stop(grace time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
		p.kill()
	}
}

// processes are the children of one demo. Children get their own process group
// (Ctrl-C reaches the supervisor alone, which ends them in order) and die with
// the supervisor (PR_SET_PDEATHSIG), which therefore starts all of them from
// one thread that lives as long as it does.
type processes struct {
	logDir string
	env    []string
	spawn  chan func()
	thread sync.WaitGroup

	mu  sync.Mutex
	all []*process // guarded by mu
}

func newProcesses(logDir string, env []string) *processes {
	p := &processes{logDir: logDir, env: env, spawn: make(chan func())}
	p.thread.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for f := range p.spawn {
			f()
		}
	})
	return p
}

// start runs a command whose output goes to the log file of that name.
func (p *processes) start(name, binary string, args ...string) (*process, error) {
	return p.startIn(0, name, binary, args...)
}

// startIn is start in new namespaces, by clone(2)'s flags.
func (p *processes) startIn(flags uintptr, name, binary string, args ...string) (*process, error) {
	logFile, err := os.OpenFile(filepath.Join(p.logDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = p.env
	cmd.SysProcAttr = child(flags)
	started := make(chan error)
	p.spawn <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("demo: cannot start %s: %w", name, err)
	}
	c := &process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	p.mu.Lock()
	p.all = append(p.all, c)
	p.mu.Unlock()
	return c, nil
}

// running returns the living children, oldest first.
func (p *processes) running() []*process {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(c *process) bool { return !c.alive() })
	return slices.Clone(p.all)
}

// stopAll ends every child, the youngest first, each with a grace of its own,
// all within the bound of ctx.
func (p *processes) stopAll(ctx context.Context, grace time.Duration) {
	all := p.running()
	slices.Reverse(all)
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() { c.stop(grace) })
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		for _, c := range all {
			c.kill()
		}
		<-ended
	}
	close(p.spawn)
	p.thread.Wait()
}

// residentMB sums the resident sets of the living children and of the
// supervisor itself, in MB (10^6 bytes), as /proc says.
func (p *processes) residentMB() (float64, error) {
	total := 0.0
	pids := []int{os.Getpid()}
	for _, c := range p.running() {
		pids = append(pids, c.pid())
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			if os.IsNotExist(err) {
				continue // it has just ended
			}
			return 0, fmt.Errorf("demo: %w", err)
		}
		var size, resident float64
		if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
			return 0, fmt.Errorf("demo: /proc/%d/statm: %w", pid, err)
		}
		total += resident * float64(os.Getpagesize()) / 1e6
	}
	return total, nil
}
