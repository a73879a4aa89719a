package generate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/golden"
)

// TestDocs: the table of docs/consul.md is what the code does: every field that
// Consul has is honoured, inert, or not executed, in the words of analyze.
func TestDocs(t *testing.T) {
	golden.Part(t, "../../docs/consul.md", "./controlplane/generate", honouredTables())
}

func honouredTables() string {
	var out strings.Builder
	all := effects()
	kinds := []string{mesh.KindServiceDefaults, mesh.KindProxyDefaults, mesh.KindServiceIntentions, mesh.KindMesh, kindProxy}
	for _, kind := range kinds {
		title := kind
		if kind == kindProxy {
			title = "the proxy block of a registration"
		}
		fmt.Fprintf(&out, "\n### %s\n\n| field | what becomes of it |\n|---|---|\n", title)
		for _, field := range fieldsOf(kind, all[kind]) {
			fmt.Fprintf(&out, "| `%s` | %s |\n", field, fate(all[kind], field))
		}
	}
	var others []string
	for kind := range discovery.EntryFields {
		if _, ok := all[kind]; !ok {
			others = append(others, "`"+kind+"`")
		}
	}
	slices.Sort(others)
	fmt.Fprintf(&out, "\n### Kinds that are not executed\n\nAn entry of one of these kinds has no effect; `parrel analyze` names each: %s.\n\n", strings.Join(others, ", "))
	return out.String()
}

// fieldsOf is what Consul has of a kind, with the known keys of opaque maps. Of a
// registration only the proxy block: the rest is the catalogue's.
func fieldsOf(kind string, table map[string]effect) []string {
	fields := map[string]bool{}
	for _, f := range discovery.EntryFields[kind] {
		if kind != kindProxy || strings.HasPrefix(f, "Proxy.") {
			fields[f] = true
		}
	}
	for f := range table {
		fields[f] = true
	}
	out := make([]string, 0, len(fields))
	for f := range fields {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

func fate(table map[string]effect, field string) string {
	switch effectOf(table, field) {
	case honoured:
		return "honoured"
	case inert:
		return "configures nothing, with Consul neither"
	}
	if strings.HasPrefix(field, "Sources[].Permissions") {
		return "not honoured: every call from the source is denied"
	}
	return "not honoured: " + ignoredField("", "", field).Instead
}
