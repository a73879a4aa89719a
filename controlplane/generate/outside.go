package generate

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/controlplane/vip"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Destinations outside of the mesh: the service-defaults entries with a
// Destination, which say what a mesh with MeshDestinationsOnly lets out. Without
// it everything is let out, and they are not needed.

// outsidePrefix goes before what is known of a destination outside.
const outsidePrefix = "destination|"

// outside are the destinations that a workload may reach, where it may not reach
// everything.
func outside(m *mesh.Snapshot, w *mesh.Workload) []mesh.Outside {
	if !m.MeshDestinationsOnly(w.Service.Partition) {
		return nil
	}
	return m.Destinations(w.Service)
}

// outsideHost is a destination by its name. The application's TLS says the name;
// that it is the name of who is reached, DNS says, so that no other address is.
type outsideHost struct {
	host  string
	port  uint16
	rules []resource.RBACPolicy
}

func (h outsideHost) cluster() string {
	return outsidePrefix + net.JoinHostPort(h.host, strconv.Itoa(int(h.port)))
}

func (h outsideHost) makeCluster() *resource.Cluster {
	return &resource.Cluster{
		Name: h.cluster(), Discovery: resource.DiscoveryStrictDNS,
		Endpoints: &resource.Endpoints{Cluster: h.cluster(), Localities: []resource.Locality{{
			Endpoints: []resource.Endpoint{{Address: resource.Address{Host: h.host, Port: h.port}}},
		}}},
	}
}

// outsideHosts are the names among the destinations, sorted. One that several
// entries name with several ports has the port of the first.
func outsideHosts(m *mesh.Snapshot, w *mesh.Workload) []outsideHost {
	var out []outsideHost
	at := map[string]int{}
	for _, d := range outside(m, w) {
		for _, a := range d.Addresses {
			if _, err := netip.ParseAddr(a); err == nil || port(d.Port) == 0 || !dnsName(a) {
				continue
			}
			i, ok := at[a]
			if !ok {
				i = len(out)
				at[a] = i
				out = append(out, outsideHost{host: a, port: port(d.Port)})
			}
			if out[i].port == port(d.Port) {
				out[i].rules = appendRule(out[i].rules, d)
			}
		}
	}
	slices.SortFunc(out, func(a, b outsideHost) int { return cmp.Compare(a.host, b.host) })
	return out
}

// outsideChains let connections to the destinations out: to an address as they
// are, to a name where TLS says it. The port stands in the rule and not in the
// match: a chain that asks for a port would hide all others from that port.
func outsideChains(m *mesh.Snapshot, w *mesh.Workload, taken map[netip.Addr]bool) []resource.FilterChain {
	var out []resource.FilterChain
	add := func(name, cluster string, match resource.ChainMatch, rules []resource.RBACPolicy) {
		out = append(out, resource.FilterChain{
			Name: name, Match: match,
			Network: []resource.NetworkFilter{{Name: networkRBAC, RBAC: &resource.RBAC{
				StatPrefix: "destinations", Rules: &resource.RBACRules{Action: resource.RBACAllow, Policies: rules},
			}}},
			TCP: &resource.TCPProxy{StatPrefix: name, Cluster: cluster},
		})
	}
	rules := map[netip.Addr][]resource.RBACPolicy{}
	var addrs []netip.Addr
	for _, d := range outside(m, w) {
		for _, text := range d.Addresses {
			a, err := netip.ParseAddr(text)
			if a = a.Unmap().WithZone(""); err != nil || port(d.Port) == 0 || taken[a] || vip.Range().Contains(a) || vip.Range6().Contains(a) {
				continue
			}
			if rules[a] == nil {
				addrs = append(addrs, a)
			}
			rules[a] = appendRule(rules[a], d)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range addrs {
		add(outsidePrefix+a.String(), OriginalDestination, resource.ChainMatch{DestinationPrefixes: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}}, rules[a])
	}
	for _, h := range outsideHosts(m, w) {
		add(outsidePrefix+h.host, h.cluster(), resource.ChainMatch{ServerNames: []string{h.host}}, h.rules)
	}
	return out
}

// appendRule adds what one entry allows, under the entry's name.
func appendRule(to []resource.RBACPolicy, d mesh.Outside) []resource.RBACPolicy {
	name := mesh.KindServiceDefaults + "/" + d.Service.Name
	if slices.ContainsFunc(to, func(p resource.RBACPolicy) bool { return p.Name == name }) {
		return to
	}
	at := port(d.Port)
	return append(to, resource.RBACPolicy{
		Name: name, Permissions: []resource.Permission{{DestinationPort: &at}}, Principals: []resource.Principal{{Any: true}},
	})
}
