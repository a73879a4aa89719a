package sim

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// clusterName is how the control plane calls a service's cluster.
func clusterName(service string) string { return service + ".default.dc1.internal." + TrustDomain }

// bad is one resource that a sidecar must refuse, and what must be said of it.
type bad struct {
	node, typ     string
	t             resource.Type
	name          string
	change        func(proto.Message)
	field, reason string
}

var bads = []bad{
	{"web-1-sidecar-proxy", "EDS", resource.TypeEndpoints, clusterName("api"), func(m proto.Message) {
		e := m.(*endpointv3.ClusterLoadAssignment)
		e.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().Address = "api.example.com"
	}, "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address", "is not an IP address"},
	{"web-1-sidecar-proxy", "CDS", resource.TypeCluster, clusterName("users"), func(m proto.Message) {
		m.(*clusterv3.Cluster).ConnectTimeout = durationpb.New(-time.Second)
	}, "connect_timeout", "negative"},
	{"web-1-sidecar-proxy", "RDS", resource.TypeRoute, clusterName("users"), func(m proto.Message) {
		m.(*routev3.RouteConfiguration).VirtualHosts[0].Routes[0].GetRoute().ClusterSpecifier = nil
	}, "virtual_hosts[0].routes[0].route", "cluster"},
	{"ledger-1-sidecar-proxy", "LDS", resource.TypeListener, "public_listener", func(m proto.Message) {
		f := m.(*listenerv3.Listener).FilterChains[0].Filters[0]
		r := new(rbacv3.RBAC)
		if !f.GetTypedConfig().MessageIs(r) {
			return // an HTTP service has its rules elsewhere
		}
		if err := f.GetTypedConfig().UnmarshalTo(r); err != nil {
			panic(err)
		}
		r.ShadowRules = &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_LOG}
		r.Matcher = nil
		a, err := anypb.New(r)
		if err != nil {
			panic(err)
		}
		a.Value = append(a.Value, 0xfa, 0x3f, 0x01, 'x') // a field that this version of the API does not have
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: a}
	}, "filter_chains[0].filters[0]", "unknown"},
}

// TestBadResourcesAlone: resources that a sidecar cannot take are refused one
// by one, with name, field and reason where an operator looks; what was good
// before goes on, what is good beside them applies, and none is sent in a loop
// (DP3).
func TestBadResourcesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 3, Latency: time.Millisecond}, 2)
		loads := s.load(LoadConfig{RPS: 20})
		for _, b := range bads {
			s.Plane.Poison(b.t, b.name, b.change)
		}
		t.Log("everything is generated anew, bad and good; users-2 becomes critical at the same time")
		s.Catalogue.Set(map[string]any{"Kind": "proxy-defaults", "Name": "global", "Config": map[string]any{"local_connect_timeout_ms": 1234}})
		s.users[1].SetHealth(discovery.Critical)
		time.Sleep(time.Second)
		for _, b := range bads {
			s.refused(t, b)
		}
		if n := s.Plane.Metric("parrel_controlplane_xds_resources_refused"); n < float64(len(bads)) {
			t.Errorf("the metric says that %v resources are refused", n)
		}
		t.Log("what is good applies: nobody calls users-2 any more, api-1 has its new local cluster")
		before := s.users[1].App.Served()
		time.Sleep(2 * time.Second)
		if n := s.users[1].App.Served() - before; n > 0 {
			t.Errorf("users-2 served %d calls after it became critical", n)
		}
		if _, dump := s.api[0].Sidecar.Admin("/config_dump"); !strings.Contains(dump, "connect_timeout=1.234s") {
			t.Error("api-1 does not have its new local cluster")
		}

		t.Log("no loop: time passes, other things change, a stream is lost")
		for i := range 30 {
			s.ledger[1].SetWeights(discovery.Weights{Passing: 2 + i, Warning: 1})
			time.Sleep(time.Second)
		}
		s.Net.ResetBetween(s.web.Host(), s.Plane.host)
		time.Sleep(time.Minute)
		for _, typ := range []string{"EDS", "CDS", "RDS", "LDS"} {
			limit := 2.0 // once, and once more on the new stream
			if typ == "LDS" {
				limit = 4 // the public_listener of ledger's two and web, and web's once more
			}
			if n := s.Plane.Metric("parrel_controlplane_xds_nacks_total", `type="`+typ+`"`); n < 1 || n > limit {
				t.Errorf("%v refusals of %s", n, typ)
			}
		}
		for _, b := range bads {
			s.refused(t, b)
		}

		t.Log("corrected: everything is in sync again")
		for _, b := range bads {
			s.Plane.Poison(b.t, b.name, nil)
		}
		s.Catalogue.Set(map[string]any{"Kind": "proxy-defaults", "Name": "global", "Config": map[string]any{"local_connect_timeout_ms": 1235}})
		s.Plane.InSync(7, 2*time.Second)
		if n := s.Plane.Metric("parrel_controlplane_xds_resources_refused"); n != 0 {
			t.Errorf("%v resources are still refused", n)
		}
		clean(t, loads, 1000)
	})
}

// refused requires that both ends show the refusal with its reason.
func (s *shop) refused(t *testing.T, b bad) {
	t.Helper()
	ty := s.Plane.Type(b.node, b.typ)
	found := false
	for _, r := range ty.Refused {
		if r.Name != b.name {
			t.Errorf("%s: %s %q was refused too: %s", b.node, b.typ, r.Name, r.Reason)
			continue
		}
		found = true
		if !strings.Contains(r.Reason, b.field) || !strings.Contains(r.Reason, b.reason) {
			t.Errorf("%s: %s %q: the control plane shows %q, want %q and %q", b.node, b.typ, b.name, r.Reason, b.field, b.reason)
		}
	}
	if !found || ty.InSync {
		t.Errorf("%s: %s %q is not shown as refused: %+v", b.node, b.typ, b.name, ty)
	}
	for _, i := range s.instances {
		if i.Proxy() == b.node {
			if _, dump := i.Sidecar.Admin("/config_dump"); !strings.Contains(dump, b.reason) {
				t.Errorf("%s: /config_dump does not show why %s %q was refused", b.node, b.typ, b.name)
			}
		}
	}
}
