package netio

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listenConfig sets keep-alive on the listening socket: what it accepts inherits
// that (tcp_create_openreq_child copies the listener's socket), and four system
// calls less are made for each connection.
func listenConfig() net.ListenConfig {
	lc := net.ListenConfig{KeepAlive: -1, Control: func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var err error
		ctl := c.Control(func(fd uintptr) {
			for _, o := range [...]struct{ level, name, value int }{
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle / time.Second)},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval / time.Second)},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			} {
				if err == nil {
					err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value)
				}
			}
		})
		if ctl != nil {
			return ctl
		}
		return err
	}}
	lc.SetMultipathTCP(false) // package net's default; the watch, splices and inherited options are TCP's
	return lc
}

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
