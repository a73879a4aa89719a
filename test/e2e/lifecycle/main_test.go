package lifecycle

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// Binaries that the tests run, set once before they do.
var parrel, dialer string

// asApplication is the variable that makes the test's binary an application.
const asApplication = "LIFECYCLE_APPLICATION"

func TestMain(m *testing.M) {
	if what := os.Getenv(asApplication); what != "" {
		os.Exit(application(what))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	binary, remove, err := rig.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lifecycle:", err)
		return 1
	}
	defer remove()
	parrel = binary
	dialer = filepath.Join(filepath.Dir(binary), "dialer")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", dialer, "./dialer").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "lifecycle: go build ./dialer: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// soon bounds what takes a fraction of a second, on a busy machine.
const soon = 60 * time.Second

// mesh is a control plane on a folder of definitions.
type mesh struct {
	*rig.Rig
	cp      *rig.ControlPlane
	catalog string
	files   int
}

func newMesh(t *testing.T, definitions ...any) *mesh {
	t.Helper()
	m := &mesh{Rig: rig.New(t, parrel)}
	m.catalog = filepath.Join(m.Dir, "catalog")
	if err := os.Mkdir(m.catalog, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range definitions {
		m.define(d)
	}
	m.cp = &rig.ControlPlane{XDS: rig.Addr(rig.Port(t)), API: rig.Addr(rig.Port(t))}
	m.cp.Process = m.Process("controlplane", "controlplane", "--ca-dir", m.CADir(), "--trust-domain", rig.TrustDomain,
		"--grpc-bind", m.cp.XDS, "--http-bind", m.cp.API, "--catalog-dir", m.catalog, "--drain-time", "1s")
	m.cp.Start()
	m.cp.Ready()
	return m
}

// define adds a file to the catalogue: a service or a configuration entry.
func (m *mesh) define(d any) {
	m.T.Helper()
	if s, ok := d.(rig.Service); ok {
		d = map[string]any{"service": snake(map[string]any(s))}
	}
	b, err := json.Marshal(d)
	if err != nil {
		m.T.Fatal(err)
	}
	m.files++
	if err := os.WriteFile(filepath.Join(m.catalog, fmt.Sprintf("%03d.json", m.files)), b, 0o600); err != nil {
		m.T.Fatal(err)
	}
}

// snake writes the keys of the agent's API as those of definitions in files.
func snake(v any) any {
	switch v := v.(type) {
	case rig.Service:
		return snake(map[string]any(v))
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			var key []byte
			for i := range len(k) {
				c := k[i]
				if c >= 'A' && c <= 'Z' {
					if i > 0 && (k[i-1] < 'A' || k[i-1] > 'Z') {
						key = append(key, '_')
					}
					c += 'a' - 'A'
				}
				key = append(key, c)
			}
			out[string(key)] = snake(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = snake(v[i])
		}
		return out
	}
	return v
}

// runs prepares `parrel run` of an instance with an application. A token is for
// the first start; flags come before the application.
func (m *mesh) runs(id, service string, flags []string, argv ...string) *rig.Process {
	m.T.Helper()
	data := filepath.Join(m.Dir, "data-"+id)
	token := data + ".token"
	if err := os.WriteFile(token, []byte(m.Token(service)+"\n"), 0o600); err != nil {
		m.T.Fatal(err)
	}
	args := append([]string{"run", "--service", service, "--sidecar-for", id, "--grpc-addr", m.cp.XDS, "--data-dir", data, "--token-file", token,
		"--admin-access-log-path", ""}, flags...)
	return m.Process("run-"+id, append(append(args, "--"), argv...)...)
}
