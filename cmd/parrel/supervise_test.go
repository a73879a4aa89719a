//go:build linux

package main

import (
	"bufio"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shellChild starts a shell's line as the supervised process.
func shellChild(line string) func() (*os.Process, error) {
	return func() (*os.Process, error) {
		c := exec.Command("/bin/sh", "-c", line)
		err := c.Start()
		return c.Process, err
	}
}

// TestSuperviseRestarts: a child that is killed or ends is started again; a
// signal to stop reaches it, and its exit code is the supervisor's.
func TestSuperviseRestarts(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	starts := 0
	s := &supervisor{log: slog.New(slog.DiscardHandler), start: func() (*os.Process, error) {
		starts++
		// It says its pid when its trap is set.
		c := exec.Command("/bin/sh", "-c", `trap 'exit 7' TERM; echo $$ >&3; while :; do sleep 0.02; done`)
		c.ExtraFiles = []*os.File{w}
		err := c.Start()
		return c.Process, err
	}}
	done := make(chan error, 1)
	go func() { done <- s.run() }()
	in := bufio.NewReader(r)
	for n := 1; n <= 3; n++ {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("start %d: %v", n, err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		who, sig := pid, syscall.SIGKILL
		if n == 3 {
			who, sig = os.Getpid(), syscall.SIGTERM
		}
		if err := syscall.Kill(who, sig); err != nil {
			t.Fatal(err)
		}
	}
	err = <-done
	var code exitCode
	if !errors.As(err, &code) || code != 7 {
		t.Errorf("it ended with %v, want the child's exit code 7", err)
	}
	if starts != 3 {
		t.Errorf("%d starts: one more after the signal to stop", starts)
	}
}

// TestSuperviseEndings: what a child's end means for the exit code.
func TestSuperviseEndings(t *testing.T) {
	for line, want := range map[string]string{"exit 0": "exit code 0", "exit 3": "exit code 3", "kill -9 $$": "killed by killed"} {
		p, err := shellChild(line)()
		if err != nil {
			t.Fatal(err)
		}
		if got := howEnded(reap(p.Pid)); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// TestListensOn: a listening socket is seen without being connected to, in both
// families, and not one that is connected only.
func TestListensOn(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			if strings.HasPrefix(address, "[") {
				t.Logf("no IPv6 on this machine: %v", err)
				continue
			}
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		if ok, err := listensOn(port); err != nil || !ok {
			t.Errorf("%s: %v %v", l.Addr(), ok, err)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if ok, err := listensOn(port); err != nil || ok {
			t.Errorf("%s is closed, and a connection to it counts: %v %v", l.Addr(), ok, err)
		}
		c.Close()
	}
}

// TestTokensIntoFiles: token create --to makes a token for each instance, with the
// permissions asked for, and says what is wrong.
func TestTokensIntoFiles(t *testing.T) {
	dir := t.TempDir()
	base := []string{"token", "create", "--ca-dir", filepath.Join(dir, "ca"), "--trust-domain", "t.parrel"}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	out, _, err := parrel(t, append(base, "--to", "web="+a, "--to", "web="+b, "--file-mode", "0644")...)
	if err != nil || out != "" {
		t.Fatal(out, err)
	}
	ta, errA := os.ReadFile(a)
	tb, errB := os.ReadFile(b)
	if errA != nil || errB != nil || len(ta) < 20 || string(ta) == string(tb) {
		t.Errorf("tokens: %v %v %q %q", errA, errB, ta, tb)
	}
	if info, err := os.Stat(a); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for _, c := range []struct{ to, mode, want string }{
		{"web", "0600", "write SERVICE=FILE"},
		{"web=" + filepath.Join(dir, "none", "x"), "0600", "no such file or directory"},
		{"web=" + a, "01777", "give permissions such as 0600"},
	} {
		if _, _, err := parrel(t, append(base, "--to", c.to, "--file-mode", c.mode)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.to, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".token-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
