package consul

import (
	"cmp"
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/parrel-mesh/parrel/discovery"
)

// collector owns everything that one Run knows, on one goroutine: answers come
// in as events, deliveries go out to the sink.
type collector struct {
	cfg   *Config
	feed  *feed
	sink  discovery.Sink
	guard *discovery.Guard
	watch *watches

	datacenter string
	started    time.Time
	full       bool

	listed   bool            // the list of services was answered
	names    map[string]bool // services that there are, proxies under what they stand for
	parts    map[string]*part
	offered  map[string]*discovery.Service // what was said of each last
	dirty    map[string]time.Time          // to be said, not before
	sent     map[string]time.Time          // when each was delivered last
	checking bool                          // a round of confirmation is under way

	kinds    map[string]map[discovery.EntryKey]*discovery.ConfigEntry
	entries  map[discovery.EntryKey]*discovery.ConfigEntry // changed, to be delivered
	refused  map[string][]discovery.Problem                // entries that do not decode, by kind
	roots    *discovery.TrustRoots
	policy   discovery.IntentionAction
	policyOK bool // the policy was asked for

	health    *health
	status    discovery.Status
	policyNew bool // it is to be delivered
}

// part is what the answers say of one service.
type part struct {
	proxies, instances       []*discovery.Instance
	gotProxies, gotInstances bool
	index                    uint64
}

func newCollector(cfg *Config, f *feed, sink discovery.Sink) *collector {
	return &collector{
		cfg: cfg, feed: f, sink: sink, guard: discovery.NewGuard(cfg.Guard), started: time.Now(),
		names: map[string]bool{}, parts: map[string]*part{}, offered: map[string]*discovery.Service{},
		dirty: map[string]time.Time{}, sent: map[string]time.Time{},
		kinds:   map[string]map[discovery.EntryKey]*discovery.ConfigEntry{},
		entries: map[discovery.EntryKey]*discovery.ConfigEntry{}, refused: map[string][]discovery.Problem{},
		health: newHealth(cfg.MaxAge),
	}
}

// run takes events until ctx ends.
func (c *collector) run(ctx context.Context, events <-chan event) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			e(c)
			for more := true; more; { // what is here already goes into one delivery
				select {
				case e = <-events:
					e(c)
				default:
					more = false
				}
			}
		case <-timer.C:
		}
		if next := c.flush(time.Now()); next > 0 {
			timer.Reset(next)
		}
		c.confirm(ctx)
	}
}

func (c *collector) failed(name string, err error) {
	if c.health.failed(name, err) {
		c.cfg.Log.Warn("Consul does not answer; what was read last stays in force", "query", name, "err", err)
	}
}

func (c *collector) heard(name string, meta *api.QueryMeta) {
	if c.health.heard(name, meta, time.Now()) {
		c.cfg.Log.Info("Consul answers again", "query", name)
	}
}

// services takes the list of names that are to be watched.
func (c *collector) services(names map[string]bool) {
	for name := range c.names {
		if !names[name] {
			c.parts[name] = &part{gotProxies: true, gotInstances: true}
			c.dirty[name] = time.Time{}
		}
	}
	for name := range names {
		if !c.names[name] {
			c.parts[name] = &part{}
		}
	}
	c.names, c.listed = names, true
	c.watch.set(slices.Sorted(maps.Keys(names)))
}

// answered takes what one query says of one service.
func (c *collector) answered(t target, in []*discovery.Instance, index uint64) {
	p := c.parts[t.service]
	if p == nil || !c.names[t.service] {
		return // it left the list meanwhile
	}
	p.index = max(p.index, index)
	if t.proxies {
		p.proxies, p.gotProxies = in, true
		c.dirty[t.service] = time.Time{}
		return
	}
	p.instances, p.gotInstances = in, true
	if _, waits := c.dirty[t.service]; !waits {
		// The proxies are the endpoints: news of them, which often follows that
		// of the application, must not have to wait for the next delivery.
		c.dirty[t.service] = time.Now().Add(c.cfg.Coalesce)
	}
}

func (c *collector) said(name string) *discovery.Service {
	p := c.parts[name]
	if p == nil || len(p.proxies) == 0 && len(p.instances) == 0 {
		return nil
	}
	return &discovery.Service{Name: c.key(name), Instances: p.instances, Proxies: p.proxies, Index: p.index}
}

func (c *collector) key(name string) discovery.ServiceName {
	return serviceName(c.cfg.Partition, c.cfg.Namespace, c.datacenter, "", name)
}

// flush delivers what is due and gives the time until the next is.
func (c *collector) flush(now time.Time) time.Duration {
	if !c.full {
		return c.first(now)
	}
	next := time.Duration(0)
	offer := map[discovery.ServiceName]*discovery.Service{}
	for name, notBefore := range c.dirty {
		p := c.parts[name]
		if p != nil && (!p.gotProxies || !p.gotInstances) {
			delete(c.dirty, name) // the other half comes and makes it dirty again
			continue
		}
		if due := max(c.sent[name].Add(c.cfg.Coalesce).Sub(now), notBefore.Sub(now)); due > 0 {
			if next == 0 || due < next {
				next = due
			}
			continue
		}
		delete(c.dirty, name)
		s := c.said(name)
		if old, ok := c.offered[name]; ok && equal(old, s) {
			continue
		}
		c.offered[name] = s
		offer[c.key(name)] = s
	}
	c.deliver(now, c.guard.Offer(now, offer))
	return next
}

// first delivers everything once everything has answered.
func (c *collector) first(now time.Time) time.Duration {
	late := now.Sub(c.started) >= c.cfg.FirstDelivery
	if !c.listed || c.datacenter == "" || !c.policyOK {
		return 100 * time.Millisecond
	}
	for _, kind := range modelled {
		if c.kinds[kind] == nil && (kind != relaxing || !late) {
			return 100 * time.Millisecond
		}
	}
	for name := range c.names {
		if p := c.parts[name]; !late && (!p.gotProxies || !p.gotInstances) {
			return 100 * time.Millisecond
		}
	}
	offer := map[discovery.ServiceName]*discovery.Service{}
	for name := range c.names {
		if s := c.said(name); s != nil {
			c.offered[name] = s
			offer[c.key(name)] = s
		}
	}
	clear(c.dirty)
	c.full = true
	d := discovery.Delta{Full: true, Services: c.guard.Offer(now, offer), DefaultIntention: c.policy, Roots: c.roots}
	d.Entries, c.entries = c.entries, map[discovery.EntryKey]*discovery.ConfigEntry{}
	c.roots = nil
	st := c.newStatus(now)
	c.status, d.Status = st, &st
	c.send(now, d)
	return 0
}

func (c *collector) deliver(now time.Time, services map[discovery.ServiceName]*discovery.Service) {
	d := discovery.Delta{Services: services, Roots: c.roots}
	c.roots = nil
	if len(c.entries) > 0 {
		d.Entries, c.entries = c.entries, map[discovery.EntryKey]*discovery.ConfigEntry{}
	}
	if c.policyNew { // the policy changed
		d.DefaultIntention, c.policyNew = c.policy, false
	}
	if st := c.newStatus(now); !reflect.DeepEqual(st, c.status) {
		c.status, d.Status = st, &st
	}
	if len(d.Services) > 0 || len(d.Entries) > 0 || d.Roots != nil || d.Status != nil || d.DefaultIntention != "" {
		c.send(now, d)
	}
}

func (c *collector) send(now time.Time, d discovery.Delta) {
	for name, s := range d.Services {
		if s == nil {
			delete(c.sent, name.Name)
			delete(c.offered, name.Name)
			if !c.names[name.Name] {
				delete(c.parts, name.Name)
			}
			continue
		}
		c.sent[name.Name] = now
	}
	c.sink.Apply(d)
}

func (c *collector) newStatus(now time.Time) discovery.Status {
	st := c.health.status(now, c.status)
	if reason := c.guard.Reason(); reason != "" {
		if !st.Stale {
			st.Since = now
			if c.status.Stale {
				st.Since = c.status.Since
			}
		}
		st.Stale, st.Reason = true, strings.TrimPrefix(st.Reason+"; "+reason, "; ")
	}
	for _, kind := range slices.Sorted(maps.Keys(c.refused)) {
		st.Problems = append(st.Problems, c.refused[kind]...)
	}
	return st
}

// confirm starts a round of confirmation where something is held.
func (c *collector) confirm(ctx context.Context) {
	held := c.guard.Held()
	if c.checking || len(held) == 0 {
		return
	}
	c.checking = true
	delay := c.cfg.Confirm
	for _, name := range held {
		if c.guard.Collapsed(name) {
			delay = c.cfg.ConfirmCollapse
		}
	}
	c.watch.spawn(func() {
		sleep(ctx, delay)
		var g errgroup.Group
		g.SetLimit(sweepers)
		for _, name := range held {
			g.Go(func() error { c.feed.confirm(ctx, name); return nil })
		}
		_ = g.Wait() // a reading that fails confirms nothing
		c.feed.emit(ctx, func(c *collector) { c.checking = false })
	})
}

// confirmed takes a leader-consistent reading of one held service.
func (c *collector) confirmed(name discovery.ServiceName, proxies, own []*discovery.Instance, index uint64) {
	p := &part{proxies: proxies, instances: own, gotProxies: true, gotInstances: true, index: index}
	c.parts[name.Name] = p
	s := c.said(name.Name)
	now := time.Now()
	c.offered[name.Name] = s
	c.deliver(now, c.guard.Confirmed(now, name, s))
}

// config takes all entries of one kind.
func (c *collector) config(kind string, served []map[string]any) {
	old := c.kinds[kind]
	now := make(map[discovery.EntryKey]*discovery.ConfigEntry, len(served))
	c.refused[kind] = nil
	for _, fields := range served {
		e, err := discovery.DecodeServedEntry(fields, origin)
		if err != nil {
			c.refused[kind] = append(c.refused[kind], discovery.Problem{Origin: origin, Reason: err.Error(), Remedy: "write the entry anew by `consul config write`"})
			// What was good before stays in force.
			for k, o := range old {
				if k.Name == fields["Name"] {
					now[k] = o
				}
			}
			continue
		}
		if o := old[e.Key]; o != nil && o.Index == e.Index {
			e = o
		}
		now[e.Key] = e
		if old[e.Key] != e {
			c.entries[e.Key] = e
		}
	}
	for k := range old {
		if now[k] == nil {
			c.entries[k] = nil
		}
	}
	c.kinds[kind] = now
}

func (c *collector) trust(roots *api.CARootList) {
	t := &discovery.TrustRoots{TrustDomain: roots.TrustDomain}
	list := slices.Clone(roots.Roots)
	slices.SortStableFunc(list, func(a, b *api.CARoot) int {
		rank := func(r *api.CARoot) int {
			if r.ID == roots.ActiveRootID {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	for _, r := range list {
		t.RootsPEM = append(t.RootsPEM, r.RootCertPEM)
	}
	c.roots = t
}

// intention takes the default policy; "" is one that the agent does not tell.
func (c *collector) intention(p discovery.IntentionAction) {
	c.policyNew = c.policyNew || c.policyOK && p != "" && p != c.policy
	c.policy, c.policyOK = cmp.Or(p, c.policy), true
}

// equal compares what a user of the catalogue can tell apart.
func equal(a, b *discovery.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Index, y.Index = 0, 0
	return reflect.DeepEqual(x, y)
}
