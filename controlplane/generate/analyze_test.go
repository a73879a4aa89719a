package generate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/test/golden"
)

// TestAnalyze holds the findings of a catalogue that has something of each.
func TestAnalyze(t *testing.T) {
	m := build(meshtest.MustRead(`
services:
- name: web
  port: 80
  connect: {sidecar_service: {proxy: {
    mode: transparent, config: {protocol: http, envoy_dogstatsd_url: x},
    upstreams: [
      {destination_name: nobody, local_bind_port: 1},
      {destination_type: prepared_query, destination_name: q, local_bind_port: 2},
      {destination_name: plain, local_bind_port: 3, local_bind_address: web.internal},
      {destination_name: fine, local_bind_port: 3, local_bind_address: 127.0.0.1}]}}}
- {name: plain, port: 81}
- {name: named, address: host.example, port: 82, connect: {sidecar_service: {}}}
- {name: noport, connect: {sidecar_service: {}}}
- {name: fine, port: 83, connect: {sidecar_service: {}}}
entries:
- {kind: service-defaults, name: web, protocol: carrier-pigeon, external_sni: x, mesh_gateway: {mode: local}, upstream_config: {defaults: {protocol: http}}}
- {kind: service-router, name: web, routes: []}
- kind: service-intentions
  name: ghost
  sources:
  - {name: spectre, action: allow}
  - {name: web, permissions: [{action: allow, http: {path_exact: /}}]}
  - {name: web, peer: far, action: allow}
`))
	var b strings.Builder
	for _, f := range Analyze(m) {
		fmt.Fprintf(&b, "%s %s: %s %s: %s; %s; %s\n", f.Severity, f.Place, f.Entry, f.Field, f.Problem, f.Instead, f.Remedy)
	}
	golden.Check(t, "testdata/analyze.golden", b.String())

	if got := Analyze(build(meshtest.MustRead(meshtest.Shop))); len(got) > 0 {
		t.Errorf("a mesh in order has findings: %+v", got)
	}
}

// TestAnalyzeTransparent holds the findings of transparent proxies.
func TestAnalyzeTransparent(t *testing.T) {
	m := build(meshtest.MustRead(`
default: deny
services:
- {name: alone, port: 80, connect: {sidecar_service: {proxy: {mode: transparent}}}}
- {name: web, port: 81, connect: {sidecar_service: {proxy: {mode: transparent, transparent_proxy: {outbound_listener_port: 15006}}}}}
- {name: api, port: 82, connect: {sidecar_service: {tagged_addresses: {consul-virtual: {address: 240.0.0.1}}, proxy: {mode: transparent, transparent_proxy: {dialed_directly: true}}}}}
- {name: api, id: api-2, port: 82, address: 10.0.0.7, connect: {sidecar_service: {tagged_addresses: {consul-virtual: {address: 240.0.0.2}}}}}
- {name: db, port: 83, connect: {sidecar_service: {tagged_addresses: {consul-virtual: {address: 240.0.0.2}, virtual: {address: 240.0.0.2}}, proxy: {mode: transparent, transparent_proxy: {dialed_directly: true}}}}}
- {name: direct, port: 84, connect: {sidecar_service: {proxy: {transparent_proxy: {outbound_listener_port: 15009}, upstreams: [{destination_name: api, local_bind_port: 9001}]}}}}
- {name: "Bad Name", port: 85, connect: {native: true}}
- {name: outside, port: 86}
entries:
- {kind: service-defaults, name: api, mutual_tls_mode: permissive}
- {kind: service-defaults, name: direct, mutual_tls_mode: permissive}
- {kind: mesh, transparent_proxy: {mesh_destinations_only: true}, allow_enabling_permissive_mutual_tls: true}
- {kind: service-intentions, name: api, sources: [{name: web, action: allow}, {name: api, action: allow}, {name: db, action: allow}]}
- {kind: service-intentions, name: db, sources: [{name: api, action: allow}]}
`))
	var b strings.Builder
	for _, f := range Analyze(m) {
		fmt.Fprintf(&b, "%s %s: %s %s: %s; %s; %s\n", f.Severity, f.Place, f.Entry, f.Field, f.Problem, f.Instead, f.Remedy)
	}
	golden.Check(t, "testdata/analyze-transparent.golden", b.String())
	not := build(meshtest.MustRead(`
services:
- {name: web, port: 80, connect: {sidecar_service: {proxy: {mode: transparent}}}}
entries:
- {kind: service-defaults, name: web, mutual_tls_mode: permissive}
- {kind: service-intentions, name: web, sources: [{name: web, action: allow}]}
`))
	found := Analyze(not)
	if len(found) != 2 || found[0].Field != "MutualTLSMode" || !strings.Contains(found[0].Remedy, "AllowEnablingPermissiveMutualTLS") {
		t.Errorf("permissive without the mesh's leave: %+v", found)
	}
}

// TestProtocolThatConsulWrote: the agent merges the protocol of service-defaults
// into a proxy's own configuration; that is nobody's mistake.
func TestProtocolThatConsulWrote(t *testing.T) {
	const mesh = `
services:
- {name: web, port: 80, connect: {sidecar_service: {proxy: {config: {protocol: %[1]s}, upstreams: [{destination_name: web, local_bind_port: 81, config: {protocol: %[1]s}}]}}}}
entries:
- {kind: service-defaults, name: web, protocol: http}
`
	if got := Analyze(build(meshtest.MustRead(fmt.Sprintf(mesh, "http")))); len(got) > 0 {
		t.Errorf("the protocol in force, repeated, is found fault with: %+v", got)
	}
	if got := Analyze(build(meshtest.MustRead(fmt.Sprintf(mesh, "grpc")))); len(got) != 2 || got[0].Field != "Proxy.Config.protocol" || got[1].Field != "Proxy.Upstreams[].Config.protocol" {
		t.Errorf("another protocol is not named: %+v", got)
	}
}

// TestNumbersThatAreNone: what Consul takes as opaque and parrel cannot read is
// named, wherever it stands.
func TestNumbersThatAreNone(t *testing.T) {
	m := build(meshtest.MustRead(`
services:
- {name: web, port: 80, connect: {sidecar_service: {proxy: {
    config: {local_connect_timeout_ms: -7, max_inbound_connections: "10", bind_port: high},
    upstreams: [{destination_name: web, local_bind_port: 81, config: {connect_timeout_ms: 1.5, limits: {max_connections: none}}}]}}}}
entries:
- {kind: proxy-defaults, name: global, config: {local_request_timeout_ms: soon}}
`))
	var fields []string
	for _, f := range Analyze(m) {
		if strings.Contains(f.Problem, "no whole number") {
			fields = append(fields, f.Field)
		}
	}
	want := []string{"Config.local_request_timeout_ms", "Proxy.Config.bind_port", "Proxy.Config.local_connect_timeout_ms",
		"Proxy.Upstreams[web].Config.connect_timeout_ms", "Proxy.Upstreams[web].Config.limits.max_connections"}
	if strings.Join(fields, " ") != strings.Join(want, " ") {
		t.Errorf("named are %q, want %q", fields, want)
	}
}

// TestPortsThatAreNone: a number beyond the ports is never taken for another
// one. Files with such a port are refused; Consul lets some pass.
func TestPortsThatAreNone(t *testing.T) {
	d := meshtest.MustRead(`
services:
- {name: web, port: 80, connect: {sidecar_service: {proxy: {config: {bind_port: 65617}, upstreams: [{destination_name: api, local_bind_port: 81}]}}}}
- {name: api, port: 82, connect: {sidecar_service: {}}}
`)
	for name, s := range d.Services {
		if name.Name == "web" {
			s.Proxies[0].Proxy.LocalServicePort = 65616
			s.Proxies[0].Proxy.Upstreams[0].LocalBindPort = 65618
		}
	}
	var got []string
	for _, f := range Analyze(build(d)) {
		got = append(got, f.Field)
	}
	want := "Proxy.Config.bind_port Proxy.LocalServicePort Proxy.Upstreams[api]"
	if strings.Join(got, " ") != want {
		t.Errorf("named are %q, want %q", got, want)
	}
}
