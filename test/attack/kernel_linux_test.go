package attack

import (
	"net"

	"golang.org/x/sys/unix"
)

// reset says whether the kernel knows that the peer ended the connection,
// without reading what waits on it.
func reset(c net.Conn) (over bool) {
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	if err := rc.Control(func(fd uintptr) {
		// 1: TCP_ESTABLISHED (linux/net/tcp_states.h)
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		over = err != nil || info.State != 1
	}); err != nil {
		return true
	}
	return over
}
