package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
)

var bins map[string]string // read-only after TestMain

func TestMain(m *testing.M) { procmesh.Main(m, &bins, "./cmd/parrel", "./examples/grpc-xds") }

// TestReadme does what README.md says, with the files of this folder, on other
// ports: those of the files are somebody else's where tests run.
func TestReadme(t *testing.T) {
	server := map[string]string{"pricing-1": procmesh.Addr(t), "pricing-2": procmesh.Addr(t)}
	replace := []string{"50051", procmesh.Port(server["pricing-1"]), "50052", procmesh.Port(server["pricing-2"])}
	catalog := t.TempDir()
	copyFiles(t, "catalog", catalog, replace...)
	m := procmesh.New(t, procmesh.Options{Bin: bins["parrel"], Catalog: catalog})
	boot := filepath.Join(m.Dir, "bootstrap")
	copyFiles(t, "bootstrap", boot, "127.0.0.1:15012", m.XDS)
	m.SVID("pricing")
	m.SVID("till")

	env := func(node string) []string { return []string{"GRPC_XDS_BOOTSTRAP=" + filepath.Join(boot, node+".json")} }
	for node, addr := range server {
		m.Start(node, env(node), bins["grpc-xds"], "server", "-listen", addr, "-instance", node)
	}
	for _, flags := range [][]string{{"-count", "20"}, {"-count", "3", "-stream"}} {
		var out string
		procmesh.Eventually(t, func() error {
			cmd := exec.Command(bins["grpc-xds"], append([]string{"client", "-target", "xds:///pricing"}, flags...)...)
			cmd.Dir = m.Dir
			cmd.Env = append(os.Environ(), env("till-1")...)
			b, err := cmd.CombinedOutput()
			out = string(b)
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			// The second server may still be on its way up.
			if flags[len(flags)-1] != "-stream" && !(strings.Contains(out, "pricing-1") && strings.Contains(out, "pricing-2")) {
				return fmt.Errorf("the answers are not from both servers:\n%s", out)
			}
			return nil
		})
		if want := "for " + procmesh.SPIFFEID("till"); !strings.Contains(out, want) {
			t.Errorf("the answers do not say %q:\n%s", want, out)
		}
	}
}

// copyFiles copies a folder's files; replace is old, new, ….
func copyFiles(t *testing.T, from, to string, replace ...string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", from, len(files), err)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(replace...).Replace(string(b))
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
