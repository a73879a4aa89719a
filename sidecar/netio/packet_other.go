//go:build !linux

package netio

import (
	"net"
	"net/netip"
)

// ConnectPacket does nothing here: the caller checks the sources of what it reads
// in any case.
func ConnectPacket(net.PacketConn, netip.AddrPort) error { return nil }
