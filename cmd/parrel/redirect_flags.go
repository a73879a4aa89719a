package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// redirectFlags are those of `redirect apply`. The first group has the names of
// `consul connect redirect-traffic`.
type redirectFlags struct {
	proxyID                    string
	proxyUID                   string
	proxyInbound, proxyOut     uint16
	excludeIn, excludeOut      []string
	excludeOutCIDR, excludeUID []string
	dnsIP                      string
	dnsPort                    uint16

	target                      redirectTarget
	fromSidecar                 string
	workloads                   []string
	proxyGID                    string
	proxyPorts, servicePorts    []string
	inboundMode, inboundScope   string
	excludeInCIDR, excludeGID   []string
	excludeCgroup, excludeIface []string
	excludeDNSUID, virtualCIDR  []string
	ipv6                        bool
	failOpen, hold              bool
	holdFor, readyTimeout       time.Duration
	readyURL                    string
	print, verbose              bool
}

func (f *redirectFlags) bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.proxyID, "proxy-id", "", "the proxy's id: with --from-sidecar the only one to redirect to, else the workload's name")
	fs.StringVar(&f.proxyUID, "proxy-uid", "", "user (name or number) that the sidecar runs as; its traffic is not captured")
	fs.Uint16Var(&f.proxyInbound, "proxy-inbound-port", 15006, "port of the sidecar's inbound capture listener; 0: nothing inbound is captured")
	fs.Uint16Var(&f.proxyOut, "proxy-outbound-port", 15001, "port of the sidecar's outbound capture listener; 0: nothing outbound is captured")
	fs.StringVar(&f.dnsIP, "consul-dns-ip", "", "accepted for Consul's sake: DNS goes to the sidecar on loopback, so only a loopback address is taken")
	fs.Uint16Var(&f.dnsPort, "consul-dns-port", 0, "port of the sidecar's DNS listener, 15053 by default there; 0: DNS is not captured")
	f.target.bind(cmd)

	fs.StringVar(&f.fromSidecar, "from-sidecar", "", "admin address of the sidecar, which says what to redirect where: HOST:PORT or unix:PATH")
	fs.StringArrayVar(&f.workloads, "workload", nil, "one of several workloads, NAME,user=USER,port=PORT or NAME,cgroup=PATH,port=PORT; repeat for each")
	fs.StringVar(&f.proxyGID, "proxy-gid", "", "group (name or number) that the sidecar runs as; its traffic is not captured")
	fs.StringSliceVar(&f.proxyPorts, "proxy-port", nil, "port or range of the sidecar that others reach, not captured (default: 21000-21255 and 15021, unless --from-sidecar says)")
	fs.StringSliceVar(&f.servicePorts, "service-port", nil, "port on which the workload serves: an exclusion of it is an error")
	fs.StringVar(&f.inboundMode, "inbound-mode", "", "redirect, or tproxy, which lets the application see its client's address (default: redirect)")
	fs.StringVar(&f.inboundScope, "inbound-scope", "", "all ports, or those of services (default: services with --workload or --from-sidecar on a shared host, else all)")
	fs.BoolVar(&f.failOpen, "fail-open", false, "let traffic flow past a sidecar that is gone; the command stays and holds the rules")
	fs.BoolVar(&f.hold, "hold", false, "stay, and make the rules again when somebody removes them or a workload's cgroup is made anew")
	fs.StringVar(&f.readyURL, "ready-url", "", "readiness of the sidecar (default: what --from-sidecar says of itself, else http://127.0.0.1:15000/ready)")
	fs.DurationVar(&f.readyTimeout, "ready-timeout", 30*time.Second, "how long the sidecar may take to be ready before everything is taken back; 0s: do not wait")
	fs.BoolVar(&f.print, "print", false, "print the rules as nft(8) writes them, and change nothing")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say each step before it is taken")
	f.bindExclusions(fs)
}

// bindExclusions makes the flags that do not say who is captured.
func (f *redirectFlags) bindExclusions(fs *pflag.FlagSet) {
	fs.StringSliceVar(&f.excludeIn, "exclude-inbound-port", nil, "inbound port, or range such as 8000-8010, not to capture; repeat for several")
	fs.StringSliceVar(&f.excludeOut, "exclude-outbound-port", nil, "outbound port or range not to capture; 53 turns DNS capture off")
	fs.StringSliceVar(&f.excludeOutCIDR, "exclude-outbound-cidr", nil, "destination not to capture connections to; DNS queries are captured all the same")
	fs.StringSliceVar(&f.excludeUID, "exclude-uid", nil, "user (name or number) whose traffic is not captured")
	fs.StringSliceVar(&f.excludeInCIDR, "exclude-inbound-cidr", nil, "source not to capture connections from")
	fs.StringSliceVar(&f.excludeGID, "exclude-gid", nil, "group (name or number) whose traffic is not captured")
	fs.StringSliceVar(&f.excludeCgroup, "exclude-cgroup", nil, "cgroup (v2) whose traffic is not captured, such as system.slice/backup.service")
	fs.StringSliceVar(&f.excludeIface, "exclude-interface", nil, "interface over which nothing is captured, in or out; docker* for all that begin so")
	fs.StringSliceVar(&f.excludeDNSUID, "exclude-dns-uid", nil, "user whose DNS queries are not captured (default: local resolvers that /etc/resolv.conf names)")
	fs.StringSliceVar(&f.virtualCIDR, "virtual-cidr", nil, "range of virtual addresses (default: 240.0.0.0/4 and fd70:6172:7265:6c::/96); none: no routes are made")
	fs.BoolVar(&f.ipv6, "ipv6", true, "capture IPv6 as well")
	fs.DurationVar(&f.holdFor, "hold-for", intercept.DefaultHoldFor, "how long rules hold by themselves: with --fail-open; three times --hold's interval")
}

// exclusionFlags are those that bindExclusions makes.
func exclusionFlags() (names []string) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(redirectFlags).bindExclusions(fs)
	fs.VisitAll(func(x *pflag.Flag) { names = append(names, x.Name) })
	return names
}

// config is what is to be captured, from the sidecar and the flags.
func (f *redirectFlags) config(ctx context.Context, cmd *cobra.Command) (intercept.Config, error) {
	var c intercept.Config
	var err error
	if f.fromSidecar != "" {
		c, err = f.fromPlan(ctx, cmd)
	} else {
		c, err = f.fromFlags()
	}
	if err != nil {
		return c, err
	}
	return c, f.complete(&c, cmd)
}

// fromPlan asks the sidecar. What it says cannot be said otherwise by a flag.
func (f *redirectFlags) fromPlan(ctx context.Context, cmd *cobra.Command) (c intercept.Config, err error) {
	for _, name := range []string{"proxy-inbound-port", "proxy-outbound-port", "workload", "consul-dns-port", "inbound-mode"} {
		if cmd.Flags().Changed(name) {
			return c, fmt.Errorf("redirect apply: --%s and --from-sidecar are both given, and the sidecar says it itself: leave one out", name)
		}
	}
	p, err := f.plan(ctx)
	if err != nil {
		return c, err
	}
	if f.proxyID != "" {
		var known []string
		for _, x := range p.Proxies {
			known = append(known, x.ProxyID)
		}
		if !slices.Contains(known, f.proxyID) {
			return c, fmt.Errorf("redirect apply: the sidecar at %s does not carry --proxy-id %s; it carries: %s", f.fromSidecar, f.proxyID, strings.Join(known, ", "))
		}
		p.Proxies = slices.DeleteFunc(p.Proxies, func(x intercept.PlanProxy) bool { return x.ProxyID != f.proxyID })
	}
	for _, x := range p.Proxies {
		if x.Error != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "parrel: %s is not captured: %s\n", x.ProxyID, x.Error)
		}
	}
	return p.Config()
}

func (f *redirectFlags) fromFlags() (c intercept.Config, err error) {
	c = intercept.Config{InboundPort: f.proxyInbound, DNSPort: f.dnsPort, ProxyPorts: []intercept.PortRange{{From: 21000, To: 21255}, {From: 15021, To: 15021}}}
	for _, w := range f.workloads {
		l, err := readWorkload(w)
		if err != nil {
			return c, err
		}
		c.Outbound = append(c.Outbound, l)
	}
	if len(f.workloads) == 0 && f.proxyOut != 0 {
		name := f.proxyID
		if name == "" {
			name = "workload"
		}
		c.Outbound = []intercept.Workload{{Name: name, OutboundPort: f.proxyOut}}
	}
	if len(f.workloads) > 0 && len(f.servicePorts) > 0 {
		c.InboundScope = intercept.ScopeServices
	}
	return c, nil
}

// readWorkload reads NAME,user=USER,port=PORT.
func readWorkload(s string) (w intercept.Workload, err error) {
	name, rest, _ := strings.Cut(s, ",")
	w.Name = name
	bad := func(format string, a ...any) (intercept.Workload, error) {
		return w, fmt.Errorf("redirect apply: --workload %s: %w; write NAME,user=USER,port=PORT or NAME,cgroup=PATH,port=PORT", s, fmt.Errorf(format, a...))
	}
	if name == "" || strings.Contains(name, "=") {
		return bad("the name comes first")
	}
	for _, kv := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "user", "uid":
			uid, err := intercept.LookupUser(v)
			if err != nil {
				return bad("%w", err)
			}
			w.UID = &uid
		case "cgroup":
			w.Cgroup = v
		case "port":
			p, err := strconv.ParseUint(v, 10, 16)
			if err != nil || p == 0 {
				return bad("%q is no port", v)
			}
			w.OutboundPort = uint16(p)
		default:
			return bad("%q is neither user, cgroup nor port", kv)
		}
	}
	if w.UID == nil && w.Cgroup == "" {
		return bad("nothing tells it from the others")
	}
	return w, nil
}

// complete adds what flags say of every form, and checks the whole.
func (f *redirectFlags) complete(c *intercept.Config, cmd *cobra.Command) error {
	if err := f.fill(c, cmd); err != nil {
		return err
	}
	return c.Validate()
}

// fill adds what flags say of every form.
func (f *redirectFlags) fill(c *intercept.Config, cmd *cobra.Command) error {
	var errs []error
	id := func(s string, look func(string) (uint32, error), to *[]uint32) {
		n, err := look(s)
		errs = append(errs, err)
		*to = append(*to, n)
	}
	one := func(s string, look func(string) (uint32, error), to **uint32) {
		if s != "" {
			n, err := look(s)
			errs = append(errs, err)
			*to = &n
		}
	}
	one(f.proxyUID, intercept.LookupUser, &c.ProxyUID)
	one(f.proxyGID, intercept.LookupGroup, &c.ProxyGID)
	for _, u := range f.excludeUID {
		id(u, intercept.LookupUser, &c.ExcludeUIDs)
	}
	for _, g := range f.excludeGID {
		id(g, intercept.LookupGroup, &c.ExcludeGIDs)
	}
	ports := func(in []string, to *[]intercept.PortRange) {
		for _, s := range in {
			r, err := intercept.ParsePorts(s)
			errs = append(errs, err)
			*to = append(*to, r)
		}
	}
	if len(f.proxyPorts) > 0 && f.fromSidecar == "" {
		c.ProxyPorts = nil
	}
	ports(f.proxyPorts, &c.ProxyPorts)
	ports(f.excludeIn, &c.ExcludeInboundPorts)
	ports(f.excludeOut, &c.ExcludeOutboundPorts)
	var services []intercept.PortRange
	ports(f.servicePorts, &services)
	for _, r := range services {
		for p := int(r.From); p <= int(r.To); p++ {
			c.ServicePorts = append(c.ServicePorts, uint16(p))
		}
	}
	cidrs := func(flag string, in []string, to *[]netip.Prefix) {
		for _, s := range in {
			p, err := netip.ParsePrefix(s)
			if a, aerr := netip.ParseAddr(s); aerr == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("--%s: %q is no CIDR: write 10.0.0.0/8 or fd00::/8", flag, s))
			}
			*to = append(*to, p)
		}
	}
	cidrs("exclude-inbound-cidr", f.excludeInCIDR, &c.ExcludeInboundCIDRs)
	cidrs("exclude-outbound-cidr", f.excludeOutCIDR, &c.ExcludeOutboundCIDRs)
	switch {
	case len(f.virtualCIDR) == 1 && f.virtualCIDR[0] == "none":
		c.VirtualCIDRs = []netip.Prefix{}
	case len(f.virtualCIDR) > 0:
		cidrs("virtual-cidr", f.virtualCIDR, &c.VirtualCIDRs)
	}
	c.ExcludeCgroups, c.ExcludeInterfaces = f.excludeCgroup, f.excludeIface
	c.IPv6, c.FailOpen, c.HoldFor = f.ipv6, f.failOpen, f.holdFor
	errs = append(errs, f.words(c), f.resolvers(c, cmd), f.dnsAddress())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimPrefix(cmd.CommandPath(), "parrel "), err)
	}
	return nil
}

func (f *redirectFlags) words(c *intercept.Config) (err error) {
	if f.inboundMode != "" {
		if c.InboundMode, err = intercept.ParseInboundMode(f.inboundMode); err != nil {
			return err
		}
	}
	if f.inboundScope != "" {
		c.InboundScope, err = intercept.ParseInboundScope(f.inboundScope)
	}
	return err
}

// resolvers excludes what would ask itself: the sidecar forwards to a resolver of
// this host, whose own queries must not come back.
func (f *redirectFlags) resolvers(c *intercept.Config, cmd *cobra.Command) error {
	var errs []error
	for _, u := range f.excludeDNSUID {
		n, err := intercept.LookupUser(u)
		errs = append(errs, err)
		c.ExcludeDNSUIDs = append(c.ExcludeDNSUIDs, n)
	}
	if len(f.excludeDNSUID) > 0 || c.DNSPort == 0 {
		return errors.Join(errs...)
	}
	uids, err := intercept.LocalResolvers(f.target.netns)
	if err != nil {
		return err
	}
	for _, u := range uids {
		if c.ProxyUID != nil && *c.ProxyUID == u {
			continue
		}
		c.ExcludeDNSUIDs = append(c.ExcludeDNSUIDs, u)
		fmt.Fprintf(cmd.ErrOrStderr(), "parrel: uid %d serves DNS on this host (/etc/resolv.conf): its own queries are not captured; --exclude-dns-uid says otherwise\n", u)
	}
	return nil
}

func (f *redirectFlags) dnsAddress() error {
	if f.dnsIP == "" {
		return nil
	}
	a, err := netip.ParseAddr(f.dnsIP)
	if err != nil || !a.IsLoopback() {
		return fmt.Errorf("--consul-dns-ip %s: DNS is captured by the sidecar, which listens on loopback and forwards what is not the mesh's: leave it out and give --consul-dns-port 15053", f.dnsIP)
	}
	if f.dnsPort == 0 && f.fromSidecar == "" {
		return errors.New("--consul-dns-ip without --consul-dns-port captures nothing: give --consul-dns-port 15053")
	}
	return nil
}
