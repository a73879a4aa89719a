package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/parrel-mesh/parrel/controlplane/vip"
	"github.com/parrel-mesh/parrel/discovery"
)

// Reasons why Snapshot.Lookup finds nothing.
var (
	ErrUnknown   = errors.New("not registered: no connect proxy and no connect-native instance has it")
	ErrAmbiguous = errors.New("used by several nodes")
)

// Config of a Builder.
type Config struct {
	TrustDomain string
	Datacenter  string
	// DefaultIntention holds until the source says what its default is; "" is
	// deny.
	DefaultIntention discovery.IntentionAction
	// History is how many snapshots are kept, the present one included; 0: 8.
	History int
}

// Change says what one delivery made different. What it does not name is the
// same in both snapshots.
type Change struct {
	// All: the default action, the trust domain or proxy-defaults changed.
	All bool
	// Endpoints are the services whose instances or proxies changed in any way.
	Endpoints []discovery.ServiceName
	// Services are those that came or went or whose service-defaults changed.
	Services []discovery.ServiceName
	// Intentions are the destinations whose service-intentions changed; Name
	// and Namespace may be "*". Their datacenter is the mesh's own.
	Intentions []discovery.ServiceName
	// Connect are the services that became part of the mesh or ceased to be: got
	// their first, or lost their last, proxy or connect-native instance.
	Connect []discovery.ServiceName
	// Virtual are the services whose virtual addresses are different.
	Virtual []discovery.ServiceName
	// Transparent are the partitions whose mesh entry says something else of
	// transparent proxies.
	Transparent []string
	// Requests are the partitions whose mesh entry says something else of how
	// requests are read.
	Requests []string
	// Workloads are the keys ("NODE/ID") of those that came, went or were
	// registered anew, health apart.
	Workloads []string
	// Roots: the trust bundle changed.
	Roots bool
	// Source: the status of the source changed.
	Source bool
	// Entries are all config entries that changed.
	Entries []discovery.EntryKey
}

// Empty says whether no resource can be different.
func (c Change) Empty() bool {
	return !c.All && !c.Roots && len(c.Endpoints)+len(c.Services)+len(c.Intentions)+len(c.Requests)+len(c.Workloads)+
		len(c.Connect)+len(c.Virtual)+len(c.Transparent) == 0
}

// Version is one remembered step of the mesh.
type Version struct {
	Snapshot *Snapshot
	Change   Change
}

// Builder makes snapshots. It belongs to one goroutine.
type Builder struct {
	cfg     Config
	current *Snapshot
	history []Version
	addrs   vip.Assigner
}

// NewBuilder returns a Builder whose mesh is empty.
func NewBuilder(c Config) *Builder {
	c.DefaultIntention = cmp.Or(c.DefaultIntention, discovery.Deny)
	c.History = cmp.Or(c.History, 8)
	return &Builder{cfg: c, current: &Snapshot{
		TrustDomain: c.TrustDomain, Datacenter: c.Datacenter, Default: c.DefaultIntention,
	}}
}

// Current returns the present snapshot; version 0 before the first Apply.
func (b *Builder) Current() *Snapshot { return b.current }

// History returns the last versions, oldest first.
func (b *Builder) History() []Version { return slices.Clone(b.history) }

// Apply takes one delivery. Where it changes nothing, the snapshot returned is
// the present one.
func (b *Builder) Apply(d discovery.Delta) (*Snapshot, Change) {
	a := &application{
		old:        b.current,
		services:   newEdit(b.current.services),
		entries:    newEdit(b.current.entries),
		workloads:  newEdit(b.current.workloads),
		dependants: newEdit(b.current.dependants),
		virtual:    newEdit(b.current.virtual),
		outside:    newEdit(b.current.outside),
		addrs:      &b.addrs,
		touched:    map[string]bool{},
	}
	next := *b.current
	a.scalars(&next, d)
	if d.Full {
		d = a.complete(d)
	}
	for _, name := range slices.SortedFunc(maps.Keys(d.Services), discovery.ServiceName.Compare) {
		a.service(name, d.Services[name])
	}
	for key, e := range d.Entries {
		a.entry(key, e)
	}
	ch := a.change()
	if ch.Empty() && !ch.Source && len(ch.Entries) == 0 {
		return b.current, ch
	}
	next.Version++
	next.services, next.entries = a.services.done(), a.entries.done()
	next.workloads, next.dependants = a.workloads.done(), a.dependants.done()
	next.virtual, next.outside = a.virtual.done(), a.outside.done()
	if next.callable == nil || ch.All || len(ch.Connect)+len(ch.Intentions) > 0 {
		next.callable = &callables{}
	}
	b.current.memo.forget()
	next.memo = &memo{}
	b.current = &next
	b.history = append(b.history, Version{&next, ch})
	if over := len(b.history) - b.cfg.History; over > 0 {
		b.history = slices.Clone(b.history[over:])
	}
	return &next, ch
}

// application is one Apply in progress.
type application struct {
	old        *Snapshot
	services   *edit[discovery.ServiceName, *discovery.Service]
	entries    *edit[discovery.EntryKey, *discovery.ConfigEntry]
	workloads  *edit[string, []*Workload]
	dependants *edit[discovery.ServiceName, []string]
	virtual    *edit[discovery.ServiceName, Virtual]
	outside    *edit[discovery.EntryKey, *discovery.Destination]
	addrs      *vip.Assigner
	touched    map[string]bool // keys of workloads
	ch         Change
}

// scalars applies what is not in a table.
func (a *application) scalars(next *Snapshot, d discovery.Delta) {
	switch d.DefaultIntention {
	case "", next.Default:
	case discovery.Allow:
		next.Default, a.ch.All = discovery.Allow, true
	default: // anything unknown denies
		if next.Default != discovery.Deny {
			next.Default, a.ch.All = discovery.Deny, true
		}
	}
	if r := d.Roots; r != nil {
		if r.TrustDomain != "" && r.TrustDomain != next.TrustDomain {
			next.TrustDomain, a.ch.All = r.TrustDomain, true
		}
		if !slices.Equal(r.RootsPEM, next.RootsPEM) {
			next.RootsPEM, a.ch.Roots = slices.Clone(r.RootsPEM), true
		}
	}
	if d.Status != nil && !reflect.DeepEqual(*d.Status, next.Source) {
		next.Source, a.ch.Source = *d.Status, true
	}
}

// complete adds to a full delivery the removal of everything that it lacks.
func (a *application) complete(d discovery.Delta) discovery.Delta {
	services, entries := maps.Clone(d.Services), maps.Clone(d.Entries)
	if services == nil {
		services = map[discovery.ServiceName]*discovery.Service{}
	}
	if entries == nil {
		entries = map[discovery.EntryKey]*discovery.ConfigEntry{}
	}
	for name := range a.old.services.all() {
		if _, ok := services[name]; !ok {
			services[name] = nil
		}
	}
	for key := range a.old.entries.all() {
		if _, ok := entries[key]; !ok {
			entries[key] = nil
		}
	}
	d.Services, d.Entries = services, entries
	return d
}

func (a *application) service(name discovery.ServiceName, next *discovery.Service) {
	prev, had := a.services.get(name)
	switch {
	case next == nil && !had:
		return
	case next == nil:
		a.services.delete(name)
		a.ch.Services = append(a.ch.Services, name)
	case had && sameService(prev, next):
		return
	default:
		a.services.set(name, next)
		if !had {
			a.ch.Services = append(a.ch.Services, name)
		}
	}
	a.ch.Endpoints = append(a.ch.Endpoints, name)
	a.proxies(name, prev, next)
	if part(prev) != part(next) {
		a.ch.Connect = append(a.ch.Connect, name)
	}
	a.addresses(name, next)
}

// sameService compares what a catalogue says of a service. Index is for
// messages only and changes with answers that say the same.
func sameService(a, b *discovery.Service) bool {
	return a == b || a.Name == b.Name && a.Stale == b.Stale &&
		reflect.DeepEqual(a.Instances, b.Instances) && reflect.DeepEqual(a.Proxies, b.Proxies)
}

// proxies brings the workloads of one service up to date.
func (a *application) proxies(name discovery.ServiceName, prev, next *discovery.Service) {
	gone := map[string]*discovery.Instance{}
	if prev != nil {
		for _, p := range prev.Proxies {
			gone[p.Node+"/"+p.ID] = p
		}
	}
	if next != nil {
		for _, p := range next.Proxies {
			key := p.Node + "/" + p.ID
			old, had := gone[key]
			delete(gone, key)
			if had && old == p {
				continue
			}
			w := newWorkload(name, p, a.old.Datacenter)
			if had && sameRegistration(old, p) {
				a.replaceWorkload(w)
				continue
			}
			a.touched[key] = true
			if had {
				a.removeWorkload(name, key, old)
			}
			a.addWorkload(w)
		}
	}
	for key, p := range gone {
		a.touched[key] = true
		a.removeWorkload(name, key, p)
	}
}

// sameRegistration compares two versions of a registration as far as its own
// listeners can tell: not health, not weights, which are its callers' business.
func sameRegistration(a, b *discovery.Instance) bool {
	x, y := *a, *b
	for _, i := range []*discovery.Instance{&x, &y} {
		i.Health, i.Checks, i.Weights = 0, nil, discovery.Weights{}
	}
	return reflect.DeepEqual(&x, &y)
}

func (a *application) addWorkload(w *Workload) {
	for _, id := range []string{w.NodeID, w.Key()} {
		ws, _ := a.workloads.get(id)
		ws = append(slices.Clone(ws), w)
		slices.SortFunc(ws, compareWorkloads)
		a.workloads.set(id, ws)
	}
	for _, u := range w.Upstreams {
		if u.Unsupported != "" {
			continue
		}
		deps, _ := a.dependants.get(u.Service)
		if i, found := slices.BinarySearch(deps, w.Key()); !found {
			a.dependants.set(u.Service, slices.Insert(slices.Clone(deps), i, w.Key()))
		}
	}
}

// replaceWorkload puts w in the place of its own earlier version, of which only
// health and weights differ: nothing depends on it in another way.
func (a *application) replaceWorkload(w *Workload) {
	for _, id := range []string{w.NodeID, w.Key()} {
		ws, _ := a.workloads.get(id)
		i := slices.IndexFunc(ws, func(o *Workload) bool { return compareWorkloads(o, w) == 0 })
		ws = slices.Clone(ws)
		ws[i] = w
		a.workloads.set(id, ws)
	}
}

func (a *application) removeWorkload(name discovery.ServiceName, key string, p *discovery.Instance) {
	var removed *Workload
	for _, id := range []string{p.ID, key} {
		ws, _ := a.workloads.get(id)
		i := slices.IndexFunc(ws, func(w *Workload) bool { return w.Key() == key && w.Service == name })
		if i < 0 {
			continue
		}
		removed = ws[i]
		if len(ws) == 1 {
			a.workloads.delete(id)
			continue
		}
		a.workloads.set(id, slices.Delete(slices.Clone(ws), i, i+1))
	}
	if removed == nil {
		return
	}
	// Between two deliveries one registration can be found under two services:
	// what the other one still depends on stays.
	others, _ := a.workloads.get(key)
	for _, u := range removed.Upstreams {
		if slices.ContainsFunc(others, func(w *Workload) bool { return w.dependsOn(u.Service) }) {
			continue
		}
		deps, _ := a.dependants.get(u.Service)
		i, found := slices.BinarySearch(deps, key)
		switch {
		case !found:
		case len(deps) == 1:
			a.dependants.delete(u.Service)
		default:
			a.dependants.set(u.Service, slices.Delete(slices.Clone(deps), i, i+1))
		}
	}
}

func compareWorkloads(a, b *Workload) int {
	return cmp.Or(cmp.Compare(a.Key(), b.Key()), a.Service.Compare(b.Service))
}

func (w *Workload) dependsOn(name discovery.ServiceName) bool {
	return slices.ContainsFunc(w.Upstreams, func(u Upstream) bool { return u.Unsupported == "" && u.Service == name })
}

// newWorkload resolves a registration. What an upstream leaves out is taken
// from the proxy itself, as Consul does.
func newWorkload(name discovery.ServiceName, p *discovery.Instance, datacenter string) *Workload {
	w := &Workload{NodeID: p.ID, Service: name, Instance: p}
	if p.Proxy == nil {
		return w
	}
	for _, u := range p.Proxy.Upstreams {
		r := Upstream{Upstream: u, Service: discovery.ServiceName{
			Peer:       u.DestinationPeer,
			Partition:  cmp.Or(u.DestinationPartition, name.Partition),
			Namespace:  cmp.Or(u.DestinationNamespace, name.Namespace),
			Datacenter: cmp.Or(u.Datacenter, name.Datacenter, datacenter),
			Name:       u.DestinationName,
		}}
		switch {
		case u.DestinationType != "" && u.DestinationType != "service":
			r.Unsupported = "destination_type " + u.DestinationType + " is not executed"
		case u.DestinationPeer != "":
			r.Unsupported = "upstreams of a cluster peer are not executed"
		case u.DestinationName == "":
			r.Unsupported = "it names no destination"
		case u.LocalBindPort < 0 || u.LocalBindPort > 65535:
			r.Unsupported = fmt.Sprintf("local_bind_port %d is no port (1 to 65535)", u.LocalBindPort)
		}
		w.Upstreams = append(w.Upstreams, r)
	}
	return w
}

func (a *application) entry(key discovery.EntryKey, next *discovery.ConfigEntry) {
	prev, had := a.entries.get(key)
	switch {
	case next == nil && !had:
		return
	case next == nil:
		a.entries.delete(key)
	case had && sameEntry(prev, next):
		return
	default:
		a.entries.set(key, next)
	}
	a.ch.Entries = append(a.ch.Entries, key)
	switch key.Kind {
	case KindServiceDefaults:
		a.ch.Services = append(a.ch.Services, a.named(key)...)
		a.destination(key, next)
	case KindServiceIntentions:
		a.ch.Intentions = append(a.ch.Intentions, a.named(key)...)
	case KindProxyDefaults:
		a.ch.All = true
	case KindMesh:
		if !reflect.DeepEqual(requestNormalization(prev), requestNormalization(next)) {
			a.ch.Requests = append(a.ch.Requests, key.Partition)
		}
		if transparentSettings(prev) != transparentSettings(next) {
			a.ch.Transparent = append(a.ch.Transparent, key.Partition)
		}
	}
}

// named returns the services that an entry speaks of: one name can exist in
// several datacenters, and an entry holds in all of them.
func (a *application) named(key discovery.EntryKey) []discovery.ServiceName {
	out := []discovery.ServiceName{{
		Partition: key.Partition, Namespace: key.Namespace, Datacenter: a.old.Datacenter, Name: key.Name,
	}}
	add := func(n discovery.ServiceName) {
		if n.Peer == "" && n.Name == key.Name && n.Namespace == key.Namespace && n.Partition == key.Partition {
			out = append(out, n)
		}
	}
	for _, t := range []*table[discovery.ServiceName, *discovery.Service]{a.old.services, a.services.next} {
		for n := range t.all() {
			add(n)
		}
	}
	for _, t := range []*table[discovery.ServiceName, []string]{a.old.dependants, a.dependants.next} {
		for n := range t.all() {
			add(n)
		}
	}
	return out
}

func sameEntry(a, b *discovery.ConfigEntry) bool {
	if a == b {
		return true
	}
	x, y := *a, *b
	x.Index, y.Index = 0, 0
	return reflect.DeepEqual(&x, &y)
}

// change completes the Change: sorted, each name once.
func (a *application) change() Change {
	ch := a.ch
	for _, list := range []*[]discovery.ServiceName{&ch.Endpoints, &ch.Services, &ch.Intentions, &ch.Connect, &ch.Virtual} {
		slices.SortFunc(*list, discovery.ServiceName.Compare)
		*list = slices.Compact(*list)
	}
	slices.SortFunc(ch.Entries, func(a, b discovery.EntryKey) int {
		return cmp.Compare(entryString(a), entryString(b))
	})
	slices.Sort(ch.Requests)
	slices.Sort(ch.Transparent)
	ch.Workloads = slices.Sorted(maps.Keys(a.touched))
	if len(ch.Workloads) == 0 {
		ch.Workloads = nil
	}
	return ch
}
