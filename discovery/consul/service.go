package consul

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/discovery"
)

// Definition is a service and its connect-proxy, to be registered by the sidecar
// that stands for it. Read-only after [ParseDefinition].
type Definition struct {
	service *api.AgentServiceRegistration
	proxy   *api.AgentServiceRegistration
}

// defaultProxyPort is the first of Consul's range for sidecars.
const defaultProxyPort = 21000

// ParseDefinition reads a service definition as `consul services register` takes
// it, in JSON: {"service": {…}} or what stands in it. Every field is checked.
// Its connect.sidecar_service, or an empty one, becomes the proxy, on port 21000
// unless it says another.
func ParseDefinition(text string) (*Definition, error) {
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return nil, fmt.Errorf("consul: the service definition is no JSON: %w", err)
	}
	if s, ok := fields["service"].(map[string]any); ok && len(fields) == 1 {
		fields = s
	}
	canonical, err := discovery.CanonicalRegistration(fields, discovery.Origin{Place: "the service definition"})
	if err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	var d Definition
	if d.service, err = registrationOf(canonical); err != nil {
		return nil, err
	}
	s := d.service
	if s.Kind != api.ServiceKindTypical {
		return nil, fmt.Errorf("consul: the service definition is of kind %q: give the application's service, its proxy is made from connect.sidecar_service", s.Kind)
	}
	s.ID = cmp.Or(s.ID, s.Name)
	d.proxy = &api.AgentServiceRegistration{}
	if s.Connect != nil && s.Connect.SidecarService != nil {
		d.proxy = s.Connect.SidecarService
	}
	s.Connect = nil
	p := d.proxy
	p.Kind, p.ID, p.Name = api.ServiceKindConnectProxy, cmp.Or(p.ID, s.ID+sidecarSuffix), cmp.Or(p.Name, s.Name+sidecarSuffix)
	p.Port = cmp.Or(p.Port, defaultProxyPort)
	p.Namespace, p.Partition = s.Namespace, s.Partition
	if p.Tags == nil {
		p.Tags = s.Tags
	}
	if p.Meta == nil {
		p.Meta = s.Meta
	}
	if p.Proxy == nil {
		p.Proxy = &api.AgentServiceConnectProxyConfig{}
	}
	p.Proxy.DestinationServiceName, p.Proxy.DestinationServiceID = s.Name, s.ID
	p.Proxy.LocalServiceAddress = cmp.Or(p.Proxy.LocalServiceAddress, "127.0.0.1")
	p.Proxy.LocalServicePort = cmp.Or(p.Proxy.LocalServicePort, s.Port)
	return &d, nil
}

func registrationOf(canonical map[string]any) (*api.AgentServiceRegistration, error) {
	b, err := json.Marshal(canonical)
	if err != nil {
		return nil, fmt.Errorf("consul: the service definition: %w", err)
	}
	var r api.AgentServiceRegistration
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("consul: the service definition: %w", err)
	}
	return &r, nil
}

// ID is the service's id, Name its name.
func (d *Definition) ID() string   { return d.service.ID }
func (d *Definition) Name() string { return d.service.Name }

// ProxyID is the id of its proxy.
func (d *Definition) ProxyID() string { return d.proxy.ID }

// LocalPort is the port of this machine on which the application serves; 0:
// none is known, or it serves on a socket or another machine.
func (d *Definition) LocalPort() int {
	p := d.proxy.Proxy
	ip := net.ParseIP(p.LocalServiceAddress)
	if p.LocalServiceSocketPath != "" || d.service.SocketPath != "" || ip == nil || !ip.IsLoopback() {
		return 0
	}
	return p.LocalServicePort
}

// At gives the definition with the address under which others reach it, where it
// names none, and with its checks. Service and proxy have one that the sidecar
// reports itself ([Registrar.Report]), where there is a LocalPort; the proxy has
// one of the sidecar's readiness at ready (a URL; "": none), and an alias of the
// service's own checks, where the definition names any. (An alias of the report
// would do for the proxy, but Consul notices some changes only a minute later.)
func (d *Definition) At(address, ready string) *Definition {
	s, p := *d.service, *d.proxy
	s.Address = cmp.Or(s.Address, address)
	p.Address = cmp.Or(p.Address, s.Address)
	s.Checks, p.Checks = slices.Clone(s.Checks), slices.Clone(p.Checks)
	if len(s.Checks) > 0 || s.Check != nil {
		p.Checks = append(p.Checks, &api.AgentServiceCheck{CheckID: "service:" + p.ID + ":alias", Name: "Connect Sidecar Aliasing " + s.ID, AliasService: s.ID})
	}
	if d.LocalPort() != 0 {
		for _, r := range []*api.AgentServiceRegistration{&s, &p} {
			r.Checks = append(r.Checks, &api.AgentServiceCheck{CheckID: reportID(r.ID), Name: "the application listens", TTL: reportTTL})
		}
	}
	if ready != "" {
		p.Checks = append(p.Checks, &api.AgentServiceCheck{CheckID: "service:" + p.ID + ":ready", Name: "the sidecar is ready", HTTP: ready, Interval: "1s", Timeout: "2s"})
	}
	return &Definition{&s, &p}
}

// reportTTL is how long a report holds.
const reportTTL = "30s"

func reportID(service string) string { return "service:" + service + ":listens" }

// Report says whether the application listens on its LocalPort. A report holds
// for 30 seconds.
func (r *Registrar) Report(ctx context.Context, d *Definition, listens bool) error {
	status, note := api.HealthPassing, fmt.Sprintf("port %d is open", d.LocalPort())
	if !listens {
		status, note = api.HealthCritical, fmt.Sprintf("nothing listens on port %d", d.LocalPort())
	}
	for _, id := range []string{d.ProxyID(), d.ID()} {
		if err := r.client.Agent().UpdateTTLOpts(reportID(id), note, status, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("consul: report the health of %q: %w", id, err)
		}
	}
	return nil
}

// Register registers the service and its proxy with the agent and replaces what
// was registered under their ids. The proxy goes first: who finds the service
// finds its proxy too.
func (r *Registrar) Register(ctx context.Context, d *Definition) error {
	for _, s := range []*api.AgentServiceRegistration{d.proxy, d.service} {
		if err := r.client.Agent().ServiceRegisterOpts(s, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)); err != nil {
			return fmt.Errorf("consul: register %q: %w", s.ID, err)
		}
	}
	return nil
}

// Deregister takes both away, the proxy first. What is not there is no error.
func (r *Registrar) Deregister(ctx context.Context, d *Definition) error {
	var errs []error
	for _, id := range []string{d.proxy.ID, d.service.ID} {
		err := r.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
		var status api.StatusError
		if err != nil && !(errors.As(err, &status) && status.Code == http.StatusNotFound) {
			errs = append(errs, fmt.Errorf("consul: deregister %q: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// Declare writes the protocol of a service into a service-defaults entry where
// there is none, and says what stands there otherwise.
func (r *Registrar) Declare(ctx context.Context, service, protocol string) (stands string, err error) {
	entries := r.client.ConfigEntries()
	e, _, err := entries.Get(api.ServiceDefaults, service, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	switch {
	case err == nil:
		if d, ok := e.(*api.ServiceConfigEntry); ok {
			return d.Protocol, nil
		}
		return "", nil
	case !errors.As(err, &status) || status.Code != http.StatusNotFound:
		return "", fmt.Errorf("consul: read service-defaults %q: %w", service, err)
	}
	// Index 0: only where there is none.
	ok, _, err := entries.CAS(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: service, Protocol: protocol}, 0, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("consul: write service-defaults %q: %w", service, err)
	}
	if !ok {
		return r.Declare(ctx, service, protocol) // another instance was first
	}
	return protocol, nil
}

// LocalAddress is the address of this machine on the way to a Consul agent at
// HOST:PORT, which is where the agent and others reach it; "" where the agent is
// on this machine itself or behind a socket.
func LocalAddress(agent string) (string, error) {
	agent = strings.TrimPrefix(strings.TrimPrefix(agent, "http://"), "https://")
	if strings.Contains(agent, "unix:") || strings.HasPrefix(agent, "/") {
		return "", nil
	}
	if _, _, err := net.SplitHostPort(agent); err != nil {
		agent = net.JoinHostPort(agent, "8500")
	}
	c, err := net.Dial("udp", agent) // sends nothing
	if err != nil {
		return "", fmt.Errorf("consul: which address of this machine leads to the agent at %s: %w", agent, err)
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsLoopback() {
		return "", nil
	}
	return host, nil
}
