// Package meshtest makes catalogues of text, for tests of the control plane.
package meshtest

import (
	"fmt"

	"sigs.k8s.io/yaml"

	"github.com/parrel-mesh/parrel/discovery"
)

// Datacenter and TrustDomain of every catalogue made here.
const (
	Datacenter  = "dc1"
	TrustDomain = "parrel.test"
)

// document is a catalogue: Consul's own service definitions and config entries
// as a list each. "health" of a definition is the worst check's state, for the
// service and for its sidecar; "node" is where it is.
type document struct {
	Default  string           `json:"default"`
	Services []map[string]any `json:"services"`
	Entries  []map[string]any `json:"entries"`
}

// Read decodes a catalogue in YAML into a full delivery. A sidecar without a
// port gets 21000 and up, as an agent would give it.
func Read(text string) (discovery.Delta, error) {
	var doc document
	if err := yaml.UnmarshalStrict([]byte(text), &doc); err != nil {
		return discovery.Delta{}, fmt.Errorf("meshtest: %w", err)
	}
	d := discovery.Delta{
		Full: true, DefaultIntention: discovery.IntentionAction(doc.Default),
		Entries: map[discovery.EntryKey]*discovery.ConfigEntry{},
		Roots:   &discovery.TrustRoots{TrustDomain: TrustDomain, RootsPEM: []string{"ROOT"}},
	}
	for i, f := range doc.Entries {
		e, err := discovery.DecodeConfigEntry(f, discovery.Origin{Place: "file catalogue", Line: i + 1})
		if err != nil {
			return d, fmt.Errorf("meshtest: entry %d: %w", i, err)
		}
		d.Entries[e.Key] = e
	}
	var instances []*discovery.Instance
	port := discovery.SidecarMinPort
	for i, f := range doc.Services {
		node, _ := f["node"].(string)
		if node == "" {
			node = "n1"
		}
		status, _ := f["health"].(string)
		if status == "" {
			status = "passing"
		}
		delete(f, "node")
		delete(f, "health")
		r, err := discovery.DecodeRegistration(f, discovery.Node{Name: node, Address: "10.0.0.1", Datacenter: Datacenter}, discovery.Origin{Place: "file catalogue", Line: i + 1})
		if err != nil {
			return d, fmt.Errorf("meshtest: service %d: %w", i, err)
		}
		for ; r != nil; r = r.Sidecar {
			in := r.Instance
			if in.Kind == discovery.KindConnectProxy && in.Port == 0 {
				in.Port = port
				port++
			}
			in.Health = discovery.ParseHealth(status)
			instances = append(instances, in)
		}
	}
	d.Services = discovery.Group(instances)
	return d, nil
}

// MustRead is Read for catalogues that are part of a test.
func MustRead(text string) discovery.Delta {
	d, err := Read(text)
	if err != nil {
		panic(err)
	}
	return d
}

// Shop is a catalogue with something of everything: web calls api, api calls
// orders (tcp) and users (grpc, two versions, one of them critical).
const Shop = `
default: deny
services:
- {name: web, port: 8080, connect: {sidecar_service: {proxy: {upstreams: [
    {destination_name: api, local_bind_port: 9001}]}}}}
- {name: api, port: 8081, meta: {version: v1}, connect: {sidecar_service: {proxy: {upstreams: [
    {destination_name: orders, local_bind_port: 9002, config: {connect_timeout_ms: 1000}},
    {destination_name: users, local_bind_port: 9003}]}}}}
- {name: orders, port: 8082, connect: {sidecar_service: {}}}
- {name: users, id: users-1, port: 8083, meta: {version: v1}, connect: {sidecar_service: {weights: {passing: 3, warning: 1}}}}
- {name: users, id: users-2, port: 8084, meta: {version: v2}, health: critical, connect: {sidecar_service: {}}}
entries:
- {kind: proxy-defaults, name: global, config: {protocol: http}}
- {kind: service-defaults, name: orders, protocol: tcp}
- {kind: service-defaults, name: users, protocol: grpc}
- {kind: service-intentions, name: api, sources: [{name: web, action: allow}]}
- {kind: service-intentions, name: orders, sources: [{name: api, action: allow}, {name: "*", action: deny}]}
- {kind: service-intentions, name: users, sources: [{name: web, action: deny}, {name: "*", action: allow}]}
`
