package intercept

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func id(n uint32) *uint32 { return &n }

// base is a configuration without a fault: everybody but the sidecar.
func base() Config {
	return Config{
		Outbound:    []Workload{{Name: "web", OutboundPort: 15001}},
		InboundPort: 15006, DNSPort: 15053, ProxyUID: id(5005), IPv6: true,
	}
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// TestValidate: each fault is said with its field and the remedy, and nothing that
// has no effect is taken in silence.
func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Config)
		want string // "" for none
	}{
		{"nothing wrong", func(*Config) {}, ""},
		{"several workloads", func(c *Config) {
			c.Outbound = []Workload{{Name: "a", UID: id(1), OutboundPort: 1501}, {Name: "b", Cgroup: "b.service", OutboundPort: 1502}}
			c.ProxyUID = nil
		}, ""},
		{"inbound only", func(c *Config) { *c = Config{InboundPort: 15006} }, ""},
		{"nothing at all", func(c *Config) { *c = Config{} }, "nothing to capture: name a workload"},
		{"no sidecar's user", func(c *Config) { c.ProxyUID = nil }, "give ProxyUID (--proxy-uid), or its own connections come back to it"},
		{"by group", func(c *Config) { c.ProxyUID, c.ProxyGID = nil, id(5005) }, ""},
		{"no port", func(c *Config) { c.Outbound[0].OutboundPort = 0 }, "workload web has no OutboundPort: give"},
		{"one port twice", func(c *Config) { c.DNSPort = 15001 }, "port 15001 is both workload web's and DNS's"},
		{"SSH's port", func(c *Config) { c.InboundPort = 22 }, "port 22, which is SSH's"},
		{"two untold", func(c *Config) { c.Outbound = append(c.Outbound, Workload{Name: "api", OutboundPort: 15002}) }, "give each a uid or a cgroup"},
		{"told twice", func(c *Config) { c.Outbound[0].UID, c.Outbound[0].Cgroup = id(1), "x" }, "has a uid and a cgroup"},
		{"one user for two", func(c *Config) {
			c.Outbound = []Workload{{Name: "a", UID: id(1), OutboundPort: 1501}, {Name: "b", UID: id(1), OutboundPort: 1502}}
		}, "workloads a and b are both uid 1"},
		{"one group for two", func(c *Config) {
			c.Outbound = []Workload{{Name: "a", Cgroup: "x.slice/y", OutboundPort: 1501}, {Name: "b", Cgroup: "/x.slice/y/", OutboundPort: 1502}}
		}, "workloads a and b are both cgroup x.slice/y"},
		{"the sidecar's user", func(c *Config) { c.Outbound[0].UID = id(5005) }, "run the sidecar as a user of its own"},
		{"a workload excluded", func(c *Config) { c.Outbound[0].UID = id(1); c.ExcludeUIDs = []uint32{1} }, "uid 1 is excluded and workload web's"},
		{"a group excluded", func(c *Config) { c.Outbound[0].Cgroup = "a/b"; c.ExcludeCgroups = []string{"/a/b"} }, "cgroup a/b is excluded and workload web's"},
		{"the root group", func(c *Config) { c.ExcludeCgroups = []string{"/"} }, "is the root of them all"},
		{"service port excluded", func(c *Config) { c.ServicePorts = []uint16{80}; c.ExcludeInboundPorts = []PortRange{{70, 90}} }, "service port 80 is excluded (70-90 in ExcludeInboundPorts)"},
		{"service port 22", func(c *Config) { c.ServicePorts = []uint16{22} }, "service port 22 is SSH's"},
		{"service on the sidecar's", func(c *Config) { c.ServicePorts = []uint16{15006} }, "service port 15006 is one of the sidecar's own"},
		{"service on a public port", func(c *Config) { c.ServicePorts, c.ProxyPorts = []uint16{21000}, Ports(21000) }, "service port 21000 is also among ProxyPorts"},
		{"a capture port in public", func(c *Config) { c.ProxyPorts = Ports(15006) }, "port 15006 is inbound capture's and among ProxyPorts"},
		{"no services", func(c *Config) { c.InboundScope = ScopeServices }, "there are none: name them"},
		{"tproxy without inbound", func(c *Config) { c.InboundPort, c.InboundMode = 0, TProxy }, "tproxy has no effect without InboundPort"},
		{"inbound exclusion without", func(c *Config) { c.InboundPort = 0; c.ExcludeInboundPorts = Ports(80) }, "ExcludeInboundPorts has no effect: no inbound connections are captured"},
		{"outbound exclusion without", func(c *Config) { *c = Config{InboundPort: 15006, ExcludeUIDs: []uint32{1}} }, "ExcludeUIDs has no effect"},
		{"DNS exclusion without", func(c *Config) { c.DNSPort = 0; c.ExcludeDNSUIDs = []uint32{1} }, "ExcludeDNSUIDs has no effect: no DNS is captured"},
		{"DNS of nobody", func(c *Config) { *c = Config{InboundPort: 15006, DNSPort: 15053} }, "DNSPort 15053 captures the queries of workloads, and there is none"},
		{"a range upside down", func(c *Config) { c.ExcludeInboundPorts = []PortRange{{90, 80}} }, "90-80 is no range of ports"},
		{"no CIDR", func(c *Config) { c.ExcludeOutboundCIDRs = []netip.Prefix{{}} }, "ExcludeOutboundCIDRs: invalid Prefix is no CIDR"},
		{"IPv6 without", func(c *Config) { c.IPv6 = false; c.ExcludeOutboundCIDRs = prefixes("fd00::/8") }, "since IPv6 is left alone"},
		{"virtual loopback", func(c *Config) { c.VirtualCIDRs = prefixes("126.0.0.0/7") }, "holds loopback addresses"},
		{"interface lo", func(c *Config) { c.ExcludeInterfaces = []string{"lo"} }, "takes loopback in"},
		{"interface l*", func(c *Config) { c.ExcludeInterfaces = []string{"l*"} }, "takes loopback in"},
		{"every interface", func(c *Config) { c.ExcludeInterfaces = []string{"*"} }, "is no interface's name"},
		{"a long interface", func(c *Config) { c.ExcludeInterfaces = []string{"sixteen-letters-"} }, "is no interface's name"},
		{"held too short", func(c *Config) { c.HoldFor = time.Millisecond }, "HoldFor is 1ms: at least 1s"},
		{"an unknown mode", func(c *Config) { c.InboundMode = 7 }, "use redirect or tproxy"},
	} {
		c := base()
		tt.set(&c)
		err := c.Validate()
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

// TestPlan: what a sidecar says becomes a configuration.
func TestPlan(t *testing.T) {
	p := Plan{
		Proxies: []PlanProxy{
			{ProxyID: "web-proxy", Service: "web", User: "0", OutboundPort: 15001, ServicePorts: []uint16{8080}},
			{ProxyID: "api-proxy", Service: "api", Cgroup: "system.slice/api.service", OutboundPort: 15002, ServicePorts: []uint16{9090}},
			{ProxyID: "db-proxy", Service: "db"},
		},
		ProxyUID: id(5005), InboundPort: 15006, InboundMode: "tproxy", DNSPort: 15053, PublicPorts: []uint16{21000, 21001},
	}
	got, err := p.Config()
	want := Config{
		Outbound: []Workload{
			{Name: "web-proxy", UID: id(0), OutboundPort: 15001},
			{Name: "api-proxy", Cgroup: "system.slice/api.service", OutboundPort: 15002},
		},
		InboundPort: 15006, InboundMode: TProxy, InboundScope: ScopeServices, ServicePorts: []uint16{8080, 9090},
		DNSPort: 15053, ProxyUID: id(5005), ProxyPorts: Ports(21000, 21001), IPv6: true,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if got, err := (Plan{Proxies: []PlanProxy{{ProxyID: "web", OutboundPort: 15001, ServicePorts: []uint16{80}}}, InboundPort: 15006}).Config(); err != nil || got.InboundScope != ScopeAll {
		t.Errorf("the only workload: %+v, %v", got, err)
	}
	for want, p := range map[string]Plan{
		`no user "nobody-has-this-name" on this host`: {Proxies: []PlanProxy{{ProxyID: "web", User: "nobody-has-this-name"}}},
		"more than one of uid, user and cgroup":       {Proxies: []PlanProxy{{ProxyID: "web", User: "root", Cgroup: "a"}}},
		`there is no inbound mode "magic"`:            {InboundMode: "magic"},
	} {
		if _, err := p.Config(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestMergePrefixes(t *testing.T) {
	got := mergePrefixes(prefixes("10.1.2.3/16", "10.0.0.0/8", "192.0.2.1/32", "fd00::/8", "fd70::/16", "10.0.0.0/8", "0.0.0.0/0"))
	want := prefixes("0.0.0.0/0", "fd00::/8")
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for p, last := range map[string]string{"10.0.0.0/8": "10.255.255.255", "0.0.0.0/0": "255.255.255.255", "192.0.2.1/32": "192.0.2.1", "fd70:6172:7265:6c::/96": "fd70:6172:7265:6c::ffff:ffff"} {
		if got := lastOf(netip.MustParsePrefix(p)); got.String() != last {
			t.Errorf("the last of %s is %s, want %s", p, got, last)
		}
	}
}

func TestPorts(t *testing.T) {
	for s, want := range map[string]PortRange{"80": {80, 80}, "8000-8010": {8000, 8010}, "1-65535": {1, 65535}} {
		got, err := ParsePorts(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "80-", "90-80", "65536", "http", "80,81", "0-5"} {
		if got, err := ParsePorts(s); err == nil {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
	got := mergePorts(Ports(80, 22, 81, 65535), []PortRange{{8000, 8100}, {8050, 8200}, {65000, 65535}})
	want := []PortRange{{22, 22}, {80, 81}, {8000, 8200}, {65000, 65535}}
	if !slices.Equal(got, want) {
		t.Errorf("merged to %v, want %v", got, want)
	}
}
