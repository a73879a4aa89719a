package intercept

// Plan is what a sidecar says of itself for its redirection step, as JSON at
// GET /redirect of its admin port: which port carries which workload. The
// sidecar chooses the ports, so that two workloads never share one.
type Plan struct {
	Proxies []PlanProxy `json:"proxies"`
	// InboundPort is the inbound capture listener's, 0 without one.
	InboundPort uint16 `json:"inbound_port,omitempty"`
	// InboundMode is "redirect" (also when empty) or "tproxy", in which the listener's
	// socket is transparent.
	InboundMode string `json:"inbound_mode,omitempty"`
	// DNSPort is the DNS listener's, 0 without one.
	DNSPort uint16 `json:"dns_port,omitempty"`
	// PublicPorts are what others reach of the sidecar from outside: the public
	// listeners, readiness, anything that must not be captured.
	PublicPorts []uint16 `json:"public_ports,omitempty"`
}

// PlanProxy is one workload of a Plan: at most one of UID, User and Cgroup. None
// of them: it is the only workload of its network namespace.
type PlanProxy struct {
	ProxyID string  `json:"proxy_id"`
	Service string  `json:"service"`
	UID     *uint32 `json:"uid,omitempty"`
	User    string  `json:"user,omitempty"`
	Cgroup  string  `json:"cgroup,omitempty"`
	// OutboundPort is where its outbound connections are captured, 0 when they are not.
	OutboundPort uint16 `json:"outbound_port,omitempty"`
	// ServicePorts are those on which the application itself serves on the host's
	// addresses.
	ServicePorts []uint16 `json:"service_ports,omitempty"`
	// Ready: identity and configuration are there, and every listener is open.
	Ready bool `json:"ready"`
	// Error is why its outbound connections cannot be told from others', so that they
	// are not captured.
	Error string `json:"error,omitempty"`
}
