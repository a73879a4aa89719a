package generate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
)

// Severity of a finding.
type Severity uint8

const (
	// SeverityInfo: nothing that works is at stake.
	SeverityInfo Severity = iota
	// SeverityWarning: something that was written is not done.
	SeverityWarning
	// SeverityError: something does not work, or is denied, because of it.
	SeverityError
)

func (s Severity) String() string { return [...]string{"info", "warning", "error"}[s%3] }

// Finding is one thing that is not as its author may think.
type Finding struct {
	Severity Severity
	Place    string // file and line, or "consul"
	Entry    string // "service-defaults/api", "registration web-sidecar-proxy"
	Field    string // in the API's names; "" where it is about the whole
	Problem  string
	Instead  string // what parrel does
	Remedy   string
}

// Analyze lists everything that users wrote and parrel does not execute, or
// executes in another way, gravest first.
func Analyze(m *mesh.Snapshot) []Finding {
	a := &analysis{m: m, table: effects()}
	for _, p := range m.Source.Problems {
		a.add(Finding{SeverityError, place(p.Origin), "source", "", p.Reason, "what was good before stays in force", p.Remedy})
	}
	if m.Source.Stale {
		a.add(Finding{SeverityWarning, "", "source", "", "the catalogue may be out of date: " + m.Source.Reason, "the last one stays in force", ""})
	}
	for _, e := range m.Entries() {
		a.entry(e)
	}
	for _, w := range m.Workloads() {
		a.workload(w)
	}
	for _, name := range m.ServiceNames() {
		a.service(name)
	}
	a.virtual()
	SortFindings(a.found)
	return a.found
}

// SortFindings orders findings: gravest first, then by entry and field.
func SortFindings(f []Finding) {
	slices.SortStableFunc(f, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), strings.Compare(a.Entry, b.Entry),
			strings.Compare(a.Field, b.Field), strings.Compare(a.Problem, b.Problem), strings.Compare(a.Place, b.Place))
	})
}

type analysis struct {
	m     *mesh.Snapshot
	table map[string]map[string]effect
	hosts map[string]int // ports of destinations outside, by name
	found []Finding
}

func (a *analysis) add(f Finding) { a.found = append(a.found, f) }

func (a *analysis) entry(e *discovery.ConfigEntry) {
	name, where := mesh.EntryName(e.Key), place(e.Origin)
	table, known := a.table[e.Key.Kind]
	if !known {
		a.add(Finding{SeverityWarning, where, name, "", "config entries of kind " + e.Key.Kind + " are not executed", "the entry has no effect", ""})
		return
	}
	for _, field := range e.Set {
		if effectOf(table, field) == ignored && !strings.HasPrefix(field, "Sources[].Permissions") {
			a.add(ignoredField(where, name, field))
		}
	}
	switch body := e.Body.(type) {
	case *discovery.ServiceIntentions:
		a.intentions(e, body)
	case *discovery.ServiceDefaults:
		a.protocol(e, body.Protocol)
		a.modes(e, body.Mode, body.MutualTLSMode)
		a.destination(e, body.Destination)
		dst := a.m.Local(e.Key.Name)
		dst.Partition, dst.Namespace = e.Key.Partition, e.Key.Namespace
		a.permissive(e, body.MutualTLSMode, a.m.WorkloadsOf(dst))
	case *discovery.Mesh:
		a.requests(e, body.RequestNormalization)
	case *discovery.ProxyDefaults:
		a.numbers(where, name, "Config.", body.Config)
		a.modes(e, body.Mode, body.MutualTLSMode)
		a.permissive(e, body.MutualTLSMode, a.m.Workloads())
		word, _ := body.Config["protocol"].(string)
		a.protocol(e, word)
	}
}

// requests names words that parrel does not know: a server may be newer.
func (a *analysis) requests(e *discovery.ConfigEntry, n *discovery.RequestNormalization) {
	if n == nil {
		return
	}
	name, where, at := mesh.EntryName(e.Key), place(e.Origin), "HTTP.Incoming.RequestNormalization."
	if _, known := slashAction(n); !known {
		a.add(Finding{SeverityError, where, name, at + "PathWithEscapedSlashesAction", fmt.Sprintf("%q is no action", n.PathWithEscapedSlashesAction),
			"paths with encoded slashes are refused", "write one of " + strings.Join(discovery.SlashActions(), ", ")})
	}
	if _, known := underscoreAction(n); !known {
		a.add(Finding{SeverityError, where, name, at + "HeadersWithUnderscoresAction", fmt.Sprintf("%q is no action", n.HeadersWithUnderscoresAction),
			"requests with such fields are refused", "write one of " + strings.Join(discovery.UnderscoreActions(), ", ")})
	}
}

// ignoredField is the finding of a field that is not executed, with what is
// done in its place where there is something to say.
func ignoredField(where, name, field string) Finding {
	f := Finding{SeverityWarning, where, name, field, "the field is not executed", "as if it were not there", "remove it, or do not rely on it"}
	switch {
	case strings.HasSuffix(field, "ExternalSNI"):
		f.Instead, f.Severity = "callers send the service's name in the mesh", SeverityError
	case strings.Contains(field, "BalanceInboundConnections"), strings.Contains(field, "BalanceOutboundConnections"):
		f.Severity, f.Instead = SeverityInfo, "one process serves all connections; there are no worker threads to balance"
	case strings.HasSuffix(field, ".Protocol") && strings.HasPrefix(field, "UpstreamConfig"):
		f.Instead, f.Remedy = "the protocol of the destination's own service-defaults holds", "write Protocol in the service-defaults of the destination"
	case strings.HasSuffix(field, "Config.protocol"):
		f.Instead, f.Remedy = "the protocol of service-defaults or proxy-defaults holds", "write Protocol in the service-defaults of the service"
	case strings.Contains(field, "MeshGateway"):
		f.Instead = "instances are called directly"
	case strings.HasPrefix(field, "JWT"):
		f.Severity, f.Instead = SeverityError, "sources that depend on it are denied"
	}
	return f
}

func (a *analysis) protocol(e *discovery.ConfigEntry, word string) {
	if p := protocolWords(word); p != "" {
		a.add(Finding{SeverityError, place(e.Origin), mesh.EntryName(e.Key), "Protocol", p, "the service is treated as tcp", "write tcp, http, http2 or grpc"})
	}
}

func protocolWords(word string) string {
	switch word {
	case "", mesh.ProtocolTCP, mesh.ProtocolHTTP, mesh.ProtocolHTTP2, mesh.ProtocolGRPC:
		return ""
	}
	return fmt.Sprintf("%q is no protocol", word)
}

func (a *analysis) intentions(e *discovery.ConfigEntry, body *discovery.ServiceIntentions) {
	name, where := mesh.EntryName(e.Key), place(e.Origin)
	dst := a.m.Local(e.Key.Name)
	dst.Partition, dst.Namespace = e.Key.Partition, e.Key.Namespace
	if !a.known(dst) {
		a.add(Finding{SeverityInfo, where, name, "", "no service " + e.Key.Name + " is in the catalogue", "the intentions wait for it", ""})
	}
	for _, s := range body.Sources {
		field := "Sources[" + s.Name + "]"
		src := a.m.Local(s.Name)
		src.Partition, src.Namespace = cmp.Or(s.Partition, src.Partition), cmp.Or(s.Namespace, src.Namespace)
		switch {
		case len(s.Permissions) > 0:
			a.add(Finding{SeverityError, where, name, field + ".Permissions", "permissions (path, header, method, JWT) are not executed", "every call from " + s.Name + " is denied", "write an Action, or keep the calls away until permissions are executed"})
		case s.Action != discovery.Allow && s.Action != discovery.Deny:
			a.add(Finding{SeverityError, where, name, field + ".Action", fmt.Sprintf("%q is neither allow nor deny", s.Action), "every call from " + s.Name + " is denied", "write allow or deny"})
		}
		switch {
		case s.Peer != "":
			a.add(Finding{SeverityWarning, where, name, field + ".Peer", "no identities of peer " + s.Peer + " are accepted", "the intention matches nobody", ""})
		case !a.known(src):
			a.add(Finding{SeverityInfo, where, name, field + ".Name", "no service " + s.Name + " is in the catalogue", "the intention waits for it", "correct the name if it is mistyped"})
		}
	}
}

// known says whether a name, possibly "*", is in the catalogue in any
// datacenter.
func (a *analysis) known(n discovery.ServiceName) bool {
	if n.Name == "*" || n.Namespace == "*" {
		return true
	}
	if _, ok := a.m.Service(n); ok {
		return true
	}
	for o := range a.m.Services() {
		if o.Name == n.Name && o.Namespace == n.Namespace && o.Partition == n.Partition {
			return true
		}
	}
	return false
}

// Keys of opaque configuration whose value is a whole number from 0 up.
var (
	numbers     = []string{"bind_port", "connect_timeout_ms", "local_connect_timeout_ms", "local_request_timeout_ms", "max_inbound_connections"}
	limitNumber = []string{"max_concurrent_requests", "max_connections", "max_pending_requests"}
)

// numbers names the values of opaque configuration that should be numbers and
// are none: Consul takes anything there.
func (a *analysis) numbers(where, name, path string, config map[string]any) {
	check := func(at string, keys []string, in map[string]any) {
		for _, key := range keys {
			if v, set := in[key]; set {
				n, ok := number(v)
				switch {
				case !ok:
					a.add(Finding{SeverityError, where, name, at + key, fmt.Sprintf("%v is no whole number from 0 up", v), "as if it were not there", "write a number"})
				case key == "bind_port" && port(n) == 0:
					a.add(Finding{SeverityError, where, name, at + key, fmt.Sprintf("%v is no port", v), "the registration's port", "write a port from 1 to 65535"})
				}
			}
		}
	}
	check(path, numbers, config)
	check(path+"limits.", limitNumber, limits(config))
}

// sameProtocol says that the field is a protocol and holds what holds anyway:
// Consul's agent writes the protocols of service-defaults into a registration by
// itself.
func (a *analysis) sameProtocol(w *mesh.Workload, field string) bool {
	same := func(config map[string]any, of discovery.ServiceName) bool {
		word, _ := config["protocol"].(string)
		return word == "" || strings.EqualFold(word, a.m.Protocol(of).Name)
	}
	switch field {
	case "Proxy.Config.protocol":
		return same(w.Instance.Proxy.Config, w.Service)
	case "Proxy.Upstreams[].Config.protocol":
		return !slices.ContainsFunc(w.Upstreams, func(u mesh.Upstream) bool { return !same(u.Config, u.Service) })
	}
	return false
}

func (a *analysis) workload(w *mesh.Workload) {
	name, where := "registration "+w.NodeID, place(w.Instance.Origin)
	if SPIFFEID(a.m, w.Service) == "" && a.m.TrustDomain != "" {
		a.add(Finding{SeverityError, where, name, "", fmt.Sprintf("the name %q cannot be part of a SPIFFE id", w.Service.Name), "the workload can have no identity", "use letters, digits, '-', '_' and '.' in the service's name"})
	}
	if !reachable(w.Instance) {
		a.add(Finding{SeverityError, where, name, "Address", fmt.Sprintf("address %q and port %d cannot be dialled by peers", w.Instance.Address, w.Instance.Port), "it gets no traffic", "register an IP address and a port"})
	}
	p := w.Instance.Proxy
	if p == nil {
		return
	}
	for _, field := range p.Set {
		if effectOf(a.table[kindProxy], field) == ignored && !a.sameProtocol(w, field) {
			a.add(ignoredField(where, name, field))
		}
	}
	a.numbers(where, name, "Proxy.Config.", p.Config)
	for _, u := range w.Upstreams {
		a.numbers(where, name, "Proxy.Upstreams["+u.DestinationName+"].Config.", u.Config)
	}
	if _, ok := localApp(a.m, w); !ok {
		a.add(Finding{SeverityError, where, name, "Proxy.LocalServicePort", "the registration does not say where the application is", "there is no inbound listener", "write local_service_port, or register the service with a port"})
	}
	a.transparent(w, name, where)
	listeners := map[string]bool{}
	for _, u := range w.Upstreams {
		field := "Proxy.Upstreams[" + u.DestinationName + "]"
		_, exists := a.m.Service(u.Service)
		why := a.m.Served(w, u)
		switch {
		case why != "":
			a.add(Finding{SeverityError, where, name, field, why, "the upstream is not served", ""})
			continue
		case !exists:
			a.add(Finding{SeverityWarning, where, name, field, "no service " + u.Service.String() + " is in the catalogue", "calls fail until it is registered", "correct destination_name if it is mistyped"})
		}
		if !u.Bound() {
			continue
		}
		l := fmt.Sprint(listenHost(bindAddress(u), "127.0.0.1"), ":", u.LocalBindPort)
		if u.LocalBindSocketPath != "" {
			l = u.LocalBindSocketPath
		}
		if listeners[l] {
			a.add(Finding{SeverityError, where, name, field, "two upstreams listen on " + l, "one of them is served", "give each its own local_bind_port"})
		}
		listeners[l] = true
		if _, err := netip.ParseAddr(bindAddress(u)); err != nil && u.LocalBindSocketPath == "" && bindAddress(u) != "localhost" {
			a.add(Finding{SeverityWarning, where, name, field + ".LocalBindAddress", fmt.Sprintf("%q is no IP address", u.LocalBindAddress), "it listens on 127.0.0.1", "write an IP address"})
		}
	}
}

func (a *analysis) service(name discovery.ServiceName) {
	svc, _ := a.m.Service(name)
	if svc.Stale {
		a.add(Finding{SeverityWarning, "", "service " + name.String(), "", "the source says that it is gone, and that is not confirmed yet", "its last instances stay in use", ""})
	}
	if len(svc.Proxies) == 0 && len(a.m.Dependants(name)) > 0 {
		a.add(Finding{SeverityWarning, "", "service " + name.String(), "", "it has callers in the mesh but no proxy and no connect-native instance", "calls fail", "start a sidecar for each of its instances"})
	}
}

func place(o discovery.Origin) string {
	if o.Line > 0 {
		return fmt.Sprintf("%s line %d", o.Place, o.Line)
	}
	return o.Place
}
