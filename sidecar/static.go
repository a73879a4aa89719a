package sidecar

import (
	"context"
	"errors"
	"net/netip"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/compile"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// noIdentity is the identity of a sidecar with a static configuration: none.
type noIdentity struct{ *mtls.Cell }

func (noIdentity) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// refuseStatic ends the process where a static configuration cannot be put in
// force at the start: nobody would send a better one.
func (w *workload) refuseStatic(g *group, first bool, errs []error) bool {
	if !w.Sidecar.cfg.Static || !first || len(errs) == 0 {
		return false
	}
	g.fail("static configuration", errors.Join(errs...))
	return true
}

// strangers says whether anybody may connect to a listener of a static
// configuration: it is not said to be outbound, and not on this machine alone.
func (w *workload) strangers(l *resource.Listener) bool {
	if !w.Sidecar.cfg.Static || l.Direction == resource.Outbound || l.Address.Path != "" {
		return false
	}
	ip, err := netip.ParseAddr(l.Address.Host)
	return err != nil || !ip.IsLoopback()
}

// CheckStatic says what of a static configuration cannot be executed, without
// opening a port. Access logs are opened.
func CheckStatic(c Config, d Deps, rs []resource.Resource) []error {
	s, err := New(c, d)
	if err != nil {
		return []error{err}
	}
	return compile.CheckAll(rs, s.all()[0].compileDeps())
}
