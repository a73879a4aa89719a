package resourcetest

import (
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// DNSFilter draws a valid filter, not normalised.
func DNSFilter(t *rapid.T) *resource.DNSFilter {
	f := &resource.DNSFilter{
		StatPrefix: pick(t, "", "dns"), Timeout: pick(t, 0, time.Second, 1500*time.Millisecond),
		MaxPending: pick[uint64](t, 0, 1, resource.DNSPending, 1<<40),
		Resolvers: list(t, 0, 2, func(t *rapid.T) resource.Address {
			return resource.Address{Host: pick(t, "127.0.0.11", "10.0.0.2", "2001:db8::53"), Port: 53}
		}),
	}
	zones := []string{"mesh", "virtual.consul", "lan"}
	f.KnownSuffixes = append(f.KnownSuffixes, zones[:rapid.IntRange(0, 3).Draw(t, "zones")]...)
	for i := range rapid.IntRange(0, 4).Draw(t, "domains") {
		d := resource.DNSDomain{Name: fmt.Sprintf(pick(t, "svc-%d", "svc-%d.mesh", "*.s%d.virtual.consul", "_a.b.c.%d"), i), TTL: pick(t, 0, 30*time.Second, time.Hour+1)}
		all := []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("fd70:6172:7265:6c::f000:1"), netip.MustParseAddr("10.0.0.1")}
		d.Addrs = append(d.Addrs, all[rapid.IntRange(0, 2).Draw(t, "from"):]...)
		f.Domains = append(f.Domains, d)
	}
	return f
}

// dns makes l a DNS listener.
func dns(t *rapid.T, l *resource.Listener) {
	l.Address = resource.Address{Host: pick(t, "127.0.0.1", "::1", "127.0.0.53"), Port: max(port(t), 1)}
	l.Additional = list(t, 0, 1, func(t *rapid.T) resource.Address { return resource.Address{Host: "127.0.0.2", Port: max(port(t), 1)} })
	l.DNS = DNSFilter(t)
}
