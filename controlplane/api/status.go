package api

import (
	"cmp"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/server"
)

// Status is the answer of /v1/status.
type Status struct {
	ControlPlane ControlPlane `json:"control_plane"`
	Source       Source       `json:"source"`
	// Sidecars are all registered workloads and all open streams, by node id.
	Sidecars []Sidecar `json:"sidecars"`
}

// ControlPlane says what is in force.
type ControlPlane struct {
	Name        string `json:"name"`
	Ready       bool   `json:"ready"` // the catalogue has been read
	TrustDomain string `json:"trust_domain"`
	Datacenter  string `json:"datacenter"`
	MeshVersion uint64 `json:"mesh_version"`
	Services    int    `json:"services"`
	Workloads   int    `json:"workloads"`
	Entries     int    `json:"config_entries"`
	// DefaultIntention is allow or deny.
	DefaultIntention string `json:"default_intention"`
}

// Source is how the catalogue's source is.
type Source struct {
	Stale        bool       `json:"stale"`
	Reason       string     `json:"reason,omitempty"`
	Since        *time.Time `json:"since,omitempty"`
	AgeMS        int64      `json:"age_ms"`
	StaleService []string   `json:"stale_services,omitempty"`
	Problems     []Problem  `json:"problems,omitempty"`
}

// Problem is something that the source refused.
type Problem struct {
	Place  string `json:"place"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"`
}

// Sidecar is one workload: registered, connected, or both.
type Sidecar struct {
	Node       string       `json:"node"`
	Service    string       `json:"service"`
	Registered bool         `json:"registered"`
	Connected  bool         `json:"connected"`
	SPIFFEID   string       `json:"spiffe_id,omitempty"`
	Dialect    string       `json:"dialect,omitempty"` // parrel, envoy, grpc
	UserAgent  string       `json:"user_agent,omitempty"`
	Remote     string       `json:"remote,omitempty"`
	Since      *time.Time   `json:"since,omitempty"`
	InSync     bool         `json:"in_sync"` // connected, and every type is
	Types      []TypeStatus `json:"types,omitempty"`
}

// TypeStatus is what a sidecar wants and has of one type.
type TypeStatus struct {
	Type      string    `json:"type"` // LDS, RDS, CDS, EDS, SDS
	Wanted    string    `json:"wanted"`
	Acked     string    `json:"acked"`
	InSync    bool      `json:"in_sync"`
	AgeMS     int64     `json:"age_ms"` // how long acked has been behind wanted
	Resources int       `json:"resources"`
	BytesSent uint64    `json:"bytes_sent"`
	NACKs     uint64    `json:"nacks"`
	LastNACK  *NACK     `json:"last_nack,omitempty"`
	Refused   []Refused `json:"refused,omitempty"` // refused and still wanted
}

// NACK is one refusal.
type NACK struct {
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

// Refused is one refused resource, with what caused it where that is known.
type Refused struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Entry   string `json:"entry,omitempty"`
}

func (h *handler) status() Status {
	m := h.deps.Mesh()
	stats := m.Stats()
	s := Status{
		ControlPlane: ControlPlane{
			Name: h.cfg.Name, Ready: h.deps.Ready(), TrustDomain: m.TrustDomain, Datacenter: m.Datacenter,
			MeshVersion: m.Version, Services: stats.Services, Workloads: stats.Workloads, Entries: stats.Entries,
			DefaultIntention: string(m.Default),
		},
		Source:   source(m),
		Sidecars: []Sidecar{},
	}
	connected := map[string]bool{}
	for _, st := range h.deps.Streams() {
		sc := sidecar(m, st)
		if w, ok := m.Workload(st.Workload.NodeID); ok {
			connected[w.Key()] = true
		}
		s.Sidecars = append(s.Sidecars, sc)
	}
	for _, w := range m.Workloads() {
		if !connected[w.Key()] {
			s.Sidecars = append(s.Sidecars, Sidecar{Node: nodeID(m, w), Service: w.Service.Name, Registered: true})
		}
	}
	slices.SortStableFunc(s.Sidecars, func(a, b Sidecar) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Node, b.Node))
	})
	return s
}

// nodeID is the shortest id that names a workload without doubt.
func nodeID(m *mesh.Snapshot, w *mesh.Workload) string {
	if _, ok := m.Workload(w.NodeID); ok {
		return w.NodeID
	}
	return w.Key()
}

func source(m *mesh.Snapshot) Source {
	s := Source{Stale: m.Source.Stale, Reason: m.Source.Reason, AgeMS: m.Source.Age.Milliseconds()}
	if !m.Source.Since.IsZero() {
		since := m.Source.Since
		s.Since = &since
	}
	for _, p := range m.Source.Problems {
		s.Problems = append(s.Problems, Problem{place(p.Origin), p.Reason, p.Remedy})
	}
	for _, name := range m.ServiceNames() {
		if svc, ok := m.Service(name); ok && svc.Stale {
			s.StaleService = append(s.StaleService, name.String())
		}
	}
	return s
}

func sidecar(m *mesh.Snapshot, st server.StreamStatus) Sidecar {
	since := st.Since
	sc := Sidecar{
		Node: st.Workload.NodeID, Connected: true, SPIFFEID: st.Workload.ID.String(), Dialect: dialect(st.Workload.Dialect),
		UserAgent: st.UserAgent, Remote: st.Remote, Since: &since, InSync: true,
	}
	w, ok := m.Workload(st.Workload.NodeID)
	if sc.Registered = ok; ok {
		sc.Service = w.Service.Name
	}
	for _, t := range st.Types {
		ts := TypeStatus{
			Type: t.Type.Short(), Wanted: t.Wanted, Acked: t.Acked, InSync: t.Wanted == t.Acked,
			AgeMS: t.Age.Milliseconds(), Resources: t.Resources, BytesSent: t.BytesSent, NACKs: t.NACKs,
		}
		if t.LastNACK != nil {
			ts.LastNACK = &NACK{t.LastNACK.Text, t.LastNACK.At}
		}
		for _, r := range t.Refused {
			ts.Refused = append(ts.Refused, Refused{Name: r.Name, Version: r.Version, Reason: r.Reason,
				Entry: causeOf(m, w, st.Workload.Dialect, t.Type, r.Name)})
		}
		sc.InSync = sc.InSync && ts.InSync
		sc.Types = append(sc.Types, ts)
	}
	return sc
}

func dialect(d server.Dialect) string {
	switch d {
	case server.Envoy:
		return "envoy"
	case server.GRPC:
		return "grpc"
	}
	return "parrel"
}

func place(o discovery.Origin) string {
	if o.Line > 0 {
		return o.Place + " line " + itoa(o.Line)
	}
	return o.Place
}
