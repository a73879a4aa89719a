//go:build !linux

package netio

import (
	"net"
	"net/netip"
	"syscall"
)

func originalDst(syscall.RawConn, bool) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

func listenConfig() net.ListenConfig { return net.ListenConfig{KeepAliveConfig: keepAlive} }
