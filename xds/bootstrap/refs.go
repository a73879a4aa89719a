package bootstrap

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// ref is one reference that must lead somewhere.
type ref struct {
	list, name string // "clusters", "web"
	path       string
	at         *yaml.Node
}

func (p *parser) refer(list, name, path string, n *yaml.Node, field string) {
	if name != "" {
		p.refs = append(p.refs, ref{list, name, join(path, field), find(n, field)})
	}
}

// check resolves what was referred to.
func (p *parser) check() {
	for _, r := range p.refs {
		if p.names[r.list+" "+r.name] == nil {
			p.fail(r.at, r.path, "there is no %s %q in static_resources; add it or correct the name", strings.TrimSuffix(r.list, "s"), r.name)
		}
	}
	at := map[resource.Address]string{}
	for i, l := range p.b.Listeners {
		if first, taken := at[l.Address]; taken && l.Address.Port != 0 {
			path := fmt.Sprintf("static_resources.listeners[%d].address", i)
			p.fail(p.names["listeners "+l.Name], path, "the listener %q has this address too; give each its own", first)
		}
		at[l.Address] = l.Name
	}
}

func (p *parser) listener(path string, n *yaml.Node, l *resource.Listener) {
	if l.API != nil {
		p.fail(find(n, "api_listener"), join(path, "api_listener"), "is for proxyless gRPC clients; give the listener an address and filter_chains")
		return
	}
	if l.UseOriginalDst {
		p.warn(find(n, "use_original_dst"), join(path, "use_original_dst"), "only redirected connections are taken, and matched on the address before redirection; Envoy takes others too")
	}
	for i := range l.Chains {
		p.chain(path, fmt.Sprintf("filter_chains[%d]", i), n, &l.Chains[i])
	}
	if l.Default != nil {
		p.chain(path, "default_filter_chain", n, l.Default)
	}
}

const common = "transport_socket.typed_config.common_tls_context"

func (p *parser) chain(path, field string, n *yaml.Node, c *resource.FilterChain) {
	if c.TLS != nil {
		p.tls(path, field+"."+common, n, &c.TLS.TLSParams)
	}
	last := fmt.Sprintf("%s.filters[%d].typed_config", field, len(c.Network))
	if c.TCP != nil {
		p.refer("clusters", c.TCP.Cluster, path, n, last+".cluster")
		for i, w := range c.TCP.Weighted {
			p.refer("clusters", w.Name, path, n, fmt.Sprintf("%s.weighted_clusters.clusters[%d].name", last, i))
		}
	}
	if c.HTTP == nil || c.HTTP.Route == nil {
		return
	}
	for i := range c.HTTP.Route.VirtualHosts {
		v := &c.HTTP.Route.VirtualHosts[i]
		for j := range v.Routes {
			f := v.Routes[j].Forward
			if f == nil {
				continue
			}
			at := fmt.Sprintf("%s.route_config.virtual_hosts[%d].routes[%d].route", last, i, j)
			p.refer("clusters", f.Cluster, path, n, at+".cluster")
			for k, w := range f.Weighted {
				p.refer("clusters", w.Name, path, n, fmt.Sprintf("%s.weighted_clusters.clusters[%d].name", at, k))
			}
		}
	}
}

func (p *parser) cluster(path string, n *yaml.Node, c *resource.Cluster) {
	if c.Discovery == resource.DiscoveryEDS {
		p.fail(find(n, "type"), join(path, "type"), "EDS needs a control plane; give the endpoints here (STATIC, STRICT_DNS, LOGICAL_DNS)")
	}
	if c.TLS == nil {
		return
	}
	p.tls(path, common, n, &c.TLS.TLSParams)
	if t := c.TLS; !t.AcceptUntrusted && t.SNI == "" && len(t.PeerSANs)+len(t.PeerDNS) == 0 {
		p.warn(find(n, common), join(path, common), "neither sni nor match_typed_subject_alt_names says who the server is: every certificate of these roots is accepted")
	}
}

func (p *parser) tls(path, field string, n *yaml.Node, t *resource.TLSParams) {
	for _, s := range []struct {
		c    resource.CertSource
		part string
	}{{t.Certificate, "tls_certificate_provider_instance"}, {t.Trust, "validation_context.ca_certificate_provider_instance"}} {
		if s.c.Provider != "" {
			p.fail(find(n, field+"."+s.part), path+"."+field+"."+s.part, "there are no certificate providers here; name the files")
		}
	}
	secret := func(s resource.CertSource, part string) {
		if s.SDS != "" && !strings.HasPrefix(s.SDS, "inline:") {
			p.refer("secrets", s.SDS, path, n, field+"."+part)
		}
	}
	secret(t.Certificate, "tls_certificate_sds_secret_configs[0].name")
	secret(t.Trust, "validation_context_sds_secret_config.name")
}

func sortProblems(p []Problem) {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Reason, b.Reason))
	})
}
