package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Gone says how one finds out that an application has gone that somebody else
// minds. The zero value is nobody's.
type Gone struct {
	kind string // port, pid, pidfile, cgroup
	what string
}

// ParseGone reads port, port:NUMBER, pid:NUMBER, pidfile:PATH or cgroup:PATH.
func ParseGone(s string) (Gone, error) {
	kind, what, given := strings.Cut(s, ":")
	g := Gone{kind, what}
	bad := fmt.Errorf("%q is no way to find an application: write port, port:8080, pid:1234, pidfile:/run/web.pid or cgroup:/system.slice/web.service", s)
	switch kind {
	case "port":
		if n, err := strconv.ParseUint(what, 10, 16); given && (err != nil || n == 0) {
			return Gone{}, bad
		}
	case "pid":
		if n, err := strconv.Atoi(what); err != nil || n <= 1 {
			return Gone{}, bad
		}
	case "pidfile", "cgroup":
		if !strings.HasPrefix(what, "/") {
			return Gone{}, bad
		}
	default:
		return Gone{}, bad
	}
	return g, nil
}

// Times of Wait.
const (
	gonePause = 50 * time.Millisecond
	goneQuiet = time.Second
)

// Wait returns nil when the application has gone, or ctx's error. addresses are
// where it listens, for port without a number; quiet says whether nothing of its
// traffic is open: a port is closed before the application has ended its work,
// so that it counts as gone only after a second of quiet.
func (g Gone) Wait(ctx context.Context, addresses []string, quiet func() bool) error {
	still, err := g.probe(addresses)
	if err != nil {
		return err
	}
	tick := time.NewTicker(gonePause)
	defer tick.Stop()
	quietSince := time.Now()
	for {
		here, err := still()
		if err != nil {
			return err
		}
		if here || g.kind == "port" && !quiet() {
			quietSince = time.Now()
		}
		if !here && (g.kind != "port" || time.Since(quietSince) >= goneQuiet) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// probe makes the question whether the application is still here.
func (g Gone) probe(addresses []string) (func() (bool, error), error) {
	switch g.kind {
	case "port":
		if g.what != "" {
			addresses = []string{"localhost:" + g.what}
		}
		return func() (bool, error) {
			for _, a := range addresses {
				if open, err := Listening(a); open || err != nil {
					return open, err
				}
			}
			return false, nil
		}, nil
	case "pid":
		n, err := strconv.Atoi(g.what)
		return alive(n), err
	case "pidfile":
		b, err := os.ReadFile(g.what)
		if errors.Is(err, fs.ErrNotExist) {
			return func() (bool, error) { return false, nil }, nil
		}
		if err != nil {
			return nil, fmt.Errorf("run: %w", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || n <= 1 {
			return nil, fmt.Errorf("run: %s holds no number of a process but %q", g.what, strings.TrimSpace(string(b)))
		}
		return alive(n), nil
	case "cgroup":
		return func() (bool, error) { return populated("/sys/fs/cgroup", g.what) }, nil
	}
	return func() (bool, error) { return false, nil }, nil
}

// alive asks for a process that was there when it was first asked for: another
// one that gets its number later started at another time.
func alive(pid int) func() (bool, error) {
	first := startTime(pid)
	return func() (bool, error) {
		if now := startTime(pid); first != "" || now != "" {
			return now != "" && now == first, nil
		}
		err := syscall.Kill(pid, 0) // no /proc
		return err == nil || errors.Is(err, syscall.EPERM), nil
	}
}

// startTime is field 22 of /proc/PID/stat (proc(5)), "" of one that is not there
// or has exited and was not waited for.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}

// populated says whether a control group has a process, in the hierarchies that
// a host may have: version 2 alone, beside version 1 ("unified"), or that of
// systemd in version 1.
func populated(root, group string) (bool, error) {
	for _, h := range []string{"", "unified", "systemd"} {
		found := false
		err := filepath.WalkDir(filepath.Join(root, h, group), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
				return nil // what is gone has no process
			}
			b, err := os.ReadFile(path)
			if err == nil && len(b) > 0 {
				found = true
				return fs.SkipAll
			}
			return nil
		})
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}
