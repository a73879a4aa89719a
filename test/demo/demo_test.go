package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// parrel builds the binary once.
var parrel string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "parrel-test-demo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	parrel = filepath.Join(dir, "parrel")
	build := exec.Command("go", "build", "-o", parrel, "./cmd/parrel")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var last = regexp.MustCompile(`^demo: (\d+) passed, (\d+) failed$`)

// bound is for what takes 10 s, or 20 with Consul, on a machine that has other
// things to do.
const bound = 3 * time.Minute

// once runs the demo to its end and returns how many checks passed.
func once(t *testing.T, limit time.Duration, args ...string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tmp := t.TempDir()
	cmd := exec.CommandContext(ctx, parrel, append([]string{"demo", "--once"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	m := last.FindStringSubmatch(lines[len(lines)-1])
	if err != nil || m == nil || m[2] != "0" {
		t.Fatalf("parrel demo --once %s: %v\n%s\n%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	if !regexp.MustCompile(`(?m)^demo: first request \d+ ms$`).MatchString(stdout.String()) {
		t.Errorf("no line of the first request in:\n%s", stdout.String())
	}
	nothingLeft(t, tmp)
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// nothingLeft looks for processes that carry the demo's folder in their command
// line, and for files.
func nothingLeft(t *testing.T, tmp string) {
	t.Helper()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("files are left behind: %v %v", left, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, []byte(tmp)) {
			t.Errorf("a process is left behind: %s", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
}

func TestOnce(t *testing.T) {
	if n := once(t, bound, "--port-base", "27500"); n < 15 {
		t.Errorf("%d checks passed, 15 at least", n)
	}
}

func TestOnceOnConsul(t *testing.T) {
	consul, err := filepath.Abs(filepath.Join("..", "..", "bin", "consul"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(consul); err != nil {
		t.Fatalf("no %s: run `make consul`", consul)
	}
	if n := once(t, bound, "--consul", "--consul-binary", consul, "--port-base", "28000"); n < 15 {
		t.Errorf("%d checks passed, 15 at least", n)
	}
}

// needsRoot skips, and says so, where no network namespace can be made.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED HERE: demo --netns makes network namespaces, which only root may; run the tests as root")
	}
}

// TestOnceInNamespaces: hosts are network namespaces and connections are captured.
func TestOnceInNamespaces(t *testing.T) {
	needsRoot(t)
	if n := once(t, bound, "--netns"); n < 30 {
		t.Errorf("%d checks passed, 30 at least", n)
	}
}

func TestOnceInNamespacesOnConsul(t *testing.T) {
	needsRoot(t)
	consul, err := filepath.Abs(filepath.Join("..", "..", "bin", "consul"))
	if err != nil {
		t.Fatal(err)
	}
	if n := once(t, bound, "--netns", "--consul", "--consul-binary", consul); n < 30 {
		t.Errorf("%d checks passed, 30 at least", n)
	}
}

// TestInterrupted starts the demo, does what its guide says, and ends it as
// Ctrl-C would.
func TestInterrupted(t *testing.T) {
	tmp := t.TempDir()
	cmd := exec.Command(parrel, "demo", "--port-base", "28500")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	watchdog := time.AfterFunc(bound, func() { cmd.Process.Kill() })
	defer watchdog.Stop()

	var guide strings.Builder
	in := bufio.NewReader(out)
	for !strings.Contains(guide.String(), "Ctrl-C ends everything") {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("the guide broke off after:\n%s", guide.String())
		}
		guide.WriteString(line)
	}
	for _, c := range []struct{ try, want string }{
		{`curl -s (http://\S+)\n`, ""},
		{`(\S+ explain --api \S+ --from web --to api GET /)\n`, "ALLOWED"},
		{`(\S+ status --api \S+)\n`, "in sync"},
		{`(\S+ config clusters --api \S+ api-1-sidecar-proxy)\n`, "users.default.dc1"},
		{`(\S+ analyze --api \S+)\n`, "nothing found"},
		{`(\S+ demo add --dir \S+ users)\n`, "started users-3"},
	} {
		m := regexp.MustCompile(c.try).FindStringSubmatch(guide.String())
		if m == nil {
			t.Errorf("the guide has nothing like %s", c.try)
			continue
		}
		if c.want == "" {
			continue
		}
		args := strings.Fields(m[1])
		got, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(got), c.want) {
			t.Errorf("%s: %v, want %q in\n%s", m[1], err, c.want, got)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C the demo ended with %v", err)
	}
	nothingLeft(t, tmp)
}

// TestSupervisorKilled: its children die with it.
func TestSupervisorKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mesh")
	cmd := exec.Command(parrel, "demo", "--dir", dir, "--port-base", "29000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(bound, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "demo: first request") {
		t.Fatalf("first line %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("killed, it ended with %v", err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		l, err := net.Listen("tcp", "127.0.0.1:29000") // the control plane's port is free again
		if err == nil {
			l.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("30 s after the supervisor was killed its control plane still listens: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestBadFlags(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--dir", full}, "is not an empty folder: name another one"},
		{[]string{"--once", "--consul", "--consul-binary", "/nonexistent/consul"}, "--consul-binary"},
		{[]string{"--port-base", "40000"}, "give another --port-base"},
	} {
		out, err := exec.CommandContext(t.Context(), parrel, append([]string{"demo"}, c.args...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, want %q in %q", c.args, err, c.want, out)
		}
	}
}
