//go:build !linux

package netio

import (
	"net/netip"
	"syscall"
)

func originalDst(syscall.RawConn, bool) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

func waitReadable(rc syscall.RawConn) error {
	first := true
	return rc.Read(func(uintptr) bool { // called again once the poller says readable
		ready := !first
		first = false
		return ready
	})
}
