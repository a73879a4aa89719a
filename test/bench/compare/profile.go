package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// profile runs parrel alone under the load of a series and prints where its time
// goes (perf record: by shared object, then by symbol of parrel's and of the
// kernel's) and its system calls for a unit (perf stat, which counts without
// stopping anybody). The binary is built anew with its symbols. perf's data stay
// in bin/bench/perf-SERIES.data, for perf annotate.
func profile(b *run.Bench, o *options, all map[string]Contender, t *Series) error {
	if _, err := exec.LookPath("perf"); err != nil {
		return fmt.Errorf("%w: install Debian's package linux-perf", err)
	}
	binary := filepath.Join("bin", "bench", "parrel")
	build := exec.Command("go", "build", "-pgo", profilePath, "-o", binary, "./cmd/parrel")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	names := taking(all, t.name, nil, o.only)
	for _, name := range names {
		c := all[name]
		if len(o.only) == 0 && len(c.Admin) == 0 || len(c.Cmds) == 0 {
			continue // not parrel's own, and not asked for
		}
		cmds := make([]string, len(c.Cmds))
		for i, line := range c.Cmds {
			cmds[i] = strings.Replace(line, b.Parrel+" ", binary+" ", 1)
		}
		c.Cmds = cmds
		if err := profileOne(b, o, map[string]Contender{name: c}, t, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func profileOne(b *run.Bench, o *options, all map[string]Contender, t *Series, name string) error {
	s, err := raise(b, all, t, []string{name})
	defer s.stop(b)
	if err != nil {
		return err
	}
	var pids []string
	for _, p := range s.contenders[name] {
		pids = append(pids, strconv.Itoa(p))
	}
	list := strings.Join(pids, ",")
	port := all[name].Ports[t.workload]
	data := filepath.Join(tools(), "perf-"+t.name+".data")
	before, err := timeOf(s.contenders[name])
	if err != nil {
		return err
	}
	l, err := during(b, t, port, o.secs, "perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-g", "-o", data, "-p", list)
	if err != nil {
		return err
	}
	after, err := timeOf(s.contenders[name])
	if err != nil {
		return err
	}
	fmt.Printf("## %s %s: rate %.6g, CPU %.4f s for %s while perf looked on\n\n", t.name, name, l.Rate, (after-before)/(l.N/t.per), t.unit)
	for _, by := range []struct {
		what string
		most int
		args []string
	}{
		{"all", 4, []string{"-F", "overhead,dso"}},
		{"user space", 45, []string{"-F", "overhead,sym", "--dsos", filepath.Base(program(all[name].Cmds))}},
		{"kernel", 20, []string{"-F", "overhead,sym", "--dsos", "[kernel.kallsyms]"}},
	} {
		out, err := exec.Command("perf", append([]string{"report", "-i", data, "--stdio", "--no-children", "-g", "none"}, by.args...)...).Output()
		if err != nil {
			return fmt.Errorf("perf report: %w", err)
		}
		fmt.Printf("%s\n%s\n\n", by.what, strings.Join(reportLines(string(out), by.most), "\n"))
	}
	calls := filepath.Join(b.Dir, "calls-"+t.name)
	if l, err = during(b, t, port, o.secs, "perf", "stat", "-x", ",", "-o", calls, "-e", events(), "-p", list); err != nil {
		return err
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		return err
	}
	units := "unit of the client's"
	if t.per > 1 {
		units = "request"
	}
	fmt.Printf("system calls for a %s\n%s\n", units, strings.Join(perUnit(string(text), l.N), "\n"))
	return nil
}

// program is the program of the first command.
func program(cmds []string) string { return strings.Fields(cmds[0])[0] }

// during runs a tool of perf's beside the client of a series.
func during(b *run.Bench, t *Series, port, secs int, tool ...string) (Load, error) {
	cmd := exec.Command(tool[0], tool[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return Load{}, err
	}
	time.Sleep(settle)
	out, err := client(b, t.client, port, secs)
	_ = cmd.Process.Signal(os.Interrupt) // it writes what it has, and says that it was interrupted
	var exit *exec.ExitError
	if werr := cmd.Wait(); werr != nil && (!errors.As(werr, &exit) || exit.ExitCode() > 1) && !strings.Contains(werr.Error(), "interrupt") {
		err = errors.Join(err, fmt.Errorf("%s: %w: %s", strings.Join(tool[:2], " "), werr, last(said.String())))
	}
	if err != nil {
		return Load{}, err
	}
	return t.parse(out)
}

// events are the system calls that a proxy makes, and all of them.
func events() string {
	names := []string{"raw_syscalls:sys_enter"}
	for _, c := range strings.Fields("recvfrom sendto read write readv writev recvmsg sendmsg splice epoll_wait epoll_pwait epoll_ctl futex nanosleep accept4 connect close shutdown setsockopt getsockopt fcntl getpid tgkill sched_yield madvise mmap") {
		names = append(names, "syscalls:sys_enter_"+c)
	}
	return strings.Join(names, ",")
}

// perUnit reads perf stat -x, and divides: the most frequent calls first.
func perUnit(stat string, units float64) []string {
	type call struct {
		name string
		n    float64
	}
	var calls []call
	for line := range strings.Lines(stat) {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) < 3 || strings.HasPrefix(line, "#") {
			continue
		}
		if n := number(f[0]); n > 0 {
			name := strings.TrimPrefix(f[2], "syscalls:sys_enter_")
			calls = append(calls, call{strings.Replace(name, "raw_syscalls:sys_enter", "all", 1), n})
		}
	}
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(b.n, a.n) })
	var out []string
	for _, c := range calls {
		out = append(out, fmt.Sprintf("%10.4f  %s", c.n/units, c.name))
	}
	return out
}

// reportLines returns the first lines that are neither empty nor comments.
func reportLines(out string, most int) []string {
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, " \n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if lines = append(lines, line); len(lines) == most {
			break
		}
	}
	return lines
}
