package inject

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// settings are what a service's labels say to parrel, completed by what the
// service itself says.
type settings struct {
	optOut    bool
	service   string // its name in Consul
	id        string // "": made of the instance's name
	port      string // a number, or an expression that compose replaces; "": not known
	protocol  string
	upstreams []upstream
	tags      []string
	meta      []string // KEY=VALUE
	capture   bool     // published ports too are taken by the mesh
	mode      string
}

type upstream struct {
	name string
	port int
}

const labelPrefix = "parrel."

// labelHelp names every label, for errors and documents.
var labelHelp = []struct{ name, text string }{
	{"parrel.inject", `"false": the service stays as it is`},
	{"parrel.service", "its name in Consul (default: the name in the file)"},
	{"parrel.id", "id of its registration (default: the name in the file; with replicas -2, -3 … follow)"},
	{"parrel.port", "port on which it listens (default: the first of expose, else of ports)"},
	{"parrel.protocol", "tcp, http, http2 or grpc, for a service-defaults entry where Consul has none"},
	{"parrel.upstreams", `explicit upstreams, "api:9191, users:9192": a service and the port on 127.0.0.1`},
	{"parrel.tags", `tags of the registration, "v2, canary"`},
	{"parrel.meta.KEY", "a meta key of the registration, such as parrel.meta.version"},
	{"parrel.published", `"open" (default): published ports are reached as before, past the mesh; "mesh": only by the mesh`},
	{"parrel.mode", `"transparent" or "explicit", instead of --mode`},
}

var serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$`)

// readLabels reads the labels of a service that begin with parrel.
func (p *project) readLabels(s *service) error {
	set := &s.settings
	set.service, set.mode = s.name, p.opts.Mode
	n := get(s.full, "labels")
	keys, values := keyed(n, "=")
	for _, k := range keys {
		if !strings.HasPrefix(k, labelPrefix) {
			continue
		}
		at, v := values[k], ""
		if at != nil && !isNull(at) {
			v = strings.TrimSpace(at.Value)
		}
		if at == nil || at.Line == 0 {
			at = n
		}
		bad := func(format string, args ...any) error {
			return p.errorf(at, "%s: label %s: %s", s.name, k, fmt.Sprintf(format, args...))
		}
		switch k {
		case "parrel.inject":
			switch strings.ToLower(v) {
			case "false", "no", "off", "disabled":
				set.optOut = true
			case "true", "yes", "on", "enabled":
			default:
				return bad("%q is neither true nor false", v)
			}
		case "parrel.service":
			if !serviceName.MatchString(v) {
				return bad("%q is no name of a service: letters, digits, dashes, dots", v)
			}
			set.service = v
		case "parrel.id":
			if v == "" || strings.ContainsAny(v, " /\"\\") {
				return bad("%q is no id: leave out blanks, quotes and slashes", v)
			}
			set.id = v
		case "parrel.port":
			if !isPort(v) && !strings.Contains(v, "$") {
				return bad("%q is no port from 1 to 65535", v)
			}
			set.port = v
		case "parrel.protocol":
			if !slices.Contains([]string{"tcp", "http", "http2", "grpc"}, v) {
				return bad("%q: there are tcp, http, http2 and grpc", v)
			}
			set.protocol = v
		case "parrel.upstreams":
			for _, u := range splitList(v) {
				name, port, ok := strings.Cut(u, ":")
				if !ok || !serviceName.MatchString(name) || !isPort(port) {
					return bad("%q: write SERVICE:PORT, several separated by commas", u)
				}
				n, _ := strconv.Atoi(port)
				set.upstreams = append(set.upstreams, upstream{name, n})
			}
		case "parrel.tags":
			set.tags = splitList(v)
		case "parrel.published":
			switch v {
			case "open":
			case "mesh":
				set.capture = true
			default:
				return bad(`%q: there are "open" and "mesh"`, v)
			}
		case "parrel.mode":
			if v != Transparent && v != Explicit {
				return bad("%q: there are %s and %s", v, Transparent, Explicit)
			}
			set.mode = v
		default:
			if m, ok := strings.CutPrefix(k, "parrel.meta."); ok && m != "" {
				set.meta = append(set.meta, m+"="+v)
				continue
			}
			var names []string
			for _, h := range labelHelp {
				names = append(names, h.name)
			}
			return bad("there is no such label: there are %s", strings.Join(names, ", "))
		}
	}
	return nil
}

func splitList(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
}

func isPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 65536 && strconv.Itoa(n) == s
}

// decide says for each service whether it gets a sidecar.
func (p *project) decide() error {
	for _, s := range p.services {
		if err := p.readLabels(s); err != nil {
			return err
		}
		if err := p.decideOne(s); err != nil {
			return err
		}
	}
	for _, s := range p.services { // those that share a namespace
		if err := p.join(s); err != nil {
			return err
		}
	}
	for _, s := range p.services {
		for i := 1; s.inject && i <= s.replicas; i++ {
			for _, name := range []string{instanceName(s.name, i), sidecarName(instanceName(s.name, i))} {
				if other := p.byName[name]; other != nil && other != s {
					return p.errorf(other.key, "a service %q is in the file, and inject adds one of that name for %q: rename it, or give %s the label parrel.inject: \"false\"", name, s.name, s.name)
				}
			}
		}
	}
	for _, a := range p.opts.After {
		name, _, _ := strings.Cut(a, ":")
		s := p.byName[name]
		switch {
		case s == nil:
			return p.errorf(p.key, "--after %s: there is no service %q here", a, name)
		case s.inject || s.joins != nil:
			return p.errorf(s.key, "--after %s: %q itself gets a sidecar, which would wait for itself: give it the label parrel.inject: \"false\"", a, name)
		}
	}
	return nil
}

func sidecarName(instance string) string { return instance + "-sidecar" }

// instanceName names the instances that replicas unroll into; the first keeps
// the service's name.
func instanceName(name string, i int) string {
	if i == 1 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, i)
}

func (p *project) decideOne(s *service) error {
	left := func(at *yaml.Node, format string, args ...any) error {
		p.note(s, at, "left as it is: "+format, args...)
		return nil
	}
	if s.settings.optOut {
		return left(nil, "label parrel.inject says so")
	}
	if v := get(s.full, "provider"); v != nil {
		return left(v, "a provider runs it, there is no container to join")
	}
	if m := get(s.full, "network_mode"); !isNull(m) {
		kind, _, _ := strings.Cut(m.Value, ":")
		switch kind {
		case "host":
			return left(m, "network_mode host: it has no namespace of its own; run the sidecar on the host, `parrel inject systemd`")
		case "none":
			return left(m, "network_mode none: it has no network")
		case "container":
			return left(m, "network_mode %s: it has another container's namespace, which is not in this file", m.Value)
		case "service":
			return nil // join decides
		case "bridge", "default":
		default:
			if strings.Contains(m.Value, "$") {
				return p.errorf(m, "%s: network_mode %q is known when compose runs, and inject has to know it now: write it out", s.name, m.Value)
			}
		}
	}
	if err := p.count(s); err != nil {
		return err
	}
	if s.replicas == 0 {
		return left(get(s.full, s.counted), "it has no replicas")
	}
	for _, k := range moved {
		if v := get(s.full, k); v != nil && strings.HasPrefix(v.Tag, "!") && !strings.HasPrefix(v.Tag, "!!") {
			return p.errorf(v, "%s: %s has the tag %s, which belongs into an override file: inject the merged file that `docker-compose config` prints", s.name, k, v.Tag)
		}
	}
	if u := get(s.full, "user"); u != nil {
		if uid, _, _ := strings.Cut(u.Value, ":"); uid == strconv.Itoa(p.opts.UID) {
			return p.errorf(u, "%s runs as user %s, which is the sidecar's: what it sends would not be seen; choose another user, or --proxy-uid", s.name, uid)
		}
	}
	s.inject = true
	p.ports(s)
	p.warn(s)
	return nil
}

// warn notes what is not as safe, or not as known, as it may seem.
func (p *project) warn(s *service) {
	if s.baseFile != "" {
		p.note(s, get(s.own, "extends"), "what it extends in %s is not read: compose refuses it if networks, ports, hostname, links, dns or extra_hosts stand there; move them into this file", s.baseFile)
	}
	if s.settings.mode == Transparent {
		if v := get(s.full, "privileged"); v != nil && v.Value == "true" {
			p.note(s, v, "it is privileged and can take away the rules that lead its traffic to the sidecar")
		}
		for _, c := range list(get(s.full, "cap_add")) {
			if c = strings.ToUpper(strings.TrimPrefix(c, "CAP_")); c == "NET_ADMIN" || c == "ALL" {
				p.note(s, get(s.full, "cap_add"), "with the capability %s it can take away the rules that lead its traffic to the sidecar", c)
			}
		}
	}
	if s.settings.port == "" {
		p.note(s, nil, "nothing says on which port it listens: it can call, and nobody can call it; say so with the label parrel.port or `expose`")
	}
}

var withDefault = regexp.MustCompile(`^\$\{[A-Za-z_][A-Za-z0-9_]*:?-([0-9]+)\}$`)

// count reads how many instances a service has.
func (p *project) count(s *service) error {
	n, from := get(s.full, "scale"), "scale"
	if d := get(s.full, "deploy"); isNull(n) && !isNull(d) {
		if m := get(d, "mode"); m != nil && m.Value == "global" {
			return nil
		}
		n, from = get(d, "replicas"), "deploy"
	}
	if isNull(n) {
		return nil
	}
	s.counted = from
	v := n.Value
	if m := withDefault.FindStringSubmatch(v); m != nil {
		p.note(s, n, "%s is known when compose runs; %s is taken now, and the variable counts no more", v, m[1])
		v = m[1]
	}
	count, err := strconv.Atoi(v)
	if err != nil || count < 0 || count > 100 {
		return p.errorf(n, "%s: %q replicas: each gets a sidecar, so that their number has to be written here, from 0 to 100", s.name, n.Value)
	}
	s.replicas = count
	if count <= 1 {
		return nil
	}
	if v := get(s.full, "container_name"); !isNull(v) {
		return p.errorf(v, "%s: %d replicas cannot share the container_name %q: take it away", s.name, count, v.Value)
	}
	if v := get(s.full, "mac_address"); !isNull(v) {
		return p.errorf(v, "%s: %d replicas cannot share a mac_address: take it away", s.name, count)
	}
	for k, v := range pairs(get(s.full, "networks")) {
		for _, a := range []string{"ipv4_address", "ipv6_address", "mac_address"} {
			if ip := get(v, a); !isNull(ip) {
				return p.errorf(ip, "%s: %d replicas cannot share the %s %s in the network %q: take it away", s.name, count, a, ip.Value, k.Value)
			}
		}
	}
	if n := get(s.full, "ports"); n != nil {
		for _, e := range n.Content {
			if host := hostPort(e); host != "" && !strings.Contains(host, "-") {
				return p.errorf(e, "%s: %d replicas cannot all have the port %s of the host: leave the host's port out, or give a range", s.name, count, host)
			}
		}
	}
	return nil
}

// join handles network_mode: "service:OTHER".
func (p *project) join(s *service) error {
	m := get(s.full, "network_mode")
	if isNull(m) || s.settings.optOut {
		return nil
	}
	name, ok := strings.CutPrefix(m.Value, "service:")
	if !ok {
		return nil
	}
	other := p.byName[name]
	switch {
	case other == nil:
		return p.errorf(m, "%s joins the network of %q, and there is no such service in this file: correct the name", s.name, name)
	case !other.inject:
		p.note(s, m, "left as it is: it shares the network of %q, which gets no sidecar", name)
		return nil
	case other.replicas > 1:
		return p.errorf(m, "%s joins the network of %q, of which there are %d: it can join one; set its replicas to 1", s.name, name, other.replicas)
	}
	s.joins = other
	p.note(s, m, "shares the network of %q, and so its sidecar and its identity", name)
	return nil
}
