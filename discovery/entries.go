package discovery

import "time"

// ServiceDefaults is Consul's service-defaults entry, as far as parrel
// executes it.
type ServiceDefaults struct {
	Protocol                  string // "tcp" (Consul's default), "http", "http2", "grpc"
	MaxInboundConnections     int
	LocalConnectTimeout       time.Duration
	LocalRequestTimeout       time.Duration
	BalanceInboundConnections string
	UpstreamDefaults          *UpstreamConfig
	UpstreamOverrides         []*UpstreamConfig
	Mode                      string // of the service's proxies: "", "direct", "transparent"
	TransparentProxy          TransparentProxy
	MutualTLSMode             string // "", "strict", "permissive"
	ExternalSNI               string
	Destination               *Destination // nil: the entry is of a service of the mesh
}

// Destination is something outside of the mesh, which transparent proxies may
// reach.
type Destination struct {
	Addresses []string // IP addresses and names of hosts; lower case
	Port      int
}

// UpstreamConfig is UpstreamConfig.Defaults and .Overrides of service-defaults.
type UpstreamConfig struct {
	Name                       string
	Namespace                  string
	Partition                  string
	Peer                       string
	Protocol                   string
	ConnectTimeout             time.Duration
	BalanceOutboundConnections string
	MaxConnections             int // Limits; 0 = not set
	MaxPendingRequests         int
	MaxConcurrentRequests      int
}

// ProxyDefaults is Consul's proxy-defaults entry "global".
type ProxyDefaults struct {
	Config           map[string]any // "protocol", "local_connect_timeout_ms", …
	Mode             string         // "", "direct", "transparent"
	TransparentProxy TransparentProxy
	MutualTLSMode    string // "", "strict", "permissive"
}

// Mesh is Consul's mesh entry, as far as parrel executes it.
type Mesh struct {
	// RequestNormalization is HTTP.Incoming.RequestNormalization; nil where the
	// entry does not have it. Consul serves a block without values as an empty
	// one, and does not tell a false in it from an unset value.
	RequestNormalization *RequestNormalization
	// MeshDestinationsOnly: transparent proxies let nothing out of the mesh.
	MeshDestinationsOnly bool
	// AllowEnablingPermissiveMutualTLS: without it MutualTLSMode "permissive" is
	// strict.
	AllowEnablingPermissiveMutualTLS bool
}

// Words of MutualTLSMode.
const (
	MutualTLSStrict     = "strict"
	MutualTLSPermissive = "permissive"
)

// RequestNormalization says how requests to the mesh's services may be spelt.
// The actions are Envoy's words; "" is Consul's default.
type RequestNormalization struct {
	InsecureDisablePathNormalization bool
	MergeSlashes                     bool
	PathWithEscapedSlashesAction     string
	HeadersWithUnderscoresAction     string
}

// SlashActions are the words of PathWithEscapedSlashesAction, and
// UnderscoreActions those of HeadersWithUnderscoresAction.
func SlashActions() []string {
	return []string{"IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"}
}

// UnderscoreActions: see SlashActions.
func UnderscoreActions() []string { return []string{"ALLOW", "REJECT_REQUEST", "DROP_HEADER"} }

// IntentionAction is allow or deny of an L4 intention.
type IntentionAction string

const (
	Allow IntentionAction = "allow"
	Deny  IntentionAction = "deny"
)

// ServiceIntentions is Consul's service-intentions entry: who may call the
// service that the entry is named after ("*" is every service).
type ServiceIntentions struct {
	Sources []SourceIntention
}

// SourceIntention is one source of a service-intentions entry. Precedence is
// Consul's 1…9, computed by whoever decodes: exact names win over wildcards,
// the destination counts before the source.
type SourceIntention struct {
	Name        string // "*" for any
	Namespace   string
	Partition   string
	Peer        string
	Action      IntentionAction // "" where Permissions decide
	Permissions []IntentionPermission
	Precedence  int
	Type        string // "consul"
	Description string
}

// IntentionPermission is one L7 permission. It is carried so that nothing is
// lost; until L7 intentions are executed a source with permissions is denied
// (fail closed) and analyze names it.
type IntentionPermission struct {
	Action IntentionAction
	Set    []string
}
