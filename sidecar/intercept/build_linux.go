package intercept

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/expr"
)

// The names of what is in the table. tableName is what `nft list` shows.
const (
	tableName = "parrel"
	// An empty chain of one of these names says that the table is ours, and how it
	// fails.
	markOpen   = "made_by_parrel_redirect_fail_open"
	markClosed = "made_by_parrel_redirect_fail_closed"

	setCapture       = "capture"
	setCapturePorts  = "capture_ports"
	setExemptUIDs    = "exempt_uids"
	setExemptGIDs    = "exempt_gids"
	setExemptDNS     = "exempt_dns_uids"
	setOutPorts      = "outbound_excluded_ports"
	setOut4, setOut6 = "outbound_excluded4", "outbound_excluded6"
	setInPorts       = "inbound_excluded_ports"
	setIn4, setIn6   = "inbound_excluded4", "inbound_excluded6"
	setServices      = "inbound_ports"
	setVirt4         = "virtual4"
	setVirt6         = "virtual6"

	chainWorkloads = "workloads"
	chainInbound   = "inbound"
	outPrefix      = "outbound_" // and the capture port: one workload's
	inPrefix       = "captured_" // and the mode and port
)

// The priorities. Output comes before other tools' NAT (-100), Docker's DNAT of
// 127.0.0.11 among it: of several NAT chains the first that decides wins. Prerouting
// comes after it: what another tool has sent elsewhere (a published port of
// Docker) is not ours. The guards see what the application asked for, before any NAT.
const (
	priorityGuard    = -110
	priorityOutbound = -105
	priorityInbound  = -95
	priorityMangle   = -150
	priorityVirtual  = 0
)

// compose is the table for c. lapse is how long it captures unless it is held, 0
// for good. groups are the cgroups that c names.
func compose(c Config, groups map[string]cgroup, lapse time.Duration) ruleset {
	var r ruleset
	mark := markClosed
	if c.FailOpen {
		mark = markOpen
	}
	r.chains = append(r.chains, chain{name: mark})
	r.sets = append(r.sets, captureSet(lapse))
	r.sets = append(r.sets, portSet(setCapturePorts, Ports(c.capturePorts()...)))
	b := builder{c: c, groups: groups, ruleset: &r}
	b.guards()
	if len(c.Outbound) > 0 {
		b.outbound()
	}
	if c.InboundPort != 0 {
		b.inbound()
	}
	return r
}

// captureSet is the switch of every capturing rule: the protocols in it are
// captured. Its elements may lapse, which is what lets traffic flow again without
// anybody doing anything.
func captureSet(lapse time.Duration) set {
	return set{name: setCapture, typ: typeProto, timeout: true, elems: []element{
		{text: "tcp", from: []byte{tcp.value}, timeout: lapse},
		{text: "udp", from: []byte{udp.value}, timeout: lapse},
	}}
}

type builder struct {
	c      Config
	groups map[string]cgroup
	*ruleset
	v4, v6 bool // the families that have virtual addresses
}

func (b *builder) chain(c chain) { b.chains = append(b.chains, c) }

// guards are what holds whether anything is captured or not: nobody connects to a
// capture port, and nothing but a captured connection goes to a virtual address.
func (b *builder) guards() {
	virtual := b.c.virtual()
	var s4, s6 set
	s4, b.v4 = addrSet(setVirt4, false, virtual)
	s6, b.v6 = addrSet(setVirt6, true, virtual)
	out := chain{name: "guard_output", hook: "output", kind: "filter", priority: priorityGuard, rules: []rule{
		{"only redirection leads to a capture port", []stmt{portIn(tcp, setCapturePorts), reset()}},
	}}
	in := chain{name: "guard_prerouting", hook: "prerouting", kind: "filter", priority: priorityGuard, rules: []rule{
		{"only redirection leads to a capture port", []stmt{interfaceIs(expr.MetaKeyIIFNAME, "lo", true), portIn(tcp, setCapturePorts), verdict(expr.VerdictDrop, "")}},
	}}
	virt := chain{name: "virtual", hook: "output", kind: "filter", priority: priorityVirtual}
	for _, f := range []struct {
		has bool
		p   protocol
		set set
	}{{b.v4, ipv4, s4}, {b.v6, ipv6, s6}} {
		if !f.has {
			continue
		}
		b.sets = append(b.sets, f.set)
		in.rules = append(in.rules, rule{"virtual addresses are this host's own business",
			[]stmt{interfaceIs(expr.MetaKeyIIFNAME, "lo", true), addrIn(f.p, false, f.set.name), verdict(expr.VerdictDrop, "")}})
		virt.rules = append(virt.rules,
			rule{"not captured: nobody serves there", []stmt{isNew(), addrIn(f.p, false, f.set.name), isTCP(), reset()}},
			rule{"", []stmt{isNew(), addrIn(f.p, false, f.set.name), noRoute()}})
	}
	b.chain(out)
	b.chain(in)
	if len(virt.rules) > 0 {
		b.chain(virt)
	}
}

// outbound: connections made here.
func (b *builder) outbound() {
	c := b.c
	first := rule{stmts: []stmt{metaIn(expr.MetaKeyL4PROTO, setCapture, false)}}
	// "!=" rather than a return before: what has no owner, such as the kernel's own
	// NFS, matches neither and is left alone.
	if ids := c.exemptUIDs(); len(ids) > 0 {
		b.sets = append(b.sets, idSet(setExemptUIDs, typeUID, ids))
		first.stmts = append(first.stmts, metaIn(expr.MetaKeySKUID, setExemptUIDs, true))
	}
	if ids := c.exemptGIDs(); len(ids) > 0 {
		b.sets = append(b.sets, idSet(setExemptGIDs, typeGID, ids))
		first.stmts = append(first.stmts, metaIn(expr.MetaKeySKGID, setExemptGIDs, true))
	}
	first.stmts = append(first.stmts, verdict(expr.VerdictJump, chainWorkloads))
	b.chain(chain{name: "outbound", hook: "output", kind: "nat", priority: priorityOutbound, rules: []rule{first}})

	ret := verdict(expr.VerdictReturn, "")
	w := chain{name: chainWorkloads}
	add := func(comment string, stmts ...stmt) { w.rules = append(w.rules, rule{comment, stmts}) }
	if !c.IPv6 {
		add("IPv6 is left alone", familyIs(ipv6), ret)
	}
	add("", portIs(udp, 53, true), ret)
	for _, i := range c.ExcludeInterfaces {
		add(comment(commentInterface+i), interfaceIs(expr.MetaKeyOIFNAME, i, false), ret)
	}
	dns := c.capturesDNS()
	var queries stmt
	if dns {
		queries = portIs(tcp, 53, true) // are captured whatever resolver they go to
	}
	b.excludedPrefixes(&w, queries, setOut4, setOut6, c.ExcludeOutboundCIDRs, false)
	if len(c.ExcludeOutboundPorts) > 0 {
		b.sets = append(b.sets, portSet(setOutPorts, c.ExcludeOutboundPorts))
		add("", portIn(tcp, setOutPorts), ret)
	}
	if dns {
		add("loopback stays, but for DNS", portIs(tcp, 53, true), toLoopback4(), ret)
		add("", portIs(tcp, 53, true), toLoopback6(), ret)
		if len(c.ExcludeDNSUIDs) > 0 {
			b.sets = append(b.sets, idSet(setExemptDNS, typeUID, c.ExcludeDNSUIDs))
			add("queries of local resolvers", portIs(udp, 53, false), metaIn(expr.MetaKeySKUID, setExemptDNS, false), ret)
			add("", portIs(tcp, 53, false), metaIn(expr.MetaKeySKUID, setExemptDNS, false), ret)
		}
	} else {
		add("loopback stays", toLoopback4(), ret)
		add("", toLoopback6(), ret)
	}
	b.cgroupRules(&w)
	for _, l := range c.Outbound {
		out := outPrefix + fmt.Sprint(l.OutboundPort)
		switch {
		case l.Cgroup != "":
		case l.UID != nil:
			add(comment(fmt.Sprintf("%s%s, uid %d", commentWorkload, l.Name, *l.UID)), uidIs(*l.UID), verdict(expr.VerdictGoto, out))
		default:
			add(comment(commentWorkload+l.Name), verdict(expr.VerdictGoto, out))
		}
	}
	b.chain(w)
	for _, l := range c.Outbound {
		o := chain{name: outPrefix + fmt.Sprint(l.OutboundPort)}
		if dns {
			queriesTo := commentQueries + fmt.Sprint(c.DNSPort)
			o.rules = append(o.rules,
				rule{queriesTo, []stmt{portIs(udp, 53, false), counter(), redirect(c.DNSPort)}},
				rule{queriesTo, []stmt{portIs(tcp, 53, false), opens(), counter(), redirect(c.DNSPort)}})
		}
		o.rules = append(o.rules, rule{commentConnections, []stmt{opens(), counter(), redirect(l.OutboundPort)}})
		b.chain(o)
	}
}

// cgroupRules are those of exclusions and workloads that are told by cgroup, the
// deepest first: of a group and one above it, the process's own decides.
func (b *builder) cgroupRules(w *chain) {
	type entry struct {
		g cgroup
		r rule
	}
	var all []entry
	for _, name := range b.c.ExcludeCgroups {
		if g, ok := b.groups[name]; ok {
			all = append(all, entry{g, rule{comment(commentCgroup + g.path), []stmt{cgroupIs(g), verdict(expr.VerdictReturn, "")}}})
		}
	}
	for _, l := range b.c.Outbound {
		if g, ok := b.groups[l.Cgroup]; ok && l.Cgroup != "" {
			all = append(all, entry{g, rule{comment(fmt.Sprintf("%s%s, cgroup %s", commentWorkload, l.Name, g.path)),
				[]stmt{cgroupIs(g), verdict(expr.VerdictGoto, outPrefix+fmt.Sprint(l.OutboundPort))}}})
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return int(b.g.level) - int(a.g.level) })
	for _, e := range all {
		w.rules = append(w.rules, e.r)
	}
}

// inbound: connections from outside to this host's own addresses.
func (b *builder) inbound() {
	c := b.c
	ret := verdict(expr.VerdictReturn, "")
	in := chain{name: chainInbound, hook: "prerouting", kind: "nat", priority: priorityInbound}
	if c.InboundMode == TProxy {
		in.kind = "filter"
	}
	add := func(comment string, stmts ...stmt) { in.rules = append(in.rules, rule{comment, stmts}) }
	add("loopback stays", interfaceIs(expr.MetaKeyIIFNAME, "lo", false), ret)
	add("what is forwarded is not ours", toLocal(true), ret)
	if !c.IPv6 {
		add("IPv6 is left alone", familyIs(ipv6), ret)
	}
	for _, i := range c.ExcludeInterfaces {
		add(comment(commentInterface+i), interfaceIs(expr.MetaKeyIIFNAME, i, false), ret)
	}
	b.excludedPrefixes(&in, stmt{}, setIn4, setIn6, c.ExcludeInboundCIDRs, true)
	b.sets = append(b.sets, portSet(setInPorts, Ports(ssh), c.ExcludeInboundPorts, c.ProxyPorts))
	add("SSH, what is excluded, and the sidecar's own", portIn(tcp, setInPorts), ret)
	captured := inPrefix + c.InboundMode.String() + "_" + fmt.Sprint(c.InboundPort)
	last := []stmt{metaIn(expr.MetaKeyL4PROTO, setCapture, false)}
	if c.InboundScope == ScopeServices {
		b.sets = append(b.sets, portSet(setServices, Ports(c.ServicePorts...)))
		last = append(last, portIn(tcp, setServices))
	}
	add("", append(last, verdict(expr.VerdictJump, captured))...)
	b.chain(in)
	to := chain{name: captured}
	if c.InboundMode == TProxy {
		to.rules = []rule{
			{commentConnections, []stmt{opens(), counter()}},
			// Every segment, not only the first: with SYN cookies the third makes the connection.
			{"", []stmt{tproxy(c.InboundPort), verdict(expr.VerdictAccept, "")}},
			{"nobody listens there transparently", []stmt{opens(), reset()}},
		}
		b.chain(to)
		// The sidecar dials the application from the client's address: the answers
		// have to come back to the sidecar.
		mark, _ := c.marks()
		b.chain(chain{name: "tproxy_answers", hook: "output", kind: "route", priority: priorityMangle, rules: []rule{
			{"the sidecar's connections in the client's name", []stmt{markIs(mark), setConnMark(mark)}},
			{"their answers stay here", []stmt{isReply(), connMarkIs(mark), setMark(mark)}},
		}})
		return
	}
	to.rules = []rule{{commentConnections, []stmt{opens(), counter(), redirect(c.InboundPort)}}}
	b.chain(to)
}

// excludedPrefixes returns for addresses in one of them; also is a further match.
func (b *builder) excludedPrefixes(c *chain, also stmt, name4, name6 string, prefixes []netip.Prefix, source bool) {
	for _, f := range []struct {
		p       protocol
		name    string
		virt    string
		virtual bool
	}{{ipv4, name4, setVirt4, b.v4}, {ipv6, name6, setVirt6, b.v6}} {
		s, ok := addrSet(f.name, f.p == ipv6, prefixes)
		if !ok {
			continue
		}
		b.sets = append(b.sets, s)
		var stmts []stmt
		if also.text != "" {
			stmts = append(stmts, also)
		}
		stmts = append(stmts, addrIn(f.p, source, f.name))
		if !source && f.virtual && overlap(prefixes, b.c.virtual()) {
			stmts = append(stmts, addrNotIn(f.p, false, f.virt)) // they lead nowhere else
		}
		c.rules = append(c.rules, rule{"", append(stmts, verdict(expr.VerdictReturn, ""))})
	}
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}

// The comments that Show reads back.
const (
	commentWorkload    = "workload "
	commentCgroup      = "excluded cgroup "
	commentInterface   = "excluded interface "
	commentConnections = "connections"
	commentQueries     = "queries to port "
)
