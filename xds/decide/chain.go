package decide

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Chains is a listener's filter chains, compiled. Immutable.
type Chains struct {
	ports map[uint16]*portChains // 0: chains without a port
	def   *resource.FilterChain
}

// portChains are the chains of one destination port, by destination prefix.
type portChains struct {
	prefixes map[netip.Prefix][]*resource.FilterChain
	bits4    []int // distinct lengths of IPv4 prefixes, longest first
	bits6    []int
	any      []*resource.FilterChain // without a destination prefix
}

// CompileListener compiles the filter chains of a valid listener. It keeps
// pointers into l.
func CompileListener(l *resource.Listener) *Chains {
	c := &Chains{ports: map[uint16]*portChains{}, def: l.Default}
	for i := range l.Chains {
		fc := &l.Chains[i]
		p := c.ports[fc.Match.DestinationPort]
		if p == nil {
			p = &portChains{prefixes: map[netip.Prefix][]*resource.FilterChain{}}
			c.ports[fc.Match.DestinationPort] = p
		}
		if len(fc.Match.DestinationPrefixes) == 0 {
			p.any = append(p.any, fc)
			continue
		}
		for _, pre := range fc.Match.DestinationPrefixes {
			pre = pre.Masked()
			p.prefixes[pre] = append(p.prefixes[pre], fc)
			bits := &p.bits6
			if pre.Addr().Is4() {
				bits = &p.bits4
			}
			if !slices.Contains(*bits, pre.Bits()) {
				*bits = append(*bits, pre.Bits())
			}
		}
	}
	for _, p := range c.ports {
		slices.SortFunc(p.bits4, func(a, b int) int { return b - a })
		slices.SortFunc(p.bits6, func(a, b int) int { return b - a })
	}
	return c
}

// Match says which filter chain a connection takes; false where none matches
// and the listener has no default chain.
//
// The criteria are taken in Envoy's order (config.listener.v3.FilterChainMatch):
// destination port, destination prefix, server name, transport protocol,
// application protocol, source prefix. At each the most specific value that
// matches any chain still in the running decides, and there is no way back: a
// chain for the exact port hides those without a port, even if a later
// criterion then rules it out.
func (c *Chains) Match(conn Connection, tr *Trace) (*resource.FilterChain, bool) {
	fc := c.specific(&conn, tr)
	if fc != nil {
		tr.Add(chainSubject(tr, fc), true, "the most specific chain")
		return fc, true
	}
	if c.def != nil {
		tr.Add("default_filter_chain", true, "no chain is more specific")
		return c.def, true
	}
	tr.Add("default_filter_chain", false, "no chain matches and there is no default chain: the connection is closed")
	return nil, false
}

// Settled says that what a connection's client sends cannot change the chain: no
// chain for its destination asks for a server name, a transport protocol or an
// application protocol.
func (c *Chains) Settled(conn Connection) bool {
	p := c.ports[conn.Destination.Port()]
	if p == nil || conn.Destination.Port() == 0 {
		p = c.ports[0]
	}
	if p == nil {
		return true
	}
	for _, fc := range p.byDestination(conn.Destination.Addr().Unmap()) {
		m := &fc.Match
		if len(m.ServerNames) > 0 || m.TransportProtocol != "" || len(m.ApplicationProtocols) > 0 {
			return false
		}
	}
	return true
}

func chainSubject(tr *Trace, fc *resource.FilterChain) string {
	if tr == nil {
		return ""
	}
	return fmt.Sprintf("filter chain %q", fc.Name)
}

func (c *Chains) specific(conn *Connection, tr *Trace) *resource.FilterChain {
	p := c.ports[conn.Destination.Port()]
	if p == nil || conn.Destination.Port() == 0 {
		p = c.ports[0]
	}
	if p == nil {
		return nil
	}
	if tr != nil {
		c.explainPorts(p, conn, tr)
	}
	in := p.byDestination(conn.Destination.Addr().Unmap())
	if tr != nil {
		p.explainPrefixes(in, conn, tr)
	}
	return narrow(in, conn, tr)
}

func (p *portChains) byDestination(a netip.Addr) []*resource.FilterChain {
	bits := p.bits6
	if a.Is4() {
		bits = p.bits4
	}
	if a.IsValid() {
		for _, b := range bits {
			if pre, err := a.Prefix(b); err == nil {
				if in, ok := p.prefixes[pre]; ok {
					return in
				}
			}
		}
	}
	return p.any
}

// Later criteria, in order.
const (
	byServerName = iota
	byTransport
	byALPN
	bySource
	criteria
)

var criterionNames = [criteria]string{"server_names", "transport_protocol", "application_protocols", "source_prefix_ranges"}

// score says how specifically a chain's criterion matches: -1 not at all, 0
// where the chain does not ask, more where it asks for more.
func score(criterion int, m *resource.ChainMatch, conn *Connection) int {
	switch criterion {
	case byServerName:
		return scoreServerName(m.ServerNames, conn.ServerName)
	case byTransport:
		if m.TransportProtocol == "" {
			return 0
		}
		if m.TransportProtocol == conn.TransportProtocol {
			return 1
		}
		return -1
	case byALPN:
		if len(m.ApplicationProtocols) == 0 {
			return 0
		}
		for i, p := range conn.ALPN { // what the client offers first decides
			if slices.Contains(m.ApplicationProtocols, p) {
				return len(conn.ALPN) - i
			}
		}
		return -1
	}
	if len(m.SourcePrefixes) == 0 {
		return 0
	}
	best, a := -1, conn.Source.Addr().Unmap()
	for _, p := range m.SourcePrefixes {
		if p.Contains(a) && p.Bits()+1 > best {
			best = p.Bits() + 1
		}
	}
	return best
}

func scoreServerName(names []string, sni string) int {
	if len(names) == 0 {
		return 0
	}
	best := -1
	for _, n := range names {
		if suffix, wild := strings.CutPrefix(n, "*"); wild {
			if len(sni) > len(suffix) && equalFold(sni[len(sni)-len(suffix):], suffix) && len(suffix) > best {
				best = len(suffix)
			}
		} else if equalFold(n, sni) {
			return 1 << 20
		}
	}
	return best
}

// narrow applies the later criteria without keeping a set: a chain is still in
// the running at criterion k if it has the best score at each one before.
func narrow(in []*resource.FilterChain, conn *Connection, tr *Trace) *resource.FilterChain {
	var best [criteria]int
	running := func(fc *resource.FilterChain, before int) bool {
		for k := range before {
			if score(k, &fc.Match, conn) != best[k] {
				return false
			}
		}
		return true
	}
	for k := range criteria {
		best[k] = -1
		for _, fc := range in {
			if running(fc, k) {
				best[k] = max(best[k], score(k, &fc.Match, conn))
			}
		}
		if tr != nil {
			for _, fc := range in {
				if s := score(k, &fc.Match, conn); running(fc, k) && s < best[k] || running(fc, k) && s < 0 {
					tr.Add(chainSubject(tr, fc), false, explainCriterion(k, s, &fc.Match, conn))
				}
			}
		}
		if best[k] < 0 {
			return nil
		}
	}
	for _, fc := range in {
		if running(fc, criteria) {
			return fc
		}
	}
	return nil
}

func explainCriterion(k, s int, m *resource.ChainMatch, conn *Connection) string {
	if s >= 0 {
		return criterionNames[k] + " is matched more specifically by another chain"
	}
	switch k {
	case byServerName:
		return fmt.Sprintf("server name %q is none of %q", conn.ServerName, m.ServerNames)
	case byTransport:
		return fmt.Sprintf("transport protocol %q is not %q", conn.TransportProtocol, m.TransportProtocol)
	case byALPN:
		return fmt.Sprintf("none of the application protocols %q is in %q", conn.ALPN, m.ApplicationProtocols)
	}
	return fmt.Sprintf("source %s is in none of %s", conn.Source.Addr(), m.SourcePrefixes)
}

func (c *Chains) explainPorts(chosen *portChains, conn *Connection, tr *Trace) {
	from := len(tr.Steps)
	for port, p := range c.ports {
		if p == chosen {
			continue
		}
		why := fmt.Sprintf("destination port %d is not %d", conn.Destination.Port(), port)
		if port == 0 {
			why = fmt.Sprintf("another chain asks for destination port %d", conn.Destination.Port())
		}
		p.each(func(fc *resource.FilterChain) { tr.Add(chainSubject(tr, fc), false, why) })
	}
	slices.SortStableFunc(tr.Steps[from:], func(a, b Step) int { return strings.Compare(a.Subject, b.Subject) })
}

func (p *portChains) explainPrefixes(in []*resource.FilterChain, conn *Connection, tr *Trace) {
	from := len(tr.Steps)
	p.each(func(fc *resource.FilterChain) {
		if !slices.Contains(in, fc) {
			tr.Add(chainSubject(tr, fc), false, fmt.Sprintf("destination %s does not have the most specific prefix among %s", conn.Destination.Addr(), fc.Match.DestinationPrefixes))
		}
	})
	added := tr.Steps[from:]
	slices.SortStableFunc(added, func(a, b Step) int { return strings.Compare(a.Subject, b.Subject) })
}

// each calls f once for every chain.
func (p *portChains) each(f func(*resource.FilterChain)) {
	seen := map[*resource.FilterChain]bool{}
	visit := func(l []*resource.FilterChain) {
		for _, fc := range l {
			if !seen[fc] {
				seen[fc] = true
				f(fc)
			}
		}
	}
	visit(p.any)
	for _, l := range p.prefixes {
		visit(l)
	}
}
