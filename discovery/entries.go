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
	MutualTLSMode             string
	ExternalSNI               string
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
	Config map[string]any // "protocol", "local_connect_timeout_ms", …
	Mode   string
}

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
