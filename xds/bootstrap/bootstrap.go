package bootstrap

import (
	"errors"
	"fmt"
	"strings"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
	"go.yaml.in/yaml/v3"
)

// Bootstrap is a static configuration. Read-only.
type Bootstrap struct {
	Node  Node
	Admin *resource.Address // nil: none

	Listeners []*resource.Listener
	Clusters  []*resource.Cluster
	// Secrets are those of the file and those that listeners and clusters
	// brought along; what has Files is still to be read.
	Secrets []*resource.Secret

	Overload Overload

	// Warnings are what parrel reads and does not do, or does otherwise.
	Warnings []Problem
}

// Node says who the proxy is: node.id, node.cluster, and those of
// node.metadata that are text.
type Node struct {
	ID, Cluster string
	Metadata    map[string]string
}

// Problem is one thing that is wrong, or a warning, with its place.
type Problem struct {
	File         string
	Line, Column int    // from 1; 0: not known
	Path         string // in Envoy's field names; "" for the whole
	Reason       string
}

// String is "file:line:column: path: reason".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Column > 0 {
		fmt.Fprintf(&b, ":%d", p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Reason)
	return b.String()
}

// Error is everything that is wrong with a bootstrap, in the file's order.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Parse reads a bootstrap. file names it in messages. The error is an [*Error].
func Parse(file string, text []byte) (*Bootstrap, error) {
	p := &parser{b: &Bootstrap{}, names: map[string]*yaml.Node{}}
	p.tree = tree{file: file, p: &p.problems}
	if root := p.read(text); root != nil {
		p.root(root)
	}
	if len(p.problems) > 0 {
		sortProblems(p.problems)
		return nil, &Error{Problems: p.problems}
	}
	sortProblems(p.b.Warnings)
	return p.b, nil
}

type parser struct {
	tree
	b        *Bootstrap
	problems []Problem
	names    map[string]*yaml.Node // "clusters web": where it stands
	refs     []ref
}

// notDone are the fields of Envoy's Bootstrap that parrel reads and does not do.
// They configure how Envoy watches itself; without them traffic is the same.
var notDone = map[string]bool{
	"cluster_manager": true, "stats_sinks": true, "stats_config": true, "stats_flush_interval": true,
	"stats_flush_on_admin": true, "watchdog": true, "watchdogs": true, "tracing": true, "layered_runtime": true,
	"deferred_stat_options": true, "use_tcp_for_dns_lookups": true, "dns_resolution_config": true,
	"typed_dns_resolver_config": true, "bootstrap_extensions": true, "fatal_actions": true, "default_socket_interface": true,
	"perf_tracing_file_path": true, "application_log_config": true, "grpc_async_client_manager_config": true,
	"flags_path": true, "enable_dispatcher_stats": true, "header_prefix": true, "stats_server_version_override": true,
	"memory_allocator_manager": true, "default_regex_engine": true, "inline_headers": true, "node_context_params": true,
	"certificate_provider_instances": true, "xds_delegate_extension": true, "xds_config_tracker_extension": true,
	"listener_manager": true,
}

func (p *parser) root(n *yaml.Node) {
	seen := map[string]*yaml.Node{}
	static := false
	for _, e := range p.entries("", n) {
		if first := seen[e.name]; first != nil {
			p.fail(e.key, e.name, "stands there twice, first in line %d; leave one out", first.Line)
			continue
		}
		seen[e.name] = e.key
		switch e.name {
		case "node":
			p.node(e.value)
		case "admin":
			p.admin(e.value)
		case "static_resources":
			static = true
			p.resources(e.value)
		case "overload_manager":
			p.overload(e.value)
		case "dynamic_resources", "hds_config", "config_sources", "default_config_source":
			p.fail(e.key, e.name, "nothing comes from a control plane with a bootstrap; leave it out, or run the sidecar with --sidecar-for instead")
		default:
			if notDone[e.name] {
				p.warn(e.key, e.name, "parrel does not honour this field")
				continue
			}
			p.fail(e.key, e.name, "unknown field; a bootstrap has node, admin and static_resources")
		}
	}
	if len(p.problems) == 0 && !static {
		p.fail(n, "", "has no static_resources; without listeners there is nothing to serve")
	}
	p.check()
}

func (p *parser) warn(n *yaml.Node, path, reason string) {
	p.b.Warnings = append(p.b.Warnings, problem(p.file, n, path, reason))
}

func (p *parser) node(n *yaml.Node) {
	for _, e := range p.entries("node", n) {
		at := "node." + e.name
		switch e.name {
		case "id":
			p.b.Node.ID = p.text(at, e.value)
		case "cluster":
			p.b.Node.Cluster = p.text(at, e.value)
		case "metadata":
			p.metadata(at, e.value)
		case "locality", "user_agent_name", "user_agent_version", "user_agent_build_version", "extensions",
			"client_features", "listening_addresses", "dynamic_parameters":
			p.warn(e.key, at, "parrel does not honour this field")
		default:
			p.fail(e.key, at, "unknown field; a node has id, cluster and metadata")
		}
	}
}

func (p *parser) metadata(path string, n *yaml.Node) {
	for _, e := range p.entries(path, n) {
		v := follow(e.value)
		if v.Kind != yaml.ScalarNode {
			p.warn(e.key, path+"."+e.key.Value, "only text is read here")
			continue
		}
		if p.b.Node.Metadata == nil {
			p.b.Node.Metadata = map[string]string{}
		}
		p.b.Node.Metadata[e.key.Value] = v.Value
	}
}

func (p *parser) admin(n *yaml.Node) {
	for _, e := range p.entries("admin", n) {
		at := "admin." + e.name
		switch e.name {
		case "address":
			w, ok := p.json(at, e.value)
			if !ok {
				continue
			}
			a, err := wire.StaticAddress(w.out.Bytes())
			if err != nil {
				p.refuse(at, e.value, w, err)
				continue
			}
			p.b.Admin = &a
		case "access_log", "access_log_path", "profile_path", "socket_options", "ignore_global_conn_limit", "allow_paths":
			p.warn(e.key, at, "parrel does not honour this field")
		default:
			p.fail(e.key, at, "unknown field; admin has an address")
		}
	}
}

func (p *parser) resources(n *yaml.Node) {
	for _, e := range p.entries("static_resources", n) {
		at := "static_resources." + e.name
		var t resource.Type
		switch e.name {
		case "listeners":
			t = resource.TypeListener
		case "clusters":
			t = resource.TypeCluster
		case "secrets":
			t = resource.TypeSecret
		default:
			p.fail(e.key, at, "unknown field; static_resources has listeners, clusters and secrets")
			continue
		}
		for i, item := range p.items(at, e.value) {
			p.resource(t, e.name, fmt.Sprintf("%s[%d]", at, i), i, follow(item))
		}
	}
}

func (p *parser) resource(t resource.Type, list, path string, i int, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, path, "is %s where fields are expected (name: value)", kind(n))
		return
	}
	if t == resource.TypeListener && find(n, "name") == n {
		// Envoy names listeners itself where nobody did.
		named := *n
		named.Content = append([]*yaml.Node{
			{Kind: yaml.ScalarNode, Tag: "!!str", Value: "name", Line: n.Line, Column: n.Column},
			{Kind: yaml.ScalarNode, Tag: "!!str", Value: fmt.Sprintf("listener_%d", i), Line: n.Line, Column: n.Column}}, n.Content...)
		n = &named
	}
	w, ok := p.json(path, n)
	if !ok {
		p.stands(list, n)
		return
	}
	s, err := wire.DecodeStatic(t, w.out.Bytes())
	if err != nil {
		p.refuse(path, n, w, err)
		p.stands(list, n)
		return
	}
	for _, x := range s.Warnings {
		p.warn(find(n, x.Field), join(path, x.Field), x.Reason)
	}
	key := list + " " + s.Resource.ResourceName()
	if first := p.names[key]; first != nil {
		p.fail(find(n, "name"), join(path, "name"), "%q is the name of two %s, first in line %d; give each its own", s.Resource.ResourceName(), list, first.Line)
		return
	}
	p.names[key] = find(n, "name")
	for _, x := range s.Secrets {
		if k := "brought " + x.Name; p.names[k] == nil {
			p.names[k] = n
			p.b.Secrets = append(p.b.Secrets, x)
		}
	}
	switch r := s.Resource.(type) {
	case *resource.Listener:
		p.b.Listeners = append(p.b.Listeners, r)
		p.listener(path, n, r)
	case *resource.Cluster:
		p.b.Clusters = append(p.b.Clusters, r)
		p.cluster(path, n, r)
	case *resource.Secret:
		p.b.Secrets = append(p.b.Secrets, r)
	}
}

// stands notes the name of what was refused: whoever refers to it is right.
func (p *parser) stands(list string, n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "name" && p.names[list+" "+n.Content[i+1].Value] == nil {
			p.names[list+" "+n.Content[i+1].Value] = n.Content[i]
		}
	}
}

// refuse says where in the file an error of xds/wire stands.
func (p *parser) refuse(path string, n *yaml.Node, w *writer, err error) {
	if j, ok := errors.AsType[*wire.JSONError](err); ok {
		at := w.at(j.Line)
		if inner, ok := pathOf(n, at); ok {
			path = join(path, inner)
		}
		p.fail(at, path, "%s", plain(j.Reason))
		return
	}
	for _, e := range wire.Errors(err) {
		at := path
		if e.Field != "" {
			at = join(path, e.Field)
		}
		reason := e.Reason
		switch {
		case reason == "parrel does not honour this field":
			reason += ", and what it says must not be half understood; leave it out"
		case strings.HasPrefix(reason, "there is nothing to check the server by"):
			reason = "there is nothing to check the server by: give trusted_ca, or trust_chain_verification: ACCEPT_UNTRUSTED where whoever answers is good enough"
		}
		p.fail(find(n, e.Field), at, "%s", reason)
	}
}

// plain adds to protojson's words what to do.
func plain(reason string) string {
	switch {
	case strings.HasPrefix(reason, "unknown field"):
		return reason + ": Envoy's v3 API has no such field in this message; correct it or leave it out"
	case strings.Contains(reason, "unable to resolve"):
		return reason + ": parrel does not have this extension; leave it out"
	case strings.HasPrefix(reason, "invalid value for string"):
		return reason + ": put it in quotes"
	case strings.HasPrefix(reason, "unexpected token"):
		return reason + `: the field takes another kind of value; a duration is written as "5s", a message as name: value`
	}
	return reason
}
