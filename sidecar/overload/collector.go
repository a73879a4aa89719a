package overload

import "github.com/prometheus/client_golang/prometheus"

// reasonNames are the values of the label reason, by Reason.
var reasonNames = [reasonEnd]string{
	ConnectionsGlobal: "global", ConnectionsListener: "listener", ConnectionsSource: "source",
	ConnectionsMemory: "memory", ConnectionsShed: "shed", RequestsMemory: "memory", Pauses: "",
}

type collector struct {
	m *Manager

	state, memory, memoryLimit, memoryHighest *prometheus.Desc
	connections, connectionsLimit             *prometheus.Desc
	descriptors, descriptorsLimit, sources    *prometheus.Desc
	refusedConnections, refusedRequests       *prometheus.Desc
	delayed, pauses, paused                   *prometheus.Desc
}

// Collector gives the manager's numbers to a registry, as parrel_overload_*.
func (m *Manager) Collector() prometheus.Collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("parrel_overload_"+name, help, labels, nil)
	}
	return &collector{
		m:                  m,
		state:              d("state", "0: normal; 1: slow, nothing is accepted and reads from clients wait; 2: refusing, new requests are refused."),
		memory:             d("memory_bytes", "What the Go runtime has in use, at the last look."),
		memoryHighest:      d("memory_highest_bytes", "The most that it had in use."),
		memoryLimit:        d("memory_limit_bytes", "The cap on it; 0: none."),
		connections:        d("connections", "Open connections of all listeners."),
		connectionsLimit:   d("connections_limit", "How many there may be; 0: no limit."),
		descriptors:        d("descriptors", "File descriptors that traffic uses.", "side"),
		descriptorsLimit:   d("descriptors_limit", "How many traffic may use; 0: no limit."),
		sources:            d("source_connections_limit", "Open connections that one source address may have; 0: no limit."),
		refusedConnections: d("refused_connections_total", "Connections closed because of a limit.", "reason"),
		refusedRequests:    d("refused_requests_total", "Requests refused because of a limit.", "reason"),
		delayed:            d("delayed_reads_total", "Reads from clients that had to wait."),
		pauses:             d("accept_pauses_total", "Times that a listener stopped accepting for a while."),
		paused:             d("accept_paused", "Listeners that do not accept at the moment."),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { put(d, prometheus.GaugeValue, v, labels...) }
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		put(d, prometheus.CounterValue, float64(v), labels...)
	}
	m := c.m
	gauge(c.state, float64(m.State()))
	used := m.used.Load()
	if m.c.memory == 0 {
		used = newGauge().read()
	}
	gauge(c.memory, float64(used))
	gauge(c.memoryHighest, float64(max(m.highest.Load(), used)))
	gauge(c.memoryLimit, float64(m.c.memory))
	gauge(c.connections, float64(m.open.Load()))
	gauge(c.connectionsLimit, float64(max(m.c.connections, m.c.waitAt)))
	accepted, dialled := m.guard.Open()
	gauge(c.descriptors, float64(accepted), "accepted")
	gauge(c.descriptors, float64(dialled), "dialled")
	gauge(c.descriptorsLimit, float64(m.c.descriptors))
	gauge(c.sources, float64(m.c.perSource))
	for r := ConnectionsGlobal; r <= ConnectionsShed; r++ {
		count(c.refusedConnections, m.counts[r].Load(), reasonNames[r])
	}
	count(c.refusedRequests, m.counts[RequestsMemory].Load(), reasonNames[RequestsMemory])
	count(c.delayed, m.guard.Delayed())
	count(c.pauses, m.counts[Pauses].Load())
	gauge(c.paused, float64(m.paused.Load()))
}
