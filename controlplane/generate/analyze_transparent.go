package generate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
)

// modes names words that parrel does not know: a server may be newer.
func (a *analysis) modes(e *discovery.ConfigEntry, mode, mutual string) {
	name, where := mesh.EntryName(e.Key), place(e.Origin)
	if !slices.Contains([]string{"", discovery.ModeDirect, discovery.ModeTransparent}, mode) {
		a.add(Finding{SeverityError, where, name, "Mode", fmt.Sprintf("%q is no mode", mode), "the proxies are direct", "write direct or transparent"})
	}
	if !slices.Contains([]string{"", discovery.MutualTLSStrict, discovery.MutualTLSPermissive}, mutual) {
		a.add(Finding{SeverityError, where, name, "MutualTLSMode", fmt.Sprintf("%q is no mode", mutual), "mutual TLS is required", "write strict or permissive"})
	}
}

// permissive says what comes of an entry that asks for plaintext.
func (a *analysis) permissive(e *discovery.ConfigEntry, mutual string, of []*mesh.Workload) {
	if mutual != discovery.MutualTLSPermissive {
		return
	}
	f := Finding{SeverityInfo, place(e.Origin), mesh.EntryName(e.Key), "MutualTLSMode", "plaintext is taken from anybody who reaches the application's port",
		"such callers are nobody: no intention holds for them", "write strict when every caller is in the mesh"}
	captured := slices.ContainsFunc(of, func(w *mesh.Workload) bool { _, ok := a.m.Transparent(w); return ok })
	switch _, allowed := a.m.MutualTLS(discovery.ServiceName{Partition: e.Key.Partition, Namespace: e.Key.Namespace, Name: e.Key.Name}); {
	case !allowed:
		f.Severity, f.Problem, f.Instead = SeverityWarning, "the mesh entry does not allow it", "mutual TLS is required"
		f.Remedy = "write AllowEnablingPermissiveMutualTLS = true in the mesh entry, or strict here"
	case !captured:
		f.Severity, f.Problem, f.Instead = SeverityWarning, "no proxy that it speaks of is transparent", "nothing is captured, and the public listener requires mutual TLS"
		f.Remedy = "make the proxies transparent, or leave it out"
	}
	a.add(f)
}

// destination says what comes of an entry that speaks of the world outside.
func (a *analysis) destination(e *discovery.ConfigEntry, d *discovery.Destination) {
	if d == nil {
		return
	}
	name, where := mesh.EntryName(e.Key), place(e.Origin)
	switch {
	case !a.m.MeshDestinationsOnly(e.Key.Partition):
		a.add(Finding{SeverityInfo, where, name, "Destination", "transparent proxies reach every destination outside of the mesh", "intentions for this one keep nobody from it",
			"write TransparentProxy { MeshDestinationsOnly = true } in the mesh entry"})
		return
	case port(d.Port) == 0:
		a.add(Finding{SeverityError, where, name, "Destination.Port", fmt.Sprintf("%d is no port", d.Port), "nobody reaches it", "write a number from 1 to 65535"})
		return
	}
	for _, h := range d.Addresses {
		if a.hosts == nil {
			a.hosts = map[string]int{}
		}
		_, err := netip.ParseAddr(h)
		switch first := a.hosts[h]; {
		case err == nil:
		case !dnsName(h):
			a.add(Finding{SeverityError, where, name, "Destination.Addresses", fmt.Sprintf("%q is neither an IP address nor the name of a host", h), "nobody reaches it", "correct it"})
		case first == 0:
			a.hosts[h] = d.Port
		case first != d.Port:
			a.add(Finding{SeverityWarning, where, name, "Destination.Port", fmt.Sprintf("another entry names %s with port %d", h, first), "who may reach both reaches port " + fmt.Sprint(first) + " alone",
				"write its addresses instead of its name"})
		}
	}
}

// transparent says what a transparent proxy does not do, or does to nobody.
func (a *analysis) transparent(w *mesh.Workload, name, where string) {
	t, transparent := a.m.Transparent(w)
	if !transparent {
		if p := w.Instance.Proxy; p.TransparentProxy != (discovery.TransparentProxy{}) {
			a.add(Finding{SeverityWarning, where, name, "Proxy.TransparentProxy", "the proxy is not transparent", "as if it were not there", `write mode = "transparent"`})
		}
		return
	}
	if t.OutboundListenerPort == inboundCapturePort || t.OutboundListenerPort == dnsPort {
		a.add(Finding{SeverityError, where, name, "Proxy.TransparentProxy.OutboundListenerPort",
			fmt.Sprintf("%d is the port of another listener of transparent proxies", t.OutboundListenerPort), "one of them cannot listen", "leave it out, or write a free port"})
	}
	callable := a.m.Callable(w.Service)
	if i := slices.Index(callable, w.Service); i >= 0 {
		callable = slices.Delete(slices.Clone(callable), i, i+1)
	}
	if len(callable)+len(w.Upstreams) == 0 {
		a.add(Finding{SeverityInfo, where, name, "", "the proxy is transparent, and no intention lets " + w.Service.Name + " call any service of the mesh",
			"calls to virtual addresses are refused", "none, where it calls nobody; else write a service-intentions entry for what it calls, with the source " + w.Service.Name})
	}
}

// virtual names what is wrong with virtual addresses, and with addresses that are
// dialled directly.
func (a *analysis) virtual() {
	direct, claims := map[netip.Addr][]discovery.ServiceName{}, map[netip.Addr][]discovery.ServiceName{}
	type claim struct {
		at   netip.Addr
		name discovery.ServiceName
	}
	var later []claim         // platforms' addresses give way to Consul's
	only := map[string]bool{} // partitions
	for _, w := range a.m.Workloads() {
		if _, transparent := a.m.Transparent(w); transparent && a.m.MeshDestinationsOnly(w.Service.Partition) {
			only[w.Service.Partition] = true
		}
	}
	names := a.m.ServiceNames()
	for _, name := range names {
		svc, _ := a.m.Service(name)
		where := "service " + name.String()
		v, part := a.m.Virtual(name)
		if !part {
			if only[name.Partition] && len(svc.Instances) > 0 && svc.Instances[0].Kind == discovery.KindService && len(svc.Proxies) == 0 {
				a.add(Finding{SeverityWarning, "", where, "", "it is not part of the mesh, whose transparent proxies let nothing out of it (MeshDestinationsOnly)",
					"their calls to it are reset", "start sidecars for it, or allow destinations outside of the mesh"})
			}
			continue
		}
		if !dnsName(strings.ToLower(name.Name)) {
			a.add(Finding{SeverityWarning, "", where, "", "its name cannot be a name of DNS", "transparent proxies reach it by its virtual address only", "use letters, digits, '-' and '_' in the service's name"})
		}
		consul, platform := svc.Virtual()
		for _, at := range consul {
			claims[at] = append(claims[at], name)
		}
		for _, at := range platform {
			if !slices.Contains(consul, at) {
				later = append(later, claim{at, name})
			}
		}
		if len(consul) > 1 {
			a.add(Finding{SeverityWarning, "", where, "TaggedAddresses.consul-virtual", fmt.Sprintf("its registrations name %d virtual addresses", len(consul)),
				"its names resolve to " + v.Addr.String() + "; the others lead to it too", "write the same address in each"})
		}
		for _, at := range directAddrs(a.m, name) {
			direct[at] = append(direct[at], name)
		}
	}
	for _, c := range later {
		claims[c.at] = append(claims[c.at], c.name)
	}
	for at, of := range claims {
		to := of[0] // whose own it is, if it is somebody's
		for _, name := range of {
			if v, _ := a.m.Virtual(name); v.Addr == at {
				to = name
			}
		}
		for _, name := range of {
			if v, _ := a.m.Virtual(name); name != to {
				a.add(Finding{SeverityError, "", "service " + name.String(), "TaggedAddresses", at.String() + " is the virtual address of " + to.Name + " too",
					"it leads to " + to.Name + "; the names of " + name.Name + " resolve to " + v.Addr.String(), "give each service an address of its own, or none"})
			}
		}
	}
	for at, of := range direct {
		for _, name := range of[1:] {
			a.add(Finding{SeverityWarning, "", "service " + name.String(), "TransparentProxy.DialedDirectly", at.String() + " is the address of instances of " + of[0].Name + " too",
				"who may call both is not led there: which is meant cannot be told", "give them addresses of their own, or call them by name"})
		}
	}
}
