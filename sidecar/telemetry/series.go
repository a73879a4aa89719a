package telemetry

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Histogram bounds: Istio's, in milliseconds and in bytes
// (https://istio.io/latest/docs/reference/config/metrics/).
var (
	durationBounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
	sizeBounds     = []float64{1, 5, 10, 100, 1000, 10000, 100000, 1e6, 1e7, 1e8, 1e9}
)

// labels is one label set: comparable, so that finding its series allocates
// nothing. Nothing of it comes from the wire unbounded: no path, no authority.
type labels struct {
	inbound              bool
	srcService, srcNS    string
	srcPrincipal, srcVer string
	srcDC, dstDC         string
	dstService, dstNS    string
	dstPrincipal, dstVer string
	protocol             string
	status, grpc         int16
	code                 Code
	tls                  bool
	overflow             bool
}

func labelsOf(r *Record, l *labels) {
	*l = labels{
		inbound: r.Inbound, srcService: r.SourceService, srcNS: r.SourceNamespace, srcPrincipal: r.SourcePrincipal,
		srcVer: r.SourceVersion, srcDC: r.SourceDatacenter, dstService: r.DestinationService, dstNS: r.DestinationNamespace,
		dstPrincipal: r.DestinationPrincipal, dstVer: r.DestinationVersion, dstDC: r.DestinationDatacenter,
		protocol: r.Protocol, status: int16(r.Status), grpc: -1, code: r.Code, tls: r.TLS,
	}
	if r.Status < 0 || r.Status > 999 {
		l.status = 0
	}
	if r.Protocol == "grpc" && r.GRPCStatus >= 0 && r.GRPCStatus <= 16 {
		l.grpc = int16(r.GRPCStatus)
	}
}

// histogram counts observations; lock-free.
type histogram struct {
	counts []atomic.Uint64 // not cumulative; the last is +Inf's
	sum    atomic.Uint64   // rounded to whole units: milliseconds in microseconds, bytes in bytes
}

func newHistogram(bounds []float64) histogram {
	return histogram{counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *histogram) observe(bounds []float64, v float64, unit uint64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(unit)
}

// series is what is counted for one label set.
type series struct {
	last     atomic.Int64 // unix nanoseconds of the last record
	requests atomic.Uint64
	duration histogram
	in, out  histogram

	opened, closed       atomic.Uint64
	tcpReceived, tcpSent atomic.Uint64
	isTCP                bool
}

// store is a bounded set of series. Safe for concurrent use.
type store struct {
	mu      sync.RWMutex
	m       map[labels]*series // guarded by mu
	max     int
	dropped atomic.Uint64 // label sets that went into the overflow series
}

// get finds or makes the series of a label set. Beyond the cap everything new
// is counted in one series per reporter and protocol, labelled "other".
func (s *store) get(l *labels, now time.Time) *series {
	s.mu.RLock()
	x := s.m[*l]
	s.mu.RUnlock()
	if x == nil {
		x = s.add(l)
	}
	x.last.Store(now.UnixNano())
	return x
}

func (s *store) add(l *labels) *series {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.m[*l]; x != nil {
		return x
	}
	key := *l
	if len(s.m) >= s.max {
		s.dropped.Add(1)
		key = labels{inbound: l.inbound, protocol: l.protocol, overflow: true, grpc: -1}
		if x := s.m[key]; x != nil {
			return x
		}
	}
	x := &series{isTCP: l.protocol == "tcp"}
	if !x.isTCP {
		x.duration, x.in, x.out = newHistogram(durationBounds), newHistogram(sizeBounds), newHistogram(sizeBounds)
	}
	s.m[key] = x
	return x
}

// expire drops what has been silent since before.
func (s *store) expire(before time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k, x := range s.m {
		// A series with open connections is not silent.
		if x.last.Load() < before.UnixNano() && x.opened.Load() == x.closed.Load() {
			delete(s.m, k)
			n++
		}
	}
	return n
}

// labelNames are Istio's standard labels, in the order of values.
var labelNames = []string{
	"reporter",
	"source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
	"source_cluster", "source_canonical_service", "source_canonical_revision",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"destination_cluster", "destination_canonical_service", "destination_canonical_revision",
	"request_protocol", "response_flags", "connection_security_policy",
}

// requestLabelNames are those of HTTP and gRPC requests.
var requestLabelNames = append(append([]string(nil), labelNames...), "response_code", "grpc_response_status")

// values gives the label values of a scrape.
func (l *labels) values(request bool) []string {
	un := func(s string) string {
		if l.overflow {
			return "other"
		}
		if s == "" {
			return "unknown"
		}
		return s
	}
	latest := func(s string) string { // Istio's canonical revision
		if s == "" && !l.overflow {
			return "latest"
		}
		return un(s)
	}
	reporter := "source"
	policy := "unknown" // only the destination knows
	if l.inbound {
		reporter, policy = "destination", "none"
		if l.tls {
			policy = "mutual_tls"
		}
	}
	flags := l.code.Info().Flag
	if flags == "" {
		flags = "-"
	}
	if l.overflow {
		flags, policy = "other", "other"
	}
	out := []string{
		reporter,
		un(l.srcService), un(l.srcNS), un(l.srcPrincipal), un(l.srcService), un(l.srcVer),
		un(l.srcDC), un(l.srcService), latest(l.srcVer),
		un(l.dstService), un(l.dstNS), un(l.dstPrincipal), un(l.dstService), un(l.dstVer),
		un(l.dstService), un(l.dstService), un(l.dstNS),
		un(l.dstDC), un(l.dstService), latest(l.dstVer),
		un(l.protocol), flags, policy,
	}
	if l.overflow {
		out[20] = l.protocol
	}
	if request {
		grpc := ""
		if l.grpc >= 0 {
			grpc = strconv.Itoa(int(l.grpc))
		}
		status := strconv.Itoa(int(l.status))
		if l.overflow {
			status = "other"
		}
		out = append(out, status, grpc)
	}
	return out
}
