package inject

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// overlay merges a service on top of the one that it extends, as compose does:
// mappings by key, the lists below one after the other, mounts and devices by
// their place in the container, everything else by replacing.
// Compose specification, "extends" and "merge".
func overlay(base, top *yaml.Node) *yaml.Node {
	out := clone(base)
	for k, v := range pairs(top) {
		b := get(out, k.Value)
		set(out, k.Value, overlayKey(k.Value, b, v))
	}
	return out
}

func overlayKey(key string, base, top *yaml.Node) *yaml.Node {
	if isNull(base) {
		return clone(top)
	}
	switch key {
	case "command", "entrypoint":
		return clone(top)
	case "environment", "labels", "annotations", "sysctls":
		return overlayKeyed(base, top, "=")
	case "extra_hosts":
		return overlayKeyed(base, top, "=:")
	case "ports", "expose", "dns", "dns_search", "dns_opt", "tmpfs", "external_links", "links", "env_file",
		"cap_add", "cap_drop", "security_opt", "group_add", "volumes_from", "secrets", "configs", "device_cgroup_rules", "profiles":
		return overlayList(base, top)
	case "volumes", "devices":
		return overlayMounts(base, top)
	case "networks", "depends_on":
		return overlayNames(base, top)
	case "build":
		if base.Kind == yaml.ScalarNode {
			base = mapping("context", clone(base))
		}
		if top.Kind == yaml.ScalarNode {
			top = mapping("context", clone(top))
		}
	}
	if base.Kind == yaml.MappingNode && top.Kind == yaml.MappingNode {
		out := clone(base)
		for k, v := range pairs(top) {
			b := get(out, k.Value)
			switch k.Value {
			case "args", "labels":
				v = overlayKeyedOrTop(b, v)
			case "test":
				v = clone(v)
			default:
				if b != nil && b.Kind == yaml.MappingNode && v.Kind == yaml.MappingNode {
					v = overlayKey("", b, v)
				}
			}
			set(out, k.Value, clone(v))
		}
		return out
	}
	return clone(top)
}

func overlayKeyedOrTop(base, top *yaml.Node) *yaml.Node {
	if isNull(base) {
		return clone(top)
	}
	return overlayKeyed(base, top, "=")
}

// overlayKeyed merges what may be a mapping or a list of KEY=VALUE.
func overlayKeyed(base, top *yaml.Node, seps string) *yaml.Node {
	out := mapping()
	for _, n := range []*yaml.Node{base, top} {
		keys, values := keyed(n, seps)
		for _, k := range keys {
			v := values[k]
			if v == nil {
				v = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
			}
			set(out, k, clone(v))
		}
	}
	return out
}

func overlayList(base, top *yaml.Node) *yaml.Node {
	out := sequence()
	for _, n := range []*yaml.Node{base, top} {
		items := n.Content
		if n.Kind == yaml.ScalarNode && !isNull(n) {
			items = []*yaml.Node{n}
		}
	item:
		for _, e := range items {
			for _, have := range out.Content {
				if equal(have, e) {
					continue item
				}
			}
			out.Content = append(out.Content, clone(e))
		}
	}
	return out
}

// overlayMounts replaces an entry by one for the same place in the container.
func overlayMounts(base, top *yaml.Node) *yaml.Node {
	out := clone(base)
item:
	for _, e := range top.Content {
		for i, have := range out.Content {
			if mountTarget(have) == mountTarget(e) {
				out.Content[i] = clone(e)
				continue item
			}
		}
		out.Content = append(out.Content, clone(e))
	}
	return out
}

func mountTarget(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode {
		if t := get(n, "target"); t != nil {
			return t.Value
		}
		return ""
	}
	parts := splitColons(n.Value)
	if len(parts) == 1 {
		return parts[0]
	}
	return parts[1]
}

// overlayNames merges lists of names and mappings by name.
func overlayNames(base, top *yaml.Node) *yaml.Node {
	if base.Kind == yaml.SequenceNode && top.Kind == yaml.SequenceNode {
		return overlayList(base, top)
	}
	out := mapping()
	for _, n := range []*yaml.Node{base, top} {
		if n.Kind == yaml.MappingNode {
			for k, v := range pairs(n) {
				set(out, k.Value, clone(v))
			}
			continue
		}
		for _, e := range n.Content {
			if get(out, e.Value) == nil {
				set(out, e.Value, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"})
			}
		}
	}
	return out
}

// splitColons splits at colons outside of ${…}.
func splitColons(s string) []string {
	var out []string
	depth, start := 0, 0
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], "${"):
			depth++
		case s[i] == '}' && depth > 0:
			depth--
		case s[i] == ':' && depth == 0:
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}
