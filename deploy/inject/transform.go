package inject

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// moved are the keys that belong to the network namespace: the engine refuses
// them on a container that joins another's.
var moved = []string{"ports", "expose", "networks", "network_mode", "links", "external_links", "hostname", "domainname",
	"dns", "dns_search", "dns_opt", "extra_hosts", "mac_address"}

// transform says what every service has to say afterwards, and makes those that
// are added.
func (p *project) transform() error {
	for _, s := range p.services {
		s.want = p.wanted(s)
	}
	for _, s := range p.services {
		if !s.inject {
			continue
		}
		for i := 1; i <= s.replicas; i++ {
			name := instanceName(s.name, i)
			if i > 1 {
				p.sidecars = append(p.sidecars, &output{name, p.instance(s, i)})
			}
			p.sidecars = append(p.sidecars, &output{sidecarName(name), p.sidecar(s, name)})
		}
	}
	return nil
}

// changed says that a service cannot stay as it is written.
func (p *project) changed(s *service) bool {
	return s.inject || s.joins != nil || p.dependsOnMany(s.full)
}

// flat gives the service as it has to be looked at: with what it extends in
// this file merged in where that one cannot be extended any more, or brings
// keys of the namespace.
func (p *project) flat(s *service) *yaml.Node {
	for b := s.base; b != nil; b = b.base {
		if p.changed(b) {
			return s.full
		}
		if !s.inject && s.joins == nil {
			continue
		}
		for _, k := range append([]string{"depends_on", "deploy", "scale", "sysctls"}, moved...) {
			if get(b.full, k) != nil {
				return s.full
			}
		}
	}
	return s.own
}

func (p *project) wanted(s *service) *yaml.Node {
	w := clone(p.flat(s))
	if !p.changed(s) {
		return w
	}
	deps := p.dependencies(w)
	switch {
	case s.inject:
		p.moveOut(s, w)
		p.attach(w, deps, s.name)
	case s.joins != nil:
		set(w, "network_mode", text("service:"+sidecarName(s.joins.name)))
		set(deps, sidecarName(s.joins.name), mapping("condition", plain("service_healthy")))
		set(w, "depends_on", deps)
	default:
		set(w, "depends_on", deps)
	}
	return w
}

// attach makes a service join its sidecar.
func (p *project) attach(w, deps *yaml.Node, instance string) {
	all := mapping()
	set(all, sidecarName(instance), mapping("condition", plain("service_healthy")))
	for k, v := range pairs(deps) {
		set(all, k.Value, v)
	}
	set(w, "network_mode", text("service:"+sidecarName(instance)))
	set(w, "depends_on", all)
}

// moveOut takes from a service what its sidecar gets.
func (p *project) moveOut(s *service, w *yaml.Node) {
	for _, k := range moved {
		drop(w, k)
	}
	if _, rest := splitSysctls(get(w, "sysctls")); rest != nil {
		set(w, "sysctls", rest)
	} else {
		drop(w, "sysctls")
	}
	if n := get(w, "scale"); n != nil && n.Value != "1" {
		drop(w, "scale")
	}
	if d := get(w, "deploy"); s.counted == "deploy" && get(d, "replicas") != nil && get(d, "replicas").Value != "1" {
		d = clone(d)
		drop(d, "replicas")
		if set(w, "deploy", d); len(d.Content) == 0 {
			drop(w, "deploy")
		}
	}
}

// instance is a further instance of a service that has replicas.
func (p *project) instance(s *service, i int) *yaml.Node {
	w := clone(s.full)
	deps := p.dependencies(w)
	p.moveOut(s, w)
	p.attach(w, deps, instanceName(s.name, i))
	return w
}

// dependencies gives depends_on in its long form. Who waits for a service that
// has become several waits for all of them.
func (p *project) dependencies(w *yaml.Node) *yaml.Node {
	out := mapping()
	add := func(name string, v *yaml.Node) {
		set(out, name, v)
		if s := p.byName[name]; s != nil && s.inject {
			for i := 2; i <= s.replicas; i++ {
				set(out, instanceName(name, i), clone(v))
			}
		}
	}
	n := get(w, "depends_on")
	if n == nil {
		return out
	}
	if n.Kind == yaml.MappingNode {
		for k, v := range pairs(n) {
			if isNull(v) {
				v = mapping("condition", plain("service_started"))
			}
			add(k.Value, clone(v))
		}
		return out
	}
	for _, name := range list(n) {
		add(name, mapping("condition", plain("service_started")))
	}
	return out
}

func (p *project) dependsOnMany(w *yaml.Node) bool {
	n := get(w, "depends_on")
	if n == nil {
		return false
	}
	names := list(n)
	if n.Kind == yaml.MappingNode {
		names = nil
		for k := range pairs(n) {
			names = append(names, k.Value)
		}
	}
	return slices.ContainsFunc(names, func(name string) bool {
		s := p.byName[name]
		return s != nil && s.inject && s.replicas > 1
	})
}

// splitSysctls parts the network's from the others, which are the container's
// own; nil where there are none.
func splitSysctls(n *yaml.Node) (net, rest *yaml.Node) {
	if isNull(n) {
		return nil, nil
	}
	net, rest = &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag}, &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag}
	if n.Kind == yaml.MappingNode {
		for k, v := range pairs(n) {
			to := rest
			if strings.HasPrefix(k.Value, "net.") {
				to = net
			}
			to.Content = append(to.Content, clone(k), clone(v))
		}
	} else {
		for _, e := range n.Content {
			to := rest
			if strings.HasPrefix(e.Value, "net.") {
				to = net
			}
			to.Content = append(to.Content, clone(e))
		}
	}
	if len(net.Content) == 0 {
		net = nil
	}
	if len(rest.Content) == 0 {
		rest = nil
	}
	return net, rest
}

// networks gives the sidecar's networks: the service's, where others find it
// under the service's name.
func (p *project) networks(s *service) *yaml.Node {
	names := []string{s.name}
	if c := get(s.full, "container_name"); !isNull(c) && c.Value != s.name {
		names = append(names, c.Value)
	}
	withAliases := func(n *yaml.Node) *yaml.Node {
		if isNull(n) {
			n = mapping()
		}
		n = clone(n)
		aliases := sequence()
		for _, a := range append(list(get(n, "aliases")), names...) {
			if !slices.Contains(list(aliases), a) {
				aliases.Content = append(aliases.Content, text(a))
			}
		}
		set(n, "aliases", flow(aliases))
		return n
	}
	out := mapping()
	n := get(s.full, "networks")
	if n != nil && n.Kind == yaml.MappingNode {
		for k, v := range pairs(n) {
			set(out, k.Value, withAliases(v))
		}
	} else {
		for _, name := range list(n) {
			set(out, name, withAliases(nil))
		}
	}
	if len(out.Content) == 0 {
		set(out, "default", withAliases(nil))
	}
	return out
}

// links leads links to services that have a sidecar to that, under the name that
// they had.
func (p *project) links(s *service) *yaml.Node {
	n := get(s.full, "links")
	if isNull(n) {
		return nil
	}
	out := sequence()
	for _, l := range list(n) {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		if other := p.byName[name]; other != nil && other.inject {
			out.Content = append(out.Content, text(sidecarName(name)+":"+alias))
			continue
		}
		out.Content = append(out.Content, text(l))
	}
	return out
}
