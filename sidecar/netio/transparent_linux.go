package netio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenTransparent listens on a socket to which TPROXY may hand connections that
// were made to other addresses: their LocalAddr is then where the client meant to
// go (Documentation/networking/tproxy.rst of the kernel). It needs CAP_NET_ADMIN.
// "[::]:PORT" takes IPv4 as well.
func (n OS) ListenTransparent(ctx context.Context, address string) (Listener, error) {
	lc := listenConfig()
	before := lc.Control
	lc.Control = func(network, address string, c syscall.RawConn) error {
		return errors.Join(before(network, address, c), transparent(network, c, 0))
	}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("netio: listen transparently on %s: %w", address, err)
	}
	return &osListener{Listener: l, done: make(chan struct{}), guard: n.guard}, nil
}

// DialFrom connects from an address that need not be this host's, such as a
// client's. mark is the socket's packet mark, by which the answers find their way back
// (intercept.DefaultMark for the rules of sidecar/intercept). It needs
// CAP_NET_ADMIN.
func (n OS) DialFrom(ctx context.Context, from netip.Addr, mark uint32, network, address string) (Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: keepAlive,
		LocalAddr:       &net.TCPAddr{IP: from.AsSlice(), Zone: from.Zone()},
		Control:         func(network, _ string, c syscall.RawConn) error { return transparent(network, c, mark) },
	}
	return n.dial(ctx, d, network, address)
}

// transparent lets a socket have addresses that are not this host's.
func transparent(network string, c syscall.RawConn, mark uint32) (err error) {
	set := func(level, name, value int) func(uintptr) {
		return func(fd uintptr) {
			if e := unix.SetsockoptInt(int(fd), level, name, value); e != nil {
				err = errors.Join(err, fmt.Errorf("a transparent socket needs CAP_NET_ADMIN: %w", e))
			}
		}
	}
	options := []func(uintptr){set(unix.SOL_IP, unix.IP_TRANSPARENT, 1)}
	if strings.HasSuffix(network, "6") {
		options = append(options, set(unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
	}
	if mark != 0 {
		options = append(options, set(unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
	}
	for _, o := range options {
		if ctl := c.Control(o); ctl != nil {
			return ctl
		}
	}
	return err
}
