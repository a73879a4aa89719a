package admin

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/envoyapi"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// fixture is an API over two workloads, one of which is not ready.
type fixture struct {
	t       testing.TB
	h       http.Handler
	ws      []Workload
	level   slog.LevelVar
	drained []bool
	over    chan struct{}
	quits   int
	reopens int
}

const foreignKey = "-----BEGIN PRIVATE KEY-----\nFOREIGN-SECRET\n-----END PRIVATE KEY-----\n"

func newFixture(t testing.TB) *fixture {
	f := &fixture{t: t}
	pki := testpki.New(t, "mesh.test")
	trust := &resource.Secret{Name: "ROOTCA", TrustPEM: []resource.TrustBundle{{TrustDomain: "mesh.test", RootsPEM: []byte("pem")}}}
	start := time.Now()
	endpoints := resource.Endpoint{Address: resource.Address{Host: "10.0.0.1", Port: 21000}, Weight: 3}
	f.ws = []Workload{
		{
			ID: "api-sidecar-proxy", Service: "api", Version: "00aa", Connections: 2,
			ControlPlane: Connection{Connected: true, Since: start, Server: "cp-1",
				Refused: []Refused{{Type: "LDS", Name: "x", Version: "7", Field: "filter_chains[0]", Reason: "no such filter"}}},
			Held: []envoyapi.Held{
				{Resource: trust, Version: "1", Updated: start},
				{Resource: &resource.Secret{Name: "foreign", ChainPEM: []byte("chain"), KeyPEM: []byte(foreignKey)}, Version: "2", Updated: start},
			},
			Clusters: []envoyapi.ClusterStatus{{Name: "users", EDSName: "users", Added: true, Hosts: []envoyapi.HostStatus{
				{Endpoint: endpoints, Locality: resource.Locality{Region: "r", Zone: "z"}, Stats: map[string]uint64{"cx_active": 1, "rq_total": 5}},
				{Endpoint: resource.Endpoint{Address: resource.Address{Host: "10.0.0.2", Port: 21000}, Health: resource.Unhealthy}, FailedOutlierCheck: true},
			}}},
			Listeners: []listener.Status{
				{Name: "public_listener", Address: "10.0.0.1:21000", Direction: resource.Inbound, Version: "00aa", Counts: listener.Counts{Accepted: 9, Active: 2, RBACDenied: 1}},
				{Name: "users:/run/users.sock", Address: "/run/users.sock"},
			},
			Identity: pki.Identity("api").Current(),
		},
		{
			ID: "web-sidecar-proxy", Service: "web", Missing: []string{"no identity: web has not joined yet"},
			Pending:  []warm.Pending{{Key: warm.Key{Type: resource.TypeListener, Name: "l"}, For: []warm.Key{{Type: resource.TypeRoute, Name: "r"}}, Since: start}},
			Absent:   []warm.Key{{Type: resource.TypeEndpoints, Name: "gone"}},
			Identity: &mtls.Snapshot{Err: errors.New("web has not joined yet")},
		},
	}
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_requests_total"}, []string{"reporter"})
	c.WithLabelValues("source").Add(3)
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "istio_request_bytes"})
	h.Observe(2.5)
	reg.MustRegister(c, h)
	f.h = Handler(Deps{
		Version: "1.2.3", Start: start.Add(-90 * time.Second), Workloads: func() []Workload { return f.ws },
		Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), Gatherer: reg, Level: &f.level,
		Drain: func(in bool) <-chan struct{} { f.drained = append(f.drained, in); return f.over }, Quit: func() { f.quits++ },
		Reopen: func() error { f.reopens++; return nil },
	})
	return f
}

func (f *fixture) do(method, target string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost:15000"+target, nil)
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	f.h.ServeHTTP(w, r)
	return w
}

// pages are all that can be read.
var pages = []string{"/certs", "/clusters", "/clusters?format=json", "/config_dump", "/config_dump?workload=api-sidecar-proxy", "/help", "/init_dump",
	"/listeners", "/listeners?format=json", "/listeners?format=json&workload=api-sidecar-proxy", "/ready", "/server_info",
	"/server_info?workload=api-sidecar-proxy", "/stats", "/stats?filter=rbac", "/stats/prometheus", "/clusters?format=json&workload=api-sidecar-proxy"}

// TestPages compares every page with its golden file. Serial numbers are drawn
// at random and left out.
func TestPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		for _, page := range pages {
			w := f.do("GET", page)
			got := w.Result().Status + "\n" + w.Header().Get("Content-Type") + "\n\n" + serials(w.Body.String())
			name := filepath.Join("testdata", strings.NewReplacer("/", "_", "?", "-", "&", "-", "=", "_").Replace(page[1:])+".golden")
			golden.Check(t, name, got)
			if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s: not JSON", page)
			}
		}
	})
}

func serials(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.Contains(l, `"serial_number"`) {
			lines[i] = l[:strings.Index(l, ":")] + `: "…",`
		}
	}
	return strings.Join(lines, "\n")
}

// TestKeysNeverLeave: no page shows a private key, in any of its encodings.
func TestKeysNeverLeave(t *testing.T) {
	f := newFixture(t)
	der, err := x509.MarshalPKCS8PrivateKey(f.ws[0].Identity.SVID.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"FOREIGN-SECRET", "PRIVATE KEY", base64.StdEncoding.EncodeToString([]byte(foreignKey)),
		base64.StdEncoding.EncodeToString(der)[:40], string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	for _, page := range pages {
		body := f.do("GET", page).Body.String()
		for _, s := range secrets {
			if strings.Contains(body, s) {
				t.Errorf("%s shows a private key", page)
			}
		}
	}
	if body := f.do("GET", "/config_dump").Body.String(); !strings.Contains(body, "foreign") {
		t.Error("the secret is not in the dump at all: the test proves nothing")
	}
}

func TestMethods(t *testing.T) {
	f := newFixture(t)
	for path, allow := range map[string]string{"/ready": "GET, HEAD", "/config_dump": "GET, HEAD", "/logging": "POST", "/drain_listeners": "POST", "/quitquitquit": "POST", "/reopen_logs": "POST"} {
		wrong := "GET"
		if allow != "POST" {
			wrong = "POST"
		}
		for _, m := range []string{wrong, "PUT", "DELETE"} {
			if w := f.do(m, path+"?level=error"); w.Code != 405 || w.Header().Get("Allow") != allow {
				t.Errorf("%s %s: %d, Allow %q", m, path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
	if f.quits+f.reopens+len(f.drained) > 0 || f.level.Level() != slog.LevelInfo {
		t.Error("a wrong method changed something")
	}
	if w := f.do("GET", "/nothing"); w.Code != 404 {
		t.Errorf("/nothing: %d", w.Code)
	}
	if w := f.do("GET", "/certs?workload=x"); w.Code != 404 || !strings.Contains(w.Body.String(), "there are: api-sidecar-proxy, web-sidecar-proxy") {
		t.Errorf("unknown workload: %d %s", w.Code, w.Body)
	}
}

func TestChanges(t *testing.T) {
	f := newFixture(t)
	if w := f.do("POST", "/logging?level=debug"); w.Code != 200 || f.level.Level() != slog.LevelDebug || w.Body.String() != "active loggers:\n  parrel: debug\n" {
		t.Errorf("/logging: %d %s", w.Code, w.Body)
	}
	if w := f.do("POST", "/logging?level=loud"); w.Code != 400 || f.level.Level() != slog.LevelDebug {
		t.Errorf("/logging?level=loud: %d", w.Code)
	}
	f.do("POST", "/drain_listeners")
	f.do("POST", "/drain_listeners?inboundonly")
	f.do("POST", "/quitquitquit")
	f.do("POST", "/reopen_logs")
	if len(f.drained) != 2 || f.drained[0] || !f.drained[1] || f.quits != 1 || f.reopens != 1 {
		t.Errorf("drained %v, quits %d, reopens %d", f.drained, f.quits, f.reopens)
	}
}

// TestOthersPagesAreRefused: DNS rebinding and forged requests.
func TestOthersPagesAreRefused(t *testing.T) {
	f := newFixture(t)
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	for name, c := range map[string]func(*http.Request){
		"name of another": host("attacker.test"), "name with port": host("attacker.test:15000"), "address of the network": host("10.0.0.1:15000"),
		"no host": host(""), "localhost as a label": host("localhost.attacker.test"), "rebound address in a name": host("127.0.0.1.nip.test"),
		"origin": header("Origin", "http://attacker.test"), "null origin": header("Origin", "null"), "other port": header("Origin", "http://localhost:8080"),
		"https origin": header("Origin", "https://localhost:15000"), "cross site": header("Sec-Fetch-Site", "cross-site"), "same site": header("Sec-Fetch-Site", "same-site"),
	} {
		for _, method := range []string{"GET", "POST"} {
			path := map[string]string{"GET": "/config_dump", "POST": "/quitquitquit"}[method]
			if w := f.do(method, path, c); w.Code != http.StatusForbidden {
				t.Errorf("%s, %s: %d", name, method, w.Code)
			}
		}
	}
	if f.quits > 0 {
		t.Error("a refused request ended the process")
	}
	for name, c := range map[string]func(*http.Request){
		"localhost": host("localhost"), "v4": host("127.0.0.1:15000"), "v6": host("[::1]:15000"), "own origin": header("Origin", "http://localhost:15000"),
		"typed": header("Sec-Fetch-Site", "none"),
	} {
		if w := f.do("GET", "/server_info", c); w.Code != 200 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:15000": true, "[::1]:15000": true, "localhost:1": true, "unix:/run/a.sock": true, "/run/a.sock": true,
		"127.8.0.1:1": true, "0.0.0.0:15000": false, ":15000": false, "10.0.0.1:1": false, "[::]:1": false, "example.test:1": false, "15000": false} {
		if err := CheckAddress(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// TestDrainWaits: with wait the answer comes when the traffic has ended, or
// says that it has not.
func TestDrainWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.over = make(chan struct{})
		if w := f.do("POST", "/drain_listeners?wait=soon"); w.Code != 400 || len(f.drained) != 0 {
			t.Errorf("wait=soon: %d %s", w.Code, w.Body)
		}
		start := time.Now()
		if w := f.do("POST", "/drain_listeners?inboundonly&wait=30s"); w.Code != 504 || time.Since(start) != 30*time.Second {
			t.Errorf("a drain that does not end: %d after %s", w.Code, time.Since(start))
		}
		go func() {
			time.Sleep(3 * time.Second)
			close(f.over)
		}()
		start = time.Now()
		if w := f.do("POST", "/drain_listeners?inboundonly&wait=30s"); w.Code != 200 || time.Since(start) != 3*time.Second {
			t.Errorf("a drain that ends after 3s: %d after %s", w.Code, time.Since(start))
		}
		if len(f.drained) != 2 || !f.drained[0] || !f.drained[1] {
			t.Errorf("drained %v", f.drained)
		}
	})
}
