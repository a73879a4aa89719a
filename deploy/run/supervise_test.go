package run

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
)

// soon bounds what takes milliseconds, on a busy machine.
const soon = 30 * time.Second

// superviseHere is a whole process that supervises: its arguments are options,
// "--" and the application's words. What happens is said on standard output.
func superviseHere() int {
	c := Config{Env: append(os.Environ(), asSupervisor+"="), Start: soon, KillAfter: soon, retry: time.Millisecond,
		Note: func(e Event) { fmt.Println([]string{"note ready", "note stopping"}[e]) }}
	o := map[string]string{}
	var words []string
	for i, arg := range os.Args[1:] {
		if arg == "--" {
			words = os.Args[i+2:]
			break
		}
		k, v, _ := strings.Cut(arg, "=")
		o[k] = v
	}
	c.Argv = []string{os.Args[0]}
	if p := o["program"]; p != "" {
		c.Argv[0] = p
	}
	c.Env = append(c.Env, asApp+"="+strings.Join(words, " "))
	c.OnLoss = Losses[o["loss"]]
	c.Together = o["order"] == "together"
	for name := range strings.SplitSeq(o["stop"], ",") {
		if name != "" {
			c.StopSignals = append(c.StopSignals, signals[name])
		}
	}
	c.AppSignal = signals[o["signal"]]
	if d, err := time.ParseDuration(o["kill"]); err == nil {
		c.KillAfter = d
	}
	if d, err := time.ParseDuration(o["start"]); err == nil {
		c.Start = d
	}
	if _, ok := o["before"]; ok {
		c.Before = func(context.Context) (func(), error) {
			fmt.Println("before")
			return func() { fmt.Println("undone") }, nil
		}
	}
	lives := 0
	c.Log = slog.New(slog.NewTextHandler(lossOnly{}, nil))
	c.New = func(before func(context.Context)) (Companion, error) {
		lives++
		return &fake{o: o, life: lives, before: before, fast: make(chan struct{}), runs: make(chan struct{})}, nil
	}
	code, err := Supervise(c)
	if err != nil {
		fmt.Println("error:", err)
	}
	return code
}

// lossOnly says of the log that the companion was lost.
type lossOnly struct{}

func (lossOnly) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "the sidecar was lost") {
		fmt.Println("run lost")
	}
	return len(b), nil
}

// fake is a companion that says what it is asked for.
type fake struct {
	o      map[string]string
	life   int
	before func(context.Context)
	fast   chan struct{}
	runs   chan struct{}
	once   sync.Once
}

func (f *fake) Run(ctx context.Context) error {
	fmt.Println("sidecar starts")
	close(f.runs)
	lost := make(chan struct{})
	if path := f.o["lose"]; path != "" && f.life == 1 {
		go func() {
			for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
				time.Sleep(5 * time.Millisecond)
			}
			close(lost)
		}()
	}
	if _, ok := f.o["quit"]; ok {
		quit, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		ctx = quit
	}
	select {
	case <-lost:
		return errors.New("the fake broke")
	case <-ctx.Done():
	}
	fmt.Println("sidecar drains")
	if d, err := time.ParseDuration(f.o["drain"]); err == nil {
		select {
		case <-f.fast:
		case <-time.After(d):
		}
	}
	fmt.Println("inbound has ended")
	f.before(context.Background())
	fmt.Println("sidecar ends")
	return nil
}

func (f *fake) AwaitOutbound(ctx context.Context) error {
	if _, ok := f.o["unready"]; ok {
		<-ctx.Done()
		return fmt.Errorf("no certificate: %w", context.Cause(ctx))
	}
	<-f.runs
	fmt.Println("outbound works")
	return nil
}

func (f *fake) Applications() []string {
	if p := f.o["port"]; p != "" {
		return []string{"127.0.0.1:" + p}
	}
	return nil
}

func (f *fake) OpenInbound()     { fmt.Println("inbound opens", f.life) }
func (f *fake) ApplicationGone() { fmt.Println("application gone") }
func (f *fake) Hasten()          { f.once.Do(func() { fmt.Println("hastened"); close(f.fast) }) }

// supervised is such a process.
type supervised struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	said  []string
	ended chan struct{}
}

func supervise(t *testing.T, change func(*exec.Cmd), args ...string) *supervised {
	t.Helper()
	s := &supervised{t: t, cmd: exec.Command(os.Args[0], args...), lines: make(chan string, 1000), ended: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), asSupervisor+"=1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = w, w
	if change != nil {
		change(s.cmd)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() { // ends when nobody has the pipe any more: the application's children too
		defer r.Close()
		for in := bufio.NewScanner(r); in.Scan(); {
			s.lines <- in.Text()
		}
		close(s.lines)
	}()
	go func() {
		_ = s.cmd.Wait() // its code is in ProcessState
		close(s.ended)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
	})
	return s
}

// until waits for a line that begins like this.
func (s *supervised) until(line string) string {
	s.t.Helper()
	after := time.After(soon)
	for {
		select {
		case got, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the output is over without %q: %q", line, s.said)
			}
			s.said = append(s.said, got)
			if strings.HasPrefix(got, line) {
				return got
			}
		case <-after:
			s.t.Fatalf("no %q: %q", line, s.said)
		}
	}
}

// end waits for the end and gives the exit code.
func (s *supervised) end() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(soon):
		s.t.Fatalf("it does not end: %q", s.said)
	}
	after := time.After(soon)
	for {
		select {
		case l, ok := <-s.lines:
			if !ok {
				return s.cmd.ProcessState.ExitCode()
			}
			s.said = append(s.said, l)
		case <-after:
			s.t.Fatalf("something that it started has outlived it: %q", s.said)
		}
	}
}

// inOrder wants lines to be said in this order, others between them or not.
func (s *supervised) inOrder(lines ...string) {
	s.t.Helper()
	at := 0
	for _, l := range lines {
		i := slices.IndexFunc(s.said[at:], func(got string) bool { return strings.HasPrefix(got, l) })
		if i < 0 {
			s.t.Errorf("%q is not said, or not in its place (%q): %q", l, lines, s.said)
			return
		}
		at += i + 1
	}
}

// TestOrder: outbound traffic, the application, its port, inbound traffic; and
// back: inbound traffic, the application, outbound traffic.
func TestOrder(t *testing.T) {
	port := strconv.Itoa(consultest.Port(t))
	s := supervise(t, nil, "port="+port, "drain=50ms", "before=", "--", "say:app-starts catch:TERM sleep:50ms say:app-listens listen:"+port+" wait say:app-ends exit:4")
	s.until("inbound opens")
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(); code != 4 {
		t.Errorf("exit code %d", code)
	}
	s.inOrder("sidecar starts", "outbound works", "before", "app-starts", "app-listens", "inbound opens", "note ready",
		"note stopping", "sidecar drains", "inbound has ended", "got terminated", "app-ends", "application gone", "sidecar ends")
	s.inOrder("sidecar ends", "undone")
}

// TestEnds: what each way to end comes to.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		args  string // of the supervisor, then the application's words
		steps string // lines to wait for; >NAME sends a signal, !lose breaks the companion
		code  int
		order []string
	}{
		{"its own code", "-- say:on exit:7", "on", 7, []string{"on", "application gone", "sidecar drains", "sidecar ends"}},
		{"code 0", "-- exit:0", "", 0, nil},
		{"a signal of its own", "-- term", "", 143, nil},
		{"killed", "-- kill", "", 137, nil},
		{"SIGINT", "-- catch:INT wait exit:3", "catching >INT", 3, []string{"inbound has ended", "got interrupt"}},
		{"SIGTERM without a handler", "-- say:on forever", "on >TERM", 143, nil},
		{"other signals pass", "-- catch:HUP,QUIT,USR1,USR2,WINCH wait wait wait wait wait exit:0",
			"catching >HUP got_hangup >QUIT got_quit >USR1 got_user_defined_signal_1 >USR2 got_user_defined_signal_2 >WINCH got_window_changed", 0, nil},
		{"signals that are told to stop", "stop=QUIT,HUP -- catch:QUIT,TERM wait wait exit:0", "catching >TERM got_terminated >QUIT", 0,
			[]string{"got terminated", "sidecar drains", "inbound has ended", "got quit"}},
		{"another signal for the application", "signal=USR1 -- catch:USR1 wait exit:0", "catching >TERM", 0, []string{"inbound has ended", "got user"}},
		{"together", "order=together drain=1h -- catch:TERM wait exit:0", "catching >TERM got_terminated >TERM", 0, []string{"got terminated", "hastened", "inbound has ended"}},
		{"the second signal hastens", "drain=1h -- catch:TERM wait exit:5", "catching >TERM sidecar_drains >TERM", 5, []string{"sidecar drains", "hastened", "got terminated"}},
		{"the third one kills", "-- catch:TERM wait wait forever", "catching >TERM got_terminated >TERM got_terminated >TERM", 137, nil},
		{"killed after its time", "kill=50ms -- catch:TERM forever", "catching >TERM", 137, []string{"inbound has ended", "application gone"}},
		{"stopped before it started", "unready= -- say:never", "sidecar_starts >TERM", 143, nil},
		{"not ready in time", "unready= start=50ms -- say:never", "", 125, []string{"error: run: the application was not started: no certificate: that has taken more than 50ms"}},
		{"not waited for", "unready= start=-1s -- say:on exit:6", "on", 6, nil},
		{"no such program", "program=nonesuch -- x", "", 127, []string{"error: run: there is no program nonesuch"}},
		{"the sidecar's end is asked for", "quit= -- catch:TERM wait exit:8", "", 8, []string{"sidecar drains", "got terminated", "sidecar ends"}},
		{"the sidecar is lost: stop", "lose=FILE loss=stop -- catch:TERM wait exit:0", "catching !lose", 125, []string{"got terminated", "error: run: the sidecar was lost: the fake broke"}},
		{"the sidecar is lost: keep", "lose=FILE loss=keep -- catch:TERM wait exit:9", "catching !lose run_lost >TERM got_terminated", 9, nil},
		{"the sidecar is lost: restart", "lose=FILE loss=restart -- catch:TERM wait exit:2", "catching !lose inbound_opens_2 >TERM", 2,
			[]string{"sidecar starts", "inbound opens 1", "sidecar starts", "inbound opens 2", "sidecar drains", "got terminated", "sidecar ends"}},
		{"the sidecar is lost before", "unready= lose=FILE loss=restart -- say:never", "sidecar_starts !lose", 125, []string{"error: run: the application was not started: the sidecar ended: the fake broke"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			options, words, _ := strings.Cut(c.args, "-- ")
			file := filepath.Join(t.TempDir(), "lose")
			options = strings.ReplaceAll(options, "FILE", file)
			args := append(strings.Fields(options), "--", words)
			s := supervise(t, nil, args...)
			for step := range strings.FieldsSeq(c.steps) {
				if step == "!lose" {
					if err := os.WriteFile(file, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					continue
				}
				if name, send := strings.CutPrefix(step, ">"); send {
					_ = s.cmd.Process.Signal(signals[name])
					continue
				}
				s.until(strings.ReplaceAll(step, "_", " "))
			}
			if code := s.end(); code != c.code {
				t.Errorf("exit code %d, want %d: %q", code, c.code, s.said)
			}
			s.inOrder(c.order...)
			if slices.Contains(s.said, "never") {
				t.Errorf("the application ran: %q", s.said)
			}
		})
	}
}

// TestCannotRun: programs that are there and cannot be run.
func TestCannotRun(t *testing.T) {
	dir := t.TempDir()
	noScript := filepath.Join(dir, "noscript")
	if err := os.WriteFile(noScript, []byte("echo hello\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	noMode := filepath.Join(dir, "nomode")
	if err := os.WriteFile(noMode, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{noScript: "nor a script with a first line #!", noMode: "cannot be run"} {
		s := supervise(t, nil, "program="+program, "--", "x")
		if code := s.end(); code != CodeNotRun {
			t.Errorf("%s: exit code %d", program, code)
		}
		if !strings.Contains(strings.Join(s.said, "\n"), want) {
			t.Errorf("%s: %q", program, s.said)
		}
	}
}

type child struct {
	pid   int
	state string
}

// children of a process, from /proc/PID/stat of all.
func children(t *testing.T, parent int) (out []child) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
		f := strings.Fields(rest)
		if n, _ := strconv.Atoi(f[1]); n == parent {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			out = append(out, child{pid, f[0]})
		}
	}
	return out
}

// TestKilledWithItsParent: the application does not outlive a supervisor that is
// killed, unless it is to be kept.
func TestKilledWithItsParent(t *testing.T) {
	s := supervise(t, nil, "loss=stop", "--", "catch:TERM wait say:ends")
	s.until("catching")
	_ = s.cmd.Process.Kill()
	s.until("got terminated")
	s.until("ends")
	s.end()
}

// TestGroup: what the application leaves behind in its group gets a signal, and
// is killed with it.
func TestGroup(t *testing.T) {
	s := supervise(t, nil, "program=/bin/sh", "--", "x")
	_ = s.end() // sh reads its script from standard input, which is empty: the group is tried below
	dir := t.TempDir()
	script := filepath.Join(dir, "app")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ntrap '' TERM\nsleep 1000 &\necho started\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s = supervise(t, nil, "program="+script, "kill=50ms", "--", "x")
	s.until("started")
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if code := s.end(); code != 137 { // end waits for the pipe, which sleep has too
		t.Errorf("exit code %d: %q", code, s.said)
	}
}

// TestStreams: standard input and output are the application's own.
func TestStreams(t *testing.T) {
	s := supervise(t, func(cmd *exec.Cmd) {
		cmd.Stdin = strings.NewReader("a line\n")
	}, "program=/bin/cat", "--", "x")
	s.until("a line")
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestLimits: the application has the soft limit of open files that was there,
// not the one that the Go runtime raised.
func TestLimits(t *testing.T) {
	s := supervise(t, func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 300; exec "$0" "$@"`}, cmd.Args...)
		cmd.Path = "/bin/sh"
		cmd.Stdin = strings.NewReader("ulimit -Sn\n")
	}, "program=/bin/sh", "--", "x")
	s.until("300")
	s.end()
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: another user needs root")
	}
	for given, want := range map[string]string{
		"nobody": "65534 65534 [65534]", "65534": "65534 65534 [65534]", "nobody:root": "65534 0 [0]", "4711": "4711 4711 [4711]", "4711:12": "4711 12 [12]",
	} {
		u, err := FindUser(given)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprint(u.UID, u.GID, u.Groups); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
		env := u.Environ([]string{"HOME=/root", "PATH=/bin", "USER=root", "LOGNAME=root"})
		if slices.Contains(env, "HOME=/root") || slices.Contains(env, "USER=root") || !slices.Contains(env, "PATH=/bin") {
			t.Errorf("%s: %q", given, env)
		}
	}
	for _, bad := range []string{"", ":", "nobody:", "nonesuch", "nobody:nonesuch", "-1"} {
		if u, err := FindUser(bad); err == nil || !strings.Contains(err.Error(), "--user") {
			t.Errorf("%q: %+v %v", bad, u, err)
		}
	}
}

func TestListening(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "sock")
	for _, at := range []struct{ network, listen, ask string }{
		{"tcp4", "127.0.0.1", "127.0.0.1"}, {"tcp4", "0.0.0.0", "127.0.0.1"}, {"tcp", "::", "127.0.0.1"}, {"tcp6", "::1", "::1"},
		{"tcp4", "127.0.0.1", "localhost"}, {"unix", sock, sock},
	} {
		listen, ask := at.listen, at.ask
		if at.network != "unix" {
			port := strconv.Itoa(consultest.Port(t))
			listen, ask = joined(listen, port), joined(ask, port)
		}
		if open, err := Listening(ask); open || err != nil {
			t.Errorf("%s before: %t %v", ask, open, err)
		}
		l, err := netListen(at.network, listen)
		if err != nil {
			if at.network == "tcp6" || at.listen == "::" {
				t.Logf("no IPv6 here: %v", err)
				continue
			}
			t.Fatal(err)
		}
		if open, err := Listening(ask); !open || err != nil {
			t.Errorf("%s: %t %v", ask, open, err)
		}
		l.Close()
	}
	port := strconv.Itoa(consultest.Port(t))
	l, err := netListen("tcp4", joined("127.0.0.2", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if open, err := Listening(joined("127.0.0.1", port)); open || err != nil {
		t.Errorf("another address's port: %t %v", open, err)
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:http"} {
		if _, err := Listening(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestGone(t *testing.T) {
	for _, bad := range []string{"", "port:", "port:0", "port:x", "pid", "pid:1", "pid:x", "pidfile:run", "cgroup:", "unit:web"} {
		if _, err := ParseGone(bad); err == nil || !strings.Contains(err.Error(), "write port") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	dir := t.TempDir()
	port := consultest.Port(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=listen:%d say:on catch:TERM wait exit:0", asApp, port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	for l := ""; !strings.Contains(l, "catching"); {
		if l, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	pidfile := filepath.Join(dir, "pid")
	if err := os.WriteFile(pidfile, fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"port", fmt.Sprintf("port:%d", port), fmt.Sprintf("pid:%d", cmd.Process.Pid), "pidfile:" + pidfile}
	if group := ownGroup(); group != "" {
		all = append(all, "cgroup:"+group)
	} else {
		t.Log("this process's control group is not to be found: cgroup: is not tried with a living one")
	}
	quiet := func() bool { return true }
	wait := func(g Gone, within time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		return g.Wait(ctx, []string{joined("127.0.0.1", strconv.Itoa(port))}, quiet)
	}
	waiting := make(chan error)
	n := 0
	for _, text := range all {
		g, err := ParseGone(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := wait(g, 150*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s of a living application: %v", text, err)
		}
		if !strings.HasPrefix(text, "cgroup") { // the test is in it too
			n++
			go func() { waiting <- wait(g, soon) }()
		}
	}
	time.Sleep(100 * time.Millisecond) // the questions have seen it alive; without it the test proves less and passes too
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, in)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for range n {
		if err := <-waiting; err != nil {
			t.Errorf("after the application's end: %v", err)
		}
	}
	for _, text := range []string{"pidfile:" + filepath.Join(dir, "none"), "cgroup:/parrel-test/none"} {
		g, err := ParseGone(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := wait(g, soon); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	g, err := ParseGone("port")
	if err != nil {
		t.Fatal(err)
	}
	quiet = func() bool { return false }
	if err := wait(g, 1500*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a closed port whose application has connections: %v", err)
	}
}
