package listener

import (
	"cmp"
	"slices"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// turnAway closes a connection that a limit does not admit. It is recorded as
// every refused connection is.
func (so *socket) turnAway(c netio.Conn, code telemetry.Code) {
	so.counters.limited.Add(1)
	defer func() { _ = c.Reset() }()
	now := so.set.Now()
	rec := &telemetry.Record{
		Start: now, Listener: so.name, DownstreamRemote: addrPort(c.RemoteAddr()), DownstreamLocal: addrPort(c.LocalAddr()),
		Protocol: "tcp", GRPCStatus: -1, Code: code, Detail: "the connection was closed when it was accepted",
	}
	if a := so.active.Load(); a != nil {
		rec.Version, rec.Inbound = a.version, a.config.Resource.Direction == resource.Inbound
		if rec.Inbound {
			rec.DestinationService = a.config.Resource.Metadata[resource.MetaService]
		}
	}
	if so.set.Record != nil {
		so.set.Record.ConnClosed(rec)
	}
	if so.quiet.allow() {
		so.set.Log.Warn("listener: connection refused", "listener", so.name, "source", rec.DownstreamRemote.String(),
			"code", code.String(), "err", code.Info().Sentence)
	}
}

// shed ends at most n connections for want of memory and says how many it
// ended. The youngest go first: a flood is younger than what it disturbs.
func (s *Set) shed(n int) int {
	s.mu.Lock()
	all := s.socketsLocked()
	s.mu.Unlock()
	var conns []*tracked
	for _, so := range all {
		so.mu.Lock()
		conns = append(conns, so.copyLocked()...)
		so.mu.Unlock()
	}
	slices.SortFunc(conns, func(a, b *tracked) int { return cmp.Compare(b.serial, a.serial) })
	conns = conns[:min(n, len(conns))]
	for _, t := range conns {
		t.end(telemetry.Overload, "the process's memory is used up")
	}
	return len(conns)
}
