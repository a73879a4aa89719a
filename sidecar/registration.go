package sidecar

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// place is what a workload knows of its registration. It is kept on disk, so
// that a restart without the catalogue knows whom it stands for.
type place struct {
	Proxy      string `json:"proxy"` // node id
	Service    string `json:"service"`
	Namespace  string `json:"namespace,omitempty"`
	Partition  string `json:"partition,omitempty"`
	Address    string `json:"address,omitempty"` // where peers reach the proxy
	Port       int    `json:"port,omitempty"`
	Registered bool   `json:"registered,omitempty"` // by this sidecar, which takes it away when it leaves

	// Meta is what the service's says of its processes.
	Meta map[string]string `json:"meta,omitempty"`

	local LocalService // as last looked up
}

// registration finds, makes and takes away a proxy's registration.
type registration struct {
	w     Workload
	reg   Registrar // nil: everything is as configured
	file  string    // "": nothing is kept
	log   *slog.Logger
	rand  func() uint64
	hold  func(ctx context.Context, a resource.Address) (resource.Address, error)
	known place
	// late: the port opens only when the application answers.
	late  bool
	ready func(ctx context.Context) error // returns when the proxy serves
}

// service is the service as far as it is known; a start from disk knows little.
func (p *place) service(id string) *LocalService {
	if p.local.Name != "" {
		l := p.local
		return &l
	}
	return &LocalService{ID: id, Name: p.Service, Meta: p.Meta}
}

// lookupTimeout bounds one question to the catalogue; where a former answer is
// on disk, a shorter one does not keep a restart waiting.
const (
	lookupTimeout      = 5 * time.Second
	lookupTimeoutKnown = time.Second
)

// find says whom the workload stands for. It asks the catalogue until it
// answers, unless an answer of before is on disk.
func (r *registration) find(ctx context.Context) (place, error) {
	r.known = place{Proxy: r.w.Proxy, Service: cmp.Or(r.w.Service, r.w.ServiceID)}
	if r.reg == nil || r.w.ServiceID == "" {
		r.known.Proxy = r.w.name()
		return r.known, nil
	}
	kept, have := r.load()
	timeout := lookupTimeout
	if have {
		r.known, timeout = kept, lookupTimeoutKnown
	}
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := r.ask(ctx, timeout)
		switch {
		case err == nil:
			return r.known, nil
		case ctx.Err() != nil:
			return r.known, ctx.Err()
		case have:
			r.log.Warn("sidecar: the catalogue does not answer; going on with what is on disk", telemetry.KeyError, err.Error())
			return r.known, nil
		}
		r.log.Warn("sidecar: cannot find the service to stand for; trying again", "service_id", r.w.ServiceID,
			telemetry.KeyDuration, wait.String(), telemetry.KeyError, err.Error())
		if !sleep(ctx, jitter(wait, r.rand)) {
			return r.known, ctx.Err()
		}
	}
}

// ask looks the service up and brings known up to date.
func (r *registration) ask(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	local, err := r.reg.Lookup(ctx, r.w.ServiceID)
	if errors.Is(err, ErrNotRegistered) {
		return fmt.Errorf("no service with the id %q is registered on this node; register it with `consul services register`: %w", r.w.ServiceID, err)
	}
	if err != nil {
		return fmt.Errorf("look up service %q: %w", r.w.ServiceID, err)
	}
	k := r.known
	k.local, k.Service, k.Namespace, k.Partition = local, local.Name, local.Namespace, local.Partition
	k.Meta = processes(&local)
	switch p := local.Proxy; {
	case p != nil:
		mine := k.Registered && k.Proxy == p.ID // of a run before
		k.Proxy, k.Address, k.Port, k.Registered = p.ID, p.Address, p.Port, mine
	default:
		k.Proxy = cmp.Or(r.w.Proxy, local.ID+"-sidecar-proxy")
		k.Address = cmp.Or(r.w.Address, local.Address)
		if r.w.Port != 0 {
			k.Port = r.w.Port
		}
	}
	r.known = k
	return nil
}

// prepare opens the port that peers will dial, before anybody is told of it.
func (r *registration) prepare(ctx context.Context) error {
	if r.reg == nil || r.known.Proxy == "" {
		return nil
	}
	at := resource.Address{Host: bindHost(r.known.Address)}
	if p := r.known.local.Proxy; p != nil || r.w.Port != 0 || r.known.Port != 0 {
		if r.late {
			return nil // until then who dials is to be refused
		}
		at.Port = uint16(r.known.Port)
		_, err := r.hold(ctx, at)
		if err == nil || p != nil || r.w.Port != 0 {
			return err // a port that others chose is theirs to change
		}
	}
	var last error
	for port := sidecarMinPort; port <= sidecarMaxPort; port++ {
		at.Port = uint16(port)
		if _, last = r.hold(ctx, at); last == nil {
			r.known.Port = port
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("no port from %d to %d is free on %s: %w", sidecarMinPort, sidecarMaxPort, at.Host, last)
}

// bindHost is the address to listen on for a registration's address.
func bindHost(address string) string {
	if address == "localhost" {
		return "127.0.0.1"
	}
	if _, err := netip.ParseAddr(address); err != nil {
		return "0.0.0.0"
	}
	return address
}

// run registers the proxy where nobody did, until that is done, and keeps what
// is known on disk.
func (r *registration) run(ctx context.Context) {
	if r.reg == nil || r.w.ServiceID == "" {
		return
	}
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := r.register(ctx)
		if err == nil || ctx.Err() != nil {
			break
		}
		r.log.Warn("sidecar: the proxy is not registered; trying again, meanwhile nobody finds it",
			"proxy", r.known.Proxy, telemetry.KeyDuration, wait.String(), telemetry.KeyError, err.Error())
		if !sleep(ctx, jitter(wait, r.rand)) {
			return
		}
	}
	if r.late && r.known.Registered {
		r.maintain(ctx, true)
	}
	if r.ready(ctx) != nil {
		return
	}
	for wait := time.Second; !r.maintain(ctx, false) && sleep(ctx, jitter(wait, r.rand)); wait = min(2*wait, time.Minute) {
	}
}

// maintain takes the proxy out of what callers choose from, or puts back what it
// took out, in this life or in one before.
func (r *registration) maintain(ctx context.Context, on bool) bool {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	err := r.reg.SetMaintenance(ctx, r.known.Proxy, on)
	switch {
	case err == nil:
	case on:
		r.log.Warn("sidecar: the proxy cannot be put into maintenance: callers learn only by trying that it does not serve (the ACL token needs service:write)",
			"proxy", r.known.Proxy, telemetry.KeyError, err.Error())
	case ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded):
		r.log.Warn("sidecar: the proxy's maintenance cannot be looked at; trying again: if it is in maintenance, nobody calls it", "proxy", r.known.Proxy, telemetry.KeyError, err.Error())
	}
	return err == nil
}

func (r *registration) register(ctx context.Context) error {
	if r.known.local.Name == "" { // started from disk: ask now
		if err := r.ask(ctx, lookupTimeout); err != nil {
			return err
		}
	}
	k := r.known
	if k.local.Proxy == nil {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		err := r.reg.RegisterProxy(ctx, ProxyRegistration{
			ID: k.Proxy, Name: k.Service + "-sidecar-proxy", Namespace: k.Namespace, Partition: k.Partition,
			Address: k.Address, Port: k.Port, Service: k.Service, ServiceID: k.local.ID,
			ServiceAddress: "127.0.0.1", ServicePort: k.local.Port, Transparent: r.w.Transparent,
		})
		if err != nil {
			return fmt.Errorf("register %q: %w", k.Proxy, err)
		}
		r.known.Registered = true
		r.log.Info("sidecar: registered the proxy", "proxy", k.Proxy, telemetry.KeyAddress, fmt.Sprintf("%s:%d", k.Address, k.Port))
	}
	r.keep()
	return nil
}

// keep saves what is known; without it a restart asks the catalogue.
func (r *registration) keep() {
	if err := r.save(); err != nil {
		r.log.Warn("sidecar: what is known of the registration could not be kept", telemetry.KeyFile, r.file, telemetry.KeyError, err.Error())
	}
}

// leave takes away what this sidecar registered, and nothing else: what others
// registered is put into maintenance.
func (r *registration) leave(ctx context.Context) {
	if r.reg == nil || r.w.ServiceID == "" {
		return
	}
	if !r.known.Registered {
		if r.known.local.Proxy != nil {
			r.maintain(ctx, true)
		}
		return
	}
	if err := r.reg.DeregisterProxy(ctx, r.known.Proxy); err != nil {
		r.log.Warn("sidecar: the proxy could not be deregistered; its alias check turns critical, or remove it with `consul services deregister`",
			"proxy", r.known.Proxy, telemetry.KeyError, err.Error())
		return
	}
	r.log.Info("sidecar: deregistered the proxy", "proxy", r.known.Proxy)
	r.known.Registered = false
	r.keep()
}

func (r *registration) load() (place, bool) {
	if r.file == "" {
		return place{}, false
	}
	data, err := os.ReadFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, false
	}
	var p place
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil || p.Proxy == "" || p.Service == "" {
		r.log.Warn("sidecar: the kept registration cannot be read; asking the catalogue instead", telemetry.KeyFile, r.file, telemetry.KeyError, fmt.Sprint(err))
		return place{}, false
	}
	return p, true
}

func (r *registration) save() error {
	if r.file == "" {
		return nil
	}
	data, err := json.MarshalIndent(r.known, "", " ")
	if err != nil {
		return err
	}
	tmp := r.file + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, r.file)
}

// fileName makes a file's name of an id: what is not plain is written as %XX.
func fileName(id string) string {
	var b strings.Builder
	for i := range len(id) {
		c := id[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' && i > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// workloadDir makes the directory for a workload's last good configuration.
func workloadDir(dataDir, name string) (string, error) {
	dir := filepath.Join(dataDir, "config", fileName(name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("sidecar: data directory: %w", err)
	}
	return dir, nil
}

// jitter draws from the second half of d.
func jitter(d time.Duration, rand func() uint64) time.Duration {
	return d/2 + time.Duration(rand()%uint64(d/2+1))
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
