package run

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal (pty(7)).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestTerminal: on a terminal the application is in the foreground: it reads, and
// Ctrl-C reaches it at once and once only; what is still waited for then ends,
// and its exit code is passed on.
func TestTerminal(t *testing.T) {
	master, slave := terminal(t)
	cmd := exec.Command(os.Args[0], "drain=200ms", "--", "group catch:INT,TERM read wait wait exit:9")
	cmd.Env = append(os.Environ(), asSupervisor+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	slave.Close()
	lines := make(chan string, 1000)
	go func() { // ends when nobody has the terminal any more
		defer close(lines)
		for in := bufio.NewScanner(master); in.Scan(); {
			lines <- strings.TrimSpace(in.Text())
		}
	}()
	var said []string
	until := func(want string) {
		t.Helper()
		after := time.After(soon)
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatalf("the output is over without %q: %q", want, said)
				}
				said = append(said, l)
				if strings.HasSuffix(l, want) {
					return
				}
			case <-after:
				t.Fatalf("no %q: %q", want, said)
			}
		}
	}
	send := func(s string) {
		t.Helper()
		if _, err := master.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	until("parent's group: true")
	until("catching")
	send("hello\n")
	until("read hello <nil>")
	send("\x03")
	until("got interrupt")
	until("inbound has ended")
	until("got terminated") // and not the interrupt again
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(soon):
		t.Fatalf("it does not end: %q", said)
	}
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d: %q", code, said)
	}
}
