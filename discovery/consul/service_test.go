package consul

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/consultest"
)

// TestParseDefinition: what a user may have written, and what is refused.
func TestParseDefinition(t *testing.T) {
	d, err := ParseDefinition(`{"service":{"name":"web","id":"web-1","port":8080,"tags":["a"],"meta":{"version":"v2"},
		"connect":{"sidecar_service":{"proxy":{"mode":"transparent","upstreams":[{"destination_name":"api","local_bind_port":9191}]}}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	p := d.proxy
	if d.ID() != "web-1" || d.Name() != "web" || d.ProxyID() != "web-1-sidecar-proxy" || d.LocalPort() != 8080 ||
		p.Port != 21000 || string(p.Proxy.Mode) != "transparent" || len(p.Proxy.Upstreams) != 1 || p.Proxy.Upstreams[0].LocalBindPort != 9191 ||
		p.Meta["version"] != "v2" || p.Proxy.DestinationServiceID != "web-1" || d.service.Connect != nil {
		t.Errorf("%+v\n%+v\n%+v", d.service, p, p.Proxy)
	}
	at := d.At("10.0.0.7", "http://10.0.0.7:15021/ready")
	if at.service.Address != "10.0.0.7" || at.proxy.Address != "10.0.0.7" || len(at.service.Checks) != 1 || len(at.proxy.Checks) != 2 || len(d.service.Checks) != 0 {
		t.Errorf("%+v\n%+v", at.service, at.proxy)
	}
	for text, port := range map[string]int{
		`{"name":"web"}`: 0,
		`{"name":"web","port":1,"connect":{"sidecar_service":{"proxy":{"local_service_address":"10.1.1.1"}}}}`: 0,
		`{"name":"web","port":1,"connect":{"sidecar_service":{"proxy":{"local_service_port":2}}}}`:             2,
	} {
		d, err := ParseDefinition(text)
		if err != nil || d.LocalPort() != port {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		`web`:                                   "is no JSON",
		`{"service":{"port":1}}`:                "a service must have a name",
		`{"name":"web","prot":80}`:              "Consul has no such field here",
		`{"name":"web","port":70000}`:           "is no port",
		`{"name":"m","kind":"mesh-gateway"}`:    "give the application's service",
		`{"service":{"name":"a"},"service2":1}`: "Consul has no such field here",
	} {
		if _, err := ParseDefinition(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestLocalAddress(t *testing.T) {
	for agent, want := range map[string]string{"127.0.0.1:8500": "", "http://127.0.0.1:8500": "", "unix:///run/consul.sock": "", "127.0.0.1": ""} {
		if got, err := LocalAddress(agent); err != nil || got != want {
			t.Errorf("%s: %q %v", agent, got, err)
		}
	}
	if _, err := LocalAddress("no.such.host.invalid:8500"); err == nil {
		t.Error("a name that does not exist has an address")
	}
}

// TestRegisterItself: a service that its sidecar registers is found with its
// proxy, is critical until it listens, passes then, and is gone at the end.
func TestRegisterItself(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	v, stop := run(t, Config{Address: agent.HTTP})
	defer stop()
	reg, err := NewRegistrar(Config{Address: agent.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	d, err := ParseDefinition(`{"service":{"name":"web","id":"web-1","port":8080,"connect":{"sidecar_service":{"proxy":{"mode":"transparent"}}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	at := d.At("127.0.0.1", "")
	ctx := t.Context()
	if err := reg.Register(ctx, at); err != nil {
		t.Fatal(err)
	}
	l, err := reg.Lookup(ctx, "web-1")
	if err != nil || l.Proxy == nil || l.Proxy.ID != "web-1-sidecar-proxy" || l.Proxy.Port != 21000 {
		t.Fatalf("%+v %+v %v", l, l.Proxy, err)
	}
	health := func(want discovery.Health) {
		t.Helper()
		v.await(t, patience, "the proxy "+string(want), func(v *view) bool {
			p := proxies(v, "web")
			return len(p) == 1 && p[0].Health == want && p[0].Proxy.Mode == "transparent"
		})
	}
	health(discovery.Critical)
	if err := reg.Report(ctx, at, true); err != nil {
		t.Fatal(err)
	}
	health(discovery.Passing)
	if err := reg.Report(ctx, at, false); err != nil {
		t.Fatal(err)
	}
	health(discovery.Critical)

	for want, protocol := range map[string]string{"http": "http"} {
		if stands, err := reg.Declare(ctx, "web", protocol); err != nil || stands != want {
			t.Errorf("Declare: %q %v", stands, err)
		}
	}
	if stands, err := reg.Declare(ctx, "web", "grpc"); err != nil || stands != "http" {
		t.Errorf("a protocol that stands was written over: %q %v", stands, err)
	}

	for range 2 { // the second time there is nothing
		if err := reg.Deregister(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := reg.Lookup(ctx, "web-1"); err == nil {
		t.Error("it is still there")
	}
}

// TestReadyCheck: a proxy whose readiness does not answer is critical.
func TestReadyCheck(t *testing.T) {
	agent := consultest.Dev(t, consultest.Options{})
	reg, err := NewRegistrar(Config{Address: agent.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	d, err := ParseDefinition(`{"name":"job"}`) // listens on nothing: its sidecar's readiness alone counts
	if err != nil {
		t.Fatal(err)
	}
	ready := net.JoinHostPort("127.0.0.1", "1")
	if err := reg.Register(t.Context(), d.At("127.0.0.1", "http://"+ready+"/ready")); err != nil {
		t.Fatal(err)
	}
	var checks map[string]struct{ Status, Output string }
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		agent.Get("/v1/agent/checks", &checks)
		if c := checks["service:job-sidecar-proxy:ready"]; c.Status == "critical" && strings.Contains(c.Output, "refused") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the check did not run: %+v", checks)
		}
	}
}
