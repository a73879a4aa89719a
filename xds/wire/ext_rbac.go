package wire

import (
	"fmt"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// noPrefix stands for an empty stat prefix where Envoy demands one.
const noPrefix = "-"

func encodePrefix(s string) string {
	if s == "" {
		return noPrefix
	}
	return s
}

func decodePrefix(s string) string {
	if s == noPrefix {
		return ""
	}
	return s
}

func (e *encoder) networkRBAC(r *resource.RBAC) *netrbacv3.RBAC {
	return &netrbacv3.RBAC{StatPrefix: encodePrefix(r.StatPrefix), Rules: e.rules(r.Rules), ShadowRules: e.rules(r.Shadow)}
}

func (d *decoder) networkRBAC(field string, m *netrbacv3.RBAC) *resource.RBAC {
	return &resource.RBAC{StatPrefix: decodePrefix(m.GetStatPrefix()), Rules: d.rules(field+".rules", m.GetRules()), Shadow: d.rules(field+".shadow_rules", m.GetShadowRules())}
}

func (e *encoder) httpRBAC(r *resource.RBAC) *httprbacv3.RBAC {
	return &httprbacv3.RBAC{RulesStatPrefix: r.StatPrefix, Rules: e.rules(r.Rules), ShadowRules: e.rules(r.Shadow)}
}

func (d *decoder) httpRBAC(field string, m *httprbacv3.RBAC) *resource.RBAC {
	return &resource.RBAC{StatPrefix: m.GetRulesStatPrefix(), Rules: d.rules(field+".rules", m.GetRules()), Shadow: d.rules(field+".shadow_rules", m.GetShadowRules())}
}

var actions = map[resource.RBACAction]rbacv3.RBAC_Action{
	resource.RBACAllow: rbacv3.RBAC_ALLOW, resource.RBACDeny: rbacv3.RBAC_DENY, resource.RBACLog: rbacv3.RBAC_LOG,
}

func (e *encoder) rules(r *resource.RBACRules) *rbacv3.RBAC {
	if r == nil {
		return nil
	}
	out := &rbacv3.RBAC{Action: actions[r.Action]}
	if len(r.Policies) > 0 {
		out.Policies = make(map[string]*rbacv3.Policy, len(r.Policies))
	}
	for i := range r.Policies {
		p := &r.Policies[i]
		out.Policies[p.Name] = &rbacv3.Policy{Permissions: each(p.Permissions, e.permission), Principals: each(p.Principals, e.principal)}
	}
	return out
}

// each encodes a list.
func each[T, P any](in []T, f func(*T) P) []P {
	var out []P
	for i := range in {
		out = append(out, f(&in[i]))
	}
	return out
}

// eachField decodes a list with the path of each element.
func eachField[P, T any](field string, in []P, f func(string, P) T) []T {
	var out []T
	for i, p := range in {
		out = append(out, f(fmt.Sprintf("%s[%d]", field, i), p))
	}
	return out
}

func (d *decoder) rules(field string, m *rbacv3.RBAC) *resource.RBACRules {
	if m == nil {
		return nil
	}
	out := &resource.RBACRules{}
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
	case rbacv3.RBAC_DENY:
		out.Action = resource.RBACDeny
	case rbacv3.RBAC_LOG:
		out.Action = resource.RBACLog
	default:
		d.failf(field+".action", "unknown value %d", m.GetAction())
	}
	for name, p := range m.GetPolicies() {
		at := fmt.Sprintf("%s.policies[%q]", field, name)
		out.Policies = append(out.Policies, resource.RBACPolicy{
			Name:        name,
			Permissions: eachField(at+".permissions", p.GetPermissions(), d.permission),
			Principals:  eachField(at+".principals", p.GetPrincipals(), d.principal),
		})
	}
	return out
}

func pathMatcher(m *matcherv3.StringMatcher) *matcherv3.PathMatcher {
	return &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}
}

func (e *encoder) permission(p *resource.Permission) *rbacv3.Permission {
	set := func(in []resource.Permission) *rbacv3.Permission_Set {
		return &rbacv3.Permission_Set{Rules: each(in, e.permission)}
	}
	switch {
	case p.Any:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	case len(p.And) > 0:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: set(p.And)}}
	case len(p.Or) > 0:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: set(p.Or)}}
	case p.Not != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: e.permission(p.Not)}}
	case p.Header != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: e.headerMatch(p.Header)}}
	case p.Path != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: pathMatcher(e.text(p.Path))}}
	case p.DestinationPort != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(*p.DestinationPort)}}
	case p.DestinationPortRange != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPortRange{DestinationPortRange: &typev3.Int32Range{
			Start: int32(p.DestinationPortRange.Start), End: int32(p.DestinationPortRange.End)}}}
	case p.DestinationIP != "":
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: e.cidrText(p.DestinationIP)}}
	case p.ServerName != nil:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: e.text(p.ServerName)}}
	}
	return &rbacv3.Permission{}
}

func (d *decoder) permission(field string, m *rbacv3.Permission) resource.Permission {
	var out resource.Permission
	switch x := m.GetRule().(type) {
	case *rbacv3.Permission_Any:
		out.Any = x.Any
	case *rbacv3.Permission_AndRules:
		out.And = eachField(field+".and_rules.rules", x.AndRules.GetRules(), d.permission)
	case *rbacv3.Permission_OrRules:
		out.Or = eachField(field+".or_rules.rules", x.OrRules.GetRules(), d.permission)
	case *rbacv3.Permission_NotRule:
		sub := d.permission(field+".not_rule", x.NotRule)
		out.Not = &sub
	case *rbacv3.Permission_Header:
		out.Header = d.headerMatch(field+".header", x.Header)
	case *rbacv3.Permission_UrlPath:
		out.Path = d.text(field+".url_path.path", x.UrlPath.GetPath())
	case *rbacv3.Permission_DestinationPort:
		port := d.port(field+".destination_port", x.DestinationPort)
		out.DestinationPort = &port
	case *rbacv3.Permission_DestinationPortRange:
		r := x.DestinationPortRange
		if r.GetStart() < 0 || r.GetEnd() < 0 {
			d.failf(field+".destination_port_range", "[%d, %d) holds no port", r.GetStart(), r.GetEnd())
			break
		}
		out.DestinationPortRange = &resource.PortRange{Start: uint32(r.GetStart()), End: uint32(r.GetEnd())}
	case *rbacv3.Permission_DestinationIp:
		out.DestinationIP = d.cidr(field+".destination_ip", x.DestinationIp).String()
	case *rbacv3.Permission_RequestedServerName:
		out.ServerName = d.text(field+".requested_server_name", x.RequestedServerName)
	}
	return out // nothing set: the walk or Validate says so
}

func (e *encoder) principal(p *resource.Principal) *rbacv3.Principal {
	set := func(in []resource.Principal) *rbacv3.Principal_Set {
		return &rbacv3.Principal_Set{Ids: each(in, e.principal)}
	}
	switch {
	case p.Any:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	case len(p.And) > 0:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: set(p.And)}}
	case len(p.Or) > 0:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: set(p.Or)}}
	case p.Not != nil:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: e.principal(p.Not)}}
	case p.Authenticated != nil:
		a := &rbacv3.Principal_Authenticated{}
		if p.Authenticated.Name != nil {
			a.PrincipalName = e.text(p.Authenticated.Name)
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: a}}
	case p.SourceIP != "":
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: e.cidrText(p.SourceIP)}}
	case p.Header != nil:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: e.headerMatch(p.Header)}}
	case p.Path != nil:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_UrlPath{UrlPath: pathMatcher(e.text(p.Path))}}
	}
	return &rbacv3.Principal{}
}

func (d *decoder) principal(field string, m *rbacv3.Principal) resource.Principal {
	var out resource.Principal
	switch x := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		out.Any = x.Any
	case *rbacv3.Principal_AndIds:
		out.And = eachField(field+".and_ids.ids", x.AndIds.GetIds(), d.principal)
	case *rbacv3.Principal_OrIds:
		out.Or = eachField(field+".or_ids.ids", x.OrIds.GetIds(), d.principal)
	case *rbacv3.Principal_NotId:
		sub := d.principal(field+".not_id", x.NotId)
		out.Not = &sub
	case *rbacv3.Principal_Authenticated_:
		out.Authenticated = &resource.AuthenticatedPrincipal{}
		if n := x.Authenticated.GetPrincipalName(); n != nil {
			out.Authenticated.Name = d.text(field+".authenticated.principal_name", n)
		}
	case *rbacv3.Principal_DirectRemoteIp:
		out.SourceIP = d.cidr(field+".direct_remote_ip", x.DirectRemoteIp).String()
	case *rbacv3.Principal_Header:
		out.Header = d.headerMatch(field+".header", x.Header)
	case *rbacv3.Principal_UrlPath:
		out.Path = d.text(field+".url_path.path", x.UrlPath.GetPath())
	}
	return out
}
