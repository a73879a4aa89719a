package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Validate says what is wrong with c: each error names the field, the cause and
// the remedy. It asks nobody: cgroups are looked up when the rules are made.
func (c Config) Validate() error {
	var v validator
	v.ports(c)
	v.workloads(c)
	v.services(c)
	v.exclusions(c)
	v.times(c)
	return errors.Join(v.errs...)
}

// ssh is the port that is never captured inbound: the way to the host stays open.
const ssh = 22

type validator struct{ errs []error }

func (v *validator) bad(format string, a ...any) {
	v.errs = append(v.errs, fmt.Errorf("intercept: "+format, a...))
}

// ports: each capture port is one listener's.
func (v *validator) ports(c Config) {
	if len(c.Outbound) == 0 && c.InboundPort == 0 {
		v.bad("nothing to capture: name a workload (Outbound), or the port of the inbound capture listener (InboundPort)")
	}
	if c.DNSPort != 0 && len(c.Outbound) == 0 {
		v.bad("DNSPort %d captures the queries of workloads, and there is none: name one in Outbound, or leave DNSPort out", c.DNSPort)
	}
	seen := map[uint16]string{}
	use := func(p uint16, who string) {
		if other, ok := seen[p]; ok {
			v.bad("port %d is both %s's and %s's: the port says who is connecting, so each needs its own", p, other, who)
		}
		seen[p] = who
		if p == ssh {
			v.bad("%s uses port 22, which is SSH's and is never captured: choose another, such as 15001", who)
		}
	}
	for _, w := range c.Outbound {
		if w.OutboundPort == 0 {
			v.bad("workload %s has no OutboundPort: give the port of its outbound listener, such as 15001", w.label())
			continue
		}
		use(w.OutboundPort, "workload "+w.label())
	}
	if c.InboundPort != 0 {
		use(c.InboundPort, "inbound capture")
	}
	if c.DNSPort != 0 {
		use(c.DNSPort, "DNS")
	}
	for _, r := range slices.Concat(c.ProxyPorts, c.ExcludeInboundPorts, c.ExcludeOutboundPorts) {
		if r.From == 0 || r.To < r.From {
			v.bad("%s is no range of ports: the lower one first, between 1 and 65535", r)
		}
	}
	for _, p := range c.capturePorts() {
		if containsPort(c.ProxyPorts, p) {
			v.bad("port %d is %s's and among ProxyPorts, which others reach from outside: a capture port is reached by redirection only; take it out", p, seen[p])
		}
	}
	if int(c.InboundMode) >= len(inboundModes) {
		v.bad("InboundMode is %s: use redirect or tproxy", c.InboundMode)
	}
	if c.InboundMode == TProxy && c.InboundPort == 0 {
		v.bad("InboundMode tproxy has no effect without InboundPort: give the port of the transparent listener, such as 15006")
	}
}

func (v *validator) workloads(c Config) {
	uids, groups := map[uint32]string{}, map[string]string{}
	for _, w := range c.Outbound {
		switch {
		case w.UID != nil && w.Cgroup != "":
			v.bad("workload %s has a uid and a cgroup: keep the one that tells it from the others", w.label())
		case w.UID != nil:
			if other, ok := uids[*w.UID]; ok {
				v.bad("workloads %s and %s are both uid %d: run each as a user of its own, or tell them by cgroup", other, w.label(), *w.UID)
			}
			uids[*w.UID] = w.label()
			if c.ProxyUID != nil && *c.ProxyUID == *w.UID {
				v.bad("workload %s and the sidecar are both uid %d, so that the sidecar's own connections would come back to it: run the sidecar as a user of its own", w.label(), *w.UID)
			} else if slices.Contains(c.ExcludeUIDs, *w.UID) {
				v.bad("uid %d is excluded and workload %s's: take it out of one of them", *w.UID, w.label())
			}
		case w.Cgroup != "":
			g := cleanCgroup(w.Cgroup)
			if other, ok := groups[g]; ok {
				v.bad("workloads %s and %s are both cgroup %s: each needs its own", other, w.label(), g)
			}
			groups[g] = w.label()
			if slices.ContainsFunc(c.ExcludeCgroups, func(e string) bool { return cleanCgroup(e) == g }) {
				v.bad("cgroup %s is excluded and workload %s's: take it out of one of them", g, w.label())
			}
		case len(c.Outbound) > 1:
			v.bad("workload %s has neither uid nor cgroup, and it is one of %d: who of them connects could not be told; give each a uid or a cgroup", w.label(), len(c.Outbound))
		case c.ProxyUID == nil && c.ProxyGID == nil:
			v.bad("workload %s is everybody but the sidecar, and whom the sidecar runs as is not said: give ProxyUID (--proxy-uid), or its own connections come back to it", w.label())
		}
	}
}

// services: nobody excludes what is to be served, nor serves on the sidecar's ports.
func (v *validator) services(c Config) {
	if int(c.InboundScope) >= len(inboundScopes) {
		v.bad("InboundScope is %s: use all or services", c.InboundScope)
	}
	if c.InboundScope == ScopeServices && len(c.ServicePorts) == 0 {
		v.bad("InboundScope services captures ServicePorts, and there are none: name them, or use the scope all")
	}
	for _, p := range c.ServicePorts {
		switch {
		case p == 0:
			v.bad("0 is no service port")
		case p == ssh:
			v.bad("service port 22 is SSH's, which is never captured: serve on another one, or leave it out")
		case slices.Contains(c.capturePorts(), p), p == c.DNSPort:
			v.bad("service port %d is one of the sidecar's own (capture or DNS): move one of them", p)
		case containsPort(c.ProxyPorts, p):
			v.bad("service port %d is also among ProxyPorts, the sidecar's own: move one of them", p)
		case c.InboundPort != 0 && containsPort(c.ExcludeInboundPorts, p):
			v.bad("service port %d is excluded (%s in ExcludeInboundPorts): calls to it would pass the sidecar by; take it out of the exclusion, or out of the mesh", p, rangeWith(c.ExcludeInboundPorts, p))
		}
	}
}

func rangeWith(rs []PortRange, p uint16) PortRange {
	return rs[slices.IndexFunc(rs, func(r PortRange) bool { return r.Contains(p) })]
}

// exclusions: each is well formed and has something to be excluded from.
func (v *validator) exclusions(c Config) {
	for _, e := range []struct {
		field    string
		n        int
		captures bool
		what     string
	}{
		{"ExcludeInboundPorts", len(c.ExcludeInboundPorts), c.InboundPort != 0, "inbound connections are"},
		{"ExcludeInboundCIDRs", len(c.ExcludeInboundCIDRs), c.InboundPort != 0, "inbound connections are"},
		{"ExcludeOutboundPorts", len(c.ExcludeOutboundPorts), len(c.Outbound) > 0, "outbound connections are"},
		{"ExcludeOutboundCIDRs", len(c.ExcludeOutboundCIDRs), len(c.Outbound) > 0, "outbound connections are"},
		{"ExcludeUIDs", len(c.ExcludeUIDs), len(c.Outbound) > 0, "outbound connections are"},
		{"ExcludeGIDs", len(c.ExcludeGIDs), len(c.Outbound) > 0, "outbound connections are"},
		{"ExcludeCgroups", len(c.ExcludeCgroups), len(c.Outbound) > 0, "outbound connections are"},
		{"ExcludeDNSUIDs", len(c.ExcludeDNSUIDs), c.DNSPort != 0, "DNS is"},
	} {
		if e.n > 0 && !e.captures {
			v.bad("%s has no effect: no %s captured; leave it out, or say where to capture to", e.field, e.what)
		}
	}
	for _, e := range []struct {
		field    string
		prefixes []netip.Prefix
	}{
		{"ExcludeInboundCIDRs", c.ExcludeInboundCIDRs}, {"ExcludeOutboundCIDRs", c.ExcludeOutboundCIDRs}, {"VirtualCIDRs", c.VirtualCIDRs},
	} {
		field := e.field
		for _, p := range e.prefixes {
			switch {
			case !p.IsValid(), p.Addr().Is4In6():
				v.bad("%s: %v is no CIDR: write 10.0.0.0/8 or fd00::/8", field, p)
			case p.Addr().Is6() && !c.IPv6 && field != "VirtualCIDRs":
				v.bad("%s: %v has no effect, since IPv6 is left alone altogether: leave it out, or capture IPv6 as well", field, p)
			case field == "VirtualCIDRs" && (p.Overlaps(netip.MustParsePrefix("127.0.0.0/8")) || p.Contains(netip.IPv6Loopback())):
				v.bad("VirtualCIDRs: %v holds loopback addresses, which are real ones: choose a range that nobody has", p)
			}
		}
	}
	for _, g := range append(cgroupsOf(c.Outbound), c.ExcludeCgroups...) {
		if cleanCgroup(g) == "" {
			v.bad("cgroup %q is the root of them all, where every process is: name a group below it, such as system.slice/web.service", g)
		}
	}
	for _, i := range c.ExcludeInterfaces {
		name, wild := strings.CutSuffix(i, "*")
		switch {
		case name == "" || len(name) > 15 || strings.ContainsAny(name, "*/ \t\n\"\\"):
			v.bad("ExcludeInterfaces: %q is no interface's name: up to 15 characters, such as eth1, or docker* for all that begin so", i)
		case name == "lo" || wild && strings.HasPrefix("lo", name):
			v.bad("ExcludeInterfaces: %q takes loopback in, over which virtual addresses are reached: connections to real loopback addresses are not captured anyway; leave it out", i)
		}
	}
}

func (v *validator) times(c Config) {
	if c.HoldFor != 0 && c.HoldFor < time.Second {
		v.bad("HoldFor is %v: at least 1s, since it is renewed every third of it", c.HoldFor)
	}
	if c.Provisional < 0 {
		v.bad("Provisional is %v: a time from now on, or 0 for rules that stand at once", c.Provisional)
	}
}

// The following read a configuration with its defaults.

func (w Workload) label() string {
	if w.Name != "" {
		return w.Name
	}
	return fmt.Sprintf("(port %d)", w.OutboundPort)
}

func cgroupsOf(ws []Workload) (out []string) {
	for _, w := range ws {
		if w.Cgroup != "" {
			out = append(out, w.Cgroup)
		}
	}
	return out
}

// capturePorts are where redirected connections go.
func (c Config) capturePorts() (out []uint16) {
	for _, w := range c.Outbound {
		if w.OutboundPort != 0 {
			out = append(out, w.OutboundPort)
		}
	}
	if c.InboundPort != 0 {
		out = append(out, c.InboundPort)
	}
	return out
}

func (c Config) virtual() []netip.Prefix {
	if len(c.Outbound) == 0 {
		return nil
	}
	all := c.VirtualCIDRs
	if all == nil {
		all = DefaultVirtualCIDRs()
	}
	return slices.DeleteFunc(mergePrefixes(all), func(p netip.Prefix) bool { return p.Addr().Is6() && !c.IPv6 })
}

func (c Config) exemptUIDs() []uint32 {
	if c.ProxyUID == nil {
		return c.ExcludeUIDs
	}
	return append([]uint32{*c.ProxyUID}, c.ExcludeUIDs...)
}

func (c Config) exemptGIDs() []uint32 {
	if c.ProxyGID == nil {
		return c.ExcludeGIDs
	}
	return append([]uint32{*c.ProxyGID}, c.ExcludeGIDs...)
}

func (c Config) capturesDNS() bool {
	return c.DNSPort != 0 && !containsPort(c.ExcludeOutboundPorts, 53)
}

func (c Config) marks() (mark, table uint32) {
	mark, table = c.Mark, c.Table
	if mark == 0 {
		mark = DefaultMark
	}
	if table == 0 {
		table = DefaultTable
	}
	return mark, table
}

func (c Config) holdFor() time.Duration {
	if c.HoldFor == 0 {
		return DefaultHoldFor
	}
	return c.HoldFor
}

// lapse is how long fresh rules capture unless they are held, 0 for good.
func (c Config) lapse() time.Duration {
	switch {
	case c.Provisional > 0:
		return c.Provisional
	case c.FailOpen:
		return c.holdFor()
	}
	return 0
}
