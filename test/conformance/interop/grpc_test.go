package interop

import (
	"net"
	"strings"
	"testing"
	"time"
)

// cases are those of gRPC's interop client that need no cloud account
// (https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md).
var cases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	"status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service", "orca_per_rpc", "orca_oob",
	"rpc_soak", "channel_soak",
}

// TestGRPC: every case directly, so that a failure is known to be the mesh's,
// then through one sidecar and through two.
func TestGRPC(t *testing.T) {
	app := address(t)
	startTool(t, "grpc-interop-server", "--port", port(app))
	waitListening(t, app)
	certs := certificates(t)
	one, out, in := address(t), address(t), address(t)
	start(t, "one", bootstrap{
		Admin:     address(t),
		Listeners: []tcpListener{{Address: one, HTTP: true, Cluster: "app"}},
		Clusters:  []cluster{{Name: "app", Address: app, HTTP2: true}},
	})
	start(t, "far", bootstrap{
		Admin:     address(t),
		Listeners: []tcpListener{{Address: in, HTTP: true, Cluster: "app", TLS: certs.server(true)}},
		Clusters:  []cluster{{Name: "app", Address: app, HTTP2: true}},
	})
	start(t, "near", bootstrap{
		Admin:     address(t),
		Listeners: []tcpListener{{Address: out, HTTP: true, Cluster: "peer"}},
		Clusters:  []cluster{{Name: "peer", Address: in, Auto: true, TLS: certs.client()}},
	})
	for _, way := range []struct{ name, at string }{{"direct", app}, {"one sidecar", one}, {"two sidecars", out}} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel() // some cases wait for reports that come once a second
			for _, c := range cases {
				t.Run(c, func(t *testing.T) {
					args := []string{"--server_host", host(way.at), "--server_port", port(way.at), "--use_tls=false", "--test_case", c, "--soak_iterations", "20"}
					if strings.HasPrefix(c, "orca_") { // these are told to the client's own balancer
						args = append(args, "--service_config_json", `{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`)
					}
					if out, err := run(t, "grpc-interop-client", args...); err != nil {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
		})
	}
}

func waitListening(t *testing.T, at string) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); ; {
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody listens at %s: %v", at, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
