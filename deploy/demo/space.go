package demo

import (
	"context"
	"net/netip"
)

// space is a network namespace that stands for a machine. It lives as long as
// the process that holds it, and everything in it (links, routes, rules) ends
// with it: nothing outside is touched.
type space struct {
	name   string
	addr   netip.Addr // its address on the demo's network
	holder *process
}

// Hold is what holds a namespace: it does nothing until it is ended.
func Hold(ctx context.Context) { <-ctx.Done() }

// EnterConfig is what Enter needs.
type EnterConfig struct {
	Netns      string // path of the network namespace
	UID        int    // who the command runs as; 0: root
	ResolvConf string // what it sees as /etc/resolv.conf; "": the host's
	Command    []string
}
