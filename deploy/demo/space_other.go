//go:build !linux

package demo

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

var errNoSpaces = errors.New("demo: --netns needs Linux: network namespaces are the kernel's; leave --netns out")

var bridgeAddr netip.Addr

func (s *space) path() string { return "" }

func (s *space) dial(context.Context, int, string, string) (net.Conn, error) { return nil, errNoSpaces }

func (p *processes) newCenter(string) (*space, error) { return nil, errNoSpaces }

func (p *processes) newHost(string, string, *space, int) (*space, error) { return nil, errNoSpaces }

// Enter becomes a command inside a namespace, on Linux.
func Enter(EnterConfig) error { return errNoSpaces }
