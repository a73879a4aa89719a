package resource

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DNSFilter makes a listener a DNS server (envoy.filters.udp.dns_filter): it
// answers for Domains and forwards what else it is asked. Its addresses are
// loopback addresses; parrel serves UDP and TCP on each.
type DNSFilter struct {
	StatPrefix string
	// Domains are the names that are answered. They are a set: no two have one
	// name, and Normalise sorts them.
	Domains []DNSDomain
	// KnownSuffixes are the zones that are answered for alone, "mesh": a name
	// below one that is not in Domains does not exist. Other names that are not
	// in Domains are forwarded. A set, as Domains; lower case, without dots at
	// the ends.
	KnownSuffixes []string
	// Resolvers are asked for what is forwarded, in order. None: those of the
	// host's /etc/resolv.conf.
	Resolvers []Address
	// Timeout of one resolver before the next is asked as well; at least 1 s;
	// 0: the default (2 s). The client has its answer, or SERVFAIL, after
	// twice this time.
	Timeout time.Duration
	// MaxPending bounds the queries that are being forwarded at one time; 0: the
	// default, DNSPending.
	MaxPending uint64
}

// DNSPending is the default of DNSFilter.MaxPending.
const DNSPending = 1024

// DNSDomain is one name of a DNSFilter.
type DNSDomain struct {
	// Name is exact, "web.virtual.consul", or "*.suffix", which stands for every
	// name below suffix. An exact name goes before a wildcard, a longer wildcard
	// before a shorter one. Lower case, no dot at the end.
	Name string
	// Addrs are what A and AAAA queries get; a family of which there is none is
	// answered with no data.
	Addrs []netip.Addr
	TTL   time.Duration // of answers; at least 30 s; 0: the default (300 s)
}

// dns checks the listener's DNS filter, and that nothing contradicts it.
func (c *check) dns(l *Listener) {
	at := "listener_filters[0].typed_config"
	f := l.DNS
	if len(l.Chains) > 0 || l.Default != nil || l.UseOriginalDst {
		c.failf("filter_chains", "a DNS listener has no filter chains and no original destination")
	}
	for i, a := range append([]Address{l.Address}, l.Additional...) {
		field := "address"
		if i > 0 {
			field = fmt.Sprintf("additional_addresses[%d].address", i-1)
		}
		c.address(field, a, false)
		if ip, err := netip.ParseAddr(a.Host); err == nil && !ip.IsLoopback() || a.Path != "" {
			c.failf(field, "a DNS listener is open on loopback only, so that it cannot be used from outside; write 127.0.0.1 or ::1")
		}
		if a.Path == "" && a.Port == 0 {
			c.failf(field, "a DNS listener has a port, one for UDP and TCP")
		}
	}
	c.text(at+".stat_prefix", f.StatPrefix)
	seen := map[string]bool{}
	for i := range f.Domains {
		d := &f.Domains[i]
		field := fmt.Sprintf("%s.server_config.inline_dns_table.virtual_domains[%d]", at, i)
		c.domainName(field+".name", d.Name, true)
		if seen[d.Name] {
			c.failf(field+".name", "%q stands there twice", d.Name)
		}
		seen[d.Name] = true
		if len(d.Addrs) == 0 {
			c.failf(field+".endpoint.address_list", "there is no address; leave the domain out")
		}
		for j, a := range d.Addrs {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() || slices.Contains(d.Addrs[:j], a) {
				c.failf(fmt.Sprintf("%s.endpoint.address_list.address[%d]", field, j), "%s is no plain IP address, or stands there twice", a)
			}
		}
		if d.TTL != 0 && (d.TTL < 30*time.Second || d.TTL > (1<<31-1)*time.Second) {
			c.failf(field+".answer_ttl", "%s is not between 30 s and %d s", d.TTL, 1<<31-1)
		}
	}
	for i, s := range f.KnownSuffixes {
		field := fmt.Sprintf("%s.server_config.inline_dns_table.known_suffixes[%d]", at, i)
		c.domainName(field, s, false)
		if slices.Contains(f.KnownSuffixes[:i], s) {
			c.failf(field, "%q stands there twice", s)
		}
	}
	for i, a := range f.Resolvers {
		field := fmt.Sprintf("%s.client_config.typed_dns_resolver_config.typed_config.resolvers[%d]", at, i)
		c.address(field, a, false)
		if a.Path != "" || a.Port == 0 {
			c.failf(field, "a resolver has an IP address and a port; DNS's is 53")
		}
		if a == l.Address || slices.Contains(l.Additional, a) {
			c.failf(field, "is this listener's own address; queries would go round in circles")
		}
	}
	if f.Timeout != 0 && f.Timeout < time.Second {
		c.failf(at+".client_config.resolver_timeout", "%s is less than 1 s", f.Timeout)
	}
}

// domainName checks a name of DNS in parrel's form; wildcard allows "*." before it.
func (c *check) domainName(field, name string, wildcard bool) {
	rest := name
	if wildcard {
		rest = strings.TrimPrefix(name, "*.")
	}
	if len(name) > 253 {
		c.failf(field, "%q is longer than the 253 bytes that a name of DNS may have", name)
		return
	}
	for label := range strings.SplitSeq(rest, ".") {
		if label == "" || len(label) > 63 {
			c.failf(field, "%q: a label of a name of DNS has 1 to 63 bytes", name)
			return
		}
		for i := range len(label) {
			switch b := label[i]; {
			case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '_':
			default:
				c.failf(field, "%q: lower-case letters, digits, - and _ make a label; a wildcard is only allowed as *.suffix", name)
				return
			}
		}
	}
}

// sortDNS brings the sets of a filter to their one order.
func sortDNS(f *DNSFilter) {
	slices.SortStableFunc(f.Domains, func(a, b DNSDomain) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(f.KnownSuffixes)
	if f.MaxPending == DNSPending {
		f.MaxPending = 0
	}
}
