package generate

import (
	"net/netip"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/controlplane/vip"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// DNSListener is the listener of captured queries in the default partition and
// namespace.
const DNSListener = "dns:127.0.0.1:15053"

const dnsPort = 15053

// dnsTTL is the least that a DNS filter may have: an address that moves, which
// is seldom, is followed within it.
const dnsTTL = 30 * time.Second

// Zones of the mesh's own: a name in them that is no service's does not exist
// anywhere, and nobody outside is asked for it. (Consul's forms for other
// namespaces and peers, NAME.virtual.NAMESPACE.consul, are not below virtualZone.)
const (
	meshZone    = "mesh"
	virtualZone = "virtual.consul"
)

// dnsListenerName names the listener that answers for the services beside name:
// those of its partition and namespace, whose bare names are theirs.
func dnsListenerName(name discovery.ServiceName) string {
	if name.Partition == discovery.DefaultPartition && name.Namespace == discovery.DefaultNamespace {
		return DNSListener
	}
	return DNSListener + "|" + name.Partition + "/" + name.Namespace
}

// dnsListener answers captured queries for every service of the mesh beside
// beside, whether the workload that asks may call it or not, as Consul's DNS
// does: a call that no intention allows then fails where the sidecar can say why,
// and never finds somebody else of that name. It is the same for all, so that
// they share it.
func dnsListener(m *mesh.Snapshot, beside discovery.ServiceName) *resource.Listener {
	f := &resource.DNSFilter{StatPrefix: "dns", KnownSuffixes: []string{meshZone, virtualZone}}
	seen := map[string]bool{}
	for _, name := range m.ServiceNames() {
		v, ok := m.Virtual(name)
		if !ok || name.Peer != "" || name.Datacenter != m.Datacenter || name.Partition != beside.Partition || name.Namespace != beside.Namespace {
			continue
		}
		addrs := []netip.Addr{v.Addr}
		if t := vip.Twin(v.Addr); t != v.Addr && vip.Range().Contains(v.Addr) {
			addrs = append(addrs, t)
		}
		for _, n := range DNSNames(name) {
			if !seen[n] {
				seen[n] = true
				f.Domains = append(f.Domains, resource.DNSDomain{Name: n, Addrs: addrs, TTL: dnsTTL})
			}
		}
	}
	return resource.Normalise(&resource.Listener{
		Name: dnsListenerName(beside), Direction: resource.Outbound, DNS: f,
		Address:    resource.Address{Host: "127.0.0.1", Port: dnsPort},
		Additional: []resource.Address{{Host: "::1", Port: dnsPort}},
	})
}

// DNSNames are the names that resolve to a service's virtual address: NAME alone,
// NAME.virtual.consul, NAME.service.consul and NAME.mesh. A name that DNS cannot
// carry has none; one with dots, or that means the host itself, is not taken
// alone.
func DNSNames(name discovery.ServiceName) []string {
	n := strings.ToLower(name.Name)
	if !dnsName(n) {
		return nil
	}
	out := []string{n + "." + virtualZone, n + ".service.consul", n + "." + meshZone}
	if !strings.Contains(n, ".") && n != "localhost" {
		out = append(out, n)
	}
	return out
}

func dnsName(n string) bool {
	if len(n)+len("."+virtualZone) > 253 {
		return false
	}
	for label := range strings.SplitSeq(n, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			switch b := label[i]; {
			case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '_':
			default:
				return false
			}
		}
	}
	return true
}
