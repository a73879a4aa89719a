package admin

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/envoyapi"
)

// Workload is what one workload looks like now. Plain data.
type Workload struct {
	ID       string // node id: the proxy's service id
	Service  string
	Metadata map[string]string
	Missing  []string // what it waits for before it is ready; empty: ready

	ControlPlane Connection
	Version      string // of the configuration in force
	Pending      []warm.Pending
	Absent       []warm.Key
	Held         []envoyapi.Held
	Clusters     []envoyapi.ClusterStatus
	Listeners    []listener.Status
	Connections  int
	Identity     *mtls.Snapshot // only public parts are shown
}

// Connection is how a workload's xDS stream is.
type Connection struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Server    string    `json:"server,omitempty"`
	LastError string    `json:"last_error,omitempty"`
	FromDisk  bool      `json:"from_disk,omitempty"`
	Refused   []Refused `json:"refused,omitempty"`
}

// Refused is one resource whose newest version was refused.
type Refused struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Field   string `json:"field,omitempty"`
	Reason  string `json:"reason"`
}

// Deps is what the API shows and may do.
type Deps struct {
	Version   string
	Start     time.Time
	Workloads func() []Workload     // by ID
	Redirect  func() intercept.Plan // nil: nothing is captured
	Metrics   http.Handler          // Prometheus exposition
	Gatherer  prometheus.Gatherer
	Level     *slog.LevelVar // of the process's log; nil: /logging is not there
	Draining  func() bool
	// Drain must not block; what it returns is closed when the traffic has ended.
	Drain  func(inboundOnly bool) <-chan struct{}
	Quit   func()       // must not block
	Reopen func() error // log files, after a rotation; nil: none
	Now    func() time.Time
}

// CheckAddress says whether the admin API may listen there.
func CheckAddress(address string) error {
	if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "/") {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("admin: address %q: %w; write host:port, such as 127.0.0.1:15000, or unix:PATH", address, err)
	}
	if host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return fmt.Errorf("admin: address %q is not on loopback; the admin API is for this machine only: use 127.0.0.1, [::1] or unix:PATH", address)
	}
	return nil
}

type api struct {
	Deps
	pages []page
}

type page struct {
	path, help string
	post       bool
	serve      func(http.ResponseWriter, *http.Request, []Workload)
}

// Handler is the API.
func Handler(d Deps) http.Handler {
	if d.Now == nil {
		d.Now = time.Now
	}
	a := &api{Deps: d}
	a.pages = []page{
		{path: "/certs", help: "certificates on the machine, without keys", serve: a.certs},
		{path: "/clusters", help: "upstream cluster status (?format=json)", serve: a.clusters},
		{path: "/config_dump", help: "dump of the configuration in force", serve: a.configDump},
		{path: "/drain_listeners", help: "drain listeners (?inboundonly, ?wait=TIME: answer when that is done)", post: true, serve: a.drain},
		{path: "/help", help: "this page", serve: a.helpPage},
		{path: "/init_dump", help: "what waits for something else", serve: a.initDump},
		{path: "/listeners", help: "listener addresses (?format=json)", serve: a.listeners},
		{path: "/logging", help: "show or change the log level (?level=debug|info|warning|error)", post: true, serve: a.logging},
		{path: "/quitquitquit", help: "end the process, softly", post: true, serve: a.quit},
		{path: "/ready", help: "200 once every workload serves, else 503 and what is missing", serve: a.ready},
		{path: "/redirect", help: "what redirection needs to know of each workload, JSON", serve: a.redirect},
		{path: "/reopen_logs", help: "open log files anew", post: true, serve: a.reopen},
		{path: "/server_info", help: "version, state and streams", serve: a.serverInfo},
		{path: "/stats", help: "counters and gauges (?filter=REGEX, ?format=prometheus)", serve: a.stats},
		{path: "/stats/prometheus", help: "the same for Prometheus", serve: a.prometheus},
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	if !ownHost(r.Host) {
		http.Error(w, fmt.Sprintf("admin: Host %q is not this machine's; use localhost or a loopback address", r.Host), http.StatusForbidden)
		return
	}
	if !ownOrigin(r) {
		http.Error(w, "admin: a page of another origin may not use this API", http.StatusForbidden)
		return
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	if path == "" {
		path = "/help"
	}
	i := slices.IndexFunc(a.pages, func(p page) bool { return p.path == path })
	if i < 0 {
		http.Error(w, "admin: no such page; see /help", http.StatusNotFound)
		return
	}
	p := a.pages[i]
	if allow := p.methods(); !slices.Contains(allow, r.Method) {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		http.Error(w, fmt.Sprintf("admin: %s takes %s", p.path, strings.Join(allow, " or ")), http.StatusMethodNotAllowed)
		return
	}
	all := a.Workloads()
	if id := r.URL.Query().Get("workload"); id != "" {
		i := slices.IndexFunc(all, func(w Workload) bool { return w.ID == id })
		if i < 0 {
			http.Error(w, fmt.Sprintf("admin: no workload %q in this process; there are: %s", id, strings.Join(ids(all), ", ")), http.StatusNotFound)
			return
		}
		all = all[i : i+1]
	}
	p.serve(w, r, all)
}

func (p page) methods() []string {
	if p.post {
		return []string{http.MethodPost}
	}
	return []string{http.MethodGet, http.MethodHead}
}

func ids(ws []Workload) []string {
	out := make([]string, len(ws))
	for i := range ws {
		out[i] = ws[i].ID
	}
	return out
}

// ownHost accepts loopback names and addresses only: a name that somebody else's
// DNS points at 127.0.0.1 is not one of them.
func ownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// ownOrigin refuses what a browser sends on behalf of another origin's page.
func ownOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return false
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	u, err := url.Parse(origins[0])
	return len(origins) == 1 && err == nil && u.Scheme == "http" && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s))
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, "admin: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}

func (a *api) helpPage(w http.ResponseWriter, _ *http.Request, _ []Workload) {
	var b strings.Builder
	b.WriteString("admin commands are:\n")
	for _, p := range a.pages {
		method := ""
		if p.post {
			method = " (POST)"
		}
		fmt.Fprintf(&b, "  %s%s: %s\n", p.path, method, p.help)
	}
	text(w, http.StatusOK, b.String())
}

// State is Envoy's word for how far a process is.
func state(ws []Workload, draining bool) string {
	if draining {
		return "DRAINING"
	}
	for i := range ws {
		if len(ws[i].Missing) > 0 {
			return "INITIALIZING"
		}
	}
	return "LIVE"
}

func (a *api) draining() bool { return a.Draining != nil && a.Draining() }

func (a *api) ready(w http.ResponseWriter, _ *http.Request, ws []Workload) {
	status, body := Ready(ws, a.draining())
	text(w, status, body)
}

// Ready is the answer of /ready, for the admin API and the readiness port.
func Ready(ws []Workload, draining bool) (status int, body string) {
	s := state(ws, draining)
	if s == "LIVE" {
		return http.StatusOK, "LIVE\n"
	}
	var b strings.Builder
	b.WriteString(s + "\n")
	for i := range ws {
		for _, m := range ws[i].Missing {
			fmt.Fprintf(&b, "%s: %s\n", ws[i].ID, m)
		}
	}
	return http.StatusServiceUnavailable, b.String()
}

var levels = []struct {
	name  string
	level slog.Level
}{{"debug", slog.LevelDebug}, {"info", slog.LevelInfo}, {"warning", slog.LevelWarn}, {"error", slog.LevelError}}

func (a *api) logging(w http.ResponseWriter, r *http.Request, _ []Workload) {
	if a.Level == nil {
		http.Error(w, "admin: this process's log level cannot be changed", http.StatusNotImplemented)
		return
	}
	if name := r.URL.Query().Get("level"); name != "" {
		if name == "warn" {
			name = "warning"
		}
		i := slices.IndexFunc(levels, func(l struct {
			name  string
			level slog.Level
		}) bool {
			return l.name == name
		})
		if i < 0 {
			http.Error(w, fmt.Sprintf("admin: no log level %q; there are debug, info, warning, error", name), http.StatusBadRequest)
			return
		}
		a.Level.Set(levels[i].level)
	}
	now := "info"
	for _, l := range levels {
		if a.Level.Level() >= l.level {
			now = l.name
		}
	}
	text(w, http.StatusOK, "active loggers:\n  parrel: "+now+"\n")
}

func (a *api) drain(w http.ResponseWriter, r *http.Request, _ []Workload) {
	q := r.URL.Query()
	var wait <-chan time.Time
	if q.Has("wait") {
		d, err := time.ParseDuration(q.Get("wait"))
		if err != nil || d <= 0 {
			http.Error(w, fmt.Sprintf("admin: wait=%s is no time above zero: write 30s", q.Get("wait")), http.StatusBadRequest)
			return
		}
		t := time.NewTimer(d)
		defer t.Stop()
		wait = t.C
	}
	over := a.Drain(q.Has("inboundonly"))
	if wait != nil {
		select {
		case <-over:
		case <-r.Context().Done():
			return
		case <-wait:
			http.Error(w, "admin: the traffic has not ended yet", http.StatusGatewayTimeout)
			return
		}
	}
	text(w, http.StatusOK, "OK\n")
}

func (a *api) quit(w http.ResponseWriter, _ *http.Request, _ []Workload) {
	text(w, http.StatusOK, "OK\n")
	a.Quit()
}

func (a *api) reopen(w http.ResponseWriter, _ *http.Request, _ []Workload) {
	if a.Reopen != nil {
		if err := a.Reopen(); err != nil {
			http.Error(w, "admin: "+err.Error(), http.StatusInternalServerError)
			return
		}
	}
	text(w, http.StatusOK, "OK\n")
}

func (a *api) redirect(w http.ResponseWriter, r *http.Request, ws []Workload) {
	var p intercept.Plan
	if a.Redirect != nil {
		p = a.Redirect()
	}
	if r.URL.Query().Has("workload") {
		p.Proxies = slices.DeleteFunc(p.Proxies, func(x intercept.PlanProxy) bool {
			return !slices.ContainsFunc(ws, func(w Workload) bool { return w.ID == x.ProxyID })
		})
	}
	if p.Proxies == nil {
		p.Proxies = []intercept.PlanProxy{}
	}
	writeJSON(w, p)
}

func (a *api) prometheus(w http.ResponseWriter, r *http.Request, _ []Workload) {
	a.Metrics.ServeHTTP(w, r)
}

func (a *api) stats(w http.ResponseWriter, r *http.Request, ws []Workload) {
	if r.URL.Query().Get("format") == "prometheus" {
		a.Metrics.ServeHTTP(w, r)
		return
	}
	filter, err := regexp.Compile(r.URL.Query().Get("filter"))
	if err != nil {
		http.Error(w, "admin: filter: "+err.Error(), http.StatusBadRequest)
		return
	}
	lines, err := statLines(ws, a.Gatherer)
	if err != nil {
		http.Error(w, "admin: "+err.Error(), http.StatusInternalServerError)
		return
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return !filter.MatchString(l) })
	text(w, http.StatusOK, strings.Join(lines, "\n")+"\n")
}
