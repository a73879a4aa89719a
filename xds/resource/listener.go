package resource

import (
	"net/netip"
	"time"
)

// Direction is Envoy's traffic_direction.
type Direction uint8

const (
	DirectionUnspecified Direction = iota
	Inbound
	Outbound
)

func (d Direction) String() string {
	return [...]string{"unspecified", "inbound", "outbound"}[d%3]
}

// Address is an IP address or Unix socket path to listen on or to connect to.
type Address struct {
	Host string // an IP literal; a DNS name only in clusters with DNS discovery
	Port uint16
	Path string // a Unix socket; Host and Port are then empty
}

// Listener is envoy.config.listener.v3.Listener.
type Listener struct {
	Name           string
	Address        Address // zero for an API listener
	Direction      Direction
	Chains         []FilterChain
	Default        *FilterChain // default_filter_chain
	API            *HTTPManager // api_listener: for proxyless gRPC clients only
	Metadata       Metadata
	UseOriginalDst bool // use_original_dst: match chains on the address before redirection
	// DNS makes it a DNS server, which has no filter chains: nil, or the
	// listener's address is one of UDP.
	DNS *DNSFilter
	// Additional addresses (additional_addresses) of a DNS listener, such as ::1
	// beside 127.0.0.1. Where the host has no such address, it is left out.
	Additional []Address
}

// FilterChain is what one kind of connection goes through.
type FilterChain struct {
	Name  string // unique within the listener
	Match ChainMatch
	TLS   *DownstreamTLS // nil: plaintext
	// Network filters run in order before the terminal one.
	Network []NetworkFilter
	// Exactly one of the following is the terminal filter.
	TCP  *TCPProxy
	HTTP *HTTPManager
	// TransportSocketConnectTimeout bounds the TLS handshake; 0 = default (10 s).
	HandshakeTimeout time.Duration
}

// ChainMatch is Envoy's filter_chain_match. A zero field matches anything; the
// most specific chain wins in Envoy's order of criteria: destination port,
// destination prefix, server name, transport protocol, application protocol,
// source prefix.
type ChainMatch struct {
	DestinationPort      uint16
	DestinationPrefixes  []netip.Prefix
	ServerNames          []string // exact or "*.suffix", lower case
	TransportProtocol    string   // "", "tls", "raw_buffer"
	ApplicationProtocols []string
	SourcePrefixes       []netip.Prefix
}

// NetworkFilter is one non-terminal network filter. Exactly one field is set.
type NetworkFilter struct {
	Name string
	RBAC *RBAC
}

// TCPProxy forwards the connection's bytes (envoy.filters.network.tcp_proxy).
type TCPProxy struct {
	StatPrefix         string
	Cluster            string // exactly one of Cluster and Weighted
	Weighted           []WeightedCluster
	IdleTimeout        time.Duration // 0: none (opaque TCP has no idle time-out by default)
	MaxConnectAttempts uint32        // 0: 1 more than the healthy endpoints, at most 5
	AccessLog          []AccessLog   // none: the process's
}

// WeightedCluster is one share of a split.
type WeightedCluster struct {
	Name            string
	Weight          uint32
	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
}

// Codec is codec_type of the HTTP connection manager.
type Codec uint8

const (
	CodecAuto Codec = iota
	CodecHTTP1
	CodecHTTP2
)

// ForwardClientCert is forward_client_cert_details.
type ForwardClientCert uint8

const (
	SanitizeXFCC ForwardClientCert = iota
	SanitizeSetXFCC
	AppendForwardXFCC
)

// Underscores is headers_with_underscores_action: what happens to fields of
// requests whose names have one.
type Underscores uint8

const (
	AllowUnderscores Underscores = iota
	RejectUnderscores
	DropUnderscores
)

// HTTPManager is the HTTP connection manager.
type HTTPManager struct {
	StatPrefix            string
	Codec                 Codec
	RouteName             string       // RDS; exactly one of RouteName and Route
	Route                 *RouteConfig // inline
	Filters               []HTTPFilter // in order; the router is last
	XFCC                  ForwardClientCert
	UseRemoteAddress      bool
	ServerName            string        // "" = "parrel"
	Upgrades              []string      // allowed Upgrade values: "websocket"
	RequestTimeout        time.Duration // whole request received; 0: none
	RequestHeadersTimeout time.Duration // 0: default (see limits)
	StreamIdleTimeout     time.Duration // 0: default 5 m
	IdleTimeout           time.Duration // connection without a request; 0: default 1 h
	MaxRequestHeadersKB   uint32        // 0: default 60
	MaxHeaders            uint32        // fields of a request's head; 0: default 200
	MaxStreams            uint32        // of one HTTP/2 connection at once; 0: default 250
	MaxConnection         time.Duration // after which a connection ends with its last request; 0: none
	Underscores           Underscores
	AccessLog             []AccessLog
	// RawPaths leaves paths as they are received: dot segments, encodings and
	// adjacent slashes are then what the application makes of them. By default,
	// and unless a route says otherwise (see MetaPath), paths are read strictly.
	RawPaths       bool
	EscapedSlashes EscapedSlashes
	// MergeSlashes makes one slash of adjacent ones in raw paths too. Others have
	// theirs merged in any case, unless the route keeps them: on the wire, false
	// cannot be told from unset.
	MergeSlashes bool
}

// EscapedSlashes says what becomes of an encoded slash or backslash in a path.
type EscapedSlashes uint8

const (
	DefaultEscapedSlashes  EscapedSlashes = iota // not said: refused, and kept in raw paths
	KeepEscapedSlashes                           // as they are
	RedirectEscapedSlashes                       // the client is sent to the path with slashes
	ForwardEscapedSlashes                        // they become slashes
	RejectEscapedSlashes                         // refused, in raw paths too
)

// AccessLog is one access log of a connection manager (file or stdout).
type AccessLog struct {
	Path      string // "/dev/stdout", "/dev/stderr" or a file
	JSON      map[string]string
	Text      string // exactly one of JSON and Text, or none for the default
	MinStatus uint32 // log only responses with at least this status; 0: all
	Filter    *LogFilter
}

// LogFilter says what is logged. Exactly one field is set.
type LogFilter struct {
	Status   *Comparison // of an answer; 0 where there is none
	Duration *Comparison // milliseconds
	// Flags are Envoy's response flags, of which one must be there.
	Flags   []string
	AnyFlag bool
	And, Or []LogFilter
}

// CompareOp is the operator of Envoy's ComparisonFilter.
type CompareOp uint8

const (
	CompareEQ CompareOp = iota
	CompareGE
	CompareLE
	CompareNE
)

// Comparison compares a number with Value.
type Comparison struct {
	Op    CompareOp
	Value uint32
}

// HTTPFilter is one HTTP filter. Exactly one configuration is set.
type HTTPFilter struct {
	Name   string
	RBAC   *RBAC
	Router *Router
}

// Router is the terminal HTTP filter.
type Router struct{}

// Words of MetaPath.
const (
	PathKeepsSlashes        = "keep-slashes"          // adjacent slashes are forwarded as received
	PathTakesEscapedSlashes = "allow-escaped-slashes" // %2F and %5C are taken, and forwarded as they are
)

func (*Listener) ResourceType() Type     { return TypeListener }
func (l *Listener) ResourceName() string { return l.Name }

// Metadata is filter_metadata of the namespace "parrel": flat strings.
type Metadata map[string]string

// Keys of Metadata that parrel's planes agree on.
const (
	MetaService    = "service" // the destination service's name
	MetaNamespace  = "namespace"
	MetaDatacenter = "datacenter"
	MetaWorkload   = "id"       // of the instance; short, since each endpoint carries it
	MetaEntry      = "entry"    // which config entry or registration this resource comes from, for messages
	MetaProtocol   = "protocol" // the service's protocol: tcp, http, http2, grpc
	MetaVersion    = "version"  // the instance's meta "version"
	// MetaPath, of a route, lists by spaces how its paths depart from the strict
	// reading: PathKeepsSlashes, PathTakesEscapedSlashes.
	MetaPath = "path"
)
