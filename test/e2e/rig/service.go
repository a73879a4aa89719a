package rig

// Service is a definition in the form of Consul's agent API.
type Service map[string]any

// Upstream is one of a sidecar's.
type Upstream struct {
	Service string
	Port    int
}

// Define writes the definition of an instance on loopback with a
// sidecar_service, checked by an alias of the service as ARCHITECTURE.md tells
// users to. The check has a state from the start: Consul's agent sometimes loses
// the first run of a new alias check, which then is critical for a minute.
func Define(name, id string, port, proxyPort int, upstreams ...Upstream) Service {
	var ups []any
	for _, u := range upstreams {
		ups = append(ups, map[string]any{"DestinationName": u.Service, "LocalBindPort": u.Port})
	}
	return Service{
		"Name": name, "ID": id, "Address": "127.0.0.1", "Port": port,
		"Connect": map[string]any{"SidecarService": map[string]any{
			"Port":  proxyPort,
			"Check": map[string]any{"Name": id + " is alive", "AliasService": id, "Status": "passing"},
			"Proxy": map[string]any{"Upstreams": ups},
		}},
	}
}

// With sets fields of the definition.
func (s Service) With(fields map[string]any) Service {
	for k, v := range fields {
		s[k] = v
	}
	return s
}

// Sidecar sets fields of the sidecar_service.
func (s Service) Sidecar(fields map[string]any) Service {
	sc := s["Connect"].(map[string]any)["SidecarService"].(map[string]any)
	for k, v := range fields {
		sc[k] = v
	}
	return s
}

// Protocol is the service-defaults entry that sets a protocol.
func Protocol(service, protocol string) any {
	return map[string]any{"Kind": "service-defaults", "Name": service, "Protocol": protocol}
}

// Intentions is a service-intentions entry; pairs are source, action, …
func Intentions(to string, pairs ...string) any {
	var sources []any
	for i := 0; i+1 < len(pairs); i += 2 {
		sources = append(sources, map[string]any{"Name": pairs[i], "Action": pairs[i+1]})
	}
	return map[string]any{"Kind": "service-intentions", "Name": to, "Sources": sources}
}
