package resource

import "fmt"

// maxDepth bounds permission and principal trees, so that a hostile resource
// cannot exhaust the stack of those that walk them.
const maxDepth = 64

// Validate says whether the rules can be executed; fields are named relative to
// the filter's configuration.
func (r *RBAC) Validate() error {
	c := &check{}
	c.rbac("", r)
	return c.err()
}

func (c *check) rbac(at string, r *RBAC) {
	if at != "" {
		at += "."
	}
	c.text(at+"stat_prefix", r.StatPrefix)
	if r.Rules != nil {
		c.rules(at+"rules", r.Rules)
	}
	if r.Shadow != nil {
		c.rules(at+"shadow_rules", r.Shadow)
	}
}

func (c *check) rules(at string, r *RBACRules) {
	if r.Action > RBACLog {
		c.failf(at+".action", "unknown value %d", r.Action)
	}
	names := map[string]bool{}
	for i := range r.Policies {
		p := &r.Policies[i]
		field := fmt.Sprintf("%s.policies[%q]", at, p.Name)
		c.name(field, p.Name)
		if names[p.Name] {
			c.failf(field, "stands there twice")
		}
		names[p.Name] = true
		if len(p.Permissions) == 0 {
			c.failf(field+".permissions", "there is none; the policy would never match")
		}
		if len(p.Principals) == 0 {
			c.failf(field+".principals", "there is none; the policy would never match")
		}
		for j := range p.Permissions {
			c.permission(fmt.Sprintf("%s.permissions[%d]", field, j), &p.Permissions[j], 0)
		}
		for j := range p.Principals {
			c.principal(fmt.Sprintf("%s.principals[%d]", field, j), &p.Principals[j], 0)
		}
	}
}

func (c *check) permission(at string, p *Permission, depth int) {
	if depth > maxDepth {
		c.failf(at, "is nested deeper than %d", maxDepth)
		return
	}
	c.one(at, map[string]bool{
		"any": p.Any, "and_rules": len(p.And) > 0, "or_rules": len(p.Or) > 0, "not_rule": p.Not != nil,
		"header": p.Header != nil, "url_path": p.Path != nil, "destination_port": p.DestinationPort != nil,
		"destination_port_range": p.DestinationPortRange != nil, "destination_ip": p.DestinationIP != "",
		"requested_server_name": p.ServerName != nil,
	})
	for i := range p.And {
		c.permission(fmt.Sprintf("%s.and_rules.rules[%d]", at, i), &p.And[i], depth+1)
	}
	for i := range p.Or {
		c.permission(fmt.Sprintf("%s.or_rules.rules[%d]", at, i), &p.Or[i], depth+1)
	}
	if p.Not != nil {
		c.permission(at+".not_rule", p.Not, depth+1)
	}
	if p.Header != nil {
		c.headerMatch(at+".header", p.Header)
	}
	if p.Path != nil {
		c.stringMatch(at+".url_path.path", p.Path)
	}
	if r := p.DestinationPortRange; r != nil && (r.Start >= r.End || r.End > 65536) {
		c.failf(at+".destination_port_range", "[%d, %d) holds no port", r.Start, r.End)
	}
	if p.DestinationIP != "" {
		c.cidr(at+".destination_ip", p.DestinationIP)
	}
	if p.ServerName != nil {
		c.stringMatch(at+".requested_server_name", p.ServerName)
	}
}

func (c *check) principal(at string, p *Principal, depth int) {
	if depth > maxDepth {
		c.failf(at, "is nested deeper than %d", maxDepth)
		return
	}
	c.one(at, map[string]bool{
		"any": p.Any, "and_ids": len(p.And) > 0, "or_ids": len(p.Or) > 0, "not_id": p.Not != nil,
		"authenticated": p.Authenticated != nil, "direct_remote_ip": p.SourceIP != "",
		"header": p.Header != nil, "url_path": p.Path != nil,
	})
	for i := range p.And {
		c.principal(fmt.Sprintf("%s.and_ids.ids[%d]", at, i), &p.And[i], depth+1)
	}
	for i := range p.Or {
		c.principal(fmt.Sprintf("%s.or_ids.ids[%d]", at, i), &p.Or[i], depth+1)
	}
	if p.Not != nil {
		c.principal(at+".not_id", p.Not, depth+1)
	}
	if a := p.Authenticated; a != nil && a.Name != nil {
		c.stringMatch(at+".authenticated.principal_name", a.Name)
	}
	if p.SourceIP != "" {
		c.cidr(at+".direct_remote_ip", p.SourceIP)
	}
	if p.Header != nil {
		c.headerMatch(at+".header", p.Header)
	}
	if p.Path != nil {
		c.stringMatch(at+".url_path.path", p.Path)
	}
}
