package api

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// TestConfigOfGRPC: what a proxyless stream is served is what it asked for, in
// its dialect; before it asks, nothing is.
func TestConfigOfGRPC(t *testing.T) {
	b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	m, _ := b.Apply(meshtest.MustRead(meshtest.Shop))
	asked := map[resource.Type][]string{resource.TypeListener: {"api", "nobody"}}
	h := New(Config{}, Deps{
		Mesh: func() *mesh.Snapshot { return m }, Now: now,
		Streams: func() []server.StreamStatus {
			return []server.StreamStatus{{Workload: server.Workload{NodeID: "web-sidecar-proxy", Dialect: server.GRPC,
				ID: spiffeid.RequireFromString("spiffe://parrel.test/ns/default/dc/dc1/svc/web")}}}
		},
		Subscribed: func(node string, typ resource.Type) []string {
			if node != "web-sidecar-proxy" {
				return nil
			}
			return asked[typ]
		},
	})
	for kind, want := range map[string]int{"listeners": 1, "clusters": 0} {
		rec := get(h, "/v1/config/"+kind+"/web")
		var d struct {
			Dialect   string
			Resources []struct {
				Name   string
				Config struct {
					API *struct{} `json:"api_listener"`
				}
			}
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &d); err != nil || rec.Code != http.StatusOK {
			t.Fatalf("%s: %d %v %s", kind, rec.Code, err, rec.Body)
		}
		if d.Dialect != "grpc" || len(d.Resources) != want {
			t.Errorf("%s: %s, %d resources, want %d: %s", kind, d.Dialect, len(d.Resources), want, rec.Body)
		}
		if want == 1 && (d.Resources[0].Name != "api" || d.Resources[0].Config.API == nil) {
			t.Errorf("%s: not gRPC's listener: %s", kind, rec.Body)
		}
	}
}
