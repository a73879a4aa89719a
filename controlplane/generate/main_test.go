package generate

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// build makes the mesh of one full delivery.
func build(d discovery.Delta) *mesh.Snapshot {
	s, _ := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter}).Apply(d)
	return s
}
