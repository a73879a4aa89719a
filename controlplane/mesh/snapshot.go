package mesh

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/discovery"
)

// Kinds of config entries that the mesh is made of.
const (
	KindServiceDefaults   = "service-defaults"
	KindProxyDefaults     = "proxy-defaults"
	KindServiceIntentions = "service-intentions"
	KindMesh              = "mesh"
)

// Snapshot is the mesh at one moment. Immutable; safe for concurrent use.
type Snapshot struct {
	// Version counts the changes of one Builder, from 1.
	Version uint64
	// TrustDomain and Datacenter are this mesh's own.
	TrustDomain string
	Datacenter  string
	// Default is the action where no intention names a call; never "".
	Default discovery.IntentionAction
	// RootsPEM is the trust bundle of TrustDomain, active root first.
	RootsPEM []string
	// Source is how the catalogue's source said it is.
	Source discovery.Status

	services   *table[discovery.ServiceName, *discovery.Service]
	entries    *table[discovery.EntryKey, *discovery.ConfigEntry]
	workloads  *table[string, []*Workload]
	dependants *table[discovery.ServiceName, []string]
	virtual    *table[discovery.ServiceName, Virtual]
	outside    *table[discovery.EntryKey, *discovery.Destination]
	callable   *callables // nil before the first delivery
	memo       *memo      // nil before the first delivery
}

// Workload is one proxy or connect-native instance: who may open a stream.
type Workload struct {
	// NodeID is the Consul id of the registration, by which its stream names
	// itself. Ids are unique per Consul node only; see Snapshot.Lookup.
	NodeID string
	// Service is what the workload is an instance of: its identity.
	Service discovery.ServiceName
	// Instance is the registration of the proxy, or the native instance.
	Instance *discovery.Instance
	// Upstreams are the explicit upstreams, in the order of the registration.
	Upstreams []Upstream
}

// Key names the workload without doubt: "NODE/ID".
func (w *Workload) Key() string { return w.Instance.Node + "/" + w.NodeID }

// Upstream is one upstream of a workload, resolved to the service that it
// means.
type Upstream struct {
	discovery.Upstream
	Service discovery.ServiceName
	// Unsupported says why the upstream cannot be served; "" where it can.
	Unsupported string
}

// Bound says whether the upstream has a listener of its own. One without is
// reached by a transparent proxy, at the service's virtual address.
func (u Upstream) Bound() bool { return u.LocalBindPort > 0 || u.LocalBindSocketPath != "" }

// Served says why a workload's upstream is not served; "" where it is.
func (s *Snapshot) Served(w *Workload, u Upstream) string {
	if u.Unsupported != "" || u.Bound() {
		return u.Unsupported
	}
	if _, transparent := s.Transparent(w); transparent {
		return ""
	}
	return "it has neither local_bind_port nor local_bind_socket_path"
}

// Service returns a service of the catalogue.
func (s *Snapshot) Service(name discovery.ServiceName) (*discovery.Service, bool) {
	return s.services.get(name)
}

// Services returns all services, in no particular order.
func (s *Snapshot) Services() iter.Seq2[discovery.ServiceName, *discovery.Service] {
	return s.services.all()
}

// ServiceNames returns the names of all services, sorted.
func (s *Snapshot) ServiceNames() []discovery.ServiceName {
	names := make([]discovery.ServiceName, 0, s.services.len())
	for n := range s.services.all() {
		names = append(names, n)
	}
	slices.SortFunc(names, discovery.ServiceName.Compare)
	return names
}

// Entry returns a config entry.
func (s *Snapshot) Entry(k discovery.EntryKey) (*discovery.ConfigEntry, bool) {
	return s.entries.get(k)
}

// Entries returns all config entries, sorted by kind and name.
func (s *Snapshot) Entries() []*discovery.ConfigEntry {
	out := make([]*discovery.ConfigEntry, 0, s.entries.len())
	for _, e := range s.entries.all() {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *discovery.ConfigEntry) int {
		return strings.Compare(entryString(a.Key), entryString(b.Key))
	})
	return out
}

func entryString(k discovery.EntryKey) string {
	return strings.Join([]string{k.Kind, k.Partition, k.Namespace, k.Name}, "/")
}

// EntryName is how messages name an entry: "service-defaults/api".
func EntryName(k discovery.EntryKey) string { return k.Kind + "/" + k.Name }

// Workload returns the workload that speaks as nodeID: the id of a proxy or of
// a native instance, or "NODE/ID" where several nodes use one id.
func (s *Snapshot) Workload(nodeID string) (*Workload, bool) {
	w, err := s.Lookup(nodeID)
	return w, err == nil
}

// Lookup is Workload with the reason: [ErrUnknown] for an id that is not
// registered, [ErrAmbiguous] for one that several nodes use.
func (s *Snapshot) Lookup(nodeID string) (*Workload, error) {
	ws, _ := s.workloads.get(nodeID)
	switch len(ws) {
	case 0:
		return nil, fmt.Errorf("mesh: node id %q: %w", nodeID, ErrUnknown)
	case 1:
		return ws[0], nil
	}
	keys := make([]string, len(ws))
	for i, w := range ws {
		keys[i] = w.Key()
	}
	return nil, fmt.Errorf("mesh: node id %q: %w: say which as one of %s", nodeID, ErrAmbiguous, strings.Join(keys, ", "))
}

// Workloads returns all workloads, each once, sorted by key.
func (s *Snapshot) Workloads() []*Workload {
	var out []*Workload
	for id, ws := range s.workloads.all() {
		for _, w := range ws {
			if id == w.NodeID {
				out = append(out, w)
			}
		}
	}
	slices.SortFunc(out, compareWorkloads)
	return out
}

// WorkloadsOf returns the workloads of one service, in the catalogue's order.
func (s *Snapshot) WorkloadsOf(name discovery.ServiceName) []*Workload {
	svc, ok := s.services.get(name)
	if !ok {
		return nil
	}
	out := make([]*Workload, 0, len(svc.Proxies))
	for _, p := range svc.Proxies {
		ws, _ := s.workloads.get(p.Node + "/" + p.ID)
		for _, w := range ws {
			if w.Service == name {
				out = append(out, w)
			}
		}
	}
	return out
}

// Dependants returns the keys ("NODE/ID") of the workloads that have the
// service as an upstream, sorted. Read-only.
func (s *Snapshot) Dependants(name discovery.ServiceName) []string {
	d, _ := s.dependants.get(name)
	return d
}

// Local makes the full name of a service of this mesh's own datacenter in the
// default partition and namespace.
func (s *Snapshot) Local(name string) discovery.ServiceName {
	return discovery.ServiceName{
		Partition: discovery.DefaultPartition, Namespace: discovery.DefaultNamespace,
		Datacenter: s.Datacenter, Name: name,
	}
}

// Stats are sizes, for status pages.
type Stats struct{ Services, Workloads, Entries int }

// Stats counts what is in the mesh.
func (s *Snapshot) Stats() Stats {
	return Stats{Services: s.services.len(), Workloads: len(s.Workloads()), Entries: s.entries.len()}
}
