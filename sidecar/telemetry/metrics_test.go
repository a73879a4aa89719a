package telemetry

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/parrel-mesh/parrel/test/golden"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)

func record() Record {
	return Record{
		Start: t0, Duration: 12*time.Millisecond + 500*time.Microsecond, Inbound: true, Listener: "inbound", Chain: "mtls", Route: "app", Cluster: "local_app", Version: "v7",
		UpstreamHost: "127.0.0.1:8080", SourcePrincipal: "spiffe://td/ns/default/dc/dc1/svc/web", SourceService: "web", SourceNamespace: "default", SourceDatacenter: "dc1",
		DestinationService: "api", DestinationPrincipal: "spiffe://td/ns/default/dc/dc1/svc/api", DestinationVersion: "v2",
		Protocol: "http", HTTP: "HTTP/2", Method: "GET", Path: "/x?y=1", Authority: "api", UserAgent: "curl/8", RequestID: "id-1",
		Status: 200, GRPCStatus: -1, TLS: true, BytesIn: 10, BytesOut: 2000, Attempts: 1,
	}
}

// scrape is the exposition without what differs from run to run.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	b, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("scrape: %d %v %s", w.Code, err, b)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "istio_") || strings.Contains(line, "parrel_") && !strings.Contains(line, "go_version") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestScrape(t *testing.T) {
	m := NewMetrics(MetricsConfig{Version: "1.0"})
	r := record()
	m.Request(&r)
	m.Request(&r)
	r.Inbound, r.TLS, r.Protocol, r.GRPCStatus, r.Code, r.Status = false, true, "grpc", 14, NoHealthyUpstream, 200
	m.Request(&r)
	c := record()
	c.Protocol, c.Status = "tcp", 0
	m.ConnOpened(&c)
	m.ConnClosed(&c)
	m.SetConfigVersion("web", "v7")
	m.SetCertExpiry("web", t0)
	m.SetXDSConnected("web", true)
	golden.Check(t, "testdata/metrics.txt", scrape(t, m))
	m.Forget("web")
	if s := scrape(t, m); strings.Contains(s, `{workload="web"`) {
		t.Error("a forgotten workload is still there")
	}
}

// TestEveryCodeScrapes: several codes share a flag, and none of them makes two
// series that look the same.
func TestEveryCodeScrapes(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	for _, i := range Table() {
		for _, protocol := range []string{"http", "grpc", "tcp"} {
			r := record()
			r.Code, r.Status, r.Protocol = i.Code, 503, protocol
			if protocol == "tcp" {
				m.ConnOpened(&r)
				m.ConnClosed(&r)
				continue
			}
			m.Request(&r)
		}
	}
	if s := scrape(t, m); !strings.Contains(s, `response_flags="UF"`) {
		t.Error(s)
	}
}

// TestSeriesAreBounded: hostile or endless label values neither grow memory
// without end nor lose a count.
func TestSeriesAreBounded(t *testing.T) {
	m := NewMetrics(MetricsConfig{MaxSeries: 10, Expiry: time.Hour})
	for i := range 1000 {
		r := record()
		r.SourceService = fmt.Sprint("svc-", i)
		m.Request(&r)
	}
	if n := len(m.store.m); n != 11 { // the cap and the one for what is beyond
		t.Fatalf("%d series", n)
	}
	s := scrape(t, m)
	if !strings.Contains(s, `response_code="other",response_flags="other",source_app="other"`) || !strings.Contains(s, "} 990\n") {
		t.Errorf("the overflow is not counted:\n%s", s)
	}
	if n := m.store.expire(t0); n != 0 {
		t.Errorf("%d live series expired", n)
	}
	if m.store.expire(t0.Add(time.Hour)); len(m.store.m) != 0 {
		t.Errorf("%d silent series stay", len(m.store.m))
	}
}

func TestRequestAllocatesNothing(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	r := record()
	m.Request(&r)
	if n := testing.AllocsPerRun(100, func() { m.Request(&r) }); n != 0 {
		t.Errorf("a request allocates %v times", n)
	}
}

// Labels may be borrowed from a buffer that others write to afterwards: the
// series keep their own copies, and a buffer that now says something else is
// counted as what it says.
func TestLabelsAreOwned(t *testing.T) {
	m := NewMetrics(MetricsConfig{})
	buf := []byte("web")
	r := record()
	r.SourceService = unsafe.String(&buf[0], len(buf))
	m.Request(&r)
	m.Request(&r)
	copy(buf, "api")
	m.Request(&r)
	copy(buf, "\xdb\xdb\xdb")
	s := scrape(t, m)
	for name, n := range map[string]int{"web": 2, "api": 1} {
		if !strings.Contains(s, fmt.Sprintf(`source_app="%s"`, name)) {
			t.Errorf("%s is not counted", name)
		}
		for line := range strings.Lines(s) {
			if strings.HasPrefix(line, "istio_requests_total") && strings.Contains(line, `source_app="`+name+`"`) && !strings.HasSuffix(line, fmt.Sprintf(" %d\n", n)) {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}

// Whatever the cache in front does, every record counts once, in its own series,
// also while silent series leave.
func TestEveryRecordCounts(t *testing.T) {
	const workers, rounds, names = 4, 500, 100
	m := NewMetrics(MetricsConfig{})
	ended := t0.Add(time.Duration(rounds) * time.Minute)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				r := record()
				r.Start = ended
				r.SourceService = fmt.Sprint("svc-", (i+w)%names) // another string each time
				r.Status = 200 + i%2*300
				m.Request(&r)
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			m.store.expire(ended) // nothing is older
		}
	})
	wg.Wait()
	var n uint64
	for _, x := range m.store.m {
		n += x.duration.count()
	}
	if n != workers*rounds || len(m.store.m) != 2*names {
		t.Errorf("%d records in %d series, want %d in %d", n, len(m.store.m), workers*rounds, 2*names)
	}
	// A series that has left is not counted into by way of the cache.
	m.store.expire(ended.Add(time.Hour))
	r := record()
	r.Start, r.SourceService = ended.Add(2*time.Hour), "svc-1"
	m.Request(&r)
	if len(m.store.m) != 1 {
		t.Errorf("%d series, want the one that came back", len(m.store.m))
	}
}

func BenchmarkRequest(b *testing.B) {
	m := NewMetrics(MetricsConfig{})
	r := record()
	b.ReportAllocs()
	for b.Loop() {
		m.Request(&r)
	}
}
