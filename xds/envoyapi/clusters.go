package envoyapi

import (
	"maps"
	"slices"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// HostStatus is one endpoint as its cluster sees it.
type HostStatus struct {
	Endpoint resource.Endpoint
	Locality resource.Locality // Region, Zone, SubZone, Priority; its Endpoints are not read
	Hostname string
	// Stats are counters and gauges under Envoy's names: cx_total, rq_active.
	// Names that end in _active are gauges.
	Stats              map[string]uint64
	FailedActiveCheck  bool
	FailedOutlierCheck bool
}

// ClusterStatus is one cluster of /clusters.
type ClusterStatus struct {
	Name     string
	EDSName  string
	Added    bool // via_api: it came by xDS
	Breakers *resource.Breakers
	Hosts    []HostStatus
}

// Clusters is the JSON of envoy.admin.v3.Clusters (/clusters?format=json), in
// the order given.
func Clusters(cs []ClusterStatus) ([]byte, error) {
	out := &adminv3.Clusters{}
	for i := range cs {
		c := &cs[i]
		s := &adminv3.ClusterStatus{Name: c.Name, AddedViaApi: c.Added, EdsServiceName: c.EDSName}
		if b := c.Breakers; b != nil {
			s.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
				MaxConnections: limit(b.MaxConnections), MaxPendingRequests: limit(b.MaxPendingRequests),
				MaxRequests: limit(b.MaxRequests), MaxRetries: limit(b.MaxRetries)}}}
		}
		for j := range c.Hosts {
			s.HostStatuses = append(s.HostStatuses, host(&c.Hosts[j]))
		}
		out.ClusterStatuses = append(out.ClusterStatuses, s)
	}
	return marshal(out)
}

func limit(v *uint32) *wrapperspb.UInt32Value {
	if v == nil {
		return nil
	}
	return wrapperspb.UInt32(*v)
}

var edsHealth = [...]corev3.HealthStatus{
	resource.HealthUnknown: corev3.HealthStatus_UNKNOWN, resource.Healthy: corev3.HealthStatus_HEALTHY,
	resource.Unhealthy: corev3.HealthStatus_UNHEALTHY, resource.Draining: corev3.HealthStatus_DRAINING,
	resource.Degraded: corev3.HealthStatus_DEGRADED,
}

func host(h *HostStatus) *adminv3.HostStatus {
	ep := &h.Endpoint
	addr := &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ep.Address.Host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(ep.Address.Port)}}}}
	if ep.Address.Path != "" {
		addr = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: ep.Address.Path}}}
	}
	out := &adminv3.HostStatus{
		Address: addr, Hostname: h.Hostname, Weight: max(ep.Weight, 1), Priority: h.Locality.Priority,
		Locality:     &corev3.Locality{Region: h.Locality.Region, Zone: h.Locality.Zone, SubZone: h.Locality.SubZone},
		HealthStatus: &adminv3.HostHealthStatus{FailedActiveHealthCheck: h.FailedActiveCheck, FailedOutlierCheck: h.FailedOutlierCheck},
	}
	if int(ep.Health) < len(edsHealth) {
		out.HealthStatus.EdsHealthStatus = edsHealth[ep.Health]
	}
	for _, name := range slices.Sorted(maps.Keys(h.Stats)) {
		kind := adminv3.SimpleMetric_COUNTER
		if strings.HasSuffix(name, "_active") {
			kind = adminv3.SimpleMetric_GAUGE
		}
		out.Stats = append(out.Stats, &adminv3.SimpleMetric{Name: name, Value: h.Stats[name], Type: kind})
	}
	return out
}
