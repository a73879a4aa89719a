package generate

import (
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
)

// effect says what becomes of a field that a user may set.
type effect uint8

const (
	// ignored: parrel does not execute it; Analyze reports it.
	ignored effect = iota
	// honoured: what is generated depends on it. A test changes each of these
	// and requires a generated resource to change.
	honoured
	// inert: it configures nothing, with Consul itself neither: names, notes.
	inert
)

// kindProxy is the table's name for the proxy block of a registration, whose
// fields discovery.EntryFields lists under "service".
const kindProxy = "service"

// effects is the table of all fields that are not ignored, by kind of entry, in
// the notation of discovery.EntryFields. Opaque Config maps list the keys that
// are known.
func effects() map[string]map[string]effect {
	upstream := func(prefix string) map[string]effect {
		return map[string]effect{
			prefix + "ConnectTimeoutMs":             honoured,
			prefix + "Limits.MaxConnections":        honoured,
			prefix + "Limits.MaxPendingRequests":    honoured,
			prefix + "Limits.MaxConcurrentRequests": honoured,
		}
	}
	local := func(prefix string) map[string]effect {
		return map[string]effect{
			prefix + "bind_address":             honoured,
			prefix + "bind_port":                honoured,
			prefix + "local_connect_timeout_ms": honoured,
			prefix + "local_request_timeout_ms": honoured,
			prefix + "max_inbound_connections":  honoured,
		}
	}
	proxies := func(prefix string) map[string]effect {
		return map[string]effect{
			prefix + "Mode": honoured,
			prefix + "TransparentProxy.OutboundListenerPort": honoured,
			prefix + "TransparentProxy.DialedDirectly":       honoured,
		}
	}
	return map[string]map[string]effect{
		mesh.KindServiceDefaults: join(proxies(""),
			upstream("UpstreamConfig.Defaults."), upstream("UpstreamConfig.Overrides[]."),
			map[string]effect{
				"Protocol":                             honoured,
				"Destination.Addresses[]":              honoured,
				"Destination.Port":                     honoured,
				"MutualTLSMode":                        honoured,
				"MaxInboundConnections":                honoured,
				"LocalConnectTimeoutMs":                honoured,
				"LocalRequestTimeoutMs":                honoured,
				"UpstreamConfig.Overrides[].Name":      honoured,
				"UpstreamConfig.Overrides[].Namespace": honoured,
				"UpstreamConfig.Overrides[].Partition": honoured,
				"Meta.*":                               inert, "Namespace": inert, "Partition": inert,
			}),
		mesh.KindProxyDefaults: join(proxies(""), local("Config."), map[string]effect{
			"MutualTLSMode":   honoured,
			"Config.protocol": honoured,
			"Meta.*":          inert, "Namespace": inert, "Partition": inert,
		}),
		mesh.KindServiceIntentions: {
			"Sources[].Name":      honoured,
			"Sources[].Namespace": honoured,
			"Sources[].Partition": honoured,
			"Sources[].Action":    honoured,
			"Sources[].Peer":      honoured,
			"Meta.*":              inert, "Namespace": inert, "Partition": inert,
			"Sources[].Description": inert, "Sources[].Precedence": inert, "Sources[].Type": inert,
			"Sources[].LegacyCreateTime": inert, "Sources[].LegacyID": inert,
			"Sources[].LegacyMeta.*": inert, "Sources[].LegacyUpdateTime": inert,
		},
		mesh.KindMesh: {
			"HTTP.Incoming.RequestNormalization.InsecureDisablePathNormalization": honoured,
			"HTTP.Incoming.RequestNormalization.MergeSlashes":                     honoured,
			"HTTP.Incoming.RequestNormalization.PathWithEscapedSlashesAction":     honoured,
			"HTTP.Incoming.RequestNormalization.HeadersWithUnderscoresAction":     honoured,
			"TransparentProxy.MeshDestinationsOnly":                               honoured,
			"AllowEnablingPermissiveMutualTLS":                                    honoured,
			"Meta.*":                                                              inert, "Namespace": inert, "Partition": inert,
		},
		kindProxy: join(proxies("Proxy."), local("Proxy.Config."), map[string]effect{
			"Proxy.DestinationServiceName":                              honoured,
			"Proxy.DestinationServiceID":                                honoured,
			"Proxy.LocalServiceAddress":                                 honoured,
			"Proxy.LocalServicePort":                                    honoured,
			"Proxy.LocalServiceSocketPath":                              honoured,
			"Proxy.Upstreams[].DestinationName":                         honoured,
			"Proxy.Upstreams[].DestinationNamespace":                    honoured,
			"Proxy.Upstreams[].DestinationPartition":                    honoured,
			"Proxy.Upstreams[].DestinationType":                         honoured,
			"Proxy.Upstreams[].DestinationPeer":                         honoured,
			"Proxy.Upstreams[].Datacenter":                              honoured,
			"Proxy.Upstreams[].LocalBindAddress":                        honoured,
			"Proxy.Upstreams[].LocalBindPort":                           honoured,
			"Proxy.Upstreams[].LocalBindSocketPath":                     honoured,
			"Proxy.Upstreams[].Config.connect_timeout_ms":               honoured,
			"Proxy.Upstreams[].Config.limits.max_connections":           honoured,
			"Proxy.Upstreams[].Config.limits.max_pending_requests":      honoured,
			"Proxy.Upstreams[].Config.limits.max_concurrent_requests":   honoured,
			"Proxy.Upstreams[].Config.limits[].max_connections":         honoured,
			"Proxy.Upstreams[].Config.limits[].max_pending_requests":    honoured,
			"Proxy.Upstreams[].Config.limits[].max_concurrent_requests": honoured,
			"Proxy.Upstreams[].CentrallyConfigured":                     inert,
		}),
	}
}

func join(maps ...map[string]effect) map[string]effect {
	out := map[string]effect{}
	for _, m := range maps {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// effectOf looks a set field up; keys that the user chose ("Meta.team") are
// found under "Meta.*".
func effectOf(table map[string]effect, field string) effect {
	if e, ok := table[field]; ok {
		return e
	}
	for i := strings.LastIndexByte(field, '.'); i > 0; i = strings.LastIndexByte(field[:i], '.') {
		if e, ok := table[field[:i]+".*"]; ok {
			return e
		}
	}
	return ignored
}
