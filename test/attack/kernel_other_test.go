//go:build !linux

package attack

import (
	"net"

	"golang.org/x/sys/unix"
)

// reset says whether the kernel knows that the connection is over, without
// reading what waits on it.
func reset(c net.Conn) (over bool) {
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	if err := rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		over = err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	}); err != nil {
		return true
	}
	return over
}
