package demo

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
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
func (w *world) newSpacedLayout(dir string) (err error) {
	l := &layout{dir: dir, trustDomain: "demo.parrel", datacenter: "dc1", ip: bridgeAddr.String(),
		xds: 15012, api: 15080, consulHTTP: 8500, consulGRPC: 8502, consulDNS: 8600, consulSerf: 8301, consulWAN: 8302, consulRPC: 8300}
	w.l = l
	if l.center, err = w.procs.newCenter(w.cfg.Binary); err != nil {
		return err
	}
	if l.visitor, err = w.procs.newHost(w.cfg.Binary, "visitor", l.center, 0); err != nil {
		return err
	}
	for _, p := range place {
		h, err := w.newHost(p.host)
		if err != nil {
			return err
		}
		for _, in := range p.instances {
			h.instances = append(h.instances, l.placed(h, in[0], in[1], in[2]))
		}
	}
	return nil
}

// newHost adds a host that is a namespace, with nothing on it.
func (w *world) newHost(name string) (*host, error) {
	s, err := w.procs.newHost(w.cfg.Binary, name, w.l.center, 1+len(w.l.hosts))
	if err != nil {
		return nil, err
	}
	h := &host{name: name, space: s, ip: s.addr.String(), admin: 15000}
	w.l.hosts = append(w.l.hosts, h)
	return h, nil
}

// placed is one more instance on a host that is a namespace.
func (l *layout) placed(h *host, id, role, version string) *instance {
	n := 0
	for _, other := range l.hosts {
		n += len(other.instances)
	}
	return &instance{id: id, role: role, version: version, ip: h.ip, uid: firstUID + n, port: 8001 + n, proxyPort: 21000 + n}
}

// openWeb lets clients outside of the mesh call web, and nobody else: it is the
// shop's door.
func openWeb() map[string]string {
	return map[string]string{
		meshEntry: "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n",
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

// resolver asks for names as programs there do.
func (f from) resolver() *net.Resolver { return &net.Resolver{PreferGo: true, Dial: f.dial} }

// center is where the control plane is, and Consul's server.
func (w *world) center() from { return from{w.l.center, 0} }

// visitor is a host without a sidecar.
func (w *world) visitor() from { return from{w.l.visitor, 0} }

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

// redirect has the kernel of a host hand the connections of its programs to the
// sidecar there, as `parrel redirect apply` does for any user; it returns when
// that is in force.
func (w *world) redirect(ctx context.Context, h *host) error {
	args := []string{"redirect", "apply", "--proxy-uid", "0", "--consul-dns-port", "15053",
		"--ready-url", h.adminURL() + "/ready", "--ready-timeout", startTimeout.String()}
	if !w.cfg.Consul {
		// The control plane runs the checks of a folder of definitions, and calls
		// programs at their own ports. Consul's agents call from the same host.
		args = append(args, "--exclude-inbound-cidr", w.l.ip+"/32")
	}
	for _, in := range h.instances {
		args = append(args, "--workload", fmt.Sprintf("%s,user=%d,port=%d", in.id, in.uid, in.capturePort()), "--service-port", fmt.Sprint(in.port))
	}
	p, err := w.launch(h, 0, "redirect-"+h.name, w.cfg.Binary, args...)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.err != nil {
		text, _ := os.ReadFile(w.l.logFile("redirect-" + h.name))
		return fmt.Errorf("demo: redirection on host %s: %w: %s", h.name, p.err, bytes.TrimSpace(text))
	}
	return nil
}

// redirectAll is redirect of every host at once.
func (w *world) redirectAll(ctx context.Context) error {
	var g errgroup.Group
	for _, h := range w.l.hosts {
		g.Go(func() error { return w.redirect(ctx, h) })
	}
	return g.Wait()
}

// capturePort is where the sidecar takes the instance's connections.
func (i *instance) capturePort() int { return 16001 + i.uid - firstUID }
