package telemetry

import (
	"net/netip"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Record is what is known at the end of one request or of one opaque
// connection. The engine fills it as the exchange goes on; it is not retained,
// nor is any of its strings: see [Record.Clone].
type Record struct {
	Start    time.Time
	Duration time.Duration
	Inbound  bool // reporter=destination; else reporter=source
	Listener string
	Chain    string
	Route    string
	Cluster  string
	Version  string // configuration version of the snapshot that served it

	// Downstream and Upstream addresses; zero where unknown.
	DownstreamRemote, DownstreamLocal netip.AddrPort
	UpstreamHost                      string
	UpstreamInstance                  string // id of the instance, "" where unknown

	SourcePrincipal      string // SPIFFE ids
	DestinationPrincipal string
	SourceService        string
	DestinationService   string
	// Further facts of the far side, "" where unknown.
	SourceVersion, DestinationVersion       string
	SourceNamespace, DestinationNamespace   string
	SourceDatacenter, DestinationDatacenter string

	// Protocol is "tcp", "http" or "grpc"; the HTTP fields are empty for tcp.
	Protocol   string
	HTTP       string // "HTTP/1.1", "HTTP/2"
	Method     string
	Path       string // as decided on; as received where it was refused before
	Received   string // the path as received
	Authority  string
	UserAgent  string
	RequestID  string
	Status     int
	GRPCStatus int  // -1: none
	TLS        bool // the mesh side was mTLS

	// Request, Response and Trailer are the heads' fields for access logs that
	// name them; nil where there are none. Not to be retained.
	Request, Response, Trailer stream.Header
	// RequestEnd and FirstByte are the times from Start to the end of the
	// request and to the response's head; 0 where they did not come.
	RequestEnd, FirstByte time.Duration
	// ShadowPolicy is the shadow rule that would have decided otherwise; ""
	// where shadow and enforcement agree. ShadowDenied says what it would be.
	ShadowPolicy string
	ShadowDenied bool

	BytesIn, BytesOut int64 // request and response body, or bytes from and to the client
	Attempts          int

	Code   Code
	Detail string // free text behind the code: the TLS error, the policy's name
}

// Clone is a copy that may be kept: a record's strings and fields are borrowed,
// and others write over them when its exchange is over.
func (r *Record) Clone() Record {
	c := *r
	for _, s := range []*string{&c.Listener, &c.Chain, &c.Route, &c.Cluster, &c.Version, &c.UpstreamHost, &c.UpstreamInstance,
		&c.SourcePrincipal, &c.DestinationPrincipal, &c.SourceService, &c.DestinationService, &c.SourceVersion, &c.DestinationVersion,
		&c.SourceNamespace, &c.DestinationNamespace, &c.SourceDatacenter, &c.DestinationDatacenter,
		&c.Protocol, &c.HTTP, &c.Method, &c.Path, &c.Received, &c.Authority, &c.UserAgent, &c.RequestID, &c.ShadowPolicy, &c.Detail} {
		*s = strings.Clone(*s)
	}
	for _, h := range []*stream.Header{&c.Request, &c.Response, &c.Trailer} {
		*h = h.Clone()
	}
	return c
}

// Recorder takes records. Safe for concurrent use; never blocks on I/O longer
// than a buffered write.
type Recorder interface {
	Request(*Record)    // one HTTP request ended
	ConnOpened(*Record) // an opaque connection was opened
	ConnClosed(*Record) // … and ended
}
