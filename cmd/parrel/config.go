package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// configType is one kind of resource that `parrel config` shows.
type configType struct {
	name, what string
	typ        resource.Type
	columns    []any
	rows       func(t *table, r resource.Resource)
}

// configTypes lists them.
func configTypes() []configType {
	return []configType{
		{"clusters", "upstreams: how they are reached, balanced and authenticated", resource.TypeCluster,
			[]any{"CLUSTER", "DISCOVERY", "PROTOCOL", "BALANCING", "EXPECTED PEER"}, clusterRows},
		{"listeners", "what the sidecar accepts, and what then happens", resource.TypeListener,
			[]any{"LISTENER", "ADDRESS", "DIRECTION", "CHAIN", "TLS", "FILTERS", "TO"}, listenerRows},
		{"routes", "which request goes to which cluster", resource.TypeRoute,
			[]any{"ROUTES", "VIRTUAL HOST", "DOMAINS", "MATCH", "TO"}, routeRows},
		{"endpoints", "addresses of the clusters, with health and weight", resource.TypeEndpoints,
			[]any{"CLUSTER", "ADDRESS", "HEALTH", "WEIGHT", "INSTANCE", "VERSION"}, endpointRows},
		{"secrets", "trust bundles; keys are never served", resource.TypeSecret,
			[]any{"SECRET", "HOLDS"}, secretRows},
	}
}

// configDump is api.ConfigDump as a client reads it.
type configDump struct {
	Node      string           `json:"node"`
	Service   string           `json:"service"`
	Type      string           `json:"type"`
	Dialect   string           `json:"dialect"`
	Resources []configResource `json:"resources"`
}

type configResource struct {
	Name    string          `json:"name"`
	Private bool            `json:"private"`
	Entry   string          `json:"entry,omitempty"`
	Config  json.RawMessage `json:"config"`
}

func configCommand() *cobra.Command {
	var subs []*cobra.Command
	for _, t := range configTypes() {
		subs = append(subs, configTypeCommand(t))
	}
	return group(&cobra.Command{
		Use:   "config",
		Short: "Show the configuration that a sidecar is served",
	}, subs...)
}

func configTypeCommand(t configType) *cobra.Command {
	var (
		from apiFlag
		out  outputFlag
	)
	cmd := &cobra.Command{
		Use:   t.name + " NODE",
		Short: "Show " + t.name + ": " + t.what,
		Long: `NODE is the id of a proxy (web-1-sidecar-proxy) or the name of a service, whose
first proxy it then is. With -o json or yaml each resource is shown whole, in
the JSON form of Envoy's v3 API.`,
		Args: oneArg("NODE", "web-1-sidecar-proxy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d configDump
			if err := from.get(cmd.Context(), "/v1/config/"+t.name+"/"+url.PathEscape(args[0]), nil, &d); err != nil {
				return err
			}
			all := make([]resource.Resource, len(d.Resources))
			for i, r := range d.Resources {
				var err error
				if all[i], _, err = wire.FromJSON(t.typ, r.Config); err != nil {
					return fmt.Errorf("config: the control plane's answer cannot be read: %w; are both of one version?", err)
				}
			}
			return out.print(cmd.OutOrStdout(), d, func(tab *table) {
				fmt.Fprintf(tab, "%s of %s (service %s, dialect %s): %d\n\n", d.Type, d.Node, d.Service, d.Dialect, len(d.Resources))
				tab.row(t.columns...)
				for _, r := range all {
					t.rows(tab, r)
				}
			})
		},
	}
	from.bind(cmd)
	out.bind(cmd)
	return cmd
}

func clusterRows(t *table, r resource.Resource) {
	c := r.(*resource.Cluster)
	discovery := [...]string{"EDS", "static", "strict DNS", "logical DNS", "original destination"}[c.Discovery]
	protocol := [...]string{"TCP", "HTTP/1.1", "HTTP/2", "by ALPN", "as downstream"}[c.Protocol]
	balancing := "least request"
	switch {
	case c.LB.RoundRobin != nil:
		balancing = "round robin"
	case c.LB.Random != nil:
		balancing = "random"
	}
	peer := "plaintext"
	if c.TLS != nil {
		peer = "any peer that is trusted"
		if len(c.TLS.PeerSANs) > 0 {
			var ids []string
			for _, s := range c.TLS.PeerSANs {
				ids = append(ids, s.Value)
			}
			peer = strings.Join(ids, ", ")
		}
	}
	t.row(c.Name, discovery, protocol, balancing, peer)
}

func listenerRows(t *table, r resource.Resource) {
	l := r.(*resource.Listener)
	chains := l.Chains
	if l.Default != nil {
		chains = append(chains[:len(chains):len(chains)], *l.Default)
	}
	if l.API != nil {
		chains = append(chains[:len(chains):len(chains)], resource.FilterChain{Name: "api_listener", HTTP: l.API})
	}
	for _, c := range chains {
		security := "plaintext"
		if c.TLS != nil {
			security = "TLS"
			if c.TLS.RequireClientCert {
				security = "mTLS"
			}
		}
		var filters []string
		for _, f := range c.Network {
			filters = append(filters, shortFilter(f.Name))
		}
		to := ""
		switch {
		case c.TCP != nil:
			filters = append(filters, "tcp_proxy")
			to = "cluster " + c.TCP.Cluster
		case c.HTTP != nil:
			filters = append(filters, "http")
			for _, f := range c.HTTP.Filters {
				filters = append(filters, shortFilter(f.Name))
			}
			to = "routes " + c.HTTP.RouteName
			if c.HTTP.Route != nil {
				to = "routes, inline: " + targets(c.HTTP.Route)
			}
		}
		t.row(l.Name, orDash(address(l.Address)), l.Direction, orDash(c.Name), security, strings.Join(filters, " → "), to)
	}
}

// shortFilter is the last word of a filter's name.
func shortFilter(name string) string { return name[strings.LastIndex(name, ".")+1:] }

func targets(rc *resource.RouteConfig) string {
	var out []string
	for _, v := range rc.VirtualHosts {
		for i := range v.Routes {
			out = append(out, action(&v.Routes[i]))
		}
	}
	return strings.Join(out, ", ")
}

func routeRows(t *table, r resource.Resource) {
	rc := r.(*resource.RouteConfig)
	for _, v := range rc.VirtualHosts {
		for i := range v.Routes {
			m := v.Routes[i].Match
			kind := [...]string{"prefix", "exact", "regex", "segments"}[m.PathKind]
			match := kind + " " + m.Path
			if n := len(m.Headers) + len(m.Query); n > 0 {
				match += fmt.Sprintf(" and %d more conditions", n)
			}
			t.row(rc.Name, v.Name, strings.Join(v.Domains, ", "), match, action(&v.Routes[i]))
		}
	}
}

// action is where a route leads.
func action(r *resource.Route) string {
	switch {
	case r.Forward != nil && len(r.Forward.Weighted) > 0:
		var shares []string
		for _, w := range r.Forward.Weighted {
			shares = append(shares, fmt.Sprintf("%s (%d)", w.Name, w.Weight))
		}
		return "split: " + strings.Join(shares, ", ")
	case r.Forward != nil:
		return "cluster " + r.Forward.Cluster
	case r.Redirect != nil:
		return "redirect"
	case r.Direct != nil:
		return fmt.Sprintf("answer with status %d", r.Direct.Status)
	}
	return "the server itself"
}

func endpointRows(t *table, r resource.Resource) {
	e := r.(*resource.Endpoints)
	for _, l := range e.Localities {
		for _, p := range l.Endpoints {
			health := [...]string{"unknown", "healthy", "unhealthy", "draining", "degraded"}[p.Health]
			t.row(e.Cluster, address(p.Address), health, max(p.Weight, 1), orDash(p.Metadata[resource.MetaWorkload]), orDash(p.Metadata[resource.MetaVersion]))
		}
	}
}

func secretRows(t *table, r resource.Resource) {
	s := r.(*resource.Secret)
	var holds []string
	for _, b := range s.TrustPEM {
		holds = append(holds, fmt.Sprintf("roots of %s (%d)", orDash(b.TrustDomain), strings.Count(string(b.RootsPEM), "BEGIN CERTIFICATE")))
	}
	if len(s.ChainPEM) > 0 {
		holds = append(holds, "a certificate, its key redacted")
	}
	t.row(s.Name, strings.Join(holds, ", "))
}

func address(a resource.Address) string {
	switch {
	case a.Path != "":
		return "unix:" + a.Path
	case a.Host == "":
		return ""
	case strings.Contains(a.Host, ":"):
		return fmt.Sprintf("[%s]:%d", a.Host, a.Port)
	}
	return fmt.Sprintf("%s:%d", a.Host, a.Port)
}
