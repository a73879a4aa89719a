package telemetry

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Histogram bounds: Istio's, in milliseconds and in bytes
// (https://istio.io/latest/docs/reference/config/metrics/).
var (
	durationBounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}
	sizeBounds     = []float64{1, 5, 10, 100, 1000, 10000, 100000, 1e6, 1e7, 1e8, 1e9}

	durationNanos = whole(durationBounds, float64(time.Millisecond))
	sizeBytes     = whole(sizeBounds, 1)
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
	code                 Code // the first with its flag: the label is the flag
	tls                  bool
	overflow             bool
}

func labelsOf(r *Record, l *labels) {
	*l = labels{
		inbound: r.Inbound, srcService: r.SourceService, srcNS: r.SourceNamespace, srcPrincipal: r.SourcePrincipal,
		srcVer: r.SourceVersion, srcDC: r.SourceDatacenter, dstService: r.DestinationService, dstNS: r.DestinationNamespace,
		dstPrincipal: r.DestinationPrincipal, dstVer: r.DestinationVersion, dstDC: r.DestinationDatacenter,
		protocol: r.Protocol, status: int16(r.Status), grpc: -1, code: r.Code.flagged(), tls: r.TLS,
	}
	if r.Status < 0 || r.Status > 999 {
		l.status = 0
	}
	if r.Protocol == "grpc" && r.GRPCStatus >= 0 && r.GRPCStatus <= 16 {
		l.grpc = int16(r.GRPCStatus)
	}
}

// same says that a record counts into the series with these labels; r.Status and
// r.GRPCStatus are compared as labelsOf takes them over. Strings that are the
// same memory are not looked at.
func (l *labels) same(r *Record) bool {
	status, grpc := r.Status, -1
	if status < 0 || status > 999 {
		status = 0
	}
	if r.Protocol == "grpc" && r.GRPCStatus >= 0 && r.GRPCStatus <= 16 {
		grpc = r.GRPCStatus
	}
	return int(l.status) == status && int(l.grpc) == grpc && l.code == r.Code.flagged() && l.inbound == r.Inbound && l.tls == r.TLS && !l.overflow &&
		l.protocol == r.Protocol &&
		l.srcService == r.SourceService && l.dstService == r.DestinationService &&
		l.srcPrincipal == r.SourcePrincipal && l.dstPrincipal == r.DestinationPrincipal &&
		l.srcNS == r.SourceNamespace && l.dstNS == r.DestinationNamespace &&
		l.srcDC == r.SourceDatacenter && l.dstDC == r.DestinationDatacenter &&
		l.srcVer == r.SourceVersion && l.dstVer == r.DestinationVersion
}

// own makes copies of all strings: a record's may be borrowed from a codec's
// buffer, which others write to when the exchange is over.
func (l *labels) own() {
	for _, s := range []*string{&l.srcService, &l.srcNS, &l.srcPrincipal, &l.srcVer, &l.srcDC, &l.dstDC,
		&l.dstService, &l.dstNS, &l.dstPrincipal, &l.dstVer, &l.protocol} {
		*s = strings.Clone(*s)
	}
}

// slotOf is the cache's place for a record: where its strings lie tells most
// records apart, and what tells wrong only costs time, since a hit is compared.
func slotOf(r *Record) uint {
	at := func(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) + uintptr(len(s)) }
	h := uint64(at(r.SourcePrincipal)) + uint64(at(r.DestinationService))*3 + uint64(at(r.DestinationPrincipal))*5 + uint64(at(r.SourceService))*7 +
		uint64(r.Status)*11 + uint64(r.Code)*0x10001 + uint64(r.GRPCStatus)*13
	if r.Inbound {
		h += 17
	}
	return uint(h * 0x9e3779b97f4a7c15 >> (64 - cacheBits))
}

// cacheBits is how many series the cache in front of the store holds at most, as
// a power of two.
const cacheBits = 9

// histogram counts observations; lock-free.
type histogram struct {
	counts [maxBounds + 1]atomic.Uint64 // not cumulative; the one after the last bound is +Inf's
	sum    atomic.Uint64                // whole nanoseconds or bytes
}

// maxBounds is the number of the longer list of bounds.
const maxBounds = 19

// observe counts v; bounds are in its unit.
func (h *histogram) observe(bounds []uint64, v uint64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	if v != 0 {
		h.sum.Add(v)
	}
}

// whole gives bounds in the units that are counted.
func whole(bounds []float64, scale float64) []uint64 {
	out := make([]uint64, len(bounds))
	for i, b := range bounds {
		out[i] = uint64(b * scale)
	}
	return out
}

// series is what is counted for one label set.
type series struct {
	labels labels
	last   atomic.Int64 // unix nanoseconds of about the last record
	gone   atomic.Bool  // expired: not to be counted into

	duration histogram // counts the requests, too
	in, out  histogram

	opened, closed       atomic.Uint64
	tcpReceived, tcpSent atomic.Uint64
	isTCP                bool
}

// touch notes that the series is in use, and says whether it may be counted
// into. It writes only where the note would be older than grain.
func (x *series) touch(now, grain int64) bool {
	if l := x.last.Load(); now-l > grain || l-now > grain {
		x.last.Store(now)
	}
	return !x.gone.Load()
}

// store is a bounded set of series. Safe for concurrent use.
type store struct {
	mu      sync.RWMutex
	m       map[labels]*series // guarded by mu
	max     int
	grain   int64         // nanoseconds: see series.touch; far below the expiry
	dropped atomic.Uint64 // label sets that went into the overflow series

	// cache finds most series without hashing a label set. An entry that has
	// gone is never counted into.
	cache [1 << cacheBits]atomic.Pointer[series]
}

// request finds or makes the series of a request's record.
func (s *store) request(r *Record, now int64) *series {
	slot := &s.cache[slotOf(r)]
	if x := slot.Load(); x != nil && x.labels.same(r) && x.touch(now, s.grain) {
		return x
	}
	var l labels
	labelsOf(r, &l)
	x := s.get(&l, now)
	if !x.labels.overflow {
		slot.Store(x)
	}
	return x
}

// get finds or makes the series of a label set. Beyond the cap everything new
// is counted in one series per reporter and protocol, labelled "other".
func (s *store) get(l *labels, now int64) *series {
	for {
		s.mu.RLock()
		x := s.m[*l]
		s.mu.RUnlock()
		if x == nil {
			x = s.add(l, now)
		}
		// What expire takes away at this moment is marked before it looks at the
		// time again: one of the two sees the other.
		if x.touch(now, s.grain) {
			return x
		}
	}
}

func (s *store) add(l *labels, now int64) *series {
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
	key.own()
	x := &series{labels: key, isTCP: l.protocol == "tcp"}
	x.last.Store(now)
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
		if !x.silent(before) {
			continue
		}
		x.gone.Store(true)
		if !x.silent(before) { // somebody counts into it right now
			x.gone.Store(false)
			continue
		}
		delete(s.m, k)
		n++
	}
	if n > 0 {
		for i := range s.cache {
			if x := s.cache[i].Load(); x != nil && x.gone.Load() {
				s.cache[i].CompareAndSwap(x, nil)
			}
		}
	}
	return n
}

func (x *series) silent(before time.Time) bool {
	return x.last.Load() < before.UnixNano() && x.opened.Load() == x.closed.Load()
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
