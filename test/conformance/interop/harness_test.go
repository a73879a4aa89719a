package interop

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/parrel-mesh/parrel/test/conformance/procmesh"
	"github.com/parrel-mesh/parrel/test/pki"
)

var bins map[string]string // read-only after TestMain

func TestMain(m *testing.M) { procmesh.Main(m, &bins, "./cmd/parrel") }

func address(t *testing.T) string { return procmesh.Addr(t) }

func host(at string) string { h, _, _ := net.SplitHostPort(at); return h }
func port(at string) string { _, p, _ := net.SplitHostPort(at); return p }

// tool is one of bin/, which `make interop` builds.
func tool(t *testing.T, name string) string {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(wd, "../../../bin", name)
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%s is not there: run `make interop` first", name)
	}
	return bin
}

// run runs a tool to its end.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool(t, name), args...).CombinedOutput()
	return string(out), err
}

// startTool runs a tool until the test ends.
func startTool(t *testing.T, name string, args ...string) {
	t.Helper()
	background(t, name, tool(t, name), args...)
}

func background(t *testing.T, name, bin string, args ...string) {
	t.Helper()
	var log bytes.Buffer // read only after Wait
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		if t.Failed() {
			t.Logf("=== %s\n%s", name, log.String())
		}
	})
}

// bootstrap is what a sidecar's file is rendered from.
type bootstrap struct {
	Admin     string
	Listeners []tcpListener
	Clusters  []cluster
}

type tcpListener struct {
	Address, Cluster string
	HTTP             bool
	TLS              *tlsFiles
}

type cluster struct {
	Name, Address string
	HTTP2, Auto   bool
	TLS           *tlsFiles
}

type tlsFiles struct {
	Cert, Key, CA string
	Mutual        bool
}

var file = template.Must(template.New("").Funcs(template.FuncMap{"host": host, "port": port}).Parse(`
{{define "address"}}address: {socket_address: {address: {{host .}}, port_value: {{port .}}}}{{end}}
{{- define "tls"}}common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates: [{certificate_chain: {filename: {{.Cert}}}, private_key: {filename: {{.Key}}}}]
{{- if .Mutual}}
            validation_context:
              trusted_ca: {filename: {{.CA}}}
              match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://interop.test/svc"}}]
{{- end}}{{end}}
admin: { {{template "address" .Admin}} }
static_resources:
  listeners:
{{- range $i, $l := .Listeners}}
  - name: l{{$i}}
    {{template "address" .Address}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l{{$i}}
          codec_type: AUTO
          upgrade_configs: [{upgrade_type: websocket}]
          route_config:
            name: routes
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: {{.Cluster}}, timeout: 60s}}]}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{{- with .TLS}}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: {{.Mutual}}
          {{template "tls" .}}
{{- end}}
{{- end}}
  clusters:
{{- range .Clusters}}
  - name: {{.Name}}
    type: STATIC
    connect_timeout: 5s
    load_assignment: {cluster_name: {{.Name}}, endpoints: [{lb_endpoints: [{endpoint: { {{template "address" .Address}} }}]}]}
{{- if or .HTTP2 .Auto}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        {{if .Auto}}auto_config: {http_protocol_options: {}, http2_protocol_options: {}}{{else}}explicit_http_config: {http2_protocol_options: {}}{{end}}
{{- end}}
{{- with .TLS}}
    transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: interop.test
          {{template "tls" .}}
{{- end}}
{{- end}}
`))

// start runs a sidecar on the file that b makes and waits until it listens.
func start(t *testing.T, name string, b bootstrap) {
	t.Helper()
	var text bytes.Buffer
	if err := file.Execute(&text, b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".yaml")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	background(t, name, bins["parrel"], "sidecar", "-c", path)
	for _, l := range b.Listeners {
		waitListening(t, l.Address)
	}
}

// files is one CA and one leaf for both ends.
type files struct{ cert, key, ca string }

func (f files) server(mutual bool) *tlsFiles { return &tlsFiles{f.cert, f.key, f.ca, mutual} }
func (f files) client() *tlsFiles            { return &tlsFiles{f.cert, f.key, f.ca, true} }

func certificates(t *testing.T) files {
	t.Helper()
	dir := t.TempDir()
	pki.New(t, dir).Leaf("", 2, []string{"interop.test"}, "spiffe://interop.test/svc")
	return files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
}
