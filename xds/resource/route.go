package resource

import "time"

// RouteConfig is envoy.config.route.v3.RouteConfiguration.
type RouteConfig struct {
	Name         string
	VirtualHosts []VirtualHost
	Metadata     Metadata
}

// VirtualHost groups routes by authority. Domains are exact, "*.suffix",
// "prefix.*" or "*", matched in that order, without regard to case.
type VirtualHost struct {
	Name            string
	Domains         []string
	Routes          []Route
	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
}

// Route is one match and what then happens. Exactly one action is set.
type Route struct {
	Name     string
	Match    RouteMatch
	Forward  *Forward
	Redirect *Redirect
	Direct   *DirectResponse
	// NonForwarding is for servers that answer themselves (grpc-go).
	NonForwarding   bool
	RequestHeaders  HeaderMutations
	ResponseHeaders HeaderMutations
	Metadata        Metadata
}

// PathKind says how RouteMatch.Path is meant.
type PathKind uint8

const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex           // RE2, whole path
	PathSeparatedPrefix // prefix at a segment boundary
)

// RouteMatch matches a request head. All given parts must match.
type RouteMatch struct {
	PathKind   PathKind
	Path       string // "/" as a prefix matches everything
	IgnoreCase bool
	Headers    []HeaderMatch
	Query      []QueryMatch
	GRPC       bool
	// RuntimeFraction is the share of requests that match, in millionths; nil: all.
	Fraction *uint32
}

// StringKind says how a StringMatch is meant.
type StringKind uint8

const (
	StringExact StringKind = iota
	StringPrefix
	StringSuffix
	StringContains
	StringRegex // RE2, whole string
)

// StringMatch is envoy.type.matcher.v3.StringMatcher.
type StringMatch struct {
	Kind       StringKind
	Value      string
	IgnoreCase bool
}

// HeaderMatch matches one request header; the pseudo-headers :method, :path,
// :authority and :scheme count as headers. Name is lower case.
type HeaderMatch struct {
	Name                 string
	Present              bool // present_match; String and Range are then nil
	String               *StringMatch
	RangeStart, RangeEnd int64 // half-open, used when IsRange
	IsRange              bool
	Invert               bool
	MissingAsEmpty       bool // treat_missing_header_as_empty
}

// QueryMatch matches one query parameter.
type QueryMatch struct {
	Name    string
	Present bool
	String  *StringMatch
}

// Forward sends the request to a cluster.
type Forward struct {
	Cluster         string // exactly one of Cluster and Weighted
	Weighted        []WeightedCluster
	Timeout         *time.Duration // whole response; nil: default 15 s, 0: none
	IdleTimeout     *time.Duration // of the stream; nil: the manager's
	Retry           *Retry         // nil: parrel's safe default
	PrefixRewrite   string
	RegexRewrite    *RegexRewrite
	HostRewrite     string
	AutoHostRewrite bool
	Hash            []HashPolicy
}

// RegexRewrite replaces the path's matches.
type RegexRewrite struct{ Regex, Substitution string }

// HashPolicy feeds a hashing load balancer. Exactly one is set.
type HashPolicy struct {
	Header     string
	Cookie     string
	CookieTTL  *time.Duration
	CookiePath string
	SourceIP   bool
	Query      string
	Terminal   bool
}

// Retry is when and how often a request is tried again.
type Retry struct {
	On            []string // Envoy's retry_on words, sorted
	StatusCodes   []uint32
	NumRetries    uint32
	PerTryTimeout time.Duration
	BackoffBase   time.Duration
	BackoffMax    time.Duration
}

// Redirect answers with a redirection.
type Redirect struct {
	Scheme, Host  string
	Port          uint32
	Path          string
	PrefixRewrite string
	Code          uint32 // 301, 302, 303, 307, 308; 0 = 301
	StripQuery    bool
}

// DirectResponse answers by itself.
type DirectResponse struct {
	Status uint32
	Body   string
}

// HeaderMutations are applied in the order remove, then set and add.
type HeaderMutations struct {
	Remove []string
	Set    []Header // overwrite
	Add    []Header // append
}

// Header is one name and value; the name is lower case.
type Header struct{ Name, Value string }

func (*RouteConfig) ResourceType() Type     { return TypeRoute }
func (r *RouteConfig) ResourceName() string { return r.Name }
