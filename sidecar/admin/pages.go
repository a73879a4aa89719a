package admin

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/xds/envoyapi"
)

// several writes one workload's document as it is, and that of more than one as
// {"workloads": {ID: document}}.
func several(w http.ResponseWriter, ws []Workload, one func(*Workload) (json.RawMessage, error)) {
	docs := make(map[string]json.RawMessage, len(ws))
	for i := range ws {
		doc, err := one(&ws[i])
		if err != nil {
			http.Error(w, fmt.Sprintf("admin: workload %s: %v", ws[i].ID, err), http.StatusInternalServerError)
			return
		}
		docs[ws[i].ID] = doc
	}
	if len(ws) == 1 {
		writeJSON(w, docs[ws[0].ID])
		return
	}
	writeJSON(w, map[string]any{"workloads": docs})
}

func (a *api) configDump(w http.ResponseWriter, _ *http.Request, ws []Workload) {
	several(w, ws, func(x *Workload) (json.RawMessage, error) {
		return envoyapi.ConfigDump(envoyapi.Dump{NodeID: x.ID, NodeCluster: x.Service, Metadata: x.Metadata, Held: x.Held})
	})
}

func wantsJSON(r *http.Request) bool { return r.URL.Query().Get("format") == "json" }

func (a *api) clusters(w http.ResponseWriter, r *http.Request, ws []Workload) {
	if wantsJSON(r) {
		several(w, ws, func(x *Workload) (json.RawMessage, error) { return envoyapi.Clusters(x.Clusters) })
		return
	}
	var b strings.Builder
	for i := range ws {
		if len(ws) > 1 {
			fmt.Fprintf(&b, "# %s\n", ws[i].ID)
		}
		for _, c := range ws[i].Clusters {
			clusterText(&b, &c)
		}
	}
	text(w, http.StatusOK, b.String())
}

func clusterText(b *strings.Builder, c *envoyapi.ClusterStatus) {
	fmt.Fprintf(b, "%s::observability_name::%s\n", c.Name, c.Name)
	fmt.Fprintf(b, "%s::added_via_api::%t\n", c.Name, c.Added)
	if c.EDSName != "" {
		fmt.Fprintf(b, "%s::eds_service_name::%s\n", c.Name, c.EDSName)
	}
	for _, h := range c.Hosts {
		addr := h.Endpoint.Address.Path
		if addr == "" {
			addr = net.JoinHostPort(h.Endpoint.Address.Host, strconv.Itoa(int(h.Endpoint.Address.Port)))
		}
		line := func(k, v string) { fmt.Fprintf(b, "%s::%s::%s::%s\n", c.Name, addr, k, v) }
		for _, k := range sorted(h.Stats) {
			line(k, strconv.FormatUint(h.Stats[k], 10))
		}
		var flags []string
		if h.FailedActiveCheck {
			flags = append(flags, "/failed_active_hc")
		}
		if h.FailedOutlierCheck {
			flags = append(flags, "/failed_outlier_check")
		}
		health := [...]string{"", "", "/failed_eds_health", "/eds_status_draining", "/degraded_eds_health"}[h.Endpoint.Health%5]
		if health != "" {
			flags = append(flags, health)
		}
		line("health_flags", cmp.Or(strings.Join(flags, ""), "healthy"))
		line("weight", strconv.Itoa(int(max(h.Endpoint.Weight, 1))))
		line("region", h.Locality.Region)
		line("zone", h.Locality.Zone)
		line("sub_zone", h.Locality.SubZone)
		line("priority", strconv.Itoa(int(h.Locality.Priority)))
	}
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (a *api) listeners(w http.ResponseWriter, r *http.Request, ws []Workload) {
	if !wantsJSON(r) {
		var b strings.Builder
		for i := range ws {
			for _, l := range ws[i].Listeners {
				if l.Err == "" {
					fmt.Fprintf(&b, "%s::%s\n", l.Name, l.Address)
				}
			}
		}
		text(w, http.StatusOK, b.String())
		return
	}
	several(w, ws, func(x *Workload) (json.RawMessage, error) {
		out := []any{}
		for _, l := range x.Listeners {
			if l.Err == "" {
				out = append(out, map[string]any{"name": l.Name, "local_address": localAddress(l)})
			}
		}
		return json.Marshal(map[string]any{"listener_statuses": out})
	})
}

func localAddress(l listener.Status) map[string]any {
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil {
		return map[string]any{"pipe": map[string]any{"path": l.Address}}
	}
	n, _ := strconv.Atoi(port)
	a := map[string]any{"address": host, "port_value": n}
	if l.UDP {
		a["protocol"] = "UDP"
	}
	return map[string]any{"socket_address": a}
}

// certificate is envoy.admin.v3.CertificateDetails.
type certificate struct {
	Path      string    `json:"path"`
	Serial    string    `json:"serial_number"`
	SANs      []san     `json:"subject_alt_names"`
	Days      string    `json:"days_until_expiration"`
	ValidFrom time.Time `json:"valid_from"`
	Expires   time.Time `json:"expiration_time"`
}

type san struct {
	URI string `json:"uri,omitempty"`
	DNS string `json:"dns,omitempty"`
	IP  string `json:"ip_address,omitempty"`
}

func (a *api) certificate(path string, c *x509.Certificate) certificate {
	d := certificate{Path: path, Serial: fmt.Sprintf("%x", c.SerialNumber), SANs: []san{}, ValidFrom: c.NotBefore.UTC(), Expires: c.NotAfter.UTC(),
		Days: strconv.Itoa(max(int(c.NotAfter.Sub(a.Now()).Hours()/24), 0))}
	for _, u := range c.URIs {
		d.SANs = append(d.SANs, san{URI: u.String()})
	}
	for _, n := range c.DNSNames {
		d.SANs = append(d.SANs, san{DNS: n})
	}
	for _, ip := range c.IPAddresses {
		d.SANs = append(d.SANs, san{IP: ip.String()})
	}
	return d
}

func (a *api) certs(w http.ResponseWriter, _ *http.Request, ws []Workload) {
	type pair struct {
		CA    []certificate `json:"ca_cert"`
		Chain []certificate `json:"cert_chain"`
		Error string        `json:"error,omitempty"`
	}
	out := []pair{}
	for i := range ws {
		id := ws[i].Identity
		if id == nil {
			continue
		}
		p := pair{CA: []certificate{}, Chain: []certificate{}}
		if id.Err != nil {
			p.Error = id.Err.Error()
		}
		if id.SVID != nil {
			for _, c := range id.SVID.Certificates {
				p.Chain = append(p.Chain, a.certificate(ws[i].ID, c))
			}
		}
		if id.Bundles != nil {
			bundles := id.Bundles.Bundles()
			slices.SortFunc(bundles, func(a, b *x509bundle.Bundle) int { return a.TrustDomain().Compare(b.TrustDomain()) })
			for _, b := range bundles {
				for _, c := range b.X509Authorities() {
					p.CA = append(p.CA, a.certificate(b.TrustDomain().Name(), c))
				}
			}
		}
		out = append(out, p)
	}
	writeJSON(w, map[string]any{"certificates": out})
}

func (a *api) initDump(w http.ResponseWriter, _ *http.Request, ws []Workload) {
	type dump struct {
		Name    string   `json:"name"`
		Targets []string `json:"target_names"`
	}
	out := []dump{}
	for i := range ws {
		for _, p := range ws[i].Pending {
			d := dump{Name: ws[i].ID + " " + p.Key.String()}
			for _, k := range p.For {
				d.Targets = append(d.Targets, k.String())
			}
			out = append(out, d)
		}
	}
	writeJSON(w, map[string]any{"unready_targets_dumps": out})
}

func (a *api) serverInfo(w http.ResponseWriter, _ *http.Request, ws []Workload) {
	type workload struct {
		ID           string     `json:"id"`
		Cluster      string     `json:"cluster"`
		Version      string     `json:"config_version"`
		Connections  int        `json:"connections"`
		Missing      []string   `json:"missing,omitempty"`
		Absent       []string   `json:"absent,omitempty"`
		ControlPlane Connection `json:"control_plane"`
	}
	up := a.Now().Sub(a.Start).Truncate(time.Second)
	info := map[string]any{
		"version": a.Version, "state": state(ws, a.draining()), "hot_restart_version": "disabled",
		"uptime_current_epoch": fmt.Sprintf("%ds", int(up.Seconds())), "uptime_all_epochs": fmt.Sprintf("%ds", int(up.Seconds())),
	}
	list := []workload{}
	for i := range ws {
		x := &ws[i]
		one := workload{ID: x.ID, Cluster: x.Service, Version: x.Version, Connections: x.Connections, Missing: x.Missing, ControlPlane: x.ControlPlane}
		for _, k := range x.Absent {
			one.Absent = append(one.Absent, k.String())
		}
		list = append(list, one)
	}
	if len(ws) == 1 {
		info["node"] = map[string]any{"id": ws[0].ID, "cluster": ws[0].Service, "user_agent_name": "parrel"}
	}
	info["workloads"] = list
	writeJSON(w, info)
}

// statLines lists the listeners' counters under Envoy's names and every sample
// of the registry, sorted.
func statLines(ws []Workload, g prometheus.Gatherer) ([]string, error) {
	var out []string
	for i := range ws {
		for _, l := range ws[i].Listeners {
			if l.UDP {
				continue // counted by the process: parrel_dns_*
			}
			c := l.Counts
			add := func(name string, v uint64) {
				out = append(out, fmt.Sprintf("listener.%s.%s: %d", strings.ReplaceAll(l.Name, ":", "_"), name, v))
			}
			add("downstream_cx_active", c.Active)
			add("downstream_cx_total", c.Accepted)
			add("downstream_cx_accept_errors", c.AcceptErrors)
			add("downstream_cx_overflow", c.Limited)
			add("downstream_pre_cx_timeout", c.SniffFailures)
			add("no_filter_chain_match", c.NoChain)
			add("http_inspector.http10_found", c.HTTP10)
			add("http_inspector.http11_found", c.HTTP11)
			add("http_inspector.http2_found", c.HTTP2)
			add("http_inspector.http_not_found", c.NotHTTP)
			add("http_inspector.server_first", c.ServerFirst)
			add("ssl.connection_error", c.TLSFailures)
			add("rbac.denied", c.RBACDenied)
			add("rbac.reauthorised_denied", c.Reauthorised)
		}
	}
	if g == nil {
		slices.Sort(out)
		return out, nil
	}
	families, err := g.Gather()
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out = append(out, sample(f.GetName(), m)...)
		}
	}
	slices.Sort(out)
	return out, err
}

func sample(name string, m *dto.Metric) []string {
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(labels) > 0 {
		name += "{" + strings.Join(labels, ",") + "}"
	}
	line := func(suffix string, v float64) string {
		if v == math.Trunc(v) && math.Abs(v) < 1e15 {
			return fmt.Sprintf("%s%s: %d", name, suffix, int64(v))
		}
		return fmt.Sprintf("%s%s: %g", name, suffix, v)
	}
	switch {
	case m.Counter != nil:
		return []string{line("", m.GetCounter().GetValue())}
	case m.Gauge != nil:
		return []string{line("", m.GetGauge().GetValue())}
	case m.Histogram != nil:
		h := m.GetHistogram()
		return []string{line(".count", float64(h.GetSampleCount())), line(".sum", h.GetSampleSum())}
	case m.Summary != nil:
		s := m.GetSummary()
		return []string{line(".count", float64(s.GetSampleCount())), line(".sum", s.GetSampleSum())}
	case m.Untyped != nil:
		return []string{line("", m.GetUntyped().GetValue())}
	}
	return nil
}
