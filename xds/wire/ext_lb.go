package wire

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	roundv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	wrrv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

const lbPrefix = "envoy.load_balancing_policies."

func (e *encoder) lbPolicy(name string, m proto.Message) *clusterv3.LoadBalancingPolicy_Policy {
	return &clusterv3.LoadBalancingPolicy_Policy{TypedExtensionConfig: &corev3.TypedExtensionConfig{Name: lbPrefix + name, TypedConfig: e.pack(m)}}
}

// lb writes a policy in both forms: load_balancing_policy, which is the one that
// counts for whoever reads it, and the classic lb_policy. grpc-go has no random
// and refuses the classic value even where it is overridden, so there round
// robin stands behind it.
func (e *encoder) lb(c *resource.Cluster, out *clusterv3.Cluster) {
	if c.Discovery == resource.DiscoveryOriginalDst {
		out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		return
	}
	var list []*clusterv3.LoadBalancingPolicy_Policy
	switch lb := c.LB; {
	case lb.RoundRobin != nil:
		out.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		list = append(list, e.lbPolicy("round_robin", &roundv3.RoundRobin{}))
	case lb.Random != nil:
		out.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		list = append(list, e.lbPolicy("random", &randomv3.Random{}), e.lbPolicy("round_robin", &roundv3.RoundRobin{}))
	default:
		out.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		m := &leastv3.LeastRequest{}
		if lb.LeastRequest != nil {
			m.ChoiceCount = u32(lb.LeastRequest.ChoiceCount)
			if m.ChoiceCount != nil {
				out.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{ChoiceCount: wrapperspb.UInt32(m.ChoiceCount.GetValue())}}
			}
		}
		list = append(list, e.lbPolicy("least_request", m))
	}
	out.LoadBalancingPolicy = &clusterv3.LoadBalancingPolicy{Policies: list}
}

func (d *decoder) lb(m *clusterv3.Cluster) resource.LBPolicy {
	if p := m.GetLoadBalancingPolicy(); p != nil {
		return d.lbList("load_balancing_policy", p, 0)
	}
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		return resource.LBPolicy{RoundRobin: &resource.RoundRobin{}}
	case clusterv3.Cluster_LEAST_REQUEST:
		return resource.LBPolicy{LeastRequest: &resource.LeastRequest{ChoiceCount: m.GetLeastRequestLbConfig().GetChoiceCount().GetValue()}}
	case clusterv3.Cluster_RANDOM:
		return resource.LBPolicy{Random: &resource.Random{}}
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if m.GetType() == clusterv3.Cluster_ORIGINAL_DST {
			return resource.LBPolicy{}
		}
	}
	d.warnf("lb_policy", "%s is not done; least request is done instead", m.GetLbPolicy())
	return resource.LBPolicy{}
}

// lbList takes the first policy that parrel has, as Envoy does: what comes after
// it is for those who do not have it.
func (d *decoder) lbList(field string, p *clusterv3.LoadBalancingPolicy, depth int) resource.LBPolicy {
	if depth > maxAny {
		d.failf(field, "is nested deeper than %d", maxAny)
		return resource.LBPolicy{}
	}
	for i, q := range p.GetPolicies() {
		at := index(field+".policies", i) + ".typed_extension_config.typed_config"
		if out, ok := d.lbConfig(at, q.GetTypedExtensionConfig().GetTypedConfig(), depth); ok {
			return out
		}
	}
	d.fail(field, "none of its policies is one that parrel has: round_robin, least_request, random")
	return resource.LBPolicy{}
}

func (d *decoder) lbConfig(at string, a *anypb.Any, depth int) (resource.LBPolicy, bool) {
	switch {
	case a.MessageIs((*roundv3.RoundRobin)(nil)):
		return resource.LBPolicy{RoundRobin: &resource.RoundRobin{}}, true
	case a.MessageIs((*randomv3.Random)(nil)):
		return resource.LBPolicy{Random: &resource.Random{}}, true
	case a.MessageIs((*leastv3.LeastRequest)(nil)):
		m := &leastv3.LeastRequest{}
		if !d.unpack(at, a, m) {
			return resource.LBPolicy{}, true
		}
		return resource.LBPolicy{LeastRequest: &resource.LeastRequest{ChoiceCount: m.GetChoiceCount().GetValue()}}, true
	case a.MessageIs((*wrrv3.WrrLocality)(nil)):
		m := &wrrv3.WrrLocality{}
		if !d.unpack(at, a, m) {
			return resource.LBPolicy{}, true
		}
		return d.lbList(at+".endpoint_picking_policy", m.GetEndpointPickingPolicy(), depth+1), true
	}
	return resource.LBPolicy{}, false
}
