package dns

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// event is what is counted.
type event uint8

const (
	ownNoError event = iota
	ownNoData
	ownNoSuchName
	ownRefused
	ownFormatError
	ownBadVersion
	ownTruncated
	ownLimited // beyond a source's rate
	searched   // own answers to names with a search domain behind them

	forwardAnswered
	forwardNext // answered after another resolver had failed
	forwardTimeout
	forwardFailed
	forwardOverload

	dropNoQuery
	dropLoop
	dropSource    // an answer from elsewhere
	dropMismatch  // an answer with another id or question
	dropConns     // connections beyond the cap
	dropTooLong   // messages by TCP beyond the limit
	dropLongReply // datagrams that are longer than any buffer
	dropPanic
	eventEnd
)

// events names them: metric and label value.
var events = [eventEnd]string{
	ownNoError: "own noerror", ownNoData: "own nodata", ownNoSuchName: "own nxdomain", ownRefused: "own refused", ownFormatError: "own formerr",
	ownBadVersion: "own badvers", ownTruncated: "own truncated", ownLimited: "own limited", searched: "own search",
	forwardAnswered: "forward answered", forwardNext: "forward next_resolver", forwardTimeout: "forward timeout", forwardFailed: "forward failed",
	forwardOverload: "forward overload",
	dropNoQuery:     "drop no_query", dropLoop: "drop loop", dropSource: "drop other_source", dropMismatch: "drop mismatch",
	dropConns: "drop connections", dropTooLong: "drop too_long", dropLongReply: "drop long_answer", dropPanic: "drop panic",
}

// counts are a Set's.
type counts struct {
	events   [eventEnd]atomic.Uint64
	udp, tcp atomic.Uint64 // queries
	flying   atomic.Int64
	conns    atomic.Int64
	names    atomic.Int64
	seconds  prometheus.Histogram

	queries, own, forwards, drops, inFlight, open, known *prometheus.Desc
}

func newCounts() *counts {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &counts{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "parrel_dns_forward_duration_seconds",
			Help:    "Time from a query to the resolver's answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 4}}),
		queries:  d("parrel_dns_queries_total", "Messages received from clients.", "transport"),
		own:      d("parrel_dns_own_answers_total", "Answers for names of the mesh; truncated and search are counted beside the kind of answer.", "result"),
		forwards: d("parrel_dns_forwarded_total", "Queries for other names, by how they ended.", "result"),
		drops:    d("parrel_dns_dropped_total", "Messages and connections that were not served, and answers that were not a resolver's to the query.", "reason"),
		inFlight: d("parrel_dns_in_flight", "Queries that wait for a resolver."),
		open:     d("parrel_dns_connections", "Open TCP connections of clients."),
		known:    d("parrel_dns_names", "Names that are answered for."),
	}
}

func (c *counts) add(e event) { c.events[e].Add(1) }

// ownAnswer counts an own answer.
func (c *counts) ownAnswer(code rcode, msg []byte, truncated bool) {
	switch {
	case code == nameError:
		c.add(ownNoSuchName)
	case code == refused:
		c.add(ownRefused)
	case code == badVersion:
		c.add(ownBadVersion)
	case msg[6]|msg[7] == 0 && !truncated:
		c.add(ownNoData)
	default:
		c.add(ownNoError)
	}
	if truncated {
		c.add(ownTruncated)
	}
}

func (c *counts) took(d time.Duration) { c.seconds.Observe(d.Seconds()) }

// Describe implements prometheus.Collector.
func (c *counts) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.queries, c.own, c.forwards, c.drops, c.inFlight, c.open, c.known} {
		ch <- d
	}
	c.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *counts) Collect(ch chan<- prometheus.Metric) {
	metrics := map[string]*prometheus.Desc{"own": c.own, "forward": c.forwards, "drop": c.drops}
	for e, name := range events {
		kind, label, _ := strings.Cut(name, " ")
		ch <- prometheus.MustNewConstMetric(metrics[kind], prometheus.CounterValue, float64(c.events[e].Load()), label)
	}
	ch <- prometheus.MustNewConstMetric(c.queries, prometheus.CounterValue, float64(c.udp.Load()), "udp")
	ch <- prometheus.MustNewConstMetric(c.queries, prometheus.CounterValue, float64(c.tcp.Load()), "tcp")
	ch <- prometheus.MustNewConstMetric(c.inFlight, prometheus.GaugeValue, float64(c.flying.Load()))
	ch <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, float64(c.conns.Load()))
	ch <- prometheus.MustNewConstMetric(c.known, prometheus.GaugeValue, float64(c.names.Load()))
	c.seconds.Collect(ch)
}
