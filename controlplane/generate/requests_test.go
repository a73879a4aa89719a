package generate

import (
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// requestsEntry is a delivery of a mesh entry alone.
func requestsEntry(n *discovery.RequestNormalization) discovery.Delta {
	key := discovery.EntryKey{Kind: mesh.KindMesh, Partition: "default", Namespace: "default", Name: "mesh"}
	return discovery.Delta{Entries: map[discovery.EntryKey]*discovery.ConfigEntry{
		key: {Key: key, Body: &discovery.Mesh{RequestNormalization: n}}}}
}

// TestRequestsAffect: a change of the mesh entry touches the listeners of those
// who serve or call HTTP, and nothing else.
func TestRequestsAffect(t *testing.T) {
	b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	old, _ := b.Apply(meshtest.MustRead(meshtest.Shop))
	m, ch := b.Apply(requestsEntry(&discovery.RequestNormalization{MergeSlashes: true, HeadersWithUnderscoresAction: "DROP_HEADER"}))
	shared, workloads, all := Affected(old, m, ch)
	want := "api-sidecar-proxy n1/api-sidecar-proxy n1/users-1-sidecar-proxy n1/users-2-sidecar-proxy n1/web-sidecar-proxy users-1-sidecar-proxy users-2-sidecar-proxy web-sidecar-proxy"
	if got := strings.Join(workloads, " "); len(shared) > 0 || all || got != want {
		t.Errorf("shared %v, all %v, workloads %s, want %s", shared, all, got, want)
	}
	for _, w := range m.Workloads() { // only inbound listeners where nothing of paths is relaxed
		for _, typ := range resource.Types() {
			v := View{Workload: w}
			for _, n := range Names(m, v, typ) {
				was, _, _ := Resource(old, View{Workload: w}, typ, n)
				is, _, _ := Resource(m, v, typ, n)
				if changed := !resource.Equal(was, is); changed != (n == PublicListener && m.Protocol(w.Service).HTTP()) {
					t.Errorf("%s %s %s changed: %v", w.NodeID, typ.Short(), n, changed)
				}
			}
		}
	}
}

// TestUnknownRequestActions: a word that a newer Consul may have refuses, and
// Analyze names it.
func TestUnknownRequestActions(t *testing.T) {
	d := meshtest.MustRead(meshtest.Shop)
	for k, e := range requestsEntry(&discovery.RequestNormalization{MergeSlashes: true, PathWithEscapedSlashesAction: "DOUBLE", HeadersWithUnderscoresAction: "HYPHENATE"}).Entries {
		d.Entries[k] = e
	}
	m := build(d)
	for _, field := range []string{"PathWithEscapedSlashesAction", "HeadersWithUnderscoresAction"} {
		if !slices.ContainsFunc(Analyze(m), func(f Finding) bool {
			return f.Severity == SeverityError && f.Entry == "mesh/mesh" && strings.HasSuffix(f.Field, "."+field) && f.Remedy != ""
		}) {
			t.Errorf("Analyze does not name %s", field)
		}
	}
	w, _ := m.Workload("api-sidecar-proxy")
	l, _ := publicListener(m, w)
	if h := l.Chains[0].HTTP; h.EscapedSlashes != resource.RejectEscapedSlashes || h.Underscores != resource.RejectUnderscores || h.RawPaths {
		t.Errorf("unknown actions do not refuse: %+v", h)
	}
}
