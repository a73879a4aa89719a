// Package run starts and ends the processes that a benchmark measures.
package run

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bench is the folder and the processes of one benchmark.
type Bench struct {
	Dir    string
	Parrel string // the binary
	Consul string
	procs  []*exec.Cmd
	spawn  chan func()
}

// Main is the whole of a benchmark's main: it measures, prints the logs when that
// fails, cleans up and ends the process with what came of it.
func Main(name string, measure func(*Bench) error) {
	b, err := New()
	if err == nil {
		err = measure(b)
		if err != nil {
			b.Logs(os.Stderr)
		}
		b.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// New makes a temporary folder and finds the binaries below bin.
func New() (*Bench, error) {
	dir, err := os.MkdirTemp("", "parrel-bench-")
	if err != nil {
		return nil, err
	}
	b := &Bench{Dir: dir, Parrel: filepath.Join("bin", "parrel"), Consul: filepath.Join("bin", "consul"), spawn: make(chan func())}
	if _, err := os.Stat(b.Parrel); err != nil {
		return nil, fmt.Errorf("no %s: run `make build` at the top of the module first", b.Parrel)
	}
	go func() { // PR_SET_PDEATHSIG follows the thread that forked
		runtime.LockOSThread()
		for f := range b.spawn {
			f()
		}
	}()
	return b, nil
}

// Start runs a command whose output goes to a log in the folder.
func (b *Bench) Start(name, binary string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(b.Dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = child()
	started := make(chan error)
	b.spawn <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	b.procs = append(b.procs, cmd)
	return cmd, nil
}

// Pinned runs a command line of the shell on one core, with one thread of Go's.
func (b *Bench) Pinned(name string, core int, line string) (*exec.Cmd, error) {
	return b.Start(name, "taskset", "-c", strconv.Itoa(core), "sh", "-c", "export GOMAXPROCS=1; exec "+line)
}

// Stop ends a process that Start began, and its children, and waits for it.
func (b *Bench) Stop(cmd *exec.Cmd) {
	b.procs = slices.DeleteFunc(b.procs, func(p *exec.Cmd) bool { return p == cmd })
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // already gone is as good
	late := time.AfterFunc(3*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait() // how it ended does not matter
	late.Stop()
}

// Close ends every process and removes the folder.
func (b *Bench) Close() {
	for len(b.procs) > 0 {
		b.Stop(b.procs[len(b.procs)-1])
	}
	close(b.spawn)
	os.RemoveAll(b.Dir)
}

// Output runs a command to its end and returns what it printed.
func (b *Bench) Output(binary string, args ...string) (string, error) {
	out, err := exec.Command(binary, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", binary, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Write puts a file below the folder, replacing it in one step.
func (b *Bench) Write(name, text string) error {
	path := filepath.Join(b.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// Logs prints the beginning and the end of every log, for a benchmark that failed.
func (b *Bench) Logs(w io.Writer) {
	logs, _ := filepath.Glob(filepath.Join(b.Dir, "*.log")) // the pattern is fixed
	for _, l := range logs {
		text, err := os.ReadFile(l)
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		if cut := len(lines) - 10; cut > 6 {
			lines = append(append(lines[:6:6], fmt.Sprintf("(%d lines)", cut-6)), lines[cut:]...)
		}
		fmt.Fprintf(w, "--- %s\n%s\n", filepath.Base(l), strings.Join(lines, "\n"))
	}
}

// FreePort returns a port of 127.0.0.1 below the kernel's ephemeral range that
// nothing listens on, counting up from *next.
func FreePort(next *int) (int, error) {
	for ; *next < 32000; *next++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *next))
		if err != nil {
			continue
		}
		l.Close()
		*next++
		return *next - 1, nil
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 below 32000")
}

// Until asks url until it answers 200, and returns how long that took.
func Until(ctx context.Context, url string) (time.Duration, error) {
	start := time.Now()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(start), nil
			}
			err = fmt.Errorf("%s answered %s", url, resp.Status)
		}
		last = err
		select {
		case <-ctx.Done():
			return 0, last
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// MemoryMB is the proportional set size (PSS) of a process in MB (10^6 bytes),
// and its resident set (RSS).
func MemoryMB(pid int) (pss, rss float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		var kb float64
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				return 0, 0, err
			}
			pss = kb * 1024 / 1e6
		}
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				return 0, 0, err
			}
			rss = kb * 1024 / 1e6
		}
	}
	return pss, rss, nil
}
