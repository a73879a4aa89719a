package warm

import "github.com/parrel-mesh/parrel/xds/resource"

// References lists what a resource refers to, each once, in no order. The
// workload's own identity is no reference: it comes from the sidecar's identity
// source, never by SDS.
func References(r resource.Resource) []Key {
	var c refs
	switch r := r.(type) {
	case *resource.Listener:
		for i := range r.Chains {
			c.chain(&r.Chains[i])
		}
		if r.Default != nil {
			c.chain(r.Default)
		}
	case *resource.RouteConfig:
		c.routes(r)
	case *resource.Cluster:
		if r.Discovery == resource.DiscoveryEDS {
			c.add(resource.TypeEndpoints, r.EDSResource())
		}
		if r.TLS != nil {
			c.tls(&r.TLS.TLSParams)
		}
	}
	return c.keys
}

type refs struct {
	keys []Key
	seen map[Key]struct{}
}

func (c *refs) add(t resource.Type, name string) {
	k := Key{t, name}
	if _, dup := c.seen[k]; dup || name == "" {
		return
	}
	if c.seen == nil {
		c.seen = make(map[Key]struct{})
	}
	c.seen[k] = struct{}{}
	c.keys = append(c.keys, k)
}

func (c *refs) chain(f *resource.FilterChain) {
	if f.TLS != nil {
		c.tls(&f.TLS.TLSParams)
	}
	if f.TCP != nil {
		c.add(resource.TypeCluster, f.TCP.Cluster)
		for i := range f.TCP.Weighted {
			c.add(resource.TypeCluster, f.TCP.Weighted[i].Name)
		}
	}
	if f.HTTP != nil {
		c.add(resource.TypeRoute, f.HTTP.RouteName)
		if f.HTTP.Route != nil {
			c.routes(f.HTTP.Route)
		}
	}
}

func (c *refs) routes(r *resource.RouteConfig) {
	for i := range r.VirtualHosts {
		for j := range r.VirtualHosts[i].Routes {
			f := r.VirtualHosts[i].Routes[j].Forward
			if f == nil {
				continue
			}
			c.add(resource.TypeCluster, f.Cluster)
			for k := range f.Weighted {
				c.add(resource.TypeCluster, f.Weighted[k].Name)
			}
		}
	}
}

func (c *refs) tls(p *resource.TLSParams) {
	if p.Certificate.SDS != resource.SecretIdentity {
		c.add(resource.TypeSecret, p.Certificate.Secret())
	}
	c.add(resource.TypeSecret, p.Trust.Secret())
}
