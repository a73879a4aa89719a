package run

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// withParent ends the application when this process is killed, or crashes, by
// PR_SET_PDEATHSIG. The signal follows the thread that started it, which
// Supervise keeps.
func withParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGTERM }

// onTerminal says whether a standard stream is the terminal that controls this
// process: the terminal's signals then go to the whole process group.
func onTerminal() bool {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if _, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil {
			return true
		}
	}
	return false
}

// atOnce are signals that can be caught and have no meaning for this process.
func atOnce() []syscall.Signal {
	out := []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGTERM,
		syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGWINCH, syscall.SIGIO, syscall.SIGPWR, syscall.SIGVTALRM}
	for n := 34; n <= 64; n++ { // real-time signals, without those of libc
		out = append(out, syscall.Signal(n))
	}
	return out
}
