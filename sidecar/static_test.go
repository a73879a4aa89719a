package sidecar

import (
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// TestStrangers: who is believed on a static listener without a certificate.
func TestStrangers(t *testing.T) {
	for name, c := range map[string]struct {
		l      resource.Listener
		static bool
		want   bool
	}{
		"an edge":        {resource.Listener{Address: resource.Address{Host: "0.0.0.0", Port: 80}}, true, true},
		"this machine":   {resource.Listener{Address: resource.Address{Host: "127.0.0.1", Port: 80}}, true, false},
		"IPv6's too":     {resource.Listener{Address: resource.Address{Host: "::1", Port: 80}}, true, false},
		"a socket":       {resource.Listener{Address: resource.Address{Path: "/run/l"}}, true, false},
		"said outbound":  {resource.Listener{Address: resource.Address{Host: "10.0.0.1", Port: 80}, Direction: resource.Outbound}, true, false},
		"a mesh's":       {resource.Listener{Address: resource.Address{Host: "10.0.0.1", Port: 80}}, false, false},
		"inbound static": {resource.Listener{Address: resource.Address{Host: "10.0.0.1", Port: 80}, Direction: resource.Inbound}, true, true},
	} {
		w := &workload{Sidecar: &Sidecar{cfg: Config{Static: c.static}}}
		if got := w.strangers(&c.l); got != c.want {
			t.Errorf("%s: strangers %v, want %v", name, got, c.want)
		}
	}
}

// TestCheckStatic: a configuration is checked whole, and nothing is opened.
func TestCheckStatic(t *testing.T) {
	d := Deps{Net: netio.OS{}, Source: func(Workload, client.Handler) (Source, error) { return nil, nil }}
	c := Config{Static: true, Workloads: []Workload{{Proxy: "gw", Service: "gw"}}}
	l := &resource.Listener{Name: "l", Address: resource.Address{Host: "127.0.0.1", Port: 1}, Chains: []resource.FilterChain{{Name: "c",
		TCP: &resource.TCPProxy{Cluster: "app", AccessLog: []resource.AccessLog{{Path: "/dev/stdout", Text: "%NOTHING%"}}}}}}
	errs := CheckStatic(c, d, []resource.Resource{l})
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "%NOTHING%") {
		t.Errorf("an unknown operator: %v", errs)
	}
	l.Chains[0].TCP.AccessLog[0].Text = "%DURATION%"
	if errs := CheckStatic(c, d, []resource.Resource{l}); len(errs) > 0 {
		t.Errorf("what is good is refused: %v", errs)
	}
	d.Source = nil
	if errs := CheckStatic(c, d, nil); len(errs) != 1 || !strings.Contains(errs[0].Error(), "no static configuration") {
		t.Errorf("without a source: %v", errs)
	}
}
