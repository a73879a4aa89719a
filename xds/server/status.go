package server

import (
	"cmp"
	"maps"
	"slices"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Status lists the open, authorised streams by node id, then age.
func (s *Server) Status() []StreamStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	out := make([]StreamStatus, 0, len(s.streams))
	for _, st := range s.streams {
		if !st.admitted {
			continue
		}
		x := StreamStatus{Stream: st.id, Workload: st.w, Remote: st.remote, UserAgent: st.userAgent, SotW: st.sotw, Since: st.since}
		for _, b := range st.subs {
			ts := b.status(now)
			slices.SortFunc(ts.Refused, func(a, b Refused) int { return cmp.Compare(a.Name, b.Name) })
			x.Types = append(x.Types, ts)
		}
		slices.SortFunc(x.Types, func(a, b TypeStatus) int {
			return cmp.Or(cmp.Compare(rank(a.Type), rank(b.Type)), cmp.Compare(a.Type, b.Type))
		})
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b StreamStatus) int {
		return cmp.Or(cmp.Compare(a.Workload.NodeID, b.Workload.NodeID), cmp.Compare(a.Stream, b.Stream))
	})
	return out
}

func rank(t resource.Type) int {
	if i := slices.Index(resource.Types(), t); i >= 0 {
		return i
	}
	return len(resource.Types())
}

// Connected lists the workloads with at least one authorised stream, by node id.
func (s *Server) Connected() []Workload {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Workload, 0, len(s.nodes))
	for _, streams := range s.nodes {
		for _, st := range streams {
			out = append(out, st.w)
			break
		}
	}
	slices.SortFunc(out, func(a, b Workload) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return out
}

// Subscribed lists the resources of a type that the open streams of a node ask
// for by name, in order. What a wildcard brings is not in it.
func (s *Server) Subscribed(nodeID string, t resource.Type) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]struct{}{}
	for _, st := range s.nodes[nodeID] {
		b := st.subs[t]
		if b == nil {
			continue
		}
		for _, h := range b.holds {
			if h.named {
				names[h.name] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Metrics returns the counters.
func (s *Server) Metrics() Metrics {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.m
	m.Streams = int64(len(s.streams))
	m.Shared, m.Private = len(s.shared), len(s.private)
	m.StreamsClosed = maps.Clone(m.StreamsClosed)
	m.Responses, m.Bytes = maps.Clone(m.Responses), maps.Clone(m.Bytes)
	m.ACKs, m.NACKs = maps.Clone(m.ACKs), maps.Clone(m.NACKs)
	return m
}
