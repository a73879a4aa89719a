package api

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/test/golden"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func now() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// api is the handler over a catalogue and one stream that refused a listener.
func api(t *testing.T, catalogue string) http.Handler {
	t.Helper()
	b := mesh.NewBuilder(mesh.Config{TrustDomain: meshtest.TrustDomain, Datacenter: meshtest.Datacenter})
	b.Apply(meshtest.MustRead(catalogue))
	m, _ := b.Apply(discovery.Delta{Status: &discovery.Status{
		Stale: true, Reason: "no leader", Since: now().Add(-time.Minute), Age: 2 * time.Second,
		Problems: []discovery.Problem{{Origin: discovery.Origin{Place: "file bad.hcl", Line: 3}, Reason: "\"tpc\" is no protocol", Remedy: "write tcp"}},
	}})
	return New(Config{Name: "cp-1", Hosts: []string{"mesh.internal"}}, Deps{
		Mesh:    func() *mesh.Snapshot { return m },
		Streams: streams,
		Metrics: func() server.Metrics {
			return server.Metrics{Streams: 1, StreamsOpened: 4, StreamsDenied: 2, StreamsClosed: map[string]uint64{"client": 1},
				Responses: map[string]uint64{"LDS": 7}, Bytes: map[string]uint64{"LDS": 900}, ACKs: map[string]uint64{"LDS": 6}, NACKs: map[string]uint64{"LDS": 1},
				Generated: 12, Shared: 5, Private: 3}
		},
		Ready: func() bool { return true },
		Now:   now,
	})
}

func streams() []server.StreamStatus {
	return []server.StreamStatus{{
		Stream:   1,
		Workload: server.Workload{NodeID: "api-sidecar-proxy", ID: spiffeid.RequireFromString("spiffe://parrel.test/ns/default/dc/dc1/svc/api")},
		Remote:   "127.0.0.1:50000", UserAgent: "parrel", Since: now().Add(-time.Hour),
		Types: []server.TypeStatus{
			{Type: resource.TypeCluster, Wanted: "a1", Acked: "a1", AckedAt: now(), Resources: 3, BytesSent: 100},
			{Type: resource.TypeListener, Wanted: "b2", Acked: "b1", Age: 5 * time.Second, AckedAt: now(), Resources: 3, BytesSent: 900, NACKs: 1,
				LastNACK: &server.NACK{Text: "LDS public_listener: no", At: now(), Resources: []server.Refused{{Name: "public_listener", Version: "9", Reason: "no"}}},
				Refused:  []server.Refused{{Name: "public_listener", Version: "9", Reason: "no"}}},
		},
	}}
}

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "localhost:15080"
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// TestGolden holds every answer as it is: its keys are a contract.
func TestGolden(t *testing.T) {
	h := api(t, meshtest.Shop)
	for name, path := range map[string]string{
		"status":           "/v1/status",
		"catalog":          "/v1/catalog",
		"analyze":          "/v1/analyze",
		"listeners":        "/v1/config/listeners/api-sidecar-proxy",
		"clusters":         "/v1/config/clusters/web",
		"routes":           "/v1/config/routes/web",
		"endpoints":        "/v1/config/endpoints/n1/api-sidecar-proxy",
		"explain-allowed":  "/v1/explain?from=web&to=api&method=POST&path=/x%3Fy=1&header=X-A:1&header=x-a:2",
		"explain-tcp":      "/v1/explain?from=api&to=orders&path=/",
		"explain-upstream": "/v1/explain?from=web&to=users",
		"metrics":          "/metrics",
	} {
		t.Run(name, func(t *testing.T) {
			rec := get(h, path)
			if rec.Code != http.StatusOK {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			golden.Check(t, filepath.Join("testdata", name+".golden"), rec.Body.String())
		})
	}
}

// transparent is the shop with nothing but intentions to say who calls whom.
var transparent = func() string {
	bare := regexp.MustCompile(`(?s)proxy: \{upstreams: \[.*?\]\}`).ReplaceAllString(meshtest.Shop, "")
	return strings.Replace(bare, "name: global, config", "name: global, mode: transparent, config", 1)
}()

// TestExplain: each verdict, with the sentence that says why.
func TestExplain(t *testing.T) {
	for _, c := range []struct{ catalogue, query, verdict, reason string }{
		{meshtest.Shop, "from=web&to=api", "allowed", "web may call api"},
		{meshtest.Shop, "from=web-sidecar-proxy&to=api-sidecar-proxy", "allowed", "web may call api"},
		{strings.Replace(meshtest.Shop, "name: web, action: allow", "name: web, action: deny", 1), "from=web&to=api", "denied", "the intention of service-intentions/api for source web denies"},
		{strings.Replace(meshtest.Shop, "{name: web, action: allow}", "{name: web, permissions: [{action: allow, http: {path_prefix: /}}]}", 1), "from=web&to=api", "denied", "permissions are not executed"},
		{strings.Replace(meshtest.Shop, "{name: web, action: allow}", "{name: orders, action: allow}", 1), "from=web&to=api", "denied", "no intention allows it, and the default is deny"},
		{transparent, "from=api&to=users", "allowed", `"chain": "users.default.dc1.internal.parrel.test"`},
		{strings.Replace(transparent, ", config: {protocol: http}", "", 1), "from=web&to=api", "allowed", `"chain": "public_listener|http"`},
		{meshtest.Shop, "from=web&to=orders", "no_upstream", "web has no upstream orders"},
		{strings.Replace(meshtest.Shop, "id: users-1,", "id: users-1, health: critical,", 1), "from=api&to=users", "no_endpoint", "none of the 2 instances of users is healthy"},
		{transparent, "from=web&to=orders", "denied", "the intention of service-intentions/orders for source * denies"},
		{transparent, "from=users&to=api", "denied", "no intention allows it, and the default is deny"},
		{transparent, "from=users&to=api", "denied", `"chain": "virtual-address-not-callable|http"`},
		{transparent, "from=api&to=users", "allowed", `"destination": "24`},
		{transparent, "from=api&to=orders", "allowed", `"chain": "orders.default.dc1.internal.parrel.test"`},
	} {
		rec := get(api(t, c.catalogue), "/v1/explain?"+c.query)
		body := rec.Body.String()
		if rec.Code != http.StatusOK || !strings.Contains(body, `"verdict": "`+c.verdict+`"`) || !strings.Contains(body, c.reason) {
			t.Errorf("%s: want %s, %q; got %d %s", c.query, c.verdict, c.reason, rec.Code, body)
		}
	}
}

// TestErrors: each wrong question gets a sentence.
func TestErrors(t *testing.T) {
	h := api(t, meshtest.Shop)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/v1/explain":                        {400, "from: name a node id or a service"},
		"/v1/explain?from=web":               {400, "to: name a node id or a service"},
		"/v1/explain?from=web&to=x":          {404, `there is neither a proxy nor a service \"x\"`},
		"/v1/explain?from=web&to=api&path=x": {400, "does not start with /"},
		"/v1/explain?from=web&to=api&header": {400, "is not NAME:VALUE"},
		"/v1/config/things/web":              {404, "there is no type"},
		"/v1/config/clusters/nobody":         {404, "neither a proxy nor a service"},
	} {
		rec := get(h, path)
		if rec.Code != want.code || !strings.Contains(rec.Body.String(), want.text) {
			t.Errorf("%s: %d %s; want %d %q", path, rec.Code, rec.Body, want.code, want.text)
		}
	}
}

// TestGuard: only GET and HEAD, only by names that are ours.
func TestGuard(t *testing.T) {
	h := api(t, meshtest.Shop)
	for _, c := range []struct {
		method, host string
		want         int
	}{
		{"GET", "localhost:15080", 200}, {"GET", "127.0.0.1:15080", 200}, {"GET", "[::1]:15080", 200}, {"GET", "127.9.9.9", 200},
		{"GET", "mesh.internal:15080", 200}, {"GET", "MESH.internal", 200}, {"HEAD", "localhost", 200},
		{"GET", "evil.example:15080", 421}, {"GET", "10.0.0.1:15080", 421}, {"GET", "localhost.evil.example", 421}, {"GET", "", 421},
		{"GET", "127.0.0.1.evil.example", 421},
		{"POST", "localhost:15080", 405}, {"DELETE", "localhost", 405}, {"PUT", "localhost", 405},
		{"POST", "evil.example", 421},
	} {
		r := httptest.NewRequest(c.method, "/v1/status", nil)
		r.Host = c.host
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%s with Host %q: %d, want %d", c.method, c.host, rec.Code, c.want)
		}
	}
}

// TestNoSecrets: nothing that the API says holds a key.
func TestNoSecrets(t *testing.T) {
	h := api(t, meshtest.Shop)
	for _, path := range []string{"/v1/config/secrets/web", "/v1/status", "/v1/catalog"} {
		if body := get(h, path).Body.String(); strings.Contains(body, "PRIVATE") || strings.Contains(body, `"KeyPEM": "`) {
			t.Errorf("%s: %s", path, body)
		}
	}
}
