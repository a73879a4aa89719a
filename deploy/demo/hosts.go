package demo

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
)

// virtualNames are how captured programs call each other: by any of the names
// that the mesh gives, and at whatever port they like.
var virtualNames = map[string]string{
	"api": "api.virtual.consul:80", "orders": "orders.mesh:80", "users": "users:80",
	"pricing": "pricing.service.consul:50051", "ledger": "ledger:9000",
}

// firstUID is the user of the first instance. Nobody has it: programs run as
// numbers without names.
const firstUID = 64101

// stranger is a user on every host who is none of its services.
const stranger = firstUID - 1

// newSpacedLayout places the shop on hosts that are network namespaces. Each
// program runs as a user of its own, by which the host's one sidecar knows it, and
// its connections are captured: no program has an upstream port.
func newSpacedLayout(dir string, spaces []*space) *layout {
	l := &layout{dir: dir, trustDomain: "demo.parrel", datacenter: "dc1", center: spaces[0], ip: spaces[0].addr.String(),
		xds: 15012, api: 15080, consulHTTP: 8500, consulGRPC: 8502, consulDNS: 8600, consulSerf: 8301, consulWAN: 8302, consulRPC: 8300}
	for i, p := range place {
		h := &host{name: p.host, space: spaces[i+1], ip: spaces[i+1].addr.String(), admin: 15000}
		for _, in := range p.instances {
			h.instances = append(h.instances, l.placed(h, in[0], in[1], in[2]))
		}
		l.hosts = append(l.hosts, h)
	}
	return l
}

// placed is one more instance on a host that is a namespace.
func (l *layout) placed(h *host, id, role, version string) *instance {
	n := len(h.instances)
	for _, other := range l.hosts {
		if other != h {
			n += len(other.instances)
		}
	}
	return &instance{id: id, role: role, version: version, ip: h.ip, uid: firstUID + n, port: 8001 + n, proxyPort: 21000 + n}
}

// openWeb lets clients outside of the mesh call web, and nobody else: it is the
// shop's door.
func openWeb() map[string]string {
	return map[string]string{
		"mesh.hcl": "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n",
		"service-defaults-web.hcl": fmt.Sprintf("Kind          = \"service-defaults\"\nName          = \"web\"\nProtocol      = %q\nMutualTLSMode = \"permissive\"\n",
			protocols["web"]),
	}
}

// from is where a connection of the demo's own starts.
type from struct {
	space *space // nil: this machine
	uid   int
}

// dial connects from there.
func (f from) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if f.space == nil {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	return f.space.dial(ctx, f.uid, network, address)
}

// outside is where clients without a sidecar are.
func (w *world) outside() from { return from{w.l.center, 0} }

// as is where the program of an instance is.
func (w *world) as(id string) from {
	return w.l.hostOf(id).reach(w.l.find(id).uid)
}

// launch starts a command on a host, or, with a nil host, beside the control
// plane, as a user.
func (w *world) launch(h *host, uid int, name, binary string, args ...string) (*process, error) {
	binary, args = w.command(h, uid, binary, args...)
	return w.procs.start(name, binary, args...)
}

// command is a command line as it is run on a host.
func (w *world) command(h *host, uid int, binary string, args ...string) (string, []string) {
	s := w.l.center
	if h != nil {
		s = h.space
	}
	if s == nil {
		return binary, args
	}
	enter := []string{"demo", "enter", "--netns", s.path(), "--uid", fmt.Sprint(uid), "--resolv-conf", w.l.resolvConf(), "--", binary}
	return w.cfg.Binary, append(enter, args...)
}

func (l *layout) resolvConf() string { return filepath.Join(l.dir, "resolv.conf") }

// captureFlags are what the sidecar of a host needs to capture its programs.
func (w *world) captureFlags(h *host) []string {
	return nil
}
