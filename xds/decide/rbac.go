package decide

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// RBAC is an RBAC filter's rules, compiled. Immutable.
type RBAC struct{ rules, shadow *ruleSet }

type ruleSet struct {
	action   resource.RBACAction
	policies []policy
}

type policy struct {
	name                    string
	permissions, principals []node
}

// CompileRBAC compiles an RBAC filter's rules; its error names the field that
// cannot be compiled. A nil RBAC allows everything.
func CompileRBAC(r *resource.RBAC) (*RBAC, error) {
	if r == nil {
		return &RBAC{}, nil
	}
	rules, err := compileRules("rules", r.Rules)
	if err != nil {
		return nil, err
	}
	shadow, err := compileRules("shadow_rules", r.Shadow)
	if err != nil {
		return nil, err
	}
	return &RBAC{rules: rules, shadow: shadow}, nil
}

func compileRules(at string, r *resource.RBACRules) (*ruleSet, error) {
	if r == nil {
		return nil, nil
	}
	out := &ruleSet{action: r.Action, policies: make([]policy, len(r.Policies))}
	for i := range r.Policies {
		p, q := &r.Policies[i], &out.policies[i]
		q.name = p.Name
		for j := range p.Permissions {
			n, err := compilePermission(&p.Permissions[j])
			if err != nil {
				return nil, fmt.Errorf("decide: rbac: %s.policies[%q].permissions[%d]%w", at, p.Name, j, err)
			}
			q.permissions = append(q.permissions, n)
		}
		for j := range p.Principals {
			n, err := compilePrincipal(&p.Principals[j])
			if err != nil {
				return nil, fmt.Errorf("decide: rbac: %s.policies[%q].principals[%d]%w", at, p.Name, j, err)
			}
			q.principals = append(q.principals, n)
		}
	}
	return out, nil
}

// Authorise decides whether a request is allowed or, with a nil head, a
// connection. f must not be nil.
//
// As in Envoy (config.rbac.v3.RBAC): ALLOW denies what no policy matches, so
// with no policy all; DENY allows what no policy matches, so with no policy all;
// LOG enforces nothing. What cannot be told (a header at the layer of
// connections, a regex on bytes that are no text, a path without a leading
// slash) matches no policy that allows and any policy that denies.
func (r *RBAC) Authorise(h Head, f *Facts, tr *Trace) AuthVerdict {
	v := AuthVerdict{Allowed: true, ShadowAllowed: true}
	if r == nil {
		return v
	}
	if r.rules != nil {
		v.Allowed, v.Policy = r.rules.decide("policy", h, f, tr)
	}
	if r.shadow != nil {
		v.ShadowAllowed, v.ShadowPolicy = r.shadow.decide("shadow policy", h, f, tr)
	}
	return v
}

func (s *ruleSet) decide(what string, h Head, f *Facts, tr *Trace) (bool, string) {
	for i := range s.policies {
		p := &s.policies[i]
		t := p.match(h, f)
		matched := t == yes || (t == unknown && s.action == resource.RBACDeny)
		if tr != nil {
			tr.Add(fmt.Sprintf("%s %q", what, p.name), matched, p.explain(t, h, f, s.action))
		}
		if matched {
			return s.action != resource.RBACDeny, p.name
		}
	}
	switch s.action {
	case resource.RBACAllow:
		tr.Add(what, false, "no policy that allows matches: denied")
		return false, ""
	case resource.RBACDeny:
		tr.Add(what, false, "no policy that denies matches: allowed")
	default:
		tr.Add(what, false, "the rules only log: allowed")
	}
	return true, ""
}

func (p *policy) match(h Head, f *Facts) truth {
	t := anyOf(p.permissions, h, f)
	if t == no {
		return no
	}
	return min(t, anyOf(p.principals, h, f))
}

func (p *policy) explain(t truth, h Head, f *Facts, action resource.RBACAction) string {
	switch {
	case t == yes:
		return "a permission and a principal match"
	case t == unknown && action == resource.RBACDeny:
		return "it cannot be told whether it matches, so it denies: " + p.words(h, f)
	case t == unknown:
		return "it cannot be told whether it matches, so it does not: " + p.words(h, f)
	case anyOf(p.permissions, h, f) == no:
		return "no permission matches: " + words(p.permissions, " or ")
	}
	return "no principal matches: " + words(p.principals, " or ") + "; the peer is " + peerWords(f)
}

func (p *policy) words(Head, *Facts) string {
	return words(p.permissions, " or ") + " by " + words(p.principals, " or ")
}

func peerWords(f *Facts) string {
	s := "not authenticated"
	if f.PeerID != "" {
		s = strconv.Quote(f.PeerID)
	}
	return s + " from " + f.Source.String()
}

// node is one compiled node of a permission or principal tree. truth is ordered
// no < unknown < yes, so that "or" is the greatest and "and" the least.
type node struct {
	kind   nodeKind
	sub    []node
	header header
	text   text
	any    bool // nodePeer: any authenticated peer
	lo, hi uint32
	prefix netip.Prefix
}

type nodeKind uint8

const (
	nodeAny nodeKind = iota
	nodeAnd
	nodeOr
	nodeNot
	nodeHeader
	nodePath
	nodePort // of the destination, [lo, hi)
	nodeDestination
	nodeSource
	nodeServerName
	nodePeer
)

func anyOf(ns []node, h Head, f *Facts) truth {
	best := no
	for i := range ns {
		if best = max(best, ns[i].match(h, f)); best == yes {
			break
		}
	}
	return best
}

func allOf(ns []node, h Head, f *Facts) truth {
	worst := yes
	for i := range ns {
		if worst = min(worst, ns[i].match(h, f)); worst == no {
			break
		}
	}
	return worst
}

func (n *node) match(h Head, f *Facts) truth {
	switch n.kind {
	case nodeAny:
		return yes
	case nodeAnd:
		return allOf(n.sub, h, f)
	case nodeOr:
		return anyOf(n.sub, h, f)
	case nodeNot:
		return n.sub[0].match(h, f).not()
	case nodeHeader:
		return n.header.match(h)
	case nodePath:
		if h == nil {
			return unknown
		}
		p := PathOf(h.Path())
		if !strings.HasPrefix(p, "/") {
			return unknown
		}
		return n.text.matchPath(p)
	case nodePort:
		p := uint32(f.Destination.Port())
		return truthOf(p >= n.lo && p < n.hi)
	case nodeDestination:
		return truthOf(n.prefix.Contains(f.Destination.Addr().Unmap()))
	case nodeSource:
		return truthOf(n.prefix.Contains(f.Source.Addr().Unmap()))
	case nodeServerName:
		return n.text.match(f.ServerName)
	}
	if f.PeerID == "" {
		return no
	}
	if n.any {
		return yes
	}
	return n.text.match(f.PeerID)
}

// fail marks the field below which compiling failed.
type fail struct {
	field string
	err   error
}

func (e *fail) Error() string {
	if in, ok := e.err.(*fail); ok {
		return "." + e.field + in.Error()
	}
	return "." + e.field + ": " + e.err.Error()
}
func (e *fail) Unwrap() error { return e.err }

func failed(field string, err error) error {
	if err == nil {
		return nil
	}
	return &fail{field, err}
}

func textNode(k nodeKind, field string, m *resource.StringMatch) (node, error) {
	t, err := compileText(m)
	return node{kind: k, text: t}, failed(field, err)
}

func cidrNode(k nodeKind, field, cidr string) (node, error) {
	p, err := netip.ParsePrefix(cidr)
	return node{kind: k, prefix: p.Masked()}, failed(field, err)
}

func headerNode(m *resource.HeaderMatch) (node, error) {
	h, err := compileHeader(m)
	return node{kind: nodeHeader, header: h}, failed("header", err)
}

// tree compiles the children of a node.
func tree[T any](k nodeKind, field string, subs []T, compile func(*T) (node, error)) (node, error) {
	n := node{kind: k, sub: make([]node, len(subs))}
	for i := range subs {
		var err error
		if n.sub[i], err = compile(&subs[i]); err != nil {
			if k != nodeNot {
				field = fmt.Sprintf("%s[%d]", field, i)
			}
			return n, failed(field, err)
		}
	}
	return n, nil
}

var errEmpty = fmt.Errorf("none of its fields is set; exactly one is needed")

func compilePermission(p *resource.Permission) (node, error) {
	switch {
	case p.Any:
		return node{kind: nodeAny}, nil
	case len(p.And) > 0:
		return tree(nodeAnd, "and_rules.rules", p.And, compilePermission)
	case len(p.Or) > 0:
		return tree(nodeOr, "or_rules.rules", p.Or, compilePermission)
	case p.Not != nil:
		return tree(nodeNot, "not_rule", []resource.Permission{*p.Not}, compilePermission)
	case p.Header != nil:
		return headerNode(p.Header)
	case p.Path != nil:
		return textNode(nodePath, "url_path.path", spelled(p.Path))
	case p.DestinationPort != nil:
		return node{kind: nodePort, lo: uint32(*p.DestinationPort), hi: uint32(*p.DestinationPort) + 1}, nil
	case p.DestinationPortRange != nil:
		return node{kind: nodePort, lo: p.DestinationPortRange.Start, hi: p.DestinationPortRange.End}, nil
	case p.DestinationIP != "":
		return cidrNode(nodeDestination, "destination_ip", p.DestinationIP)
	case p.ServerName != nil:
		return textNode(nodeServerName, "requested_server_name", p.ServerName)
	}
	return node{}, failed("rule", errEmpty)
}

func compilePrincipal(p *resource.Principal) (node, error) {
	switch {
	case p.Any:
		return node{kind: nodeAny}, nil
	case len(p.And) > 0:
		return tree(nodeAnd, "and_ids.ids", p.And, compilePrincipal)
	case len(p.Or) > 0:
		return tree(nodeOr, "or_ids.ids", p.Or, compilePrincipal)
	case p.Not != nil:
		return tree(nodeNot, "not_id", []resource.Principal{*p.Not}, compilePrincipal)
	case p.Authenticated != nil && p.Authenticated.Name == nil:
		return node{kind: nodePeer, any: true}, nil
	case p.Authenticated != nil:
		return textNode(nodePeer, "authenticated.principal_name", p.Authenticated.Name)
	case p.SourceIP != "":
		return cidrNode(nodeSource, "direct_remote_ip", p.SourceIP)
	case p.Header != nil:
		return headerNode(p.Header)
	case p.Path != nil:
		return textNode(nodePath, "url_path.path", spelled(p.Path))
	}
	return node{}, failed("identifier", errEmpty)
}

func words(ns []node, sep string) string {
	s := make([]string, len(ns))
	for i := range ns {
		s[i] = ns[i].String()
	}
	return strings.Join(s, sep)
}

func (n *node) String() string {
	switch n.kind {
	case nodeAny:
		return "anything"
	case nodeAnd:
		return "(" + words(n.sub, " and ") + ")"
	case nodeOr:
		return "(" + words(n.sub, " or ") + ")"
	case nodeNot:
		return "not " + n.sub[0].String()
	case nodeHeader:
		return n.header.String()
	case nodePath:
		return "path " + n.text.String()
	case nodePort:
		return fmt.Sprintf("destination port in [%d, %d)", n.lo, n.hi)
	case nodeDestination:
		return "destination in " + n.prefix.String()
	case nodeSource:
		return "source in " + n.prefix.String()
	case nodeServerName:
		return "server name " + n.text.String()
	}
	if n.any {
		return "any authenticated peer"
	}
	return "peer " + n.text.String()
}
