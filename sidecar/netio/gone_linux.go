package netio

import "golang.org/x/sys/unix"

// gone asks poll(2): an error, or both directions at an end.
func (c *osConn) gone() bool {
	over := false
	err := c.rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		over = err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
	})
	return over || err != nil
}
