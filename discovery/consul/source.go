package consul

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// Source is the catalogue of the agent's datacenter. It implements
// [discovery.Source].
type Source struct {
	cfg       Config
	client    *api.Client
	transport *http.Transport
}

// New checks the configuration and connects to nothing yet.
func New(cfg Config) (*Source, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	client, transport, err := cfg.client()
	if err != nil {
		return nil, err
	}
	return &Source{cfg: cfg, client: client, transport: transport}, nil
}

// modelled are the kinds that the first delivery waits for.
var modelled = []string{"service-defaults", "proxy-defaults", "service-intentions", relaxing}

// relaxing is a kind that only relaxes what holds without it: a Consul that does
// not answer for it is waited for no longer than FirstDelivery.
const relaxing = "mesh"

const (
	listName  = "catalog/services"
	pulseName = "health/state/any"
	rootsName = "connect/ca/roots"
	selfName  = "agent/self"
)

// Run delivers the whole catalogue, then what changes, until ctx ends.
func (s *Source) Run(ctx context.Context, sink discovery.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.transport.CloseIdleConnections()
	events := make(chan event, 64)
	f := &feed{cfg: &s.cfg, client: s.client, events: events}
	w := newWatches(ctx, f)
	c := newCollector(&s.cfg, f, sink)
	c.watch = w
	defer w.wait()
	defer cancel()

	w.spawn(func() { f.self(ctx) })
	w.spawn(func() { f.follow(ctx, listName, s.cfg.Wait, f.list(w)) })
	w.spawn(func() { f.follow(ctx, pulseName, s.cfg.Pulse, f.pulse(w)) })
	w.spawn(func() { f.follow(ctx, rootsName, s.cfg.Wait, f.roots) })
	for kind := range discovery.EntryFields {
		if kind != "service" {
			w.spawn(func() { f.follow(ctx, "config/"+kind, s.cfg.Wait, f.kind(ctx, kind)) })
		}
	}
	w.spawn(w.sweep)
	c.run(ctx, events)
	return ctx.Err()
}

// list reads the names of services, and finds out which are but proxies: no
// watch is spent on these, for a proxy is found under what it stands for.
func (f *feed) list(w *watches) query {
	var before []string
	var names map[string]bool
	return func(o *api.QueryOptions) (*api.QueryMeta, event, error) {
		all, meta, err := f.client.Catalog().Services(o)
		if err != nil {
			return nil, nil, err
		}
		w.stir() // some registration changed, perhaps that of a swept service
		if now := slices.Sorted(maps.Keys(all)); names == nil || !slices.Equal(now, before) {
			found, err := f.destinations(o, all)
			if err != nil {
				return nil, nil, err
			}
			before, names = now, found
		}
		found := maps.Clone(names)
		return meta, func(c *collector) { c.services(found) }, nil
	}
}

// sidecarSuffix is how Consul's agent names the sidecar of a service.
const sidecarSuffix = "-sidecar-proxy"

// destinations gives the services among the names, and the services that the
// proxies among them stand for.
func (f *feed) destinations(o *api.QueryOptions, all map[string][]string) (map[string]bool, error) {
	q := (&api.QueryOptions{AllowStale: true, Datacenter: o.Datacenter, Filter: `ServiceKind == "connect-proxy"`}).WithContext(o.Context())
	proxies, _, err := f.client.Catalog().Services(q)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(all))
	for name := range all {
		if _, proxy := proxies[name]; !proxy && name != "consul" {
			names[name] = true
		}
	}
	for name := range proxies {
		if to, ok := strings.CutSuffix(name, sidecarSuffix); ok && names[to] {
			continue
		}
		q := (&api.QueryOptions{AllowStale: true, Datacenter: o.Datacenter}).WithContext(o.Context())
		nodes, _, err := f.client.Catalog().Service(name, "", q)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			if n.ServiceProxy != nil && n.ServiceProxy.DestinationServiceName != "" {
				names[n.ServiceProxy.DestinationServiceName] = true
			} else if n.ServiceProxy == nil || n.ServiceProxy.DestinationServiceName == "" {
				names[name] = true // a service that shares a proxy's name
			}
		}
	}
	return names, nil
}

// pulse wakes when any check changes anywhere and otherwise tells, every
// Config.Pulse, whether the servers have a leader and how old their answers
// are. Its filter matches nothing, so that it costs nothing to carry.
func (f *feed) pulse(w *watches) query {
	return func(o *api.QueryOptions) (*api.QueryMeta, event, error) {
		o.Filter = `CheckID == "parrel: none"`
		_, meta, err := f.client.Health().State("any", o)
		return meta, func(*collector) { w.stir() }, err
	}
}

func (f *feed) roots(o *api.QueryOptions) (*api.QueryMeta, event, error) {
	roots, meta, err := f.client.Connect().CARoots(o)
	return meta, func(c *collector) { c.trust(roots) }, err
}

// kind reads all config entries of a kind. Where all of several vanish at once,
// two leader-consistent readings have to say so first.
func (f *feed) kind(ctx context.Context, kind string) query {
	had := 0
	read := func(o *api.QueryOptions) ([]map[string]any, *api.QueryMeta, error) {
		var entries []map[string]any
		meta, err := f.client.Raw().Query("/v1/config/"+kind, &entries, o)
		return entries, meta, err
	}
	return func(o *api.QueryOptions) (*api.QueryMeta, event, error) {
		entries, meta, err := read(o)
		for i := 0; err == nil && len(entries) == 0 && had > 1 && i < 2; i++ {
			sleep(ctx, f.cfg.Confirm)
			q := &api.QueryOptions{RequireConsistent: true, Datacenter: o.Datacenter}
			entries, meta, err = read(q.WithContext(o.Context()))
			if err == nil && meta.ResultsFilteredByACLs {
				err = fmt.Errorf("the token may no longer read the %d entries of kind %s", had, kind)
			}
		}
		if err != nil {
			return nil, nil, err
		}
		had = len(entries)
		return meta, func(c *collector) { c.config(kind, entries) }, nil
	}
}

// self asks the agent for its datacenter and for the default intention policy,
// once a minute and, until it answers, with back-off.
func (f *feed) self(ctx context.Context) {
	back := backoff{most: f.cfg.MaxBackoff, rand: f.cfg.Rand}
	for ctx.Err() == nil {
		datacenter, policy, err := f.askSelf(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.emit(ctx, func(c *collector) { c.failed(selfName, err) })
			sleep(ctx, back.next())
			continue
		}
		back.failures = 0
		f.emit(ctx, func(c *collector) {
			c.health.forget(selfName)
			if c.datacenter == "" {
				c.datacenter = datacenter
			}
			c.intention(policy)
		})
		sleep(ctx, time.Minute)
	}
}

// askSelf gives "" for a policy that the token may not know, unless the ACLs
// deny by default, which is then what holds at least.
func (f *feed) askSelf(ctx context.Context) (datacenter string, policy discovery.IntentionAction, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var self struct {
		Config      struct{ Datacenter string }
		DebugConfig struct {
			DefaultIntentionPolicy string
			ACLResolverSettings    struct{ ACLDefaultPolicy string }
		}
	}
	_, err = f.client.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err == nil:
		p := discovery.IntentionAction(self.DebugConfig.DefaultIntentionPolicy)
		if p == "" {
			p = discovery.IntentionAction(self.DebugConfig.ACLResolverSettings.ACLDefaultPolicy)
		}
		if p != discovery.Allow {
			p = discovery.Deny
		}
		if f.cfg.Datacenter != "" {
			return f.cfg.Datacenter, p, nil
		}
		return self.Config.Datacenter, p, nil
	case !denied(err):
		return "", "", err
	case f.cfg.Datacenter != "":
		return f.cfg.Datacenter, "", nil
	}
	var near []string // the agent's own first
	if _, err := f.client.Raw().Query("/v1/catalog/datacenters", &near, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return "", "", err
	}
	if len(near) == 0 {
		return "", "", fmt.Errorf("the agent knows no datacenter")
	}
	return near[0], "", nil
}
