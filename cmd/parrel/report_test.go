package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/parrel-mesh/parrel/test/golden"
)

// answersOf is the API's answer to each path, as a control plane gave them.
func answersOf(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for path, file := range map[string]string{
		"/v1/status":                                "status",
		"/v1/analyze":                               "analyze",
		"/v1/config/listeners/api-sidecar-proxy":    "listeners",
		"/v1/config/clusters/web":                   "clusters",
		"/v1/config/routes/web":                     "routes",
		"/v1/config/endpoints/n1/api-sidecar-proxy": "endpoints",
		"/v1/explain?from=web&header=X-A%3A1&method=POST&path=%2Fx&to=api": "explain-allowed",
		"/v1/explain?from=api&method=GET&path=%2F&to=orders":               "explain-tcp",
		"/v1/explain?from=web&method=GET&path=%2F&to=users":                "explain-upstream",
	} {
		b, err := os.ReadFile(filepath.Join("testdata", "api", file+".json"))
		if err != nil {
			t.Fatal(err)
		}
		out[path] = b
	}
	return out
}

// controlPlane answers as one.
func controlPlane(t *testing.T) (address string, answers map[string][]byte) {
	t.Helper()
	answers = answersOf(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := answers[r.URL.RequestURI()]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			body = []byte(`{"error": "there is neither a proxy nor a service \"nobody\" in the catalogue"}`)
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s.URL, answers
}

// TestReports: each command that reports, as table, JSON and YAML, and its exit
// code. JSON and YAML say all that the API says, under its own keys.
func TestReports(t *testing.T) {
	address, answers := controlPlane(t)
	for name, c := range map[string]struct {
		args, path string
		code       exitCode
	}{
		"status":          {"status", "/v1/status", 0},
		"analyze":         {"analyze", "/v1/analyze", 1},
		"listeners":       {"config listeners api-sidecar-proxy", "/v1/config/listeners/api-sidecar-proxy", 0},
		"clusters":        {"config clusters web", "/v1/config/clusters/web", 0},
		"routes":          {"config routes web", "/v1/config/routes/web", 0},
		"explain-allowed": {"explain --from web --to api POST /x -H X-A:1", "/v1/explain?from=web&header=X-A%3A1&method=POST&path=%2Fx&to=api", 0},
		"explain-tcp":     {"explain --from api --to orders", "/v1/explain?from=api&method=GET&path=%2F&to=orders", 0},
		"explain-denied":  {"explain --from web --to users", "/v1/explain?from=web&method=GET&path=%2F&to=users", 2},
	} {
		for _, format := range outputs {
			t.Run(name+"/"+format, func(t *testing.T) {
				out, _, err := parrel(t, append(strings.Fields(c.args), "-api="+address, "-o", format)...)
				var code exitCode
				if err != nil && !errors.As(err, &code) {
					t.Fatal(err)
				}
				if code != c.code {
					t.Errorf("exit code %d, want %d", code, c.code)
				}
				if format == "table" {
					golden.Check(t, filepath.Join("testdata", name+".txt"), out)
					return
				}
				var got, want any
				if err := errors.Join(yaml.Unmarshal([]byte(out), &got), json.Unmarshal(answers[c.path], &want)); err != nil {
					t.Fatalf("%v in %s", err, out)
				}
				if format == "json" && !json.Valid([]byte(out)) {
					t.Errorf("no JSON: %s", out)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("what the API says and what the command prints differ (-API +command):\n%s", d)
				}
			})
		}
	}
}

// TestStatusOfOne shows one sidecar, and says so when there is none.
func TestStatusOfOne(t *testing.T) {
	address, _ := controlPlane(t)
	out, _, err := parrel(t, "status", "web-sidecar-proxy", "-o", "json", "--api", address)
	if err != nil || strings.Count(out, `"node"`) != 1 || !strings.Contains(out, `"node": "web-sidecar-proxy"`) {
		t.Errorf("%v %s", err, out)
	}
	_, _, err = parrel(t, "status", "nobody", "--api", address)
	if err == nil || !strings.Contains(err.Error(), `no sidecar "nobody": `+"`parrel status` lists all") {
		t.Errorf("%v", err)
	}
}

// TestAPIErrors: what the control plane says is wrong is what the user reads;
// who does not answer is named with what may be the cause.
func TestAPIErrors(t *testing.T) {
	address, _ := controlPlane(t)
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			_, _ = w.Write([]byte("<html>"))
			return
		}
		http.Error(w, "busy", http.StatusBadGateway)
	}))
	defer html.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for args, want := range map[string]string{
		"config clusters nobody --api " + address:   `there is neither a proxy nor a service "nobody" in the catalogue`,
		"status --api " + gone.URL:                  "connection refused; is `parrel controlplane` running, and is --api its --http-bind?",
		"status --api " + html.URL:                  "did not answer as a control plane does",
		"analyze --api " + html.URL:                 "/v1/analyze answered 502 Bad Gateway: busy",
		"explain --from a --to b --api " + gone.URL: "the control plane's API does not answer",
	} {
		out, _, err := parrel(t, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%s: %v, want %s; it printed %q", args, err, want, out)
		}
	}
}

// TestVersion prints what the build set.
func TestVersion(t *testing.T) {
	out, _, err := parrel(t, "version", "-o", "json")
	var v versionInfo
	if err = errors.Join(err, json.Unmarshal([]byte(out), &v)); err != nil || v.Version != version || v.Go == "" || v.Platform == "" {
		t.Errorf("%v %s", err, out)
	}
	if out, _, err = parrel(t, "version"); err != nil || !strings.HasPrefix(out, "parrel "+version+" (go") {
		t.Errorf("%v %s", err, out)
	}
}
