package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/sidecar/health"
	"github.com/parrel-mesh/parrel/sidecar/lb"
	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Cluster is one upstream. The handle stays the same through every change of
// its configuration; one that was removed refuses new work and lets what is
// open end. Safe for concurrent use.
type Cluster struct {
	name     string
	m        *Manager
	tracker  *health.Tracker
	breakers breakers
	trust    atomic.Pointer[x509bundle.Set]

	state atomic.Pointer[state]
	mu    sync.Mutex // serialises changes of state

	// Guarded by mu.
	pools    map[string]*endpoint // by address
	retiring map[*pool.Pool]struct{}
	resolved *resource.Endpoints // of DNS discovery
	stopDNS  context.CancelFunc
	expiry   wheel.Timer // of original destinations; set while there are any
	expires  bool        // expiry is set
}

// state is the immutable part that a pick reads.
type state struct {
	spec      Spec
	endpoints []*endpoint
	picker    lb.Picker
	states    []health.State
	next      time.Time // when states change by themselves
	removed   bool
	// Of a cluster of original destinations, whose endpoints are made when they
	// are asked for.
	transport string
	tls       *tls.Config
}

// endpoint is one address of the cluster; it lives as long as the address is
// in the set, or, as an original destination, as long as it is in use.
type endpoint struct {
	lb       lb.Endpoint // its Owner is the endpoint
	instance atomic.Pointer[string]
	// pool is replaced when what its connections were made for changes.
	pool atomic.Pointer[pool.Pool]

	failures atomic.Uint64
	// Guarded by Cluster.mu.
	dial string // network and address, and the transport's configuration
	used int64  // an original destination: when it was last seen in use, by the wheel's clock
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Resource is the configuration in force. Read-only.
func (c *Cluster) Resource() *resource.Cluster { return c.state.Load().spec.Cluster }

// addressOf is the name of an address in logs and to dial.
func addressOf(a resource.Address) (network, address string) {
	if a.Path != "" {
		return "unix", a.Path
	}
	return "tcp", net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// apply brings the cluster to a specification. Only Manager calls it.
func (c *Cluster) apply(spec Spec) {
	c.mu.Lock()
	c.trust.Store(spec.Trust)
	retired := c.rebuild(spec)
	c.mu.Unlock()
	drainAll(retired)
}

// refresh rebuilds the picker after health changed.
func (c *Cluster) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	if old.removed {
		return
	}
	next := *old
	c.pickers(&next, old)
	c.state.Store(&next)
}

// rebuild makes the next state; the caller holds mu and drains what is
// returned after unlocking.
func (c *Cluster) rebuild(spec Spec) (retired []*pool.Pool) {
	old := c.state.Load()
	c.breakers.set(spec.Cluster.Breakers)
	next := &state{spec: spec}
	eps := c.endpointsOf(spec)
	transport := c.transportKey(spec)
	seen := map[string]bool{}
	var cat []health.Endpoint
	tlsConf := c.tlsConfig(spec)
	for _, l := range localities(eps) {
		for i := range l.Endpoints {
			e := &l.Endpoints[i]
			network, address := addressOf(e.Address)
			if seen[address] {
				continue
			}
			seen[address] = true
			ep := c.pools[address]
			if ep == nil {
				ep = &endpoint{}
				ep.lb.Address, ep.lb.Owner = address, ep
				c.pools[address] = ep
			}
			instance := e.Metadata[resource.MetaWorkload]
			ep.instance.Store(&instance)
			if key := network + transport; ep.dial != key {
				if p := ep.pool.Load(); p != nil {
					retired = append(retired, p)
				}
				ep.dial = key
				ep.pool.Store(c.newPool(ep, spec.Cluster, network, address, tlsConf))
			}
			next.endpoints = append(next.endpoints, ep)
			cat = append(cat, health.Endpoint{Address: address, Status: e.Health})
		}
	}
	if spec.Cluster.Discovery == resource.DiscoveryOriginalDst {
		next.transport, next.tls = transport, tlsConf
		if old != nil && old.transport == transport { // they stay until they are not used any more
			seen = nil
		}
	}
	for a, ep := range c.pools {
		if seen != nil && !seen[a] {
			retired = append(retired, ep.pool.Load())
			delete(c.pools, a)
		}
	}
	c.tracker.Set(cat, spec.Cluster.PanicThreshold)
	c.pickers(next, old)
	c.state.Store(next)
	for _, p := range retired {
		c.retiring[p] = struct{}{}
	}
	return retired
}

// pickers fills in what follows from health; the caller holds mu.
func (c *Cluster) pickers(next, old *state) {
	next.states, next.next = c.tracker.States(c.m.d.Now())
	entries := make([]lb.Entry, 0, len(next.endpoints))
	i := 0
	seen := make(map[string]bool, len(next.endpoints))
	for _, l := range localities(c.endpointsOf(next.spec)) {
		for j := range l.Endpoints {
			_, address := addressOf(l.Endpoints[j].Address)
			if seen[address] {
				continue
			}
			seen[address] = true
			ep := next.endpoints[i]
			entries = append(entries, lb.Entry{
				Endpoint: &ep.lb, Weight: l.Endpoints[j].Weight, Priority: l.Priority, Usable: next.states[i].Usable,
			})
			i++
		}
	}
	var previous lb.Picker
	if old != nil {
		previous = old.picker
	}
	next.picker = lb.New(next.spec.Cluster.LB, c.m.d.Rand).Build(entries, previous)
}

func localities(e *resource.Endpoints) []resource.Locality {
	if e == nil {
		return nil
	}
	return e.Localities
}

// endpointsOf is where the endpoints come from; the caller holds mu.
func (c *Cluster) endpointsOf(spec Spec) *resource.Endpoints {
	switch spec.Cluster.Discovery {
	case resource.DiscoveryEDS:
		return spec.Endpoints
	case resource.DiscoveryStrictDNS, resource.DiscoveryLogicalDNS:
		return c.resolved
	case resource.DiscoveryOriginalDst:
		return nil // they are in no list
	}
	return spec.Cluster.Endpoints
}

// transportKey changes when open connections no longer are what a new one
// would be: they drain, and new ones are opened.
func (c *Cluster) transportKey(spec Spec) string {
	cl := spec.Cluster
	key := fmt.Sprintf("/%d/%v/%v", cl.Protocol, cl.IdleTimeout, cl.ConnectTimeout)
	switch {
	case spec.TLS != nil:
		key += fmt.Sprintf("/%p", spec.TLS)
	case cl.TLS != nil:
		key += fmt.Sprintf("/%+v/%s", *cl.TLS, c.m.identityKey(spec.Trust))
	}
	return key
}

func (c *Cluster) newPool(ep *endpoint, cl *resource.Cluster, network, address string, conf *tls.Config) *pool.Pool {
	return pool.New(pool.Config{
		Network: network, Address: address, Protocol: cl.Protocol, TLS: conf,
		ConnectTimeout: cl.ConnectTimeout, IdleTimeout: cl.IdleTimeout, Keepalive: cl.Keepalive,
	}, pool.Deps{
		Net: c.m.d.Net, Wheel: c.m.d.Wheel, Limits: &c.breakers,
		Connected: func(err error) { c.connected(address, err) },
	})
}

// connected feeds passive health. Only what says something of the endpoint
// counts: not our own identity, not a caller that gave up.
func (c *Cluster) connected(address string, err error) {
	changed := false
	switch e, _ := err.(*pool.Error); {
	case err == nil:
		changed = c.tracker.Succeeded(address)
	case e != nil && (e.Kind == pool.Connect || e.Kind == pool.ConnectTimeout || e.Kind == pool.TLS):
		changed = c.tracker.Failed(address, e.Detail, c.m.d.Now())
	}
	if changed {
		c.refresh()
	}
}

// pick chooses an endpoint that is not among avoid where there is one. Nil:
// none is usable.
func (c *Cluster) pick(o *Options, avoid []*lb.Endpoint) *endpoint {
	s := c.state.Load()
	if s.spec.Cluster.Discovery == resource.DiscoveryOriginalDst {
		return c.destination(o.Destination)
	}
	if !s.next.IsZero() && !c.m.d.Now().Before(s.next) {
		c.refresh()
		s = c.state.Load()
	}
	if s.removed {
		return nil
	}
	h := s.picker.Pick(lb.Info{Hash: o.Hash, HasHash: o.HasHash, Avoid: avoid})
	if h == nil {
		return nil
	}
	return h.Owner.(*endpoint)
}

// none is the failure where pick found nothing.
func (c *Cluster) none() *Error {
	if s := c.state.Load(); !s.removed && s.spec.Cluster.Discovery == resource.DiscoveryOriginalDst {
		return c.fail(telemetry.NotRedirected, fmt.Sprintf("cluster %s leads to where a connection meant to go, and this one was not redirected", c.name), nil)
	}
	return c.fail(telemetry.NoHealthyUpstream, c.unusable(), nil)
}

// unusable says why pick found nothing.
func (c *Cluster) unusable() string {
	s := c.state.Load()
	switch {
	case s.removed:
		return fmt.Sprintf("cluster %s was removed from the configuration", c.name)
	case len(s.states) == 0:
		return fmt.Sprintf("cluster %s has no endpoint", c.name)
	}
	return fmt.Sprintf("none of the %d endpoints of cluster %s is usable; %s is %s", len(s.states), c.name, s.states[0].Address, s.states[0].Why)
}

// remove makes the cluster refuse new work and drain.
func (c *Cluster) remove() {
	c.mu.Lock()
	next := *c.state.Load()
	next.removed = true
	c.state.Store(&next)
	c.expiry.Remove()
	c.expires = false
	if c.stopDNS != nil {
		c.stopDNS()
		c.stopDNS = nil
	}
	var all []*pool.Pool
	for a, ep := range c.pools {
		all = append(all, ep.pool.Load())
		c.retiring[ep.pool.Load()] = struct{}{}
		delete(c.pools, a)
	}
	c.mu.Unlock()
	drainAll(all)
}

// close ends everything at once.
func (c *Cluster) close() {
	c.remove()
	c.mu.Lock()
	all := make([]*pool.Pool, 0, len(c.retiring))
	for p := range c.retiring {
		all = append(all, p)
	}
	c.mu.Unlock()
	for _, p := range all {
		p.Close()
	}
}

// sweep forgets drained pools that have no connection left; it says whether
// any is left.
func (c *Cluster) sweep() (left bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.retiring {
		if p.Conns() == 0 {
			delete(c.retiring, p)
		}
	}
	return len(c.retiring) > 0
}

func drainAll(pools []*pool.Pool) {
	for _, p := range pools {
		p.Drain()
	}
}
