//go:build !linux

package netio

import (
	"context"
	"errors"
	"net/netip"
)

var errTransparent = errors.New("netio: transparent sockets are Linux's")

// ListenTransparent needs Linux.
func (n OS) ListenTransparent(context.Context, string) (Listener, error) { return nil, errTransparent }

// DialFrom needs Linux.
func (n OS) DialFrom(context.Context, netip.Addr, uint32, string, string) (Conn, error) {
	return nil, errTransparent
}
