package resource

// RBAC is envoy.config.rbac.v3.RBAC as a network or HTTP filter. What allows
// and denies is decided by decide.Authorise. As in Envoy, ALLOW with no policy
// denies all and DENY with no policy allows all.
type RBAC struct {
	StatPrefix string
	Rules      *RBACRules // nil: enforces nothing
	Shadow     *RBACRules // evaluated and counted, never enforced
}

// RBACAction is the action of rules.
type RBACAction uint8

const (
	RBACAllow RBACAction = iota
	RBACDeny
	RBACLog
)

// RBACRules is one rule set; policies are sorted by name, since their order
// decides nothing.
type RBACRules struct {
	Action   RBACAction
	Policies []RBACPolicy
}

// RBACPolicy matches when any permission and any principal match.
type RBACPolicy struct {
	Name        string
	Permissions []Permission
	Principals  []Principal
}

// Permission is one node of a permission tree. Exactly one field is set.
type Permission struct {
	Any                  bool
	And, Or              []Permission
	Not                  *Permission
	Header               *HeaderMatch
	Path                 *StringMatch
	DestinationPort      *uint16
	DestinationPortRange *PortRange
	DestinationIP        string // CIDR
	ServerName           *StringMatch
}

// PortRange is half-open: [Start, End).
type PortRange struct{ Start, End uint32 }

// Principal is one node of a principal tree. Exactly one field is set.
type Principal struct {
	Any           bool
	And, Or       []Principal
	Not           *Principal
	Authenticated *AuthenticatedPrincipal
	SourceIP      string // CIDR of the peer (direct_remote_ip)
	Header        *HeaderMatch
	Path          *StringMatch
}

// AuthenticatedPrincipal matches the peer's SPIFFE id; a nil Name matches any
// authenticated peer.
type AuthenticatedPrincipal struct{ Name *StringMatch }
