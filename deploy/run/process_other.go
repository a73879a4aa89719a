//go:build unix && !linux

package run

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// withParent does nothing where there is no PR_SET_PDEATHSIG.
func withParent(*syscall.SysProcAttr) {}

func onTerminal() bool {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if _, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil {
			return true
		}
	}
	return false
}

func atOnce() []syscall.Signal {
	return []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGTERM,
		syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGWINCH, syscall.SIGIO, syscall.SIGVTALRM}
}
