package generate

import (
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// requests is how requests for a service are read where it is served. Without
// RequestNormalization in the mesh entry that is strict, and said expressly, so
// that data planes with other defaults do the same.
type requests struct {
	raw, keepSlashes bool
	escaped          resource.EscapedSlashes
	underscores      resource.Underscores
}

func requestsOf(m *mesh.Snapshot, name discovery.ServiceName) requests {
	n, _ := m.RequestNormalization(name.Partition)
	if n == nil {
		return requests{escaped: resource.RejectEscapedSlashes}
	}
	r := requests{
		raw:         n.InsecureDisablePathNormalization,
		keepSlashes: !n.MergeSlashes,
	}
	r.escaped, _ = slashAction(n)
	r.underscores, _ = underscoreAction(n)
	return r
}

// slashAction is what becomes of encoded slashes, and whether the word is known:
// one that is not refuses. Where nothing is said of paths that are to stay as
// they are, that holds for encoded slashes too.
func slashAction(n *discovery.RequestNormalization) (resource.EscapedSlashes, bool) {
	switch n.PathWithEscapedSlashesAction {
	case "", "IMPLEMENTATION_SPECIFIC_DEFAULT":
		if n.InsecureDisablePathNormalization {
			return resource.KeepEscapedSlashes, true
		}
		return resource.RejectEscapedSlashes, true
	case "KEEP_UNCHANGED":
		return resource.KeepEscapedSlashes, true
	case "UNESCAPE_AND_REDIRECT":
		return resource.RedirectEscapedSlashes, true
	case "UNESCAPE_AND_FORWARD":
		return resource.ForwardEscapedSlashes, true
	case "REJECT_REQUEST":
		return resource.RejectEscapedSlashes, true
	}
	return resource.RejectEscapedSlashes, false
}

// underscoreAction is what becomes of fields with an underscore in their name,
// and whether the word is known: one that is not refuses.
func underscoreAction(n *discovery.RequestNormalization) (resource.Underscores, bool) {
	switch n.HeadersWithUnderscoresAction {
	case "", "ALLOW":
		return resource.AllowUnderscores, true
	case "DROP_HEADER":
		return resource.DropUnderscores, true
	case "REJECT_REQUEST":
		return resource.RejectUnderscores, true
	}
	return resource.RejectUnderscores, false
}

// relaxed says whether any path is taken, or forwarded in a spelling, that the
// strict reading does not have. Callers' sidecars then leave paths as they are:
// one place, where the service is, says what becomes of them.
func (r requests) relaxed() bool {
	return r.raw || r.keepSlashes || r.escaped != resource.RejectEscapedSlashes
}

// apply writes it into the connection manager of an inbound listener. Adjacent
// slashes are kept by the route: intentions are asked about the merged form.
func (r requests) apply(m *resource.HTTPManager) {
	m.RawPaths, m.MergeSlashes, m.EscapedSlashes, m.Underscores = r.raw, !r.keepSlashes, r.escaped, r.underscores
	if !r.keepSlashes || r.raw {
		return
	}
	for i := range m.Route.VirtualHosts {
		for j := range m.Route.VirtualHosts[i].Routes {
			m.Route.VirtualHosts[i].Routes[j].Metadata = resource.Metadata{resource.MetaPath: resource.PathKeepsSlashes}
		}
	}
}
