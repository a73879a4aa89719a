package netio

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h and
// IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h.
const soOriginalDst = 80

// originalDst asks netfilter's connection tracking. The two getsockopt forms
// are those of x/sys whose buffers are large enough for a sockaddr_in and a
// sockaddr_in6.
func originalDst(rc syscall.RawConn, v4 bool) (dst netip.AddrPort, ok bool) {
	_ = rc.Control(func(fd uintptr) {
		if v4 {
			m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDst)
			if err != nil {
				return
			}
			b := m.Multiaddr // sockaddr_in: family, port, address
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			ok = true
			return
		}
		m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, soOriginalDst)
		if err != nil {
			return
		}
		p := m.Addr.Port // network byte order, kept as the kernel wrote it
		dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), ntohs(p))
		ok = true
	})
	return dst, ok
}

func ntohs(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return uint16(b[0])<<8 | uint16(b[1])
}

// waitReadable waits in the runtime's poller; nothing is taken off the socket.
func waitReadable(rc syscall.RawConn) error {
	var perr error
	err := rc.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			_, _, perr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if perr != unix.EINTR {
				break
			}
		}
		return perr != unix.EAGAIN
	})
	if err != nil {
		return fmt.Errorf("netio: wait: %w", err)
	}
	if perr != nil {
		return fmt.Errorf("netio: wait: %w", perr)
	}
	return nil
}
