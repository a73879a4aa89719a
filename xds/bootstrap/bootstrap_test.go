package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBadInput: each bad file has its errors beside it.
func TestBadInput(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(file), text)
			if err == nil {
				t.Fatal("was taken")
			}
			golden.Check(t, strings.TrimSuffix(file, filepath.Ext(file))+".golden", err.Error()+"\n")
		})
	}
}

// TestWarnings: what is read and not done is said, with its place.
func TestWarnings(t *testing.T) {
	text, err := os.ReadFile("testdata/warnings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse("warnings.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, w := range b.Warnings {
		out.WriteString(w.String() + "\n")
	}
	golden.Check(t, "testdata/warnings.golden", out.String())
}

const small = `
node: {id: gw-1, cluster: gateway, metadata: {zone: a, n: 1}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - &l
    address: {socket_address: {address: 127.0.0.1, port_value: 1}}
    filter_chains:
    - &chain
      filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: app}
  - name: second
    address: {socketAddress: {address: 127.0.0.1, portValue: 2}}
    filterChains: [*chain]
  clusters:
  - name: app
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 3}}}}]}]}
`

// TestParse: names that nobody gave, aliases, and both spellings of fields.
func TestParse(t *testing.T) {
	b, err := Parse("small.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Node{ID: "gw-1", Cluster: "gateway", Metadata: map[string]string{"zone": "a", "n": "1"}}, b.Node); d != "" {
		t.Error(d)
	}
	if b.Admin == nil || *b.Admin != (resource.Address{Host: "127.0.0.1", Port: 9901}) {
		t.Errorf("admin is %v", b.Admin)
	}
	var names []string
	for _, l := range b.Listeners {
		names = append(names, l.Name+" to "+l.Chains[0].TCP.Cluster)
	}
	if d := cmp.Diff([]string{"listener_0 to app", "second to app"}, names); d != "" {
		t.Error(d)
	}
	if len(b.Clusters) != 1 || len(b.Warnings) != 0 {
		t.Errorf("%d clusters, warnings %v", len(b.Clusters), b.Warnings)
	}
}

// TestJSON: the same in JSON, with tabs.
func TestJSON(t *testing.T) {
	const text = "{\n\t\"static_resources\": {\n\t\t\"listeners\": [{\n\t\t\t\"name\": \"l\",\n\t\t\t\"address\": {\"pipe\": {\"path\": \"/run/l\"}},\n\t\t\t\"filter_chains\": [{\"filters\": [{\"name\": \"t\", \"typed_config\": {\"@type\": \"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\", \"stat_prefix\": \"x\", \"cluster\": \"app\"}}]}]\n\t\t}],\n\t\t\"clusters\": [{\"name\": \"app\", \"load_assignment\": {\"cluster_name\": \"app\"}}]\n\t}\n}\n"
	b, err := Parse("b.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if b.Listeners[0].Address.Path != "/run/l" {
		t.Errorf("the address is %v", b.Listeners[0].Address)
	}
}

// TestEndlessAliases: an alias that names itself, and one that doubles at each
// line, end with an error and not with all memory.
func TestEndlessAliases(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("static_resources:\n  clusters:\n  - a0: &a0 [\"" + strings.Repeat("x", 1000) + "\"]\n")
	for i := range 40 {
		laughs.WriteString(strings.NewReplacer("J", itoa(i+1), "I", itoa(i)).Replace("    aJ: &aJ [*aI, *aI]\n"))
	}
	for name, text := range map[string]string{
		"itself":  "static_resources:\n  clusters:\n  - &c\n    name: [*c]\n",
		"doubles": laughs.String(),
	} {
		if _, err := Parse(name, []byte(text)); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func itoa(i int) string { return string(rune('0'+i/10)) + string(rune('0'+i%10)) }

func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := Parse("f", text)
		if err != nil && err.Error() == "" || err == nil && b == nil {
			t.Errorf("neither a result nor an error that says something: %v", err)
		}
	})
}

// TestOverload: the limits of the process.
func TestOverload(t *testing.T) {
	const text = `
static_resources: {listeners: []}
overload_manager:
  resource_monitors:
  - name: envoy.resource_monitors.fixed_heap
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: "268435456"}
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config: {"@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, maxActiveDownstreamConnections: 50000}
  actions: [{name: envoy.overload_actions.stop_accepting_requests}]
`
	b, err := Parse("o.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Overload{HeapBytes: 256 << 20, Connections: 50000}); b.Overload != want {
		t.Errorf("%+v, want %+v", b.Overload, want)
	}
	if len(b.Warnings) != 1 || b.Warnings[0].Path != "overload_manager.actions" {
		t.Errorf("warnings: %v", b.Warnings)
	}
}
