package inject

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// portOf reads one entry of `ports`: where it goes in the container, on the
// host, and by which protocol. Compose specification, "ports".
func portOf(e *yaml.Node) (host, target, proto string) {
	if e.Kind == yaml.MappingNode {
		value := func(k string) string {
			if n := get(e, k); !isNull(n) {
				return n.Value
			}
			return ""
		}
		return value("published"), value("target"), value("protocol")
	}
	v, proto, _ := strings.Cut(e.Value, "/")
	parts := splitColons(v)
	target = parts[len(parts)-1]
	if len(parts) > 1 {
		host = parts[len(parts)-2]
	}
	return host, target, proto
}

func hostPort(e *yaml.Node) string {
	h, _, _ := portOf(e)
	return h
}

// published lists the container's TCP ports that are published, ranges written
// out; expressions that compose replaces stay.
func published(s *service) []string {
	var out []string
	n := get(s.full, "ports")
	if n == nil {
		return nil
	}
	for _, e := range n.Content {
		_, target, proto := portOf(e)
		if strings.EqualFold(proto, "udp") || strings.EqualFold(proto, "sctp") || target == "" {
			continue
		}
		out = append(out, span(target)...)
	}
	return out
}

// span writes a range of ports out.
func span(v string) []string {
	from, to, ok := strings.Cut(v, "-")
	a, errA := strconv.Atoi(from)
	b, errB := strconv.Atoi(to)
	if !ok || errA != nil || errB != nil || b < a || b-a > 1000 {
		return []string{v}
	}
	var out []string
	for i := a; i <= b; i++ {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// ports finds the port on which a service listens, where no label says it: the
// first of expose, else of ports.
func (p *project) ports(s *service) {
	if s.settings.port != "" {
		return
	}
	for _, e := range list(get(s.full, "expose")) {
		port, proto, _ := strings.Cut(e, "/")
		if !strings.EqualFold(proto, "udp") {
			s.settings.port = span(port)[0]
			return
		}
	}
	if all := published(s); len(all) > 0 {
		s.settings.port = all[0]
	}
}
