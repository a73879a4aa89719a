package api

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// Config of the API.
type Config struct {
	Name string
	// Hosts are names to answer to beside loopback names and addresses, without
	// port.
	Hosts []string
}

// Deps are what the API shows.
type Deps struct {
	Mesh    func() *mesh.Snapshot
	Streams func() []server.StreamStatus
	// Subscribed lists what the streams of a node ask for by name; nil: nothing.
	Subscribed func(nodeID string, t resource.Type) []string
	Metrics    func() server.Metrics
	Ready      func() bool
	Now        func() time.Time
}

type handler struct {
	cfg  Config
	deps Deps
}

// New returns the API's handler.
func New(c Config, d Deps) http.Handler {
	h := &handler{c, d}
	mux := http.NewServeMux()
	route := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if err != nil {
				fail(w, err)
				return
			}
			answer(w, http.StatusOK, v)
		})
	}
	route("/v1/status", func(*http.Request) (any, error) { return h.status(), nil })
	route("/v1/catalog", func(*http.Request) (any, error) { return h.catalog(), nil })
	route("/v1/config/{type}/{node...}", h.config)
	route("/v1/explain", h.explain)
	route("/v1/analyze", func(*http.Request) (any, error) { return h.analyze(), nil })
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.Handle("GET /metrics", h.metrics())
	return h.guard(mux)
}

// guard refuses what no honest client of ours sends.
func (h *handler) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case !h.hostAllowed(r.Host):
			fail(w, &Error{http.StatusMisdirectedRequest, "this API answers to loopback names and addresses only; add the name of the Host header to the control plane's API hosts if it is meant to be reached by it"})
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			fail(w, &Error{http.StatusMethodNotAllowed, "nothing can be changed through this API: only GET and HEAD are answered"})
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// hostAllowed says whether a Host header names us: a page in a browser that
// was rebound to our address sends the name of its own site.
func (h *handler) hostAllowed(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "localhost" {
		return true
	}
	if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() {
		return true
	}
	for _, name := range h.cfg.Hosts {
		if strings.EqualFold(name, host) {
			return true
		}
	}
	return false
}

func (h *handler) healthz(w http.ResponseWriter, _ *http.Request) {
	if !h.deps.Ready() {
		fail(w, &Error{http.StatusServiceUnavailable, "the catalogue has not been read yet"})
		return
	}
	answer(w, http.StatusOK, map[string]string{"status": "ok"})
}

// Error is an answer that is no success.
type Error struct {
	Status int
	Reason string
}

func (e *Error) Error() string { return e.Reason }

func fail(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{http.StatusInternalServerError, err.Error()}
	}
	answer(w, e.Status, map[string]string{"error": e.Reason})
}

func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
