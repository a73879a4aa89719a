package generate

import (
	"maps"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Affected says which resources a change touches: shared ones by name, and the
// node ids of the workloads whose names or private resources may be different,
// each as "ID" and as "NODE/ID". Its cost follows the change, not the mesh.
func Affected(old, new *mesh.Snapshot, ch mesh.Change) (shared []Key, workloads []string, all bool) {
	if ch.All {
		return nil, nil, true
	}
	a := affected{old: old, new: new, shared: map[Key]bool{}, workloads: map[string]bool{}}
	if ch.Roots {
		a.shared[Key{resource.TypeSecret, resource.SecretTrust}] = true
	}
	for _, name := range ch.Endpoints {
		a.shared[Key{resource.TypeEndpoints, ClusterName(new, name)}] = true
		a.portless(name)
		if dialledDirectly(old, name) || dialledDirectly(new, name) {
			a.capturing(name)
		}
	}
	for _, name := range ch.Virtual { // each that joined or left the mesh is among them
		a.shared[Key{resource.TypeListener, dnsListenerName(name)}] = true
		a.capturing(name)
	}
	for _, name := range ch.Services {
		a.service(name)
	}
	for _, name := range ch.Intentions {
		a.intentions(name)
	}
	for _, partition := range ch.Requests {
		a.requests(partition)
	}
	for _, partition := range ch.Transparent {
		a.settings(partition)
	}
	for _, key := range ch.Workloads {
		a.workload(key)
	}
	shared = slices.SortedFunc(maps.Keys(a.shared), func(x, y Key) int {
		return strings.Compare(string(x.Type)+x.Name, string(y.Type)+y.Name)
	})
	return shared, slices.Sorted(maps.Keys(a.workloads)), false
}

type affected struct {
	old, new  *mesh.Snapshot
	shared    map[Key]bool
	workloads map[string]bool
}

// workload adds a workload by its key, under both of its node ids.
func (a *affected) workload(key string) {
	a.workloads[key] = true
	if _, id, ok := strings.Cut(key, "/"); ok {
		a.workloads[id] = true
	}
}

// portless adds the workloads that take their application's port from its
// registration.
func (a *affected) portless(name discovery.ServiceName) {
	for _, w := range a.new.WorkloadsOf(name) {
		if p := w.Instance.Proxy; p != nil && p.LocalServicePort == 0 && p.LocalServiceSocket == "" {
			a.workload(w.Key())
		}
	}
}

// service adds what depends on a service's existence, protocol and defaults:
// itself, its listeners, and all that its callers hold of it.
func (a *affected) service(name discovery.ServiceName) {
	for _, m := range []*mesh.Snapshot{a.old, a.new} {
		base := ClusterName(m, name)
		a.variants(base)
		a.shared[Key{resource.TypeEndpoints, base}] = true
		a.shared[Key{resource.TypeListener, name.Name}] = true
		for _, w := range m.WorkloadsOf(name) {
			a.workload(w.Key())
		}
		for _, key := range m.Dependants(name) {
			a.workload(key)
			w, ok := m.Workload(key)
			if !ok {
				continue
			}
			explicit(m, w, func(u upstream) bool {
				if u.Service == name {
					a.variants(u.clusterName())
					a.variants(u.asDetected().clusterName())
				}
				return true
			})
		}
	}
	a.capturing(name)
}

func (a *affected) variants(cluster string) {
	a.shared[Key{resource.TypeCluster, cluster}] = true
	a.shared[Key{resource.TypeRoute, cluster}] = true
}

// transparent are the workloads of both snapshots whose traffic is captured.
func (a *affected) transparent(yield func(m *mesh.Snapshot, w *mesh.Workload)) {
	for _, m := range []*mesh.Snapshot{a.old, a.new} {
		for _, w := range m.Workloads() {
			if _, ok := m.Transparent(w); ok {
				yield(m, w)
			}
		}
	}
}

// capturing adds the transparent workloads that reach a service by its virtual
// address, and what they hold of it.
func (a *affected) capturing(name discovery.ServiceName) {
	a.transparent(func(m *mesh.Snapshot, w *mesh.Workload) {
		if !m.Calls(w.Service, name) && !slices.ContainsFunc(w.Upstreams, func(u mesh.Upstream) bool { return u.Service == name }) {
			return
		}
		a.workload(w.Key())
		u := implicit(m, w, name)
		a.variants(u.clusterName())
		a.variants(u.asDetected().clusterName())
		a.shared[Key{resource.TypeCluster, directPrefix + ClusterName(m, name)}] = true
	})
}

// settings adds the transparent workloads of a partition.
func (a *affected) settings(partition string) {
	a.transparent(func(_ *mesh.Snapshot, w *mesh.Workload) {
		if w.Service.Partition == partition {
			a.workload(w.Key())
		}
	})
}

// requests adds the workloads whose listeners read requests for a service of the
// partition: its own, and its callers'.
func (a *affected) requests(partition string) {
	reads := func(name discovery.ServiceName) bool {
		p := a.new.Protocol(name)
		return name.Partition == partition && (p.HTTP() || !p.Declared())
	}
	for _, w := range a.new.Workloads() {
		if _, transparent := a.new.Transparent(w); transparent && w.Service.Partition == partition || reads(w.Service) || slices.ContainsFunc(w.Upstreams, func(u mesh.Upstream) bool { return reads(u.Service) }) {
			a.workload(w.Key())
		}
	}
}

// intentions adds the workloads of a destination, "*" being every one, and the
// transparent ones that may now call it, or may no longer.
func (a *affected) intentions(dst discovery.ServiceName) {
	a.transparent(func(m *mesh.Snapshot, w *mesh.Workload) {
		if m != a.new {
			return
		}
		if !slices.EqualFunc(outside(a.old, w), outside(a.new, w), func(x, y mesh.Outside) bool { return x.Service == y.Service }) {
			a.workload(w.Key())
			return
		}
		if dst.Name == "*" {
			if slices.Equal(a.old.Callable(w.Service), a.new.Callable(w.Service)) {
				return
			}
		} else if a.old.Calls(w.Service, dst) == a.new.Calls(w.Service, dst) {
			return
		}
		a.workload(w.Key())
	})
	if dst.Name != "*" {
		for _, m := range []*mesh.Snapshot{a.old, a.new} {
			for _, w := range m.WorkloadsOf(dst) {
				a.workload(w.Key())
			}
		}
		return
	}
	for _, w := range a.new.Workloads() {
		if dst.Namespace == "*" || dst.Namespace == w.Service.Namespace {
			a.workload(w.Key())
		}
	}
}
