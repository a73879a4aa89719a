package intercept

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
)

// Plan is what a sidecar says of itself for its redirection step, as JSON at
// GET /redirect of its admin port: which port carries which workload. The
// sidecar chooses the ports, so that two workloads never share one.
type Plan struct {
	Proxies []PlanProxy `json:"proxies"`
	// ProxyUID is whom the sidecar runs as. Nil: it does not say.
	ProxyUID *uint32 `json:"proxy_uid,omitempty"`
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

// Config is the redirection that p asks for, with IPv6. A host's inbound
// connections are captured on its service ports only where workloads are told by uid or cgroup:
// such a host serves what is not in the mesh too.
func (p Plan) Config() (Config, error) {
	c := Config{InboundPort: p.InboundPort, DNSPort: p.DNSPort, ProxyUID: p.ProxyUID, ProxyPorts: Ports(p.PublicPorts...), IPv6: true}
	mode, err := ParseInboundMode(p.InboundMode)
	if err != nil {
		return c, err
	}
	c.InboundMode = mode
	var errs []error
	shared := false
	for _, x := range p.Proxies {
		c.ServicePorts = append(c.ServicePorts, x.ServicePorts...)
		uid := x.UID
		if x.User != "" {
			if uid != nil || x.Cgroup != "" {
				errs = append(errs, fmt.Errorf("intercept: proxy %s has more than one of uid, user and cgroup: keep one", x.ProxyID))
				continue
			}
			u, err := LookupUser(x.User)
			if err != nil {
				errs = append(errs, fmt.Errorf("proxy %s: %w", x.ProxyID, err))
				continue
			}
			uid = &u
		}
		shared = shared || uid != nil || x.Cgroup != ""
		if x.OutboundPort != 0 {
			c.Outbound = append(c.Outbound, Workload{Name: x.ProxyID, UID: uid, Cgroup: x.Cgroup, OutboundPort: x.OutboundPort})
		}
	}
	if shared && len(c.ServicePorts) > 0 {
		c.InboundScope = ScopeServices
	}
	if len(c.Outbound) == 0 {
		c.DNSPort = 0 // there is nobody whose queries to take
	}
	return c, errors.Join(errs...)
}

// LookupUser reads a user's name, or a number.
func LookupUser(s string) (uint32, error) {
	return lookupID("user", s, func() (string, error) {
		u, err := user.Lookup(s)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

// LookupGroup reads a group's name, or a number.
func LookupGroup(s string) (uint32, error) {
	return lookupID("group", s, func() (string, error) {
		g, err := user.LookupGroup(s)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func lookupID(kind, s string, ask func() (string, error)) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	id, err := ask()
	if err != nil {
		return 0, fmt.Errorf("intercept: no %s %q on this host (%w): make it, or write the number (`id` shows it)", kind, s, err)
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("intercept: %s %q has the id %q, which is no number", kind, s, id)
	}
	return uint32(n), nil
}
