package telemetry

import (
	"context"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MetricsConfig configures Metrics.
type MetricsConfig struct {
	Version   string           // parrel's version, for parrel_build_info
	MaxSeries int              // label sets; 0: 10 000
	Expiry    time.Duration    // a silent label set leaves after this; 0: 1 h
	Now       func() time.Time // nil: time.Now
}

// Metrics counts what the Records say, in Istio's names
// (https://istio.io/latest/docs/reference/config/metrics/), and the sidecar's
// own state as parrel_*. Safe for concurrent use.
//
// Series are bounded: a label set beyond the cap is counted as "other", a
// silent one leaves. Counting into a known label set allocates nothing and
// takes no lock.
type Metrics struct {
	c     MetricsConfig
	reg   *prometheus.Registry
	store store
	errs  [codeEnd]atomic.Uint64

	mu        sync.Mutex
	workloads map[string]*workload // guarded by mu
}

// workload is what is said of one workload of the process.
type workload struct {
	version   string
	notAfter  time.Time
	connected bool
	said      bool // connected was set
}

var _ Recorder = (*Metrics)(nil)

// NewMetrics makes the metrics of one process.
func NewMetrics(c MetricsConfig) *Metrics {
	if c.MaxSeries <= 0 {
		c.MaxSeries = 10_000
	}
	if c.Expiry <= 0 {
		c.Expiry = time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	m := &Metrics{c: c, reg: prometheus.NewRegistry(), workloads: map[string]*workload{},
		store: store{m: map[labels]*series{}, max: c.MaxSeries, grain: min(int64(time.Second), int64(c.Expiry)/16)}}
	m.reg.MustRegister(m.collector(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registry is where other packages register what they count.
func (m *Metrics) Registry() *prometheus.Registry { return m.reg }

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{})
}

// Run expires silent label sets until ctx ends.
func (m *Metrics) Run(ctx context.Context) error {
	t := time.NewTicker(max(m.c.Expiry/4, time.Second))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			m.store.expire(m.c.Now().Add(-m.c.Expiry))
		}
	}
}

// Request implements Recorder.
func (m *Metrics) Request(r *Record) {
	s := m.store.request(r, r.Start.UnixNano()+int64(r.Duration))
	s.duration.observe(durationNanos, uint64(max(r.Duration, 0)))
	s.in.observe(sizeBytes, uint64(max(r.BytesIn, 0)))
	s.out.observe(sizeBytes, uint64(max(r.BytesOut, 0)))
	m.MeshError(r.Code)
}

// ConnOpened implements Recorder.
func (m *Metrics) ConnOpened(r *Record) {
	m.conn(r).opened.Add(1)
}

// ConnClosed implements Recorder. Flags and peers that were not known when the
// connection was opened are not in its labels: opened and closed must balance.
func (m *Metrics) ConnClosed(r *Record) {
	s := m.conn(r)
	s.closed.Add(1)
	s.tcpReceived.Add(uint64(max(r.BytesIn, 0)))
	s.tcpSent.Add(uint64(max(r.BytesOut, 0)))
	m.MeshError(r.Code)
}

func (m *Metrics) conn(r *Record) *series {
	var l labels
	labelsOf(r, &l)
	l.protocol, l.status, l.grpc, l.code = "tcp", 0, -1, OK
	return m.store.get(&l, r.Start.UnixNano()+int64(r.Duration))
}

// MeshError counts an error of the mesh's own. Request and ConnClosed do it for
// their records; others call it for what has no record (a refused handshake, a
// connection without a filter chain).
func (m *Metrics) MeshError(c Code) {
	if c != OK && c < codeEnd {
		m.errs[c].Add(1)
	}
}

// SetConfigVersion says which snapshot a workload runs on.
func (m *Metrics) SetConfigVersion(name, version string) {
	m.workload(name, func(w *workload) { w.version = version })
}

// SetCertExpiry says when a workload's certificate ends.
func (m *Metrics) SetCertExpiry(name string, notAfter time.Time) {
	m.workload(name, func(w *workload) { w.notAfter = notAfter })
}

// SetXDSConnected says whether a workload's ADS stream is up.
func (m *Metrics) SetXDSConnected(name string, up bool) {
	m.workload(name, func(w *workload) { w.connected, w.said = up, true })
}

// Forget takes a workload's gauges away.
func (m *Metrics) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workloads, name)
}

func (m *Metrics) workload(name string, f func(*workload)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workloads[name]
	if w == nil {
		w = &workload{}
		m.workloads[name] = w
	}
	f(w)
}

// collector gives everything to a scrape.
type collector struct {
	m *Metrics

	requests, duration, in, out                *prometheus.Desc
	tcpSent, tcpReceived, tcpOpened, tcpClosed *prometheus.Desc
	build, version, expiry, xds, errs, dropped *prometheus.Desc
}

func (m *Metrics) collector() *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		m:           m,
		requests:    d("istio_requests_total", "HTTP and gRPC requests.", requestLabelNames...),
		duration:    d("istio_request_duration_milliseconds", "Time from a request's head to the end of its response.", requestLabelNames...),
		in:          d("istio_request_bytes", "Bytes of request bodies.", requestLabelNames...),
		out:         d("istio_response_bytes", "Bytes of response bodies.", requestLabelNames...),
		tcpSent:     d("istio_tcp_sent_bytes_total", "Bytes sent to the client of opaque connections.", labelNames...),
		tcpReceived: d("istio_tcp_received_bytes_total", "Bytes received from the client of opaque connections.", labelNames...),
		tcpOpened:   d("istio_tcp_connections_opened_total", "Opaque connections opened.", labelNames...),
		tcpClosed:   d("istio_tcp_connections_closed_total", "Opaque connections closed.", labelNames...),
		build:       d("parrel_build_info", "Always 1; the labels say what runs.", "version", "go_version"),
		version:     d("parrel_config_version_info", "Always 1; the version label is the configuration in force.", "workload", "version"),
		expiry:      d("parrel_certificate_expiry_seconds", "Unix time at which the workload's certificate ends.", "workload"),
		xds:         d("parrel_xds_connected", "1 while the workload's configuration stream is up.", "workload"),
		errs:        d("parrel_errors_total", "Errors of the mesh's own, by code of docs/codes.md.", "code", "flag"),
		dropped:     d("parrel_metrics_overflow_total", "Records counted as \"other\" because the number of series is capped."),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.requests, c.duration, c.in, c.out, c.tcpSent, c.tcpReceived, c.tcpOpened, c.tcpClosed,
		c.build, c.version, c.expiry, c.xds, c.errs, c.dropped} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), l...)
	}
	gauge := func(d *prometheus.Desc, v float64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l...)
	}
	m := c.m
	m.store.mu.RLock()
	for k, s := range m.store.m {
		v := k.values(!s.isTCP)
		if s.isTCP {
			counter(c.tcpOpened, s.opened.Load(), v...)
			counter(c.tcpClosed, s.closed.Load(), v...)
			counter(c.tcpSent, s.tcpSent.Load(), v...)
			counter(c.tcpReceived, s.tcpReceived.Load(), v...)
			continue
		}
		counter(c.requests, s.duration.count(), v...)
		ch <- s.duration.metric(c.duration, durationBounds, float64(time.Millisecond), v)
		ch <- s.in.metric(c.in, sizeBounds, 1, v)
		ch <- s.out.metric(c.out, sizeBounds, 1, v)
	}
	m.store.mu.RUnlock()
	counter(c.dropped, m.store.dropped.Load())
	gauge(c.build, 1, m.c.Version, runtime.Version())
	for code := OK + 1; code < codeEnd; code++ {
		counter(c.errs, m.errs[code].Load(), code.String(), code.Info().Flag)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, w := range m.workloads {
		if w.version != "" {
			gauge(c.version, 1, name, w.version)
		}
		if !w.notAfter.IsZero() {
			gauge(c.expiry, float64(w.notAfter.Unix()), name)
		}
		if w.said {
			up := 0.0
			if w.connected {
				up = 1
			}
			gauge(c.xds, up, name)
		}
	}
}

func (h *histogram) metric(d *prometheus.Desc, bounds []float64, scale float64, labels []string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(bounds))
	var n uint64
	for i := range len(bounds) + 1 {
		n += h.counts[i].Load()
		if i < len(bounds) {
			buckets[bounds[i]] = n
		}
	}
	return prometheus.MustNewConstHistogram(d, n, float64(h.sum.Load())/scale, buckets, labels...)
}

// count is how many observations there were.
func (h *histogram) count() (n uint64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}
