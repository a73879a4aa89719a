package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// hertz is the unit of times in /proc: USER_HZ, 100 on every Linux that Go runs on.
const hertz = 100

// processTime reads user and system time, in seconds, from the text of
// /proc/PID/stat (proc_pid_stat(5), fields 14 and 15).
func processTime(stat string) (float64, error) {
	_, rest, ok := cutLast(stat, ")") // a name may hold anything
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("not a /proc/PID/stat: %q", stat)
	}
	user, err := strconv.ParseUint(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseUint(f[12], 10, 64)
	if err != nil {
		return 0, err
	}
	return float64(user+system) / hertz, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// coreTime is what a core did, in seconds.
type coreTime struct {
	busy  float64 // user, nice, system, irq, softirq
	steal float64 // taken by the hypervisor
}

// coreTimes reads the cores' lines of /proc/stat.
func coreTimes(stat string) (map[int]coreTime, error) {
	out := map[int]coreTime{}
	for line := range strings.Lines(stat) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") || f[0] == "cpu" {
			continue
		}
		core, err := strconv.Atoi(f[0][3:])
		if err != nil {
			return nil, err
		}
		var v [8]float64 // user nice system idle iowait irq softirq steal
		for i := range v {
			n, err := strconv.ParseUint(f[1+i], 10, 64)
			if err != nil {
				return nil, err
			}
			v[i] = float64(n) / hertz
		}
		out[core] = coreTime{busy: v[0] + v[1] + v[2] + v[5] + v[6], steal: v[7]}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no cores in /proc/stat: %q", stat)
	}
	return out, nil
}

// tree returns a process and its descendants.
func tree(pid int) []int {
	out := []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is fixed
	for _, l := range lists {
		text, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, tree(child)...)
			}
		}
	}
	return out
}

// timeOf sums the time of processes.
func timeOf(pids []int) (float64, error) {
	sum := 0.0
	for _, p := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			return 0, err // it was there when the series began: it died
		}
		t, err := processTime(string(text))
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// rssOf sums the resident sets, in MB of 2^20 bytes.
func rssOf(pids []int) float64 {
	pages := 0.0
	for _, p := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages += number(f[1])
		}
	}
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

// clock is the state of all meters at one time.
type clock struct {
	proxy, server float64
	children      float64 // of this process: clients that have ended
	cores         map[int]coreTime
}

func read(proxy, server []int) (clock, error) {
	var c clock
	var err error
	if c.proxy, err = timeOf(proxy); err != nil {
		return c, err
	}
	if c.server, err = timeOf(server); err != nil {
		return c, err
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return c, err
	}
	c.children = float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c, err
	}
	c.cores, err = coreTimes(string(text))
	return c, err
}

// The cores of clients and servers, and of the proxy.
const (
	loadCore  = 0
	proxyCore = 1
)

// spent is what lay between two readings, in seconds.
type spent struct {
	proxy, core, both float64
	// others is the time of the two cores that neither client nor server nor proxy
	// is charged for: other processes, kernel threads, the hypervisor.
	others float64
	// beside is the part of it that was on the core of clients and servers.
	beside float64
}

func (c clock) since(b clock) spent {
	at := func(core int) coreTime {
		return coreTime{c.cores[core].busy - b.cores[core].busy, c.cores[core].steal - b.cores[core].steal}
	}
	load, proxy := at(loadCore), at(proxyCore)
	s := spent{proxy: c.proxy - b.proxy, core: proxy.busy, both: load.busy + proxy.busy}
	s.beside = max(load.busy+load.steal-(c.server-b.server)-(c.children-b.children), 0)
	s.others = s.beside + max(proxy.busy+proxy.steal-s.proxy, 0)
	return s
}
