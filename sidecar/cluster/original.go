package cluster

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Original destinations.
//
// Why: a cluster of type ORIGINAL_DST has no list of endpoints. What it leads to
// is wherever each redirected connection meant to go, as often as not once.
//
// Conditions: an endpoint is made when it is first asked for. One without work
// in hand goes maxUnused after it was last seen in use, and earlier, the longest
// unused first, where there would be more than maxDestinations. Those with work
// in hand stay: there are no more of them than connections that came in.
//
// First start: none.
//
// Recovery: a request that meets the end of its endpoint asks again and gets a
// new one. There is no passive health: there is no other endpoint to go to.
const (
	maxDestinations = 1024
	maxUnused       = time.Minute
	expireEvery     = 10 * time.Second
)

// destination gives the endpoint of an original destination; nil where there is
// none, or the cluster was removed.
func (c *Cluster) destination(dst netip.AddrPort) *endpoint {
	if !dst.IsValid() || dst.Port() == 0 || dst.Addr().IsUnspecified() {
		return nil
	}
	var text [64]byte
	key := dst.AppendTo(text[:0])
	now := c.m.d.Wheel.Now()
	c.mu.Lock()
	s := c.state.Load()
	if s.removed || s.spec.Cluster.Discovery != resource.DiscoveryOriginalDst {
		c.mu.Unlock()
		return nil
	}
	ep := c.pools[string(key)]
	var retired *pool.Pool
	if ep == nil {
		if len(c.pools) >= maxDestinations {
			retired = c.evict()
		}
		ep = c.newDestination(s, string(key))
		if !c.expires {
			c.expires = true
			c.expiry.Set(expireEvery)
		}
	}
	ep.used = now
	c.mu.Unlock()
	if retired != nil {
		retired.Drain()
	}
	return ep
}

// newDestination makes an endpoint; the caller holds mu.
func (c *Cluster) newDestination(s *state, address string) *endpoint {
	ep := &endpoint{}
	instance := ""
	ep.instance.Store(&instance)
	ep.lb.Address, ep.lb.Owner = address, ep
	cl := s.spec.Cluster
	ep.pool.Store(pool.New(pool.Config{
		Network: "tcp", Address: address, Protocol: cl.Protocol, TLS: s.tls,
		ConnectTimeout: cl.ConnectTimeout, IdleTimeout: cl.IdleTimeout, Keepalive: cl.Keepalive,
	}, pool.Deps{Net: c.m.d.Net, Wheel: c.m.d.Wheel, Limits: &c.breakers}))
	c.pools[address] = ep
	return ep
}

// evict takes away the endpoint that was not used for the longest time; nil where
// all have work in hand. The caller holds mu, and drains the pool.
func (c *Cluster) evict() *pool.Pool {
	var oldest *endpoint
	for _, ep := range c.pools {
		if ep.lb.Active() == 0 && (oldest == nil || ep.used < oldest.used) {
			oldest = ep
		}
	}
	if oldest == nil {
		return nil
	}
	return c.forget(oldest)
}

// forget takes an endpoint away; the caller holds mu, and drains the pool.
func (c *Cluster) forget(ep *endpoint) *pool.Pool {
	delete(c.pools, ep.lb.Address)
	p := ep.pool.Load()
	c.retiring[p] = struct{}{}
	return p
}

// expire takes away what was not used for some time.
func (c *Cluster) expire() {
	now := c.m.d.Wheel.Now()
	c.mu.Lock()
	if !c.expires { // removed meanwhile
		c.mu.Unlock()
		return
	}
	var retired []*pool.Pool
	for _, ep := range c.pools {
		switch {
		case ep.lb.Active() > 0:
			ep.used = now
		case time.Duration(now-ep.used) >= maxUnused:
			retired = append(retired, c.forget(ep))
		}
	}
	c.mu.Unlock()
	drainAll(retired)
	left := c.sweep()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expires = c.expires && (left || len(c.pools) > 0); c.expires {
		c.expiry.Set(expireEvery)
	}
}

// destinations describes the endpoints that there are, by address.
func (c *Cluster) destinations() []*endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*endpoint, 0, len(c.pools))
	for _, a := range slices.Sorted(maps.Keys(c.pools)) {
		out = append(out, c.pools[a])
	}
	return out
}
