//go:build unix

package overload

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// RaiseDescriptors raises the process's soft limit of open files to the hard
// one and returns what it then is.
func RaiseDescriptors() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("overload: limit of open files: %w", err)
	}
	// The runtime has raised the limit to one below the hard one, and gives
	// children the limit that was before, unless somebody sets it again
	// (syscall.Setrlimit): the application of `parrel run` is such a child.
	if l.Max-l.Cur > 1 {
		raised := unix.Rlimit{Cur: l.Max, Max: l.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			l = raised
		}
	}
	return int(min(l.Cur, math.MaxInt32)), nil
}
