package mesh

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/parrel-mesh/parrel/discovery"
)

// part says whether a service is part of the mesh: somebody takes calls for it.
func part(s *discovery.Service) bool { return s != nil && len(s.Proxies) > 0 }

// addresses brings the virtual addresses of a service up to date.
func (a *application) addresses(name discovery.ServiceName, next *discovery.Service) {
	if !part(next) {
		a.moved(a.addrs.Remove(name))
		if _, had := a.virtual.get(name); had {
			a.virtual.delete(name)
			a.ch.Virtual = append(a.ch.Virtual, name)
		}
		return
	}
	consul, more := next.Virtual()
	var declared netip.Addr
	if len(consul) > 0 {
		declared, more = consul[0], append(consul[1:], more...)
	}
	a.moved(a.addrs.Set(name, declared))
	addr, _ := a.addrs.Addr(name)
	if slices.SortFunc(more, netip.Addr.Compare); len(more) == 0 {
		more = nil
	}
	more = slices.DeleteFunc(slices.Compact(more), func(m netip.Addr) bool { return m == addr })
	a.address(name, Virtual{addr, more})
}

// moved gives services the addresses that they have after another one came or
// went.
func (a *application) moved(names []discovery.ServiceName) {
	for _, name := range names {
		if v, had := a.virtual.get(name); had {
			if addr, ok := a.addrs.Addr(name); ok {
				a.address(name, Virtual{addr, v.More})
			}
		}
	}
}

func (a *application) address(name discovery.ServiceName, v Virtual) {
	if old, had := a.virtual.get(name); had && old.Addr == v.Addr && slices.Equal(old.More, v.More) {
		return
	}
	a.virtual.set(name, v)
	a.ch.Virtual = append(a.ch.Virtual, name)
}

// transparentSettings are what a mesh entry says of transparent proxies.
func transparentSettings(e *discovery.ConfigEntry) [2]bool {
	if e == nil {
		return [2]bool{}
	}
	m, _ := e.Body.(*discovery.Mesh)
	if m == nil {
		return [2]bool{}
	}
	return [2]bool{m.MeshDestinationsOnly, m.AllowEnablingPermissiveMutualTLS}
}

// destination brings what an entry says of the world outside up to date.
func (a *application) destination(key discovery.EntryKey, next *discovery.ConfigEntry) {
	var d *discovery.Destination
	if next != nil {
		if body, _ := next.Body.(*discovery.ServiceDefaults); body != nil {
			d = body.Destination
		}
	}
	old, had := a.outside.get(key)
	switch {
	case d == nil && !had, had && reflect.DeepEqual(d, old):
		return
	case d == nil:
		a.outside.delete(key)
	default:
		a.outside.set(key, d)
	}
	a.ch.Transparent = append(a.ch.Transparent, key.Partition)
}
