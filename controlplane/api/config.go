package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// ConfigDump is the answer of /v1/config/TYPE/NODE.
type ConfigDump struct {
	Node    string `json:"node"`
	Service string `json:"service"`
	Type    string `json:"type"` // LDS, RDS, CDS, EDS, SDS
	// Dialect is that of the open stream; parrel where there is none.
	Dialect   string     `json:"dialect"`
	Resources []Resource `json:"resources"`
}

// Resource is one generated resource. Config is Envoy's v3 JSON of it, with the
// field names of Envoy's protos: Envoy's documents are its reference.
type Resource struct {
	Name string `json:"name"`
	// Private: made for this workload alone.
	Private bool `json:"private"`
	// Entry is the registration or config entry that caused it.
	Entry  string          `json:"entry,omitempty"`
	Config json.RawMessage `json:"config"`
}

// configTypes are the words of the path.
func configTypes(word string) (resource.Type, bool) {
	switch word {
	case "clusters":
		return resource.TypeCluster, true
	case "listeners":
		return resource.TypeListener, true
	case "routes":
		return resource.TypeRoute, true
	case "endpoints":
		return resource.TypeEndpoints, true
	case "secrets":
		return resource.TypeSecret, true
	}
	return "", false
}

func (h *handler) config(r *http.Request) (any, error) {
	t, ok := configTypes(r.PathValue("type"))
	if !ok {
		return nil, &Error{http.StatusNotFound, "there is no type " + strconv.Quote(r.PathValue("type")) + ": ask for clusters, listeners, routes, endpoints or secrets"}
	}
	m := h.deps.Mesh()
	w, err := find(m, r.PathValue("node"))
	if err != nil {
		return nil, err
	}
	d := ConfigDump{Node: nodeID(m, w), Service: w.Service.Name, Type: t.Short(), Dialect: "parrel", Resources: []Resource{}}
	v := generate.View{Workload: w}
	for _, st := range h.deps.Streams() {
		if st.Workload.NodeID == w.NodeID || st.Workload.NodeID == w.Key() {
			d.Dialect = dialect(st.Workload.Dialect)
			v.GRPC = st.Workload.Dialect == server.GRPC
		}
	}
	for _, name := range h.names(m, v, t) {
		if res, private, ok := generate.Resource(m, v, t, name); ok {
			config, err := wire.JSON(res)
			if err != nil {
				return nil, &Error{http.StatusInternalServerError, "the resource cannot be sent: " + err.Error()}
			}
			d.Resources = append(d.Resources, Resource{Name: name, Private: private, Entry: cause(res), Config: config})
		}
	}
	return d, nil
}

// names are those of the wildcard; for gRPC, which has none, what it asks for.
func (h *handler) names(m *mesh.Snapshot, v generate.View, t resource.Type) []string {
	if !v.GRPC || h.deps.Subscribed == nil {
		return generate.Names(m, v, t)
	}
	names := h.deps.Subscribed(v.Workload.NodeID, t)
	if key := v.Workload.Key(); key != v.Workload.NodeID {
		names = append(names, h.deps.Subscribed(key, t)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// find resolves a node id or the name of a service to a workload.
func find(m *mesh.Snapshot, id string) (*mesh.Workload, error) {
	if id == "" {
		return nil, &Error{http.StatusBadRequest, "name a node id or a service"}
	}
	if w, ok := m.Workload(id); ok {
		return w, nil
	}
	if ws := m.WorkloadsOf(m.Local(id)); len(ws) > 0 {
		return ws[0], nil
	}
	if _, ok := m.Service(m.Local(id)); ok {
		return nil, &Error{http.StatusNotFound, "service " + strconv.Quote(id) + " has no proxy and no connect-native instance in the catalogue: start a sidecar for it, or register one"}
	}
	return nil, &Error{http.StatusNotFound, "there is neither a proxy nor a service " + strconv.Quote(id) + " in the catalogue; `parrel status` lists what there is"}
}

// cause is the MetaEntry of a resource, "" where it has none.
func cause(r resource.Resource) string {
	switch r := r.(type) {
	case *resource.Listener:
		return r.Metadata[resource.MetaEntry]
	case *resource.RouteConfig:
		return r.Metadata[resource.MetaEntry]
	case *resource.Cluster:
		return r.Metadata[resource.MetaEntry]
	}
	return ""
}

// causeOf is the cause of a resource that a stream refused.
func causeOf(m *mesh.Snapshot, w *mesh.Workload, d server.Dialect, t resource.Type, name string) string {
	if w == nil {
		return ""
	}
	r, _, ok := generate.Resource(m, generate.View{Workload: w, GRPC: d == server.GRPC}, t, name)
	if !ok {
		return ""
	}
	return cause(r)
}

func itoa(n int) string { return strconv.Itoa(n) }

// splitHeader reads "Name: value" of a query parameter.
func splitHeader(s string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(s, ":")
	return strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value), ok && strings.TrimSpace(name) != ""
}
