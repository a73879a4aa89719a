package consul

import (
	"cmp"
	"encoding/json"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

var origin = discovery.Origin{Place: "consul"}

// instances makes instances of a health answer, sorted.
func instances(entries []*api.ServiceEntry) []*discovery.Instance {
	out := make([]*discovery.Instance, 0, len(entries))
	for _, e := range entries {
		if e == nil || e.Node == nil || e.Service == nil {
			continue
		}
		out = append(out, instance(e))
	}
	discovery.SortInstances(out)
	return out
}

func instance(e *api.ServiceEntry) *discovery.Instance {
	s := e.Service
	in := &discovery.Instance{
		Service: serviceName(s.Partition, s.Namespace, e.Node.Datacenter, s.PeerName, s.Service),
		ID:      s.ID, Node: e.Node.Node, Kind: discovery.Kind(s.Kind),
		Address: cmp.Or(s.Address, e.Node.Address), Port: s.Port, SocketPath: s.SocketPath,
		Tagged: tagged(s.TaggedAddresses),
		Tags:   s.Tags, Meta: s.Meta, Native: s.Connect != nil && s.Connect.Native, Origin: origin,
	}
	for _, l := range []*api.Locality{s.Locality, e.Node.Locality} {
		if l != nil && in.Region == "" && in.Zone == "" {
			in.Region, in.Zone = l.Region, l.Zone
		}
	}
	for _, c := range e.Checks {
		ch := discovery.Check{ID: c.CheckID, Name: c.Name, Service: c.ServiceID, Health: discovery.ParseHealth(c.Status)}
		if ch.Health != discovery.Passing {
			// The output of a passing check differs with every run and says
			// nothing.
			ch.Output = c.Output
		}
		in.Checks = append(in.Checks, ch)
	}
	w := discovery.Weights{Passing: s.Weights.Passing, Warning: s.Weights.Warning}
	in.Weights, in.Health = discovery.Weigh(w, discovery.CombineHealth(in.Checks))
	if in.Kind != discovery.KindService {
		in.Proxy = proxy(s.Proxy)
	}
	return in
}

func proxy(p *api.AgentServiceConnectProxyConfig) *discovery.Proxy {
	if p == nil {
		return &discovery.Proxy{}
	}
	out := &discovery.Proxy{
		DestinationService: p.DestinationServiceName, DestinationServiceID: p.DestinationServiceID,
		LocalServiceAddress: p.LocalServiceAddress, LocalServicePort: p.LocalServicePort,
		LocalServiceSocket: p.LocalServiceSocketPath, Mode: string(p.Mode), Config: p.Config,
	}
	if t := p.TransparentProxy; t != nil {
		out.TransparentProxy = discovery.TransparentProxy{OutboundListenerPort: t.OutboundListenerPort, DialedDirectly: t.DialedDirectly}
	}
	for _, u := range p.Upstreams {
		up := discovery.Upstream{
			DestinationType: cmp.Or(string(u.DestinationType), "service"), DestinationName: u.DestinationName,
			DestinationNamespace: u.DestinationNamespace, DestinationPartition: u.DestinationPartition,
			DestinationPeer: u.DestinationPeer, Datacenter: u.Datacenter,
			LocalBindAddress: u.LocalBindAddress, LocalBindPort: u.LocalBindPort,
			LocalBindSocketPath: u.LocalBindSocketPath, Config: u.Config,
		}
		if up.LocalBindAddress == "" && up.LocalBindSocketPath == "" {
			up.LocalBindAddress = "127.0.0.1"
		}
		out.Upstreams = append(out.Upstreams, up)
	}
	// The paths of what is set, by the names of the API.
	var fields map[string]any
	if text, err := json.Marshal(p); err == nil && json.Unmarshal(text, &fields) == nil {
		out.Set = discovery.SetPaths(fields, "Proxy")
	}
	return out
}

// tagged leaves the ports out: Consul gives the proxy's own, which a virtual
// address does not have.
func tagged(in map[string]api.ServiceAddress) map[string]string {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]string, len(in))
	for tag, a := range in {
		out[tag] = a.Address
	}
	return out
}

func serviceName(partition, namespace, datacenter, peer, name string) discovery.ServiceName {
	return discovery.ServiceName{
		Peer: peer, Partition: cmp.Or(partition, discovery.DefaultPartition),
		Namespace: cmp.Or(namespace, discovery.DefaultNamespace), Datacenter: datacenter, Name: name,
	}
}
