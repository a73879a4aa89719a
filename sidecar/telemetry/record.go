package telemetry

import (
	"net/netip"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// Record is what is known at the end of one request or of one opaque
// connection. The engine fills it once, at the end; it is a value and is not
// retained.
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
	Path       string // as received
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

// Recorder takes records. Safe for concurrent use; never blocks on I/O longer
// than a buffered write.
type Recorder interface {
	Request(*Record)    // one HTTP request ended
	ConnOpened(*Record) // an opaque connection was opened
	ConnClosed(*Record) // … and ended
}
