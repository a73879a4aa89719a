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
