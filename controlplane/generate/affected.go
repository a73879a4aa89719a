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
			upstreams(m, w, func(u upstream) bool {
				if u.Service == name {
					a.variants(u.clusterName())
				}
				return true
			})
		}
	}
}

func (a *affected) variants(cluster string) {
	a.shared[Key{resource.TypeCluster, cluster}] = true
	a.shared[Key{resource.TypeRoute, cluster}] = true
}

// requests adds the workloads whose listeners read requests for a service of the
// partition: its own, and its callers'.
func (a *affected) requests(partition string) {
	reads := func(name discovery.ServiceName) bool {
		return name.Partition == partition && a.new.Protocol(name).HTTP()
	}
	for _, w := range a.new.Workloads() {
		if reads(w.Service) || slices.ContainsFunc(w.Upstreams, func(u mesh.Upstream) bool { return reads(u.Service) }) {
			a.workload(w.Key())
		}
	}
}

// intentions adds the workloads of a destination; "*" is every one.
func (a *affected) intentions(dst discovery.ServiceName) {
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
