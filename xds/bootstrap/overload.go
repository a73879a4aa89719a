package bootstrap

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Overload are the limits of the process; 0: not given.
type Overload struct {
	HeapBytes   int64 // envoy.resource_monitors.fixed_heap
	Connections int   // envoy.resource_monitors.global_downstream_max_connections
}

// MinHeap is the least that a sidecar works with.
const MinHeap = 32 << 20

// Monitors by the type of their configuration.
const (
	fixedHeap   = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
	connections = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)

// overload reads overload_manager. What Envoy does at which pressure is said by
// actions; parrel's own order of measures stands for all of them.
func (p *parser) overload(n *yaml.Node) {
	for _, e := range p.entries("overload_manager", n) {
		at := "overload_manager." + e.name
		switch e.name {
		case "resource_monitors":
			for i, item := range p.items(at, e.value) {
				p.monitor(at+"["+strconv.Itoa(i)+"]", item)
			}
		case "actions", "loadshed_points":
			p.warn(e.key, at, "parrel acts at pressures of its own: it slows traffic at 85 % of a limit and refuses new requests at 95 %")
		case "refresh_interval", "buffer_factory_config":
			p.warn(e.key, at, "parrel does not honour this field")
		default:
			p.fail(e.key, at, "unknown field; an overload_manager has resource_monitors and actions")
		}
	}
}

func (p *parser) monitor(path string, n *yaml.Node) {
	var conf *yaml.Node
	for _, e := range p.entries(path, n) {
		switch e.name {
		case "name":
		case "typed_config":
			conf = e.value
		default:
			p.fail(e.key, join(path, e.name), "unknown field; a resource monitor has name and typed_config")
		}
	}
	at := join(path, "typed_config")
	if conf == nil {
		p.fail(n, at, "is missing; say how much there may be")
		return
	}
	kind := ""
	fields := p.entries(at, conf)
	for _, e := range fields {
		if e.key.Value == "@type" {
			kind = strings.TrimPrefix(p.text(join(at, "@type"), e.value), "type.googleapis.com/")
		}
	}
	switch kind {
	case fixedHeap:
		p.limit(at, fields, "max_heap_size_bytes", conf, MinHeap, func(v int64) { p.b.Overload.HeapBytes = v })
	case connections:
		p.limit(at, fields, "max_active_downstream_connections", conf, 1, func(v int64) { p.b.Overload.Connections = int(v) })
	default:
		p.fail(conf, join(at, "@type"), "%q is no resource monitor that parrel has; there are %s and %s", kind, fixedHeap, connections)
	}
}

// limit reads the one number of a monitor.
func (p *parser) limit(at string, fields []entry, name string, conf *yaml.Node, least int64, set func(int64)) {
	found := false
	for _, e := range fields {
		switch e.name {
		case "@type":
		case name:
			found = true
			v := follow(e.value)
			number, err := strconv.ParseInt(strings.ReplaceAll(v.Value, "_", ""), 0, 64)
			switch {
			case v.Kind != yaml.ScalarNode || err != nil:
				p.fail(v, join(at, name), "is no number")
			case number < least:
				p.fail(v, join(at, name), "%d is too little; give %d or more", number, least)
			default:
				set(number)
			}
		default:
			p.fail(e.key, join(at, e.name), "unknown field; there is %s", name)
		}
	}
	if !found {
		p.fail(conf, join(at, name), "is missing; say how much there may be")
	}
}
