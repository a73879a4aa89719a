package generate

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// endpoints are the proxies and connect-native instances of a service, by
// locality. A service that is not (or no longer) in the catalogue has none.
//
//	catalogue     EDS health   weight
//	passing       HEALTHY      Weights.Passing
//	warning       HEALTHY      Weights.Warning
//	critical      UNHEALTHY    Weights.Passing
//	maintenance   UNHEALTHY    Weights.Passing
//
// The catalogue's combination of node and service checks decides which row it
// is. Unhealthy ones are sent too, so that explain can say why an instance gets
// no traffic. A locality weighs as much as its usable endpoints together, so
// that clients which pick a locality first (grpc-go) still spread by instance.
func endpoints(m *mesh.Snapshot, name discovery.ServiceName) *resource.Endpoints {
	e := &resource.Endpoints{Cluster: ClusterName(m, name)}
	svc, ok := m.Service(name)
	if !ok {
		return e
	}
	instances := make(map[instanceKey]*discovery.Instance, len(svc.Instances))
	for _, i := range svc.Instances {
		instances[instanceKey{i.Node, i.ID}] = i
	}
	type place struct{ region, zone string }
	at := map[place]int{}
	for _, p := range distinct(svc.Proxies) {
		where := place{p.Region, p.Zone}
		i, ok := at[where]
		if !ok {
			i = len(e.Localities)
			at[where] = i
			e.Localities = append(e.Localities, resource.Locality{Region: p.Region, Zone: p.Zone})
		}
		ep := endpoint(p, instances)
		l := &e.Localities[i]
		l.Endpoints = append(l.Endpoints, ep)
		if ep.Health == resource.Healthy {
			l.Weight += max(ep.Weight, 1)
		}
	}
	for i := range e.Localities {
		e.Localities[i].Weight = max(e.Localities[i].Weight, 1)
	}
	slices.SortFunc(e.Localities, func(a, b resource.Locality) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone))
	})
	return e
}

// distinct leaves out what EDS cannot carry, and of several registrations with
// one address all but the healthiest: an address is one endpoint (grpc-go
// refuses any other answer), and the leftover of a crashed instance must not
// hide the one that took its place.
func distinct(proxies []*discovery.Instance) []*discovery.Instance {
	out := make([]*discovery.Instance, 0, len(proxies))
	at := make(map[netip.AddrPort]int, len(proxies))
	for _, p := range proxies {
		if !reachable(p) {
			continue
		}
		addr := netip.AddrPortFrom(netip.MustParseAddr(p.Address).Unmap(), uint16(p.Port))
		i, dup := at[addr]
		switch {
		case !dup:
			at[addr] = len(out)
			out = append(out, p)
		case p.Health < out[i].Health:
			out[i] = p
		}
	}
	return out
}

// reachable says whether a registration has an address that EDS can carry.
func reachable(p *discovery.Instance) bool {
	_, err := netip.ParseAddr(p.Address)
	return err == nil && p.Port > 0
}

// instanceKey names an instance within its service.
type instanceKey struct{ node, id string }

func endpoint(p *discovery.Instance, instances map[instanceKey]*discovery.Instance) resource.Endpoint {
	ep := resource.Endpoint{
		Address:  resource.Address{Host: p.Address, Port: uint16(p.Port)},
		Health:   resource.Unhealthy,
		Weight:   weight(p.Weights.Passing),
		Metadata: resource.Metadata{resource.MetaWorkload: instanceID(p)},
	}
	switch p.Health {
	case discovery.Passing:
		ep.Health = resource.Healthy
	case discovery.Warning:
		ep.Health, ep.Weight = resource.Healthy, weight(p.Weights.Warning)
	}
	version := p.Meta["version"]
	if i := instances[instanceKey{p.Node, instanceID(p)}]; i != nil && version == "" {
		version = i.Meta["version"]
	}
	if version != "" {
		ep.Metadata[resource.MetaVersion] = version
	}
	return ep
}

// weight is EDS's form of an instance's weight: 1, the default, is not said.
func weight(w int) uint32 {
	if w <= 1 {
		return 0
	}
	return uint32(w)
}

// instanceID is the id of the instance that a registration stands for.
func instanceID(p *discovery.Instance) string {
	if p.Proxy != nil {
		return cmp.Or(p.Proxy.DestinationServiceID, p.ID)
	}
	return p.ID
}
