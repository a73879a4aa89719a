package generate

import (
	"regexp"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// intentions is a destination's L4 intentions as one ALLOW rule set.
//
// Consul's intentions are a list of which the first match decides; RBAC's
// policies are a set of which any match decides. Each allowing intention
// becomes one policy, whose principal is its source without the sources of the
// denying intentions that stand before it; the default action, where it is
// allow, is a last such intention. Where nothing is allowed there is no policy,
// and ALLOW without a policy denies all.
//
// An intention with a peer as its source names identities of another trust
// domain, which no bundle of this mesh vouches for: it can match nobody.
func intentions(m *mesh.Snapshot, dst discovery.ServiceName) *resource.RBAC {
	rules := &resource.RBACRules{Action: resource.RBACAllow}
	var denied []source
	seen := map[source]bool{}
	for _, i := range m.Intentions(dst) {
		src := source{i.Partition, i.Namespace, i.Name}
		if i.Peer != "" || seen[src] {
			continue
		}
		seen[src] = true
		if i.Effect != discovery.Allow {
			denied = append(denied, src)
			continue
		}
		if slices.ContainsFunc(denied, func(d source) bool { return d.covers(src) }) {
			continue
		}
		rules.Policies = append(rules.Policies, policy(m, entryName(i.Entry)+" from "+src.String(), src.principal(m),
			slices.DeleteFunc(slices.Clone(denied), func(d source) bool { return !src.covers(d) })))
	}
	if m.Default == discovery.Allow {
		rules.Policies = append(rules.Policies, policy(m, "default allow", anyService(m), denied))
	}
	slices.SortFunc(rules.Policies, func(a, b resource.RBACPolicy) int { return strings.Compare(a.Name, b.Name) })
	return &resource.RBAC{StatPrefix: "intentions", Rules: rules}
}

// policy allows who is, unless it is one of except.
func policy(m *mesh.Snapshot, name string, who resource.Principal, except []source) resource.RBACPolicy {
	if len(except) > 0 {
		and := []resource.Principal{who}
		for _, d := range except {
			p := d.principal(m)
			and = append(and, resource.Principal{Not: &p})
		}
		who = resource.Principal{And: and}
	}
	return resource.RBACPolicy{
		Name: name, Permissions: []resource.Permission{{Any: true}}, Principals: []resource.Principal{who},
	}
}

// source is whom an intention speaks of; Namespace and Name may be "*".
type source struct{ Partition, Namespace, Name string }

func (s source) String() string {
	if s.Partition == discovery.DefaultPartition && s.Namespace == discovery.DefaultNamespace {
		return s.Name
	}
	return s.Partition + "/" + s.Namespace + "/" + s.Name
}

// covers says whether everyone whom o names is named by s too. Two sources
// either cover one another or have nobody in common.
func (s source) covers(o source) bool {
	return s.Partition == o.Partition &&
		(s.Namespace == "*" || s.Namespace == o.Namespace) && (s.Name == "*" || s.Name == o.Name)
}

// principal matches the SPIFFE ids of a source, in any datacenter: Consul's
// intentions do not name one. The expression is made of fixed parts and quoted
// names; no part of a name is ever read as an expression, and since it is
// matched against the whole id, svc/web is not svc/web-admin.
func (s source) principal(m *mesh.Snapshot) resource.Principal {
	var re strings.Builder
	re.WriteString("spiffe://" + regexp.QuoteMeta(m.TrustDomain))
	if s.Partition != discovery.DefaultPartition {
		re.WriteString("/ap/" + segment(s.Partition))
	}
	re.WriteString("/ns/" + segment(s.Namespace) + "/dc/" + anySegment + "/svc/" + segment(s.Name))
	return resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{
		Name: &resource.StringMatch{Kind: resource.StringRegex, Value: re.String()},
	}}
}

// anyService matches every service of the mesh, in any partition, and no other
// identity: what is no service can be named by no intention, not even denied by
// "*", and is not what a default speaks of.
func anyService(m *mesh.Snapshot) resource.Principal {
	re := "spiffe://" + regexp.QuoteMeta(m.TrustDomain) + "(/ap/" + anySegment + ")?/ns/" + anySegment + "/dc/" + anySegment + "/svc/" + anySegment
	return resource.Principal{Authenticated: &resource.AuthenticatedPrincipal{
		Name: &resource.StringMatch{Kind: resource.StringRegex, Value: re},
	}}
}

const anySegment = "[^/]+"

func segment(name string) string {
	if name == "*" {
		return anySegment
	}
	return regexp.QuoteMeta(name)
}
