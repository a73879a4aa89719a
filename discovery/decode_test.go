package discovery

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/golden"
)

// TestDecode decodes testdata/*.json: an entry, or under "service" a
// registration; the golden file beside it is the result, or the error.
func TestDecode(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.UseNumber()
			var fields map[string]any
			if err := dec.Decode(&fields); err != nil {
				t.Fatal(err)
			}
			got := decoded(t, fields, Origin{Place: "file " + filepath.Base(f)})
			golden.Check(t, strings.TrimSuffix(f, ".json")+".golden", got)
			if bad := strings.Contains(f, ".bad."); bad != strings.HasPrefix(string(got), "error: ") {
				t.Errorf("the name says bad %v:\n%s", bad, got)
			}
		})
	}
}

func decoded(t *testing.T, fields map[string]any, o Origin) []byte {
	t.Helper()
	var v any
	var err error
	if s, ok := fields["service"].(map[string]any); ok {
		v, err = DecodeRegistration(s, Node{Name: "n", Address: "10.0.0.1", Datacenter: "dc1"}, o)
	} else {
		v, err = DecodeConfigEntry(fields, o)
	}
	if err != nil {
		return []byte("error: " + err.Error() + "\n")
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func TestPrecedence(t *testing.T) {
	for _, c := range []struct {
		dstNS, dst, srcNS, src string
		want                   int
	}{
		{"default", "api", "default", "web", 9}, {"default", "api", "default", "*", 8}, {"default", "api", "*", "*", 7},
		{"default", "*", "default", "web", 6}, {"default", "*", "default", "*", 5}, {"default", "*", "*", "*", 4},
		{"*", "*", "default", "web", 3}, {"*", "*", "default", "*", 2}, {"*", "*", "*", "*", 1},
	} {
		if got := precedence(c.dstNS, c.dst, c.srcNS, c.src); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// TestServed: what a newer server serves is kept, and an intention that parrel
// cannot read in full does not allow.
func TestServed(t *testing.T) {
	e, err := DecodeServedEntry(map[string]any{"Kind": "service-defaults", "Name": "a", "Protocol": "http", "Novelty": map[string]any{"X": 1.0}}, Origin{Place: "consul"})
	if err != nil || e.Body.(*ServiceDefaults).Protocol != "http" || !slices.Contains(e.Set, "Novelty") {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = DecodeServedEntry(map[string]any{"Kind": "novelty", "Name": "a", "X": 1.0}, Origin{Place: "consul"})
	if err != nil || e.Body != nil || !slices.Contains(e.Set, "X") {
		t.Errorf("%+v, %v", e, err)
	}
	for _, source := range []map[string]any{
		{"Name": "web", "Action": "allow", "OnlyAtNight": true},
		{"Name": "web", "Action": "allow", "SamenessGroup": "g"},
		{"Name": "web", "Action": "shrug"},
		{"Name": "web", "Permissions": []any{map[string]any{"Action": "allow", "HTTP": map[string]any{"PathPrefix": "/a"}}}},
	} {
		e, err := DecodeServedEntry(map[string]any{"Kind": "service-intentions", "Name": "api", "Sources": []any{source}}, Origin{Place: "consul"})
		if err != nil {
			t.Fatal(err)
		}
		if s := e.Body.(*ServiceIntentions).Sources[0]; s.Action == Allow || s.Action == "" && len(s.Permissions) == 0 {
			t.Errorf("%v became %+v", source, s)
		}
	}
	e, err = DecodeServedEntry(map[string]any{"Kind": "service-intentions", "Name": "api", "JWT": map[string]any{"Providers": []any{map[string]any{"Name": "p"}}},
		"Sources": []any{map[string]any{"Name": "web", "Action": "allow"}}}, Origin{Place: "consul"})
	if err != nil || e.Body.(*ServiceIntentions).Sources[0].Action == Allow {
		t.Errorf("a JWT requirement was dropped: %+v, %v", e, err)
	}
}

func TestGroup(t *testing.T) {
	app := &Instance{Service: name("web"), ID: "web", Node: "b"}
	other := &Instance{Service: name("web"), ID: "web", Node: "a", Native: true}
	side := &Instance{Service: name("web-sidecar-proxy"), ID: "p", Node: "b", Kind: KindConnectProxy, Proxy: &Proxy{DestinationService: "web"}}
	gateway := &Instance{Service: name("gw"), ID: "gw", Node: "b", Kind: KindIngressGateway, Proxy: &Proxy{}}
	got := Group([]*Instance{app, side, gateway, other})
	web := got[name("web")]
	if len(got) != 2 || len(web.Instances) != 2 || web.Instances[0] != other || len(web.Proxies) != 2 || web.Proxies[0] != other || web.Proxies[1] != side {
		t.Errorf("%+v %+v", got, web)
	}
	if len(got[name("gw")].Instances) != 1 {
		t.Errorf("gateway %+v", got[name("gw")])
	}
}
