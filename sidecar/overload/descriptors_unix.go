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
	if l.Cur < l.Max {
		raised := unix.Rlimit{Cur: l.Max, Max: l.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			l = raised
		}
	}
	return int(min(l.Cur, math.MaxInt32)), nil
}
