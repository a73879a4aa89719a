package run

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestFirstOfNamespace: as the first process of a PID namespace it waits for
// orphans, ends with the application's code, and acts on signals.
func TestFirstOfNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a PID namespace needs root")
	}
	inNamespace := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	t.Run("orphans", func(t *testing.T) {
		s := supervise(t, inNamespace, "--", "orphan orphan orphan catch:TERM wait exit:11")
		s.until("catching")
		// The namespace's processes, as this one sees them: its first one has no
		// children but the application, once the orphans have ended.
		zombies := func() (n int) {
			for _, pid := range children(t, s.cmd.Process.Pid) {
				if pid.state == "Z" {
					n++
				}
			}
			return n
		}
		for end := time.Now().Add(soon); len(children(t, s.cmd.Process.Pid)) > 1; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the orphans are still there, %d of them zombies: %v", zombies(), children(t, s.cmd.Process.Pid))
			}
		}
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		if code := s.end(); code != 11 {
			t.Errorf("exit code %d: %q", code, s.said)
		}
	})
	t.Run("code", func(t *testing.T) {
		s := supervise(t, inNamespace, "--", "kill")
		if code := s.end(); code != 137 {
			t.Errorf("exit code %d: %q", code, s.said)
		}
	})
}
