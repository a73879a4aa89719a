package sim

import (
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// confirmEvery is how often a source asks for its strongest reading of what it
// holds back, as discovery/consul does.
const confirmEvery = time.Second

// Catalogue is the mesh's catalogue, written by the test. Every control plane
// reads it through a source of its own, with the guard that real sources have.
// Safe for concurrent use.
type Catalogue struct {
	m *Mesh

	mu          sync.Mutex
	instances   map[string]*discovery.Instance // guarded by mu: by node and id
	entries     map[discovery.EntryKey]*discovery.ConfigEntry
	sources     map[*source]struct{}
	maintained  map[string]bool // by node and id: put into maintenance by its sidecar
	amnesia     bool            // ordinary answers are empty
	unconfirmed bool            // the strongest reading gets no answer
	down        bool            // the agents do not answer
	index       uint64
}

func newCatalogue(m *Mesh) *Catalogue {
	return &Catalogue{m: m, instances: map[string]*discovery.Instance{},
		entries: map[discovery.EntryKey]*discovery.ConfigEntry{}, sources: map[*source]struct{}{}, maintained: map[string]bool{}}
}

func instanceKey(node, id string) string { return node + "/" + id }

// Register adds registrations, or replaces those with the same node and id.
// What is given is not changed afterwards, by anybody.
func (c *Catalogue) Register(in ...*discovery.Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[discovery.ServiceName]bool{}
	for _, i := range in {
		k := instanceKey(i.Node, i.ID)
		if old := c.instances[k]; old != nil {
			names[serviceOf(old)] = true
		}
		c.instances[k] = i
		names[serviceOf(i)] = true
	}
	c.tell(names, nil)
}

// Define adds a service as a user writes it for `consul services register`,
// its nested sidecar included, both in this health.
func (c *Catalogue) Define(node discovery.Node, fields map[string]any, h discovery.Health) {
	c.m.T.Helper()
	reg, err := discovery.DecodeRegistration(fields, node, discovery.Origin{Place: "sim"})
	if err != nil {
		c.m.T.Fatal(err)
	}
	var in []*discovery.Instance
	for ; reg != nil; reg = reg.Sidecar {
		if reg.Instance.Kind == discovery.KindConnectProxy && reg.Instance.Port == 0 {
			reg.Instance.Port = discovery.SidecarMinPort
		}
		reg.Instance.Health = h
		in = append(in, reg.Instance)
	}
	c.Register(in...)
}

// Deregister takes registrations of a node away, by id.
func (c *Catalogue) Deregister(node string, ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[discovery.ServiceName]bool{}
	for _, id := range ids {
		k := instanceKey(node, id)
		if old := c.instances[k]; old != nil {
			names[serviceOf(old)] = true
			delete(c.instances, k)
		}
	}
	c.tell(names, nil)
}

// maintain begins or ends the maintenance of a registration.
func (c *Catalogue) maintain(key string, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.instances[key]
	if in == nil || c.maintained[key] == on {
		return
	}
	c.maintained[key] = on
	c.tell(map[discovery.ServiceName]bool{serviceOf(in): true}, nil)
}

// Edit replaces registrations of a node by changed copies; those that are not
// there are left out.
func (c *Catalogue) Edit(node string, change func(*discovery.Instance), ids ...string) {
	c.mu.Lock()
	var in []*discovery.Instance
	for _, id := range ids {
		if old := c.instances[instanceKey(node, id)]; old != nil {
			n := *old
			n.Meta = maps.Clone(old.Meta)
			if old.Proxy != nil {
				p := *old.Proxy
				p.Upstreams = append([]discovery.Upstream(nil), old.Proxy.Upstreams...)
				p.Config = maps.Clone(old.Proxy.Config)
				n.Proxy = &p
			}
			change(&n)
			in = append(in, &n)
		}
	}
	c.mu.Unlock()
	c.Register(in...)
}

// Set writes a config entry as a user writes it for `consul config write`.
func (c *Catalogue) Set(fields map[string]any) {
	c.m.T.Helper()
	e, err := discovery.DecodeConfigEntry(fields, discovery.Origin{Place: "sim"})
	if err != nil {
		c.m.T.Fatal(err)
	}
	c.SetEntry(e)
}

// SetEntry writes a config entry that was decoded, or made, before.
func (c *Catalogue) SetEntry(e *discovery.ConfigEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[e.Key] = e
	c.tell(nil, []discovery.EntryKey{e.Key})
}

// Delete takes a config entry away.
func (c *Catalogue) Delete(kind, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := discovery.EntryKey{Kind: kind, Partition: discovery.DefaultPartition, Namespace: discovery.DefaultNamespace, Name: name}
	delete(c.entries, k)
	c.tell(nil, []discovery.EntryKey{k})
}

// Intentions writes who may call a service: sources, in pairs of name and
// "allow" or "deny". It replaces what was written before.
func (c *Catalogue) Intentions(destination string, pairs ...string) {
	c.m.T.Helper()
	var sources []any
	for i := 0; i+1 < len(pairs); i += 2 {
		sources = append(sources, map[string]any{"Name": pairs[i], "Action": pairs[i+1]})
	}
	if len(sources) == 0 {
		c.Delete("service-intentions", destination)
		return
	}
	c.Set(map[string]any{"Kind": "service-intentions", "Name": destination, "Sources": sources})
}

// Amnesia makes ordinary answers say that no service exists, as after the loss
// of a leader's state. confirmed says whether the strongest reading says so
// too, or gets no answer at all.
func (c *Catalogue) Amnesia(confirmed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.amnesia, c.unconfirmed = true, !confirmed
	c.tellAll()
}

// Recover ends Amnesia.
func (c *Catalogue) Recover() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.amnesia, c.unconfirmed = false, false
	c.tellAll()
}

// Down makes the agents silent for the sidecars (true), or answer again.
func (c *Catalogue) Down(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// errDown is what an agent that does not run amounts to.
var errDown = errors.New("sim: connection refused: the agent is down")

// Name is a service's key in this mesh.
func Name(service string) discovery.ServiceName {
	return discovery.ServiceName{Partition: discovery.DefaultPartition, Namespace: discovery.DefaultNamespace, Datacenter: Datacenter, Name: service}
}

// serviceOf is the service under which a registration is found.
func serviceOf(in *discovery.Instance) discovery.ServiceName {
	n := in.Service
	if in.Kind == discovery.KindConnectProxy && in.Proxy != nil {
		n.Name = in.Proxy.DestinationService
	}
	return n
}

// tell marks what every source has to read again; the caller holds mu.
func (c *Catalogue) tell(services map[discovery.ServiceName]bool, entries []discovery.EntryKey) {
	for s := range c.sources {
		for n := range services {
			s.services[n] = true
		}
		for _, k := range entries {
			s.entries[k] = true
		}
		s.wake()
	}
}

func (c *Catalogue) tellAll() {
	names := map[discovery.ServiceName]bool{}
	for _, in := range c.instances {
		names[serviceOf(in)] = true
	}
	c.tell(names, nil)
}

// read is what the catalogue says of services; the caller holds mu. A nil
// argument asks for all of them.
func (c *Catalogue) read(names map[discovery.ServiceName]bool) map[discovery.ServiceName]*discovery.Service {
	c.index++
	var in []*discovery.Instance
	if !c.amnesia {
		for _, i := range c.instances {
			if names == nil || names[serviceOf(i)] {
				if c.maintained[instanceKey(i.Node, i.ID)] {
					kept := *i
					kept.Health, i = discovery.Maintenance, &kept
				}
				in = append(in, i)
			}
		}
	}
	out := discovery.Group(in)
	for _, s := range out {
		s.Index = c.index
	}
	for n := range names {
		if out[n] == nil {
			out[n] = nil
		}
	}
	return out
}
