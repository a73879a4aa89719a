package envoyapi

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"

	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// readable holds JSON to the proto that users' tools read it with.
func readable(t *testing.T, b []byte, m proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
}

func TestConfigDump(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	router := []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}
	b, err := ConfigDump(Dump{NodeID: "web-sidecar-proxy", NodeCluster: "web", Metadata: map[string]string{"dc": "dc1"}, Held: []Held{
		{Resource: &resource.Cluster{Name: "z"}, Version: "2", Updated: at},
		{Resource: &resource.Cluster{Name: "a"}, Version: "1", Updated: at, Refused: "lb_policy: unknown", RefusedVersion: "3"},
		{Resource: &resource.Endpoints{Cluster: "a"}, Version: "1", Updated: at},
		{Resource: &resource.Listener{Name: "l", API: &resource.HTTPManager{RouteName: "r", Filters: router}}, Version: "1", Updated: at},
		{Resource: &resource.RouteConfig{Name: "r"}, Version: "1", Updated: at},
		{Resource: &resource.Secret{Name: "default", ChainPEM: []byte("CHAIN"), KeyPEM: []byte("THE PRIVATE KEY")}, Version: "1", Updated: at},
	}})
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/config_dump.golden.json", b)
	d := &adminv3.ConfigDump{}
	readable(t, b, d)
	if len(d.Configs) != 6 {
		t.Errorf("%d sections", len(d.Configs))
	}
	s := &adminv3.SecretsConfigDump{}
	if err := d.Configs[5].UnmarshalTo(s); err != nil {
		t.Fatal(err)
	}
	if raw := string(s.DynamicActiveSecrets[0].Secret.Value); strings.Contains(raw, "PRIVATE") || !strings.Contains(raw, redacted) {
		t.Errorf("the key is not redacted: %q", raw)
	}
}

func TestConfigDumpRefusesWhatCannotTravel(t *testing.T) {
	if _, err := ConfigDump(Dump{Held: []Held{{Resource: &resource.Cluster{}}}}); err == nil || !strings.HasPrefix(err.Error(), "envoyapi: ") {
		t.Error(err)
	}
}

func TestClusters(t *testing.T) {
	n := uint32(7)
	b, err := Clusters([]ClusterStatus{{Name: "api", EDSName: "api.default", Added: true, Breakers: &resource.Breakers{MaxRequests: &n}, Hosts: []HostStatus{
		{Endpoint: resource.Endpoint{Address: resource.Address{Host: "10.0.0.1", Port: 21000}, Health: resource.Draining}, Locality: resource.Locality{Zone: "dc1", Priority: 1},
			Hostname: "api-1", Stats: map[string]uint64{"rq_total": 5, "rq_active": 1}, FailedOutlierCheck: true},
		{Endpoint: resource.Endpoint{Address: resource.Address{Path: "/run/api"}, Weight: 3}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/clusters.golden.json", b)
	readable(t, b, &adminv3.Clusters{})
}
