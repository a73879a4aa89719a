package netio

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// ConnectPacket binds a datagram socket to its one peer: the kernel then gives it
// only what comes from there, and tells it where nobody listens there
// (ECONNREFUSED from a read). Sockets that have no kernel, and peers with a zone,
// are left as they are: the caller checks the sources of what it reads in any
// case.
func ConnectPacket(pc net.PacketConn, peer netip.AddrPort) error {
	sc, ok := pc.(syscall.Conn)
	if !ok || peer.Addr().Zone() != "" {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return fmt.Errorf("netio: connect %s: %w", peer, err)
	}
	var sa syscall.Sockaddr
	if a := peer.Addr(); a.Is4() {
		sa = &syscall.SockaddrInet4{Port: int(peer.Port()), Addr: a.As4()}
	} else {
		sa = &syscall.SockaddrInet6{Port: int(peer.Port()), Addr: a.As16()}
	}
	var failed error
	if err := rc.Control(func(fd uintptr) { failed = syscall.Connect(int(fd), sa) }); err != nil {
		return fmt.Errorf("netio: connect %s: %w", peer, err)
	}
	if failed != nil {
		return fmt.Errorf("netio: connect %s: %w", peer, os.NewSyscallError("connect", failed))
	}
	return nil
}
