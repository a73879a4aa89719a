package generate

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// TestGolden generates everything that a catalogue gives. A case is one txtar:
// catalogue.yaml goes in, every other file comes out; the comment above the
// first file may name, after "grpc:", what a proxyless client asks for.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			d, err := meshtest.Read(string(a.Files[0].Data))
			if err != nil {
				t.Fatal(err)
			}
			m := build(d)
			a.Files = a.Files[:1]
			for _, w := range m.Workloads() {
				for _, typ := range resource.Types() {
					data := dump(t, m, View{Workload: w}, typ, Names(m, View{Workload: w}, typ))
					a.Files = append(a.Files, txtar.File{Name: w.NodeID + "/" + typ.Short(), Data: []byte(data)})
				}
			}
			for _, line := range strings.Split(string(a.Comment), "\n") {
				ask, ok := strings.CutPrefix(line, "grpc: ")
				if !ok {
					continue
				}
				node, name, _ := strings.Cut(ask, " ")
				w, err := m.Lookup(node)
				if err != nil {
					t.Fatal(err)
				}
				a.Files = append(a.Files, txtar.File{Name: "grpc " + ask, Data: []byte(grpcDump(t, m, w, name))})
			}
			golden.Check(t, path, txtar.Format(a))
		})
	}
}

// dump prints resources, and checks of each what must hold of all.
func dump(t *testing.T, m *mesh.Snapshot, v View, typ resource.Type, names []string) string {
	var b strings.Builder
	for _, name := range names {
		r, private, ok := Resource(m, v, typ, name)
		if !ok {
			t.Errorf("%s %q is in Names and has no resource", typ.Short(), name)
			continue
		}
		check(t, r, typ, name)
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s private=%v\n%s\n", name, private, strip(body))
	}
	return b.String()
}

// check holds a resource to the laws: its name, valid, and through the wire and
// back the same.
func check(t *testing.T, r resource.Resource, typ resource.Type, name string) {
	t.Helper()
	if r.ResourceType() != typ || r.ResourceName() != name {
		t.Errorf("asked for %s %q, got %s %q", typ.Short(), name, r.ResourceType().Short(), r.ResourceName())
	}
	if err := r.Validate(); err != nil {
		t.Errorf("%s %q is not valid: %v", typ.Short(), name, err)
	}
	a, err := wire.Encode(r)
	if err != nil {
		t.Errorf("%s %q: %v", typ.Short(), name, err)
		return
	}
	back, warnings, err := wire.Decode(a)
	if err != nil {
		t.Errorf("%s %q: %v", typ.Short(), name, err)
		return
	}
	for _, w := range warnings {
		t.Errorf("%s %q: %v", typ.Short(), name, w)
	}
	if !resource.Equal(r, back) {
		x, _ := json.Marshal(r)
		y, _ := json.Marshal(back)
		t.Errorf("%s %q is not the same after the wire:\n%s\n%s", typ.Short(), name, x, y)
	}
}

// strip takes zero fields out of JSON, so that goldens show what is said.
func strip(body []byte) string {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err.Error()
	}
	out, _ := json.MarshalIndent(prune(v), "", " ")
	return string(out)
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = prune(e); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return map[string]any{}
		}
		return v
	case []any:
		for i := range v {
			if v[i] = prune(v[i]); v[i] == nil {
				v[i] = map[string]any{}
			}
		}
		if len(v) == 0 {
			return nil
		}
		return v
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}

// grpcDump follows a proxyless client from a listener to its endpoints.
func grpcDump(t *testing.T, m *mesh.Snapshot, w *mesh.Workload, name string) string {
	v := View{Workload: w, GRPC: true}
	if _, _, ok := Resource(m, v, resource.TypeListener, name); !ok {
		return "none\n"
	}
	out := dump(t, m, v, resource.TypeListener, []string{name})
	r, _, _ := Resource(m, v, resource.TypeListener, name)
	if l := r.(*resource.Listener); l.API != nil {
		for _, typ := range []resource.Type{resource.TypeRoute, resource.TypeCluster, resource.TypeEndpoints} {
			out += dump(t, m, v, typ, []string{l.API.RouteName})
		}
	}
	return out
}
