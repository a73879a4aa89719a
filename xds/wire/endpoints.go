package wire

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

var healths = [...]corev3.HealthStatus{
	resource.HealthUnknown: corev3.HealthStatus_UNKNOWN, resource.Healthy: corev3.HealthStatus_HEALTHY,
	resource.Unhealthy: corev3.HealthStatus_UNHEALTHY, resource.Draining: corev3.HealthStatus_DRAINING,
	resource.Degraded: corev3.HealthStatus_DEGRADED,
}

func (e *encoder) endpoints(x *resource.Endpoints) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: x.Cluster}
	for i := range x.Localities {
		l := &x.Localities[i]
		// The locality is always there: grpc-go refuses endpoints without one.
		m := &endpointv3.LocalityLbEndpoints{
			Locality:            &corev3.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone},
			Priority:            l.Priority,
			LoadBalancingWeight: u32(l.Weight),
		}
		for j := range l.Endpoints {
			ep := &l.Endpoints[j]
			m.LbEndpoints = append(m.LbEndpoints, &endpointv3.LbEndpoint{
				HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: e.address(ep.Address)}},
				HealthStatus:        healths[ep.Health],
				LoadBalancingWeight: u32(ep.Weight),
				Metadata:            e.metadata(ep.Metadata),
			})
		}
		out.Endpoints = append(out.Endpoints, m)
	}
	return out
}

func (d *decoder) endpoints(at string, m *endpointv3.ClusterLoadAssignment) *resource.Endpoints {
	out := &resource.Endpoints{Cluster: m.GetClusterName()}
	for i, l := range m.GetEndpoints() {
		field := fmt.Sprintf("%sendpoints[%d]", at, i)
		loc := resource.Locality{
			Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(), SubZone: l.GetLocality().GetSubZone(),
			Priority: l.GetPriority(), Weight: l.GetLoadBalancingWeight().GetValue(),
		}
		for j, e := range l.GetLbEndpoints() {
			loc.Endpoints = append(loc.Endpoints, d.endpoint(fmt.Sprintf("%s.lb_endpoints[%d]", field, j), e))
		}
		out.Localities = append(out.Localities, loc)
	}
	return out
}

func (d *decoder) endpoint(field string, m *endpointv3.LbEndpoint) resource.Endpoint {
	out := resource.Endpoint{
		Address:  d.address(field+".endpoint.address", m.GetEndpoint().GetAddress()),
		Weight:   m.GetLoadBalancingWeight().GetValue(),
		Metadata: d.metadata(field+".metadata", m.GetMetadata()),
	}
	switch m.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN:
	case corev3.HealthStatus_HEALTHY:
		out.Health = resource.Healthy
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT:
		out.Health = resource.Unhealthy
	case corev3.HealthStatus_DRAINING:
		out.Health = resource.Draining
	case corev3.HealthStatus_DEGRADED:
		out.Health = resource.Degraded
	default:
		d.failf(field+".health_status", "unknown value %d", m.GetHealthStatus())
	}
	return out
}
