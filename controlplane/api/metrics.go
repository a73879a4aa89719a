package api

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves Prometheus' text from a registry of its own.
func (h *handler) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{h})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// collector reads everything at each scrape; it keeps nothing.
type collector struct{ h *handler }

// Describe says nothing in advance: the set of series follows the state.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	emit := func(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("parrel_controlplane_"+name, help, names, nil), kind, value, values...)
	}
	gauge := func(name, help string, value float64, labels ...string) {
		emit(prometheus.GaugeValue, name, help, value, labels...)
	}
	counter := func(name, help string, value float64, labels ...string) {
		emit(prometheus.CounterValue, name, help, value, labels...)
	}
	m := c.h.deps.Mesh()
	stats := m.Stats()
	gauge("ready", "1 when the catalogue has been read.", oneIf(c.h.deps.Ready()))
	gauge("mesh_version", "Version of the mesh snapshot in force.", float64(m.Version))
	gauge("services", "Services in the catalogue.", float64(stats.Services))
	gauge("workloads", "Proxies and connect-native instances in the catalogue.", float64(stats.Workloads))
	gauge("config_entries", "Config entries.", float64(stats.Entries))
	gauge("source_stale", "1 while the catalogue may be out of date.", oneIf(m.Source.Stale))
	gauge("source_age_seconds", "Age of the source's last answers.", m.Source.Age.Seconds())
	gauge("source_problems", "What the source refused of what users wrote.", float64(len(m.Source.Problems)))
	if m.Source.Stale && !m.Source.Since.IsZero() {
		gauge("source_stale_seconds", "For how long the catalogue may have been out of date.", c.h.deps.Now().Sub(m.Source.Since).Seconds())
	}
	x := c.h.deps.Metrics()
	gauge("xds_streams", "Open ADS streams.", float64(x.Streams))
	counter("xds_streams_opened_total", "ADS streams that were accepted.", float64(x.StreamsOpened))
	counter("xds_streams_denied_total", "ADS streams refused by authentication or authorisation.", float64(x.StreamsDenied))
	for reason, n := range x.StreamsClosed {
		counter("xds_streams_closed_total", "ADS streams that ended, by reason.", float64(n), "reason", reason)
	}
	for _, series := range []struct {
		name, help string
		by         map[string]uint64
	}{
		{"xds_pushes_total", "Responses sent, by type.", x.Responses},
		{"xds_bytes_total", "Bytes of resources sent, by type.", x.Bytes},
		{"xds_acks_total", "Responses accepted by clients, by type.", x.ACKs},
		{"xds_nacks_total", "Responses refused by clients, by type.", x.NACKs},
	} {
		for t, n := range series.by {
			counter(series.name, series.help, float64(n), "type", t)
		}
	}
	counter("xds_generated_total", "Resources generated.", float64(x.Generated))
	gauge("xds_resources", "Resources held, by sharing.", float64(x.Shared), "kind", "shared")
	gauge("xds_resources", "Resources held, by sharing.", float64(x.Private), "kind", "private")
	c.sync(gauge)
}

// sync counts what is behind, by type.
func (c *collector) sync(gauge func(string, string, float64, ...string)) {
	behind, refused := map[string]int{}, map[string]int{}
	for _, st := range c.h.deps.Streams() {
		for _, t := range st.Types {
			if t.Wanted != t.Acked {
				behind[t.Type.Short()]++
			}
			refused[t.Type.Short()] += len(t.Refused)
		}
	}
	for t, n := range behind {
		gauge("xds_streams_behind", "Streams whose client has not accepted what it should have, by type.", float64(n), "type", t)
	}
	for t, n := range refused {
		gauge("xds_resources_refused", "Resources that clients refused and still want, by type.", float64(n), "type", t)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
