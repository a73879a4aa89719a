package sim

import (
	"context"
	"maps"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/sidecar"
)

// source is one control plane's view of the catalogue.
type source struct {
	c *Catalogue

	// Guarded by Catalogue.mu: what is to be read again.
	services map[discovery.ServiceName]bool
	entries  map[discovery.EntryKey]bool

	news chan struct{}
}

func (c *Catalogue) source() *source {
	return &source{c: c, services: map[discovery.ServiceName]bool{}, entries: map[discovery.EntryKey]bool{}, news: make(chan struct{}, 1)}
}

func (s *source) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// Run implements discovery.Source.
func (s *source) Run(ctx context.Context, sink discovery.Sink) error {
	guard := discovery.NewGuard(discovery.GuardConfig{})
	s.c.mu.Lock()
	s.c.sources[s] = struct{}{}
	services, entries := s.c.read(nil), maps.Clone(s.c.entries)
	s.c.mu.Unlock()
	defer func() {
		s.c.mu.Lock()
		delete(s.c.sources, s)
		s.c.mu.Unlock()
	}()
	sink.Apply(discovery.Delta{Full: true, Services: guard.Offer(time.Now(), services), Entries: entries, Status: &discovery.Status{}})
	tick := time.NewTicker(confirmEvery)
	defer tick.Stop()
	reason := ""
	for {
		var d discovery.Delta
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.news:
			d = s.changes(guard)
		case <-tick.C:
			d.Services = s.confirm(guard)
		}
		if r := guard.Reason(); r != reason {
			reason = r
			d.Status = &discovery.Status{Stale: r != "", Reason: r, Since: time.Now()}
		}
		if len(d.Services)+len(d.Entries) > 0 || d.Status != nil {
			sink.Apply(d)
		}
	}
}

func (s *source) changes(guard *discovery.Guard) (d discovery.Delta) {
	s.c.mu.Lock()
	said := map[discovery.ServiceName]*discovery.Service{}
	if len(s.services) > 0 {
		said = s.c.read(s.services)
		clear(s.services)
	}
	if len(s.entries) > 0 {
		d.Entries = map[discovery.EntryKey]*discovery.ConfigEntry{}
		for k := range s.entries {
			d.Entries[k] = s.c.entries[k]
		}
		clear(s.entries)
	}
	s.c.mu.Unlock()
	d.Services = guard.Offer(time.Now(), said)
	return d
}

func (s *source) confirm(guard *discovery.Guard) map[discovery.ServiceName]*discovery.Service {
	held := guard.Held()
	if len(held) == 0 {
		return nil
	}
	out := map[discovery.ServiceName]*discovery.Service{}
	for _, n := range held {
		s.c.mu.Lock()
		silent := s.c.unconfirmed
		said := s.c.read(map[discovery.ServiceName]bool{n: true})[n]
		s.c.mu.Unlock()
		if !silent {
			maps.Copy(out, guard.Confirmed(time.Now(), n, said))
		}
	}
	return out
}

// registrar is the catalogue's agent on one node, as its sidecars see it.
type registrar struct {
	c    *Catalogue
	node string
	proc *process
}

var _ sidecar.Registrar = registrar{}

func (r registrar) reachable() error {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.c.down || r.proc.killed() {
		return errDown
	}
	return nil
}

func (r registrar) Lookup(_ context.Context, id string) (sidecar.LocalService, error) {
	if err := r.reachable(); err != nil {
		return sidecar.LocalService{}, err
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	in := r.c.instances[instanceKey(r.node, id)]
	if in == nil {
		return sidecar.LocalService{}, sidecar.ErrNotRegistered
	}
	out := sidecar.LocalService{ID: in.ID, Name: in.Service.Name, Namespace: in.Service.Namespace, Partition: in.Service.Partition,
		Address: in.Address, Port: in.Port}
	for _, p := range r.c.instances {
		if p.Node == r.node && p.Kind == discovery.KindConnectProxy && p.Proxy.DestinationServiceID == id {
			out.Proxy = &sidecar.LocalProxy{ID: p.ID, Name: p.Service.Name, Address: p.Address, Port: p.Port}
		}
	}
	return out, nil
}

func (r registrar) RegisterProxy(_ context.Context, p sidecar.ProxyRegistration) error {
	if err := r.reachable(); err != nil {
		return err
	}
	name := Name(p.Name)
	r.c.Register(&discovery.Instance{Service: name, ID: p.ID, Node: r.node, Kind: discovery.KindConnectProxy,
		Address: p.Address, Port: p.Port, Weights: discovery.Weights{Passing: 1, Warning: 1},
		Proxy: &discovery.Proxy{DestinationService: p.Service, DestinationServiceID: p.ServiceID,
			LocalServiceAddress: p.ServiceAddress, LocalServicePort: p.ServicePort}})
	return nil
}

func (r registrar) DeregisterProxy(_ context.Context, id string) error {
	if err := r.reachable(); err != nil {
		return err
	}
	r.c.Deregister(r.node, id)
	return nil
}

func (r registrar) SetMaintenance(_ context.Context, id string, on bool) error {
	if err := r.reachable(); err != nil {
		return err
	}
	r.c.maintain(instanceKey(r.node, id), on)
	return nil
}
