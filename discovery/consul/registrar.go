package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

// ErrNotRegistered says that the agent answered and has no such service.
var ErrNotRegistered = errors.New("not registered")

// LocalService is one instance of a service that is registered with the agent.
type LocalService struct {
	ID, Name             string
	Namespace, Partition string
	Address              string // the service's, else the agent's own
	Port                 int
	SocketPath           string
	Meta                 map[string]string
	Node, Datacenter     string
	Proxy                *LocalProxy // the connect-proxy that is registered for it; nil: none is
}

// LocalProxy is a connect-proxy's registration.
type LocalProxy struct {
	ID, Name, Address string
	Port              int
	Meta              map[string]string
}

// ProxyRegistration is a connect-proxy to register.
type ProxyRegistration struct {
	ID, Name             string // "": the ServiceID and the Service with "-sidecar-proxy"
	Namespace, Partition string
	Address              string // where peers reach it; "": the agent's
	Port                 int
	Service, ServiceID   string // what it stands for: the alias check's target
	ServiceAddress       string // where the application listens; "": 127.0.0.1
	ServicePort          int
	Transparent          bool // Proxy.Mode "transparent"
}

// Registrar registers sidecars with the agent of this host. Its methods may be
// called at the same time by many, and return when ctx ends.
type Registrar struct {
	client    *api.Client
	transport *http.Transport
}

// NewRegistrar connects to nothing yet.
func NewRegistrar(cfg Config) (*Registrar, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	client, transport, err := cfg.client()
	if err != nil {
		return nil, err
	}
	short(transport)
	return &Registrar{client: client, transport: transport}, nil
}

// Close closes idle connections.
func (r *Registrar) Close() { r.transport.CloseIdleConnections() }

// Lookup finds a service by its id on this agent. The error is ErrNotRegistered
// where the agent answered that there is none.
func (r *Registrar) Lookup(ctx context.Context, serviceID string) (LocalService, error) {
	all, err := r.ListLocal(ctx)
	if err != nil {
		return LocalService{}, err
	}
	for _, s := range all {
		if s.ID == serviceID {
			return s, nil
		}
	}
	return LocalService{}, fmt.Errorf("consul: the service id %q: %w with this agent; register it with `consul services register`", serviceID, ErrNotRegistered)
}

// ListLocal lists the services of this agent that are no proxies and no
// gateways, sorted by id.
func (r *Registrar) ListLocal(ctx context.Context) ([]LocalService, error) {
	services, err := r.client.Agent().ServicesWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("consul: list the agent's services: %w", err)
	}
	node, err := r.node(ctx)
	if err != nil {
		return nil, err
	}
	byID := map[string]*LocalService{}
	var out []*LocalService
	for _, s := range services {
		if s.Kind != api.ServiceKindTypical {
			continue
		}
		l := &LocalService{
			ID: s.ID, Name: s.Service, Namespace: s.Namespace, Partition: s.Partition,
			Address: cmp.Or(s.Address, node.address), Port: s.Port, SocketPath: s.SocketPath, Meta: s.Meta,
			Node: node.name, Datacenter: cmp.Or(s.Datacenter, node.datacenter),
		}
		byID[s.ID] = l
		out = append(out, l)
	}
	for _, s := range services {
		if s.Kind != api.ServiceKindConnectProxy || s.Proxy == nil {
			continue
		}
		l := byID[s.Proxy.DestinationServiceID]
		// Of several the first by id, so that each answer is the same.
		if l != nil && (l.Proxy == nil || s.ID < l.Proxy.ID) {
			l.Proxy = &LocalProxy{ID: s.ID, Name: s.Service, Address: cmp.Or(s.Address, node.address), Port: s.Port, Meta: s.Meta}
		}
	}
	slices.SortFunc(out, func(a, b *LocalService) int { return strings.Compare(a.ID, b.ID) })
	list := make([]LocalService, len(out))
	for i, l := range out {
		list[i] = *l
	}
	return list, nil
}

type nodeInfo struct{ name, address, datacenter string }

// node asks the agent who it is. A token that may not know leaves it empty, and
// the address of services that name none is then 127.0.0.1.
func (r *Registrar) node(ctx context.Context) (nodeInfo, error) {
	var self struct {
		Config struct{ NodeName, Datacenter string }
		Member struct{ Addr string }
	}
	_, err := r.client.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil && !denied(err) {
		return nodeInfo{}, fmt.Errorf("consul: ask the agent who it is: %w", err)
	}
	return nodeInfo{self.Config.NodeName, cmp.Or(self.Member.Addr, "127.0.0.1"), self.Config.Datacenter}, nil
}

// RegisterProxy registers a connect-proxy for a service of this agent, with an
// alias check of the service: Consul's own default for sidecars is a TCP check,
// which is critical until its first run, up to 10 seconds later. The caller
// listens before it registers. Registering the same again changes nothing.
func (r *Registrar) RegisterProxy(ctx context.Context, p ProxyRegistration) error {
	reg := &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy,
		ID:   cmp.Or(p.ID, p.ServiceID+sidecarSuffix), Name: cmp.Or(p.Name, p.Service+sidecarSuffix),
		Namespace: p.Namespace, Partition: p.Partition, Address: p.Address, Port: p.Port,
		Proxy: &api.AgentServiceConnectProxyConfig{
			DestinationServiceName: p.Service, DestinationServiceID: p.ServiceID,
			LocalServiceAddress: cmp.Or(p.ServiceAddress, "127.0.0.1"), LocalServicePort: p.ServicePort,
		},
		Checks: api.AgentServiceChecks{{
			CheckID: "service:" + cmp.Or(p.ID, p.ServiceID+sidecarSuffix) + ":alias",
			Name:    "Connect Sidecar Aliasing " + p.ServiceID, AliasService: p.ServiceID,
			// A check is critical until its first run; what it will find is known.
			Status: r.state(ctx, p.ServiceID),
		}},
	}
	if p.Transparent {
		reg.Proxy.Mode = api.ProxyModeTransparent
	}
	if err := r.client.Agent().ServiceRegisterOpts(reg, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)); err != nil {
		return fmt.Errorf("consul: register the sidecar %q of %q: %w", reg.ID, p.ServiceID, err)
	}
	return nil
}

// state is the present state of a service of this agent, critical where that
// is not to be had.
func (r *Registrar) state(ctx context.Context, serviceID string) string {
	q := (&api.QueryOptions{}).WithContext(ctx)
	state, _, err := r.client.Agent().AgentHealthServiceByIDOpts(serviceID, q)
	if err != nil || state != api.HealthPassing && state != api.HealthWarning {
		return api.HealthCritical
	}
	return state
}

// DeregisterProxy takes a registration away; that there is none is no error.
func (r *Registrar) DeregisterProxy(ctx context.Context, id string) error {
	err := r.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	var status api.StatusError
	if err != nil && !(errors.As(err, &status) && status.Code == http.StatusNotFound) {
		return fmt.Errorf("consul: deregister the sidecar %q: %w", id, err)
	}
	return nil
}

// maintenanceReason is what Consul shows of a proxy that this package put into
// maintenance, and how it knows it again.
const maintenanceReason = "parrel: the sidecar does not serve; it ends this when it does"

// SetMaintenance puts a proxy of this agent into maintenance (a critical check,
// which the agent keeps over restarts), or ends that. Maintenance that somebody
// else began is left as it is.
func (r *Registrar) SetMaintenance(ctx context.Context, id string, on bool) error {
	q := (&api.QueryOptions{}).WithContext(ctx)
	if on {
		if err := r.client.Agent().EnableServiceMaintenanceOpts(id, maintenanceReason, q); err != nil {
			return fmt.Errorf("consul: put the sidecar %q into maintenance: %w", id, err)
		}
		return nil
	}
	checks, err := r.client.Agent().ChecksWithFilterOpts(fmt.Sprintf("CheckID == %q", "_service_maintenance:"+id), q)
	if err != nil {
		return fmt.Errorf("consul: look for maintenance of the sidecar %q: %w", id, err)
	}
	for _, c := range checks {
		if c.Notes != maintenanceReason {
			continue
		}
		if err := r.client.Agent().DisableServiceMaintenanceOpts(id, q); err != nil {
			return fmt.Errorf("consul: end the maintenance of the sidecar %q: %w", id, err)
		}
	}
	return nil
}
