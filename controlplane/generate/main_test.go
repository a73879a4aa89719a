package generate

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// build makes the mesh of one full delivery.
func build(d discovery.Delta) *mesh.Snapshot {
	s, _ := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter}).Apply(d)
	return s
}

// golden compares got with a file of testdata.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (go test -update rewrites it); got:\n%s", path, got)
	}
}
