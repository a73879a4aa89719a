package api

import (
	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
)

// Catalog is the answer of /v1/catalog.
type Catalog struct {
	Services []Service `json:"services"`
}

// Service is one service as the mesh has it.
type Service struct {
	Name     string `json:"name"` // "api@dc1"
	Protocol string `json:"protocol"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	Cluster  string `json:"cluster"`
	// VirtualAddress is what the service's names resolve to where traffic is
	// captured; "" where it has no proxy.
	VirtualAddress string `json:"virtual_address,omitempty"`
	// Stale: the source says that it is gone, and that is not yet confirmed.
	Stale      bool        `json:"stale"`
	Instances  []Instance  `json:"instances"`
	Proxies    []Proxy     `json:"proxies"`
	Intentions []Intention `json:"intentions,omitempty"` // in the order in which they decide
}

// Instance is one instance of a service.
type Instance struct {
	ID      string            `json:"id"`
	Node    string            `json:"node"`
	Address string            `json:"address"`
	Port    int               `json:"port"`
	Health  string            `json:"health"` // passing, warning, critical, maintenance
	Meta    map[string]string `json:"meta,omitempty"`
	Tags    []string          `json:"tags,omitempty"`
}

// Proxy is one sidecar, or a connect-native instance.
type Proxy struct {
	Instance
	Native bool `json:"native"`
	// Transparent: its traffic is captured, and beside Upstreams it reaches every
	// service that intentions let it call.
	Transparent bool       `json:"transparent,omitempty"`
	Upstreams   []Upstream `json:"upstreams,omitempty"`
}

// Upstream is one upstream of a proxy.
type Upstream struct {
	Service     string `json:"service"`
	Listener    string `json:"listener"`
	Protocol    string `json:"protocol"`
	Unsupported string `json:"unsupported,omitempty"`
}

// Intention is one intention of a destination.
type Intention struct {
	Source     string `json:"source"`
	Action     string `json:"action"` // what it comes to
	Precedence int    `json:"precedence"`
	Entry      string `json:"entry"`
	Reason     string `json:"reason,omitempty"` // why the action is not what was written
}

func (h *handler) catalog() Catalog {
	m := h.deps.Mesh()
	c := Catalog{Services: []Service{}}
	for _, name := range m.ServiceNames() {
		if svc, ok := m.Service(name); ok {
			c.Services = append(c.Services, service(m, svc))
		}
	}
	return c
}

func service(m *mesh.Snapshot, svc *discovery.Service) Service {
	s := Service{
		Name: svc.Name.String(), Protocol: m.Protocol(svc.Name).Name, SPIFFEID: generate.SPIFFEID(m, svc.Name),
		Cluster: generate.ClusterName(m, svc.Name), Stale: svc.Stale,
		Instances: []Instance{}, Proxies: []Proxy{},
	}
	if v, ok := m.Virtual(svc.Name); ok {
		s.VirtualAddress = v.Addr.String()
	}
	for _, i := range svc.Instances {
		s.Instances = append(s.Instances, instance(i))
	}
	for _, w := range m.WorkloadsOf(svc.Name) {
		p := Proxy{Instance: instance(w.Instance), Native: w.Instance.Native}
		t, transparent := m.Transparent(w)
		p.Transparent = transparent
		for _, u := range w.Upstreams {
			l := generate.OutboundListener(u)
			if transparent && !u.Bound() {
				l = generate.OutboundCapture(t)
			}
			p.Upstreams = append(p.Upstreams, Upstream{
				Service: u.Service.String(), Listener: l,
				Protocol: m.Protocol(u.Service).Name, Unsupported: m.Served(w, u),
			})
		}
		s.Proxies = append(s.Proxies, p)
	}
	for _, i := range m.Intentions(svc.Name) {
		s.Intentions = append(s.Intentions, Intention{
			Source: i.Name, Action: string(i.Effect), Precedence: i.Precedence,
			Entry: mesh.EntryName(i.Entry.Key), Reason: i.Reason,
		})
	}
	return s
}

func instance(i *discovery.Instance) Instance {
	return Instance{ID: i.ID, Node: i.Node, Address: i.Address, Port: i.Port, Health: i.Health.String(), Meta: i.Meta, Tags: i.Tags}
}
