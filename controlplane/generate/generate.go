package generate

import (
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// View is who looks at the mesh, and in which dialect.
type View struct {
	Workload *mesh.Workload
	GRPC     bool // a proxyless gRPC client or server
}

// Key names a shared resource.
type Key struct {
	Type resource.Type
	Name string
}

// Names lists what a wildcard subscription of the workload gets, in the order
// of the registration, each name once. Proxyless gRPC asks for what it uses by
// name; a wildcard of its gives nothing.
func Names(m *mesh.Snapshot, v View, t resource.Type) []string {
	if v.GRPC {
		return nil
	}
	switch t {
	case resource.TypeSecret:
		return []string{resource.SecretTrust}
	case resource.TypeListener:
		return listenerNames(m, v.Workload)
	case resource.TypeCluster:
		var names []string
		if l, ok := localApp(m, v.Workload); ok {
			names = append(names, l.name())
		}
		return appendUpstreams(names, m, v.Workload, func(u upstream) (string, bool) { return u.clusterName(), true })
	case resource.TypeEndpoints:
		return appendUpstreams(nil, m, v.Workload, func(u upstream) (string, bool) { return ClusterName(m, u.Service), true })
	case resource.TypeRoute:
		return appendUpstreams(nil, m, v.Workload, func(u upstream) (string, bool) {
			return u.clusterName(), m.Protocol(u.Service).HTTP()
		})
	}
	return nil
}

// Resource makes one resource. private: it is made for this workload alone.
// ok is false where it does not exist or is none of the workload's business.
func Resource(m *mesh.Snapshot, v View, t resource.Type, name string) (r resource.Resource, private, ok bool) {
	if v.GRPC {
		return grpcResource(m, v.Workload, t, name)
	}
	switch t {
	case resource.TypeSecret:
		if s, ok := trust(m); ok && name == resource.SecretTrust {
			return s, false, true
		}
	case resource.TypeListener:
		if l, ok := listener(m, v.Workload, name); ok {
			return l, true, true
		}
	case resource.TypeCluster:
		if l, ok := localApp(m, v.Workload); ok && l.name() == name {
			return l.cluster(), false, true
		}
		if u, ok := findUpstream(m, v.Workload, func(u upstream) bool { return u.clusterName() == name }); ok {
			return upstreamCluster(m, u.Service, u.options, false), false, true
		}
	case resource.TypeEndpoints:
		if u, ok := findUpstream(m, v.Workload, func(u upstream) bool { return ClusterName(m, u.Service) == name }); ok {
			return endpoints(m, u.Service), false, true
		}
	case resource.TypeRoute:
		u, ok := findUpstream(m, v.Workload, func(u upstream) bool { return u.clusterName() == name })
		if ok && m.Protocol(u.Service).HTTP() {
			return upstreamRoute(m, u.Service, name), false, true
		}
	}
	return nil, false, false
}

// upstream is one upstream of a workload with the options that hold for it.
type upstream struct {
	mesh.Upstream
	options options
	m       *mesh.Snapshot
}

func (u upstream) clusterName() string { return ClusterName(u.m, u.Service) + u.options.suffix() }

// upstreams calls yield for each upstream that can be served, until it returns
// false.
func upstreams(m *mesh.Snapshot, w *mesh.Workload, yield func(upstream) bool) {
	for _, u := range w.Upstreams {
		if u.Unsupported == "" && !yield(upstream{u, upstreamOptions(m, w, u), m}) {
			return
		}
	}
}

func findUpstream(m *mesh.Snapshot, w *mesh.Workload, match func(upstream) bool) (found upstream, ok bool) {
	upstreams(m, w, func(u upstream) bool {
		if match(u) {
			found, ok = u, true
		}
		return !ok
	})
	return found, ok
}

// appendUpstreams appends a name for each upstream, each once.
func appendUpstreams(names []string, m *mesh.Snapshot, w *mesh.Workload, name func(upstream) (string, bool)) []string {
	seen := make(map[string]bool, len(w.Upstreams))
	upstreams(m, w, func(u upstream) bool {
		if n, ok := name(u); ok && !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
		return true
	})
	return names
}

// trust is the secret ROOTCA; none while the mesh has no roots.
func trust(m *mesh.Snapshot) (*resource.Secret, bool) {
	if len(m.RootsPEM) == 0 {
		return nil, false
	}
	var pem []byte
	for _, root := range m.RootsPEM {
		pem = append(pem, root...)
		if n := len(pem); n > 0 && pem[n-1] != '\n' {
			pem = append(pem, '\n')
		}
	}
	return &resource.Secret{
		Name:     resource.SecretTrust,
		TrustPEM: []resource.TrustBundle{{TrustDomain: m.TrustDomain, RootsPEM: pem}},
	}, true
}

// metadata is what every resource says of the service that it is about.
func metadata(name discovery.ServiceName, p mesh.Protocol, entry string) resource.Metadata {
	md := resource.Metadata{
		resource.MetaService: name.Name, resource.MetaNamespace: name.Namespace,
		resource.MetaDatacenter: name.Datacenter, resource.MetaProtocol: p.Name,
	}
	if entry != "" {
		md[resource.MetaEntry] = entry
	}
	return md
}
