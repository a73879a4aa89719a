package decide

import (
	"net/netip"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Head is what a decision may read of a request. stream.RequestHead is adapted
// to it by the engine without allocation.
type Head interface {
	Method() string
	Authority() string
	Scheme() string
	Path() string // request target with query, as it will be decided on (normalised)
	// Header returns the values of the field joined by "," (RFC 9110, 5.3) and
	// whether there is any. name is lower case.
	Header(name string) (string, bool)
}

// Facts are what a decision knows beyond the head. They are recorded with the
// verdict so that it can be replayed.
type Facts struct {
	PeerID      string         // SPIFFE id, "" without mTLS
	Source      netip.AddrPort // of the connection
	Destination netip.AddrPort
	ServerName  string
	Draws       [4]uint32 // uniform random draws in [0, 1_000_000), used in order: route fraction, split, …
	Now         time.Time
	Claims      map[string]string
	Metadata    map[string]string
}

// Connection is what Chain may know: all of it before the first byte is read
// by an engine.
type Connection struct {
	Destination       netip.AddrPort // original destination where redirected
	Source            netip.AddrPort
	ServerName        string
	TransportProtocol string // "tls" or "raw_buffer"
	ALPN              []string
}

// Step is one line of a trace: what was compared, and how it came out.
type Step struct {
	Subject string // "route web/virtual_hosts[0]/routes[2]"
	Matched bool
	Reason  string // "path /api does not have the prefix /v2"
}

// Trace collects steps; a nil *Trace collects nothing and costs nothing.
type Trace struct{ Steps []Step }

// Add appends a step; safe on nil.
func (t *Trace) Add(subject string, matched bool, reason string) {
	if t != nil {
		t.Steps = append(t.Steps, Step{subject, matched, reason})
	}
}

// RouteVerdict is what Routes.Route decided. Exactly one of Cluster, Redirect,
// Direct and NotFound is the outcome.
type RouteVerdict struct {
	VirtualHost string
	Host        *resource.VirtualHost // nil: no virtual host matched
	Route       *resource.Route
	RouteName   string
	Cluster     string // picked by weight where the route splits
	Weighted    *resource.WeightedCluster
	Path        string // after rewriting; what is sent upstream
	Authority   string // after rewriting
	Redirect    string // Location
	Direct      *resource.DirectResponse
	Status      int // of redirect and direct response
	NotFound    bool
}

// AuthVerdict is what Authorise decided.
type AuthVerdict struct {
	Allowed       bool
	Policy        string // the policy that decided, "" where none matched
	ShadowAllowed bool   // of the shadow rules; true where there are none
	ShadowPolicy  string
}
