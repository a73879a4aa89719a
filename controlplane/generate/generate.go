package generate

import (
	"slices"
	"strings"

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
		for _, l := range localApps(m, v.Workload) {
			names = append(names, l.name())
		}
		if _, transparent := m.Transparent(v.Workload); transparent {
			names = append(names, OriginalDestination)
			for _, h := range outsideHosts(m, v.Workload) {
				names = append(names, h.cluster())
			}
		}
		return appendUpstreams(names, m, v.Workload, upstream.clusterNames)
	case resource.TypeEndpoints:
		return appendUpstreams(nil, m, v.Workload, func(u upstream) []string { return []string{ClusterName(m, u.Service)} })
	case resource.TypeRoute:
		return appendUpstreams(nil, m, v.Workload, upstream.routeNames)
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
		if _, transparent := m.Transparent(v.Workload); transparent && name == dnsListenerName(v.Workload.Service) {
			return dnsListener(m, v.Workload.Service), false, true
		}
		if l, ok := listener(m, v.Workload, name); ok {
			return l, true, true
		}
	case resource.TypeCluster:
		for _, l := range localApps(m, v.Workload) {
			if l.name() == name {
				return l.cluster(), false, true
			}
		}
		if _, transparent := m.Transparent(v.Workload); transparent && name == OriginalDestination {
			return originalDestination(), false, true
		}
		if strings.HasPrefix(name, outsidePrefix) {
			for _, h := range outsideHosts(m, v.Workload) {
				if h.cluster() == name {
					return h.makeCluster(), false, true
				}
			}
			return nil, false, false
		}
		u, ok := findUpstream(m, v.Workload, name, upstream.clusterNames)
		switch {
		case ok && strings.HasPrefix(name, directPrefix):
			return directCluster(m, u.Service), false, true
		case ok:
			u.options.Detected = u.clusterName() != name
			return upstreamCluster(m, u.Service, u.options, false), false, true
		}
	case resource.TypeEndpoints:
		if u, ok := findUpstream(m, v.Workload, name, func(u upstream) []string { return []string{ClusterName(m, u.Service)} }); ok {
			return endpoints(m, u.Service), false, true
		}
	case resource.TypeRoute:
		if u, ok := findUpstream(m, v.Workload, name, upstream.routeNames); ok {
			return upstreamRoute(m, u.Service, name), false, true
		}
	}
	return nil, false, false
}

// upstream is one upstream of a workload with the options that hold for it.
type upstream struct {
	mesh.Upstream
	options  options
	captured bool // it is reached at its virtual address too
	m        *mesh.Snapshot
}

func (u upstream) clusterName() string { return ClusterName(u.m, u.Service) + u.options.suffix() }

// asDetected is the upstream for connections that turned out to be HTTP.
func (u upstream) asDetected() upstream {
	u.options.Detected = true
	return u
}

// detects says whether connections to it are looked at for what they are.
func (u upstream) detects() bool { return u.captured && !u.m.Protocol(u.Service).Declared() }

func (u upstream) clusterNames() []string {
	names := []string{u.clusterName()}
	if u.detects() {
		names = append(names, u.asDetected().clusterName())
	}
	if u.captured && dialledDirectly(u.m, u.Service) {
		names = append(names, directPrefix+ClusterName(u.m, u.Service))
	}
	return names
}

func (u upstream) routeNames() []string {
	if u.m.Protocol(u.Service).HTTP() {
		return []string{u.clusterName()}
	}
	if u.detects() {
		return []string{u.asDetected().clusterName()}
	}
	return nil
}

// explicit calls yield for each upstream of the registration that can be served,
// until it returns false.
func explicit(m *mesh.Snapshot, w *mesh.Workload, yield func(upstream) bool) {
	_, transparent := m.Transparent(w)
	for _, u := range w.Upstreams {
		if m.Served(w, u) == "" && !yield(upstream{u, upstreamOptions(m, w, u), transparent && captured(m, u.Service), m}) {
			return
		}
	}
}

// captured says whether a service has an address that transparent proxies know.
func captured(m *mesh.Snapshot, name discovery.ServiceName) bool {
	_, ok := m.Virtual(name)
	return ok
}

// implicit is a service that a transparent proxy reaches without naming it.
func implicit(m *mesh.Snapshot, w *mesh.Workload, name discovery.ServiceName) upstream {
	u := mesh.Upstream{Service: name, Upstream: discovery.Upstream{
		DestinationName: name.Name, DestinationNamespace: name.Namespace, DestinationPartition: name.Partition, Datacenter: name.Datacenter,
	}}
	return upstream{u, upstreamOptions(m, w, u), true, m}
}

// upstreams calls yield for each upstream of a workload until it returns false:
// the explicit ones in the order of the registration, and for a transparent
// proxy every other service that it may call, in the order of names.
func upstreams(m *mesh.Snapshot, w *mesh.Workload, yield func(upstream) bool) {
	named, more := map[discovery.ServiceName]bool{}, true
	explicit(m, w, func(u upstream) bool {
		named[u.Service] = true
		more = yield(u)
		return more
	})
	if _, transparent := m.Transparent(w); !transparent || !more {
		return
	}
	for _, name := range m.Callable(w.Service) {
		if !named[name] && !yield(implicit(m, w, name)) {
			return
		}
	}
}

// findUpstream finds the upstream among whose names one is. The names hold the
// service's own, so that it is not looked for among all.
func findUpstream(m *mesh.Snapshot, w *mesh.Workload, name string, names func(upstream) []string) (found upstream, ok bool) {
	base, _, _ := strings.Cut(strings.TrimPrefix(name, directPrefix), "|")
	svc, parsed := parseClusterName(m, base)
	if !parsed {
		return found, false
	}
	named := false
	explicit(m, w, func(u upstream) bool {
		if u.Service == svc {
			named = true
			if slices.Contains(names(u), name) {
				found, ok = u, true
			}
		}
		return !ok
	})
	if ok || named {
		return found, ok
	}
	if _, transparent := m.Transparent(w); !transparent || !m.Calls(w.Service, svc) {
		return found, false
	}
	found = implicit(m, w, svc)
	return found, slices.Contains(names(found), name)
}

// appendUpstreams appends the names of each upstream, each once.
func appendUpstreams(names []string, m *mesh.Snapshot, w *mesh.Workload, of func(upstream) []string) []string {
	seen := make(map[string]bool, len(w.Upstreams))
	upstreams(m, w, func(u upstream) bool {
		for _, n := range of(u) {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
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
