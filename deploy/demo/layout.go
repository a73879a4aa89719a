package demo

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// instance is one running copy of a shop program and of what its sidecar needs.
type instance struct {
	id        string // Consul's service id: users-2
	role      string
	version   string
	ip        string         // its host's
	uid       int            // who it runs as; 0: whoever runs the demo
	port      int            // the program's own
	proxyPort int            // its sidecar's public listener
	upstreams map[string]int // name → local bind port; none where connections are captured
}

func (i *instance) addr() string      { return fmt.Sprintf("%s:%d", i.ip, i.port) }
func (i *instance) proxyAddr() string { return fmt.Sprintf("%s:%d", i.ip, i.proxyPort) }

// listen is where the program listens: on every address of a host that is its
// own, since its sidecar calls it on loopback and checks come from elsewhere.
func (i *instance) listen() string {
	if i.uid != 0 {
		return fmt.Sprintf("0.0.0.0:%d", i.port)
	}
	return i.addr()
}

// upstream is the address under which the instance's program reaches a service.
func (i *instance) upstream(name string) string {
	if port, ok := i.upstreams[name]; ok {
		return fmt.Sprintf("127.0.0.1:%d", port)
	}
	return virtualNames[name]
}

// host stands for a machine: the instances on it share one sidecar process.
type host struct {
	name      string
	ip        string
	space     *space // nil: this machine
	admin     int    // port of the sidecar's admin listener
	instances []*instance
}

// reach names a connection's start to [world.dial]: a host and a user of it.
func (h *host) reach(uid int) from { return from{h.space, uid} }

// layout is everything that is decided before the first process starts.
type layout struct {
	dir         string
	trustDomain string
	datacenter  string
	xds         int // ports
	api         int
	consulHTTP  int
	consulGRPC  int
	consulDNS   int
	consulSerf  int
	consulRPC   int
	consulWAN   int
	hosts       []*host
	ports       *portPicker

	ip string // the control plane's

	// Where hosts are namespaces: that of the control plane and of Consul's server,
	// and that of a client outside of the mesh. Nil on loopback.
	center, visitor *space
}

// protocols of the shop's services, in the words of service-defaults.
var protocols = map[string]string{
	"web": "http", "api": "http", "orders": "http", "users": "http", "pricing": "grpc", "ledger": "tcp",
}

// calls are the shop's edges: who calls whom. Intentions allow these and no
// others.
var calls = map[string][]string{
	"web": {"api"},
	"api": {"ledger", "orders", "pricing", "users"},
}

// place says what runs where: id, role, version.
var place = []struct {
	host      string
	instances [][3]string
}{
	{"east", [][3]string{{"orders-1", "orders", "v1"}, {"users-1", "users", "v1"}, {"pricing-1", "pricing", "v1"}}},
	{"west", [][3]string{{"web-1", "web", "v1"}, {"api-1", "api", "v1"}, {"users-2", "users", "v2"}, {"ledger-1", "ledger", "v1"}}},
}

// newLayout places the shop on two hosts. A token gives each service once, so
// that the two instances of users are on different ones.
func newLayout(dir string, ports *portPicker) (*layout, error) {
	l := &layout{dir: dir, trustDomain: "demo.parrel", datacenter: "dc1", ports: ports, ip: "127.0.0.1"}
	if err := ports.take(&l.xds, &l.api, &l.consulHTTP, &l.consulGRPC, &l.consulDNS, &l.consulSerf, &l.consulRPC, &l.consulWAN); err != nil {
		return nil, err
	}
	for _, p := range place {
		h := &host{name: p.host, ip: l.ip}
		if err := ports.take(&h.admin); err != nil {
			return nil, err
		}
		for _, i := range p.instances {
			in, err := l.newInstance(i[0], i[1], i[2])
			if err != nil {
				return nil, err
			}
			h.instances = append(h.instances, in)
		}
		l.hosts = append(l.hosts, h)
	}
	return l, nil
}

func (l *layout) newInstance(id, role, version string) (*instance, error) {
	in := &instance{id: id, role: role, version: version, ip: l.ip, upstreams: map[string]int{}}
	if err := l.ports.take(&in.port, &in.proxyPort); err != nil {
		return nil, err
	}
	for _, u := range calls[role] {
		var p int
		if err := l.ports.take(&p); err != nil {
			return nil, err
		}
		in.upstreams[u] = p
	}
	return in, nil
}

// find returns the instance with that id, nil if there is none.
func (l *layout) find(id string) *instance {
	for _, h := range l.hosts {
		for _, i := range h.instances {
			if i.id == id {
				return i
			}
		}
	}
	return nil
}

// hostOf returns the host that an instance is on.
func (l *layout) hostOf(id string) *host {
	for _, h := range l.hosts {
		if slices.ContainsFunc(h.instances, func(i *instance) bool { return i.id == id }) {
			return h
		}
	}
	return nil
}

func (l *layout) catalog() string         { return filepath.Join(l.dir, "catalog") }
func (l *layout) caDir() string           { return filepath.Join(l.dir, "ca") }
func (l *layout) dataDir(h string) string { return filepath.Join(l.dir, "data", h) }
func (l *layout) tokenFile(service string) string {
	return filepath.Join(l.dir, "tokens", service)
}
func (l *layout) logFile(name string) string { return filepath.Join(l.dir, "log", name+".log") }
func (l *layout) xdsAddr() string            { return fmt.Sprintf("%s:%d", l.ip, l.xds) }
func (l *layout) apiURL() string             { return fmt.Sprintf("http://127.0.0.1:%d", l.api) }
func (h *host) adminURL() string             { return fmt.Sprintf("http://127.0.0.1:%d", h.admin) }

func (l *layout) spiffeID(service string) string {
	return fmt.Sprintf("spiffe://%s/ns/default/dc/%s/svc/%s", l.trustDomain, l.datacenter, service)
}

// definition is the instance's service definition, as Consul's users write it.
func definition(in *instance) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service {\n  name    = %q\n  id      = %q\n  address = %q\n  port    = %d\n  meta {\n    version = %q\n", in.role, in.id, in.ip, in.port, in.version)
	if in.uid != 0 {
		fmt.Fprintf(&b, "    parrel-uid = \"%d\"\n", in.uid)
	}
	b.WriteString("  }\n")
	switch protocols[in.role] {
	case "http":
		fmt.Fprintf(&b, "  check {\n    id       = \"%s-http\"\n    http     = \"http://%s/health\"\n    interval = \"1s\"\n    timeout  = \"1s\"\n  }\n", in.id, in.addr())
	case "grpc":
		fmt.Fprintf(&b, "  check {\n    id       = \"%s-grpc\"\n    grpc     = %q\n    interval = \"1s\"\n    timeout  = \"1s\"\n  }\n", in.id, in.addr())
	default:
		fmt.Fprintf(&b, "  check {\n    id       = \"%s-tcp\"\n    tcp      = %q\n    interval = \"1s\"\n    timeout  = \"1s\"\n  }\n", in.id, in.addr())
	}
	// The alias has a state from the start: Consul's agent sometimes loses the
	// first run of a new alias check, which then stays critical for a minute.
	fmt.Fprintf(&b, "  connect {\n    sidecar_service {\n      port = %d\n      check {\n        name          = \"%s is alive\"\n        alias_service = %q\n        status        = \"passing\"\n      }\n", in.proxyPort, in.id, in.id)
	switch {
	case in.uid != 0:
		fmt.Fprintf(&b, "      proxy {\n        mode = \"transparent\"\n        transparent_proxy {\n          outbound_listener_port = %d\n        }\n      }\n", in.capturePort())
	case len(in.upstreams) > 0:
		b.WriteString("      proxy {\n        upstreams = [\n")
		for _, u := range calls[in.role] {
			fmt.Fprintf(&b, "          {\n            destination_name = %q\n            local_bind_port  = %d\n          },\n", u, in.upstreams[u])
		}
		b.WriteString("        ]\n      }\n")
	}
	b.WriteString("    }\n  }\n}\n")
	return b.String()
}

// entries are the config entries: one file each, as `consul config write`
// takes them.
func entries() map[string]string {
	out := map[string]string{}
	for service, protocol := range protocols {
		out["service-defaults-"+service+".hcl"] = fmt.Sprintf("Kind     = \"service-defaults\"\nName     = %q\nProtocol = %q\n", service, protocol)
	}
	callers := map[string][]string{}
	for from, tos := range calls {
		for _, to := range tos {
			callers[to] = append(callers[to], from)
		}
	}
	for to, froms := range callers {
		out[intentionFile(to)] = intentions(to, "allow", froms...)
	}
	return out
}

func intentionFile(to string) string { return "intentions-" + to + ".hcl" }

// intentions is a service-intentions entry that gives all sources one action.
func intentions(to, action string, froms ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Kind = \"service-intentions\"\nName = %q\nSources = [\n", to)
	slices.Sort(froms)
	for _, f := range froms {
		fmt.Fprintf(&b, "  {\n    Name   = %q\n    Action = %q\n  },\n", f, action)
	}
	b.WriteString("]\n")
	return b.String()
}

// write lays the folder out: definitions, entries, empty folders.
func (l *layout) write() error {
	for _, d := range []string{l.catalog(), l.caDir(), filepath.Join(l.dir, "tokens"), filepath.Join(l.dir, "log"), filepath.Join(l.dir, "data")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("demo: cannot lay out %s: %w", l.dir, err)
		}
	}
	files := entries()
	if l.center != nil {
		// Nobody answers there: what is not the mesh's own has no address.
		if err := os.WriteFile(l.resolvConf(), []byte("nameserver "+l.ip+"\n"), 0o644); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		for name, text := range openWeb() {
			files[name] = text
		}
		delete(files, "service-defaults-ledger.hcl") // to be found out
	}
	for _, h := range l.hosts {
		for _, i := range h.instances {
			files[i.id+".hcl"] = definition(i)
		}
	}
	for name, text := range files {
		if err := writeFile(filepath.Join(l.catalog(), name), text); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file in one step, so that no reader sees half of it.
func writeFile(path, text string) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// portPicker hands out loopback ports that nothing listens on, counting up from
// where it is told to start. It stays below the range that the kernel gives to
// outgoing connections, so that none of them takes one in between.
type portPicker struct{ next int }

const lastPort = 32000

func (p *portPicker) take(into ...*int) error {
	for _, dst := range into {
		for {
			if p.next > lastPort {
				return fmt.Errorf("demo: no free port on 127.0.0.1 up to %d: end what listens there, or give another --port-base", lastPort)
			}
			port := p.next
			p.next++
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue
			}
			l.Close()
			*dst = port
			break
		}
	}
	return nil
}
