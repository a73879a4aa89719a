package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

// inside is set in the environment of the process that apart starts.
const inside = "PARREL_BENCH_APART"

// apart runs this program again in a network namespace and a session of its own,
// and returns its exit code. With priority the session goes before all other work
// of the machine: by nice values, and by that of the session (sched(7), autogroup),
// without which they count within it only. There the machine's firewall costs the proxies
// nothing (connection tracking takes a tenth of a request), nobody else listens on
// the series' ports, and the scheduler counts all of the benchmark as one group.
// Packages are installed before: there is no way out of the namespace.
func apart(priority bool) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "compare:", err)
		return 1
	}
	if err := install(); err != nil {
		return fail(err)
	}
	self, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	line := `ip link set lo up && exec "$0" "$@"` // a new namespace has it down
	if priority {
		line = "renice -n -19 -p $$ > /dev/null && { [ ! -e /proc/self/autogroup ] || echo -19 > /proc/self/autogroup; } && " + line
	}
	cmd := exec.Command("sh", append([]string{"-c", line, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig is about the thread that forks
	if err := cmd.Start(); err != nil {
		return fail(fmt.Errorf("a network namespace of its own: %w", err))
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-stop:
			_ = cmd.Process.Signal(sig) // its own children follow it
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return max(exit.ExitCode(), 1)
			}
			if err != nil {
				return fail(err)
			}
			return 0
		}
	}
}
