package api

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Explanation is the answer of /v1/explain: one call through both sidecars,
// decided by the functions that the sidecars call. Nothing is sent.
type Explanation struct {
	From    Party   `json:"from"`
	To      Party   `json:"to"`
	Request Request `json:"request"`
	// Verdict is one of: allowed, denied, no_upstream, no_chain, no_route,
	// answered (by the mesh itself), no_endpoint, no_listener.
	Verdict string `json:"verdict"`
	// Reason is the verdict in one sentence.
	Reason     string      `json:"reason"`
	Outbound   *Hop        `json:"outbound,omitempty"`
	Candidates []Candidate `json:"candidates,omitempty"`
	Inbound    *Hop        `json:"inbound,omitempty"`
}

// Party is one end of the call.
type Party struct {
	Node     string `json:"node,omitempty"`
	Service  string `json:"service"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	Protocol string `json:"protocol"`
}

// Request is what was asked about.
type Request struct {
	Method    string            `json:"method"`
	Authority string            `json:"authority"`
	Path      string            `json:"path"`
	Headers   map[string]string `json:"headers,omitempty"`
}

// Hop is what one sidecar decides.
type Hop struct {
	Listener string `json:"listener"`
	Address  string `json:"address"`
	// Destination is where a captured connection was going.
	Destination   string         `json:"destination,omitempty"`
	Entry         string         `json:"entry,omitempty"`
	Chain         string         `json:"chain,omitempty"`
	Authorisation *Authorisation `json:"authorisation,omitempty"`
	VirtualHost   string         `json:"virtual_host,omitempty"`
	Route         string         `json:"route,omitempty"`
	Cluster       string         `json:"cluster,omitempty"`
	Steps         []Step         `json:"steps"` // how it came to that, in order
}

// Authorisation is the verdict of one RBAC filter.
type Authorisation struct {
	Allowed bool `json:"allowed"`
	// Policy names the intention that decided; "" where none matched.
	Policy string `json:"policy,omitempty"`
}

// Step is one comparison.
type Step struct {
	Subject string `json:"subject"`
	Matched bool   `json:"matched"`
	Reason  string `json:"reason"`
}

// Candidate is one endpoint of the cluster.
type Candidate struct {
	Address  string `json:"address"`
	Workload string `json:"workload"`
	Version  string `json:"version,omitempty"`
	Weight   uint32 `json:"weight"`
	In       bool   `json:"in"` // may be picked
	Why      string `json:"why"`
}

// head is the request that explain asks about.
type head struct{ Request }

func (h head) Method() string    { return h.Request.Method }
func (h head) Authority() string { return h.Request.Authority }
func (h head) Scheme() string    { return "http" }
func (h head) Path() string      { return h.Request.Path }
func (h head) Header(name string) (string, bool) {
	v, ok := h.Headers[name]
	return v, ok
}

func (h *handler) explain(r *http.Request) (any, error) {
	m := h.deps.Mesh()
	q := r.URL.Query()
	from, err := find(m, q.Get("from"))
	if err != nil {
		return nil, prefixed("from", err)
	}
	to, err := find(m, q.Get("to"))
	if err != nil {
		return nil, prefixed("to", err)
	}
	x := &explanation{m: m, from: from, to: to, byNode: q.Get("to") == to.NodeID || q.Get("to") == to.Key()}
	x.out.Request = Request{
		Method: cmp.Or(q.Get("method"), http.MethodGet), Path: cmp.Or(q.Get("path"), "/"),
		Authority: cmp.Or(q.Get("authority"), to.Service.Name),
	}
	if !strings.HasPrefix(x.out.Request.Path, "/") {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("path %q does not start with /", x.out.Request.Path)}
	}
	for _, s := range q["header"] {
		name, value, ok := splitHeader(s)
		if !ok {
			return nil, &Error{http.StatusBadRequest, fmt.Sprintf("header %q is not NAME:VALUE", s)}
		}
		if x.out.Request.Headers == nil {
			x.out.Request.Headers = map[string]string{}
		}
		if have, ok := x.out.Request.Headers[name]; ok {
			value = have + "," + value
		}
		x.out.Request.Headers[name] = value
	}
	x.run()
	return x.out, nil
}

func prefixed(what string, err error) error {
	if e, ok := err.(*Error); ok {
		return &Error{e.Status, what + ": " + e.Reason}
	}
	return err
}

// explanation is one question in progress.
type explanation struct {
	m        *mesh.Snapshot
	from, to *mesh.Workload
	byNode   bool // the question names one instance
	out      Explanation
}

func (x *explanation) party(w *mesh.Workload) Party {
	return Party{Node: nodeID(x.m, w), Service: w.Service.Name, SPIFFEID: generate.SPIFFEID(x.m, w.Service), Protocol: x.m.Protocol(w.Service).Name}
}

// end sets the verdict; the first one stands.
func (x *explanation) end(verdict, format string, args ...any) {
	if x.out.Verdict == "" {
		x.out.Verdict, x.out.Reason = verdict, fmt.Sprintf(format, args...)
	}
}

func (x *explanation) run() {
	x.out.From = x.party(x.from)
	x.outbound()
	x.candidates()
	x.inbound()
	x.out.To = x.party(x.to)
	x.end("allowed", "%s may call %s", x.from.Service.Name, x.to.Service.Name)
}

func (x *explanation) outbound() {
	v := generate.View{Workload: x.from}
	name, destination := x.listener()
	if name == "" {
		return
	}
	r, _, ok := generate.Resource(x.m, v, resource.TypeListener, name)
	if !ok {
		x.end("no_upstream", "the upstream %s of %s has no listener", x.to.Service.Name, x.from.NodeID)
		return
	}
	l := r.(*resource.Listener)
	hop, tr := newHop(l)
	x.out.Outbound = hop
	conn := decide.Connection{
		Destination: addrPort(l.Address), Source: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), TransportProtocol: "raw_buffer",
	}
	if destination.IsValid() {
		conn.Destination, hop.Destination = destination, destination.String()
		conn.ALPN = []string{"http/1.1"} // what is asked about is a request, and would be seen to be one
	}
	chain, ok := decide.CompileListener(l).Match(conn, tr)
	switch {
	case ok && generate.LeadsNowhere(chain.Name):
		hop.Chain = chain.Name
		x.end("denied", "%s", x.denial(""))
	case ok:
		x.through(hop, chain, v, &decide.Facts{Destination: conn.Destination}, tr)
	default:
		x.end("no_chain", "no filter chain of listener %s takes the connection", l.Name)
	}
	hop.Steps = steps(tr)
}

// listener finds the listener that takes the call: the upstream's own, else, where
// the caller is transparent, the one of captured connections, with the virtual
// address and the port to which the call goes.
func (x *explanation) listener() (name string, destination netip.AddrPort) {
	t, transparent := x.m.Transparent(x.from)
	i := slices.IndexFunc(x.from.Upstreams, func(u mesh.Upstream) bool {
		return u.Service == x.to.Service && (u.Bound() || !transparent)
	})
	if i >= 0 {
		if why := x.m.Served(x.from, x.from.Upstreams[i]); why != "" {
			x.end("no_upstream", "the upstream %s of %s is not served: %s", x.to.Service.Name, x.from.NodeID, why)
			return "", destination
		}
		return generate.OutboundListener(x.from.Upstreams[i]), destination
	}
	if !transparent {
		x.end("no_upstream", "%s has no upstream %s: add it to the upstreams of the registration %s, or make that proxy transparent",
			x.from.Service.Name, x.to.Service.Name, x.from.NodeID)
		return "", destination
	}
	at, ok := x.m.Virtual(x.to.Service)
	if !ok {
		x.end("no_upstream", "%s has no virtual address: no proxy and no connect-native instance of it is registered", x.to.Service.Name)
		return "", destination
	}
	return generate.OutboundCapture(t), netip.AddrPortFrom(at.Addr, generate.ServicePort(x.m, x.to))
}

// through follows a chain to its cluster.
func (x *explanation) through(hop *Hop, chain *resource.FilterChain, v generate.View, f *decide.Facts, tr *decide.Trace) {
	hop.Chain = chain.Name
	for _, n := range chain.Network {
		x.authorise(hop, n.RBAC, nil, f, tr)
	}
	if chain.HTTP != nil {
		for _, h := range chain.HTTP.Filters {
			x.authorise(hop, h.RBAC, head{x.out.Request}, f, tr)
		}
	}
	if chain.TCP != nil {
		hop.Cluster = chain.TCP.Cluster
		return
	}
	if chain.HTTP == nil {
		return
	}
	rc := chain.HTTP.Route
	if rc == nil {
		r, _, ok := generate.Resource(x.m, v, resource.TypeRoute, chain.HTTP.RouteName)
		if !ok {
			x.end("no_route", "there is no route configuration %s", chain.HTTP.RouteName)
			return
		}
		rc = r.(*resource.RouteConfig)
	}
	routes, err := decide.CompileRoutes(rc)
	if err != nil {
		x.end("no_route", "route configuration %s cannot be executed: %v", rc.Name, err)
		return
	}
	var verdict decide.RouteVerdict
	routes.Route(head{x.out.Request}, f, tr, &verdict)
	hop.VirtualHost, hop.Route, hop.Cluster = verdict.VirtualHost, verdict.RouteName, verdict.Cluster
	switch {
	case verdict.NotFound:
		x.end("no_route", "no route of %s matches %s %s", rc.Name, x.out.Request.Method, x.out.Request.Path)
	case verdict.Cluster == "":
		x.end("answered", "the mesh itself answers with status %d", verdict.Status)
	}
}

// authorise asks one RBAC filter, if that is what it is; h is nil for a network
// filter.
func (x *explanation) authorise(hop *Hop, rules *resource.RBAC, h decide.Head, f *decide.Facts, tr *decide.Trace) {
	if rules == nil {
		return
	}
	rbac, err := decide.CompileRBAC(rules)
	if err != nil {
		x.end("denied", "the intentions cannot be executed, so that all is denied: %v", err)
		return
	}
	verdict := rbac.Authorise(h, f, tr)
	hop.Authorisation = &Authorisation{verdict.Allowed, verdict.Policy}
	if !verdict.Allowed {
		x.end("denied", "%s", x.denial(verdict.Policy))
	}
}

// denial says in the user's words why a call is denied.
func (x *explanation) denial(policy string) string {
	if policy != "" {
		return fmt.Sprintf("%s may not call %s: %s", x.from.Service.Name, x.to.Service.Name, policy)
	}
	for _, i := range x.m.Intentions(x.to.Service) {
		if i.Effect != "allow" && (i.Name == x.from.Service.Name || i.Name == "*") && i.Peer == "" {
			s := fmt.Sprintf("%s may not call %s: the intention of %s for source %s denies",
				x.from.Service.Name, x.to.Service.Name, mesh.EntryName(i.Entry.Key), i.Name)
			if i.Reason != "" {
				s += " (" + i.Reason + ")"
			}
			return s
		}
	}
	return fmt.Sprintf("%s may not call %s: no intention allows it, and the default is %s; write a service-intentions entry for %s that allows %s",
		x.from.Service.Name, x.to.Service.Name, x.m.Default, x.to.Service.Name, x.from.Service.Name)
}

// candidates lists the endpoints of the outbound cluster, and takes the first
// usable one for the rest of the way.
func (x *explanation) candidates() {
	if x.out.Outbound == nil || x.out.Outbound.Cluster == "" {
		return
	}
	v := generate.View{Workload: x.from}
	r, _, ok := generate.Resource(x.m, v, resource.TypeEndpoints, generate.ClusterName(x.m, x.to.Service))
	if !ok {
		return
	}
	var picked *mesh.Workload
	for _, l := range r.(*resource.Endpoints).Localities {
		for _, e := range l.Endpoints {
			c := candidate(e)
			x.out.Candidates = append(x.out.Candidates, c)
			if w := x.at(e.Address); c.In && picked == nil && w != nil {
				picked = w
			}
		}
	}
	usable := slices.ContainsFunc(x.out.Candidates, func(c Candidate) bool { return c.In })
	switch {
	case len(x.out.Candidates) == 0:
		x.end("no_endpoint", "service %s has no proxy with an address in the catalogue", x.to.Service.Name)
	case !usable:
		x.end("no_endpoint", "none of the %d instances of %s is healthy", len(x.out.Candidates), x.to.Service.Name)
	}
	if picked != nil && !x.byNode {
		x.to = picked
	}
}

// at finds the workload that is registered with an address.
func (x *explanation) at(a resource.Address) *mesh.Workload {
	for _, w := range x.m.WorkloadsOf(x.to.Service) {
		if w.Instance.Address == a.Host && w.Instance.Port == int(a.Port) {
			return w
		}
	}
	return nil
}

func candidate(e resource.Endpoint) Candidate {
	c := Candidate{
		Address: address(e.Address), Workload: e.Metadata[resource.MetaWorkload], Version: e.Metadata[resource.MetaVersion],
		Weight: max(e.Weight, 1), In: true, Why: "healthy in the catalogue",
	}
	if e.Health == resource.Unhealthy {
		c.In, c.Why = false, "critical or in maintenance in the catalogue"
	}
	return c
}

func (x *explanation) inbound() {
	v := generate.View{Workload: x.to}
	r, _, ok := generate.Resource(x.m, v, resource.TypeListener, generate.PublicListener)
	if !ok {
		x.end("no_listener", "%s has no sidecar whose listener could be looked at: it is connect-native, or its registration says neither local_service_port nor socket", x.to.NodeID)
		return
	}
	l := r.(*resource.Listener)
	hop, tr := newHop(l)
	x.out.Inbound = hop
	conn := decide.Connection{
		Destination: addrPort(l.Address), Source: netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
		ServerName: generate.ClusterName(x.m, x.to.Service), TransportProtocol: "tls",
	}
	switch p := x.m.Protocol(x.to.Service); {
	case p.HTTP():
		conn.ALPN = []string{"h2", "http/1.1"}
	case !p.Declared() && x.out.Outbound != nil && strings.HasSuffix(x.out.Outbound.Chain, "|http"):
		conn.ALPN = []string{"http/1.1"} // as the caller's sidecar, which saw what it was
	}
	chain, ok := decide.CompileListener(l).Match(conn, tr)
	if ok {
		x.through(hop, chain, v, &decide.Facts{
			PeerID: generate.SPIFFEID(x.m, x.from.Service), Destination: conn.Destination,
			Source: conn.Source, ServerName: conn.ServerName,
		}, tr)
	} else {
		x.end("no_chain", "no filter chain of listener %s takes the connection", l.Name)
	}
	hop.Steps = steps(tr)
}

func newHop(l *resource.Listener) (*Hop, *decide.Trace) {
	return &Hop{Listener: l.Name, Address: address(l.Address), Entry: l.Metadata[resource.MetaEntry], Steps: []Step{}}, &decide.Trace{}
}

func steps(tr *decide.Trace) []Step {
	out := make([]Step, 0, len(tr.Steps))
	for i, s := range tr.Steps {
		if i >= mostSteps && !s.Matched && i < len(tr.Steps)-mostSteps {
			if last := &out[len(out)-1]; last.Subject == others {
				continue
			}
			s = decide.Step{Subject: others, Reason: fmt.Sprintf("%d comparisons more, as those above", len(tr.Steps)-2*mostSteps)}
		}
		out = append(out, Step(s))
	}
	return out
}

// Of a long list of comparisons the first and the last are shown: a capture
// listener may have thousands of chains.
const (
	mostSteps = 20
	others    = "and so on"
)

func address(a resource.Address) string {
	if a.Path != "" {
		return a.Path
	}
	return addrPort(a).String()
}

func addrPort(a resource.Address) netip.AddrPort {
	ip, err := netip.ParseAddr(a.Host)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip, a.Port)
}
