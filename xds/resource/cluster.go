package resource

import "time"

// DiscoveryKind says where a cluster's endpoints come from.
type DiscoveryKind uint8

const (
	DiscoveryEDS DiscoveryKind = iota
	DiscoveryStatic
	DiscoveryStrictDNS
	DiscoveryLogicalDNS
	DiscoveryOriginalDst
)

// Protocol is what a cluster's endpoints speak.
type Protocol uint8

const (
	ProtocolTCP        Protocol = iota // opaque or not said: HTTP requests go as HTTP/1.1
	ProtocolHTTP1                      // explicit_http_config.http_protocol_options
	ProtocolHTTP2                      // explicit_http_config.http2_protocol_options
	ProtocolAuto                       // auto_config: by ALPN, h2 preferred
	ProtocolDownstream                 // use_downstream_protocol_config
)

// Cluster is envoy.config.cluster.v3.Cluster. It holds nothing that belongs to
// one workload, so that all sidecars share it.
type Cluster struct {
	Name           string
	Discovery      DiscoveryKind
	EDSName        string        // service_name; "" = Name
	Endpoints      *Endpoints    // load_assignment, for static and DNS
	ConnectTimeout time.Duration // 0: default 5 s
	LB             LBPolicy
	Protocol       Protocol
	TLS            *UpstreamTLS // nil: plaintext
	Breakers       *Breakers    // nil: no limits
	// PanicThreshold in per cent of usable endpoints below which health is
	// ignored; parrel's default is 0 (never), unlike Envoy's 50.
	PanicThreshold float64
	IdleTimeout    time.Duration // of pooled connections; 0: default 1 h
	Keepalive      *TCPKeepalive
	Metadata       Metadata
}

// TCPKeepalive in seconds; zero fields take the defaults.
type TCPKeepalive struct{ Probes, Time, Interval uint32 }

// Breakers are circuit-breaker thresholds; nil fields are no limit.
type Breakers struct {
	MaxConnections, MaxPendingRequests, MaxRequests, MaxRetries *uint32
}

// LBPolicy is the load-balancing policy. Exactly one is set; the zero value is
// least request with two choices.
type LBPolicy struct {
	RoundRobin   *RoundRobin
	LeastRequest *LeastRequest
	Random       *Random
}

// Endpoints is envoy.config.endpoint.v3.ClusterLoadAssignment.
type Endpoints struct {
	Cluster    string
	Localities []Locality
}

// Locality is one group of endpoints.
type Locality struct {
	Region, Zone, SubZone string
	Priority              uint32
	Weight                uint32 // 0: not set
	Endpoints             []Endpoint
}

// HealthStatus is what the control plane says of an endpoint.
type HealthStatus uint8

const (
	HealthUnknown HealthStatus = iota // to be used
	Healthy
	Unhealthy
	Draining
	Degraded
)

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address  Address
	Health   HealthStatus
	Weight   uint32   // 0: not set, counts as 1
	Metadata Metadata // MetaWorkload, MetaVersion …
}

func (*Cluster) ResourceType() Type     { return TypeCluster }
func (c *Cluster) ResourceName() string { return c.Name }

func (*Endpoints) ResourceType() Type     { return TypeEndpoints }
func (e *Endpoints) ResourceName() string { return e.Cluster }

// EDSResource is the name under which the cluster's endpoints are asked for.
func (c *Cluster) EDSResource() string {
	if c.EDSName != "" {
		return c.EDSName
	}
	return c.Name
}
