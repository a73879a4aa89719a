package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// dnsRefresh is how often names are looked up (Envoy's dns_refresh_rate).
const dnsRefresh = 5 * time.Second

// resolve starts looking the names of a DNS cluster up, instead of what it
// looked up before. The work ends with the manager or the cluster.
func (c *Cluster) resolve(cl *resource.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopDNS != nil {
		c.stopDNS()
		c.stopDNS = nil
	}
	if cl.Discovery != resource.DiscoveryStrictDNS && cl.Discovery != resource.DiscoveryLogicalDNS {
		return
	}
	ctx, cancel := context.WithCancel(c.m.ctx)
	c.stopDNS = cancel
	c.m.wg.Go(func() {
		t := time.NewTicker(dnsRefresh)
		defer t.Stop()
		for {
			c.lookup(ctx, cl)
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

// lookup resolves every name once. One that cannot be resolved keeps its last
// addresses.
func (c *Cluster) lookup(ctx context.Context, cl *resource.Cluster) {
	c.mu.Lock()
	old := c.resolved
	c.mu.Unlock()
	next := &resource.Endpoints{Cluster: cl.Name}
	for i, l := range localities(cl.Endpoints) {
		named := l.Endpoints
		l.Endpoints = nil
		for _, e := range named {
			found, err := c.lookupOne(ctx, cl, e)
			if err != nil {
				c.m.d.Log.Warn("cluster: a name cannot be resolved; its last addresses stay in use",
					slog.String("cluster", cl.Name), slog.String("name", e.Address.Host), slog.Any("error", err))
				if old != nil && i < len(old.Localities) {
					l.Endpoints = append(l.Endpoints, lastOf(old.Localities[i].Endpoints, e)...)
				}
				continue
			}
			l.Endpoints = append(l.Endpoints, found...)
		}
		next.Localities = append(next.Localities, l)
	}
	if ctx.Err() != nil || old != nil && resource.Equal(old, next) {
		return
	}
	c.mu.Lock()
	s := c.state.Load()
	if s.removed || ctx.Err() != nil {
		c.mu.Unlock()
		return
	}
	c.resolved = next
	retired := c.rebuild(s.spec)
	c.mu.Unlock()
	drainAll(retired)
}

// metaName keeps, in an endpoint of a resolved set, which name it came from.
const metaName = "parrel.dns-name"

func lastOf(eps []resource.Endpoint, named resource.Endpoint) []resource.Endpoint {
	var out []resource.Endpoint
	for _, e := range eps {
		if e.Metadata[metaName] == named.Address.Host && e.Address.Port == named.Address.Port {
			out = append(out, e)
		}
	}
	return out
}

// lookupOne resolves one endpoint's name: to every address with strict DNS, to
// the first with logical DNS.
func (c *Cluster) lookupOne(ctx context.Context, cl *resource.Cluster, e resource.Endpoint) ([]resource.Endpoint, error) {
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(e.Address.Host); err == nil {
		addrs = append(addrs, a)
	} else {
		addrs, err = c.m.d.Resolver.LookupNetIP(ctx, "ip", e.Address.Host)
		if err != nil {
			return nil, err
		}
	}
	if len(addrs) == 0 {
		return nil, errors.New("the name has no address")
	}
	if cl.Discovery == resource.DiscoveryLogicalDNS {
		addrs = addrs[:1]
	}
	out := make([]resource.Endpoint, 0, len(addrs))
	for _, a := range addrs {
		r := e
		r.Address = resource.Address{Host: a.Unmap().String(), Port: e.Address.Port}
		r.Metadata = resource.Metadata{metaName: e.Address.Host}
		for k, v := range e.Metadata {
			r.Metadata[k] = v
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b resource.Endpoint) int {
		return netip.MustParseAddr(a.Address.Host).Compare(netip.MustParseAddr(b.Address.Host))
	})
	return out, nil
}
