package controlplane

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// Authorise implements server.Authoriser: the node id must be a proxy or a
// connect-native instance of the service that the peer's certificate names. A
// sidecar registers itself and opens its stream at the same time, so that an
// unknown id is waited for.
func (p *ControlPlane) Authorise(ctx context.Context, peer spiffeid.ID, nodeID string, dialect server.Dialect) (server.Workload, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.RegistrationWait)
	defer cancel()
	for {
		now := p.mesh.Load()
		w, err := now.Lookup(nodeID)
		switch {
		case err == nil:
			if want := generate.SPIFFEID(now.Snapshot, w.Service); want != peer.String() {
				return server.Workload{}, fmt.Errorf("controlplane: node id %q is a proxy of service %s (%s), and the certificate is of %s: open the stream with the identity of that service, or with the id of one of your own proxies",
					nodeID, w.Service.Name, want, peer)
			}
			p.rooms.keep(nodeID, w)
			return server.Workload{NodeID: nodeID, ID: peer, Dialect: dialect}, nil
		case !errors.Is(err, mesh.ErrUnknown):
			return server.Workload{}, fmt.Errorf("controlplane: %w", err)
		}
		select {
		case <-now.next:
		case <-ctx.Done():
			return server.Workload{}, p.unregistered(nodeID)
		}
	}
}

func (p *ControlPlane) unregistered(nodeID string) error {
	if !p.isReady() {
		return fmt.Errorf("controlplane: node id %q: the catalogue has not been read yet; try again", nodeID)
	}
	return fmt.Errorf("controlplane: node id %q is not registered: no connect proxy and no connect-native instance in the catalogue has this id; register the proxy (a sidecar does so itself where nobody did) or correct the id; the stream may be tried again", nodeID)
}

// Names implements server.Provider.
func (p *ControlPlane) Names(w server.Workload, t resource.Type) []string {
	m := p.Mesh()
	v, ok := p.view(m, w)
	if !ok {
		return nil
	}
	return generate.Names(m, v, t)
}

// Resource implements server.Provider.
func (p *ControlPlane) Resource(w server.Workload, t resource.Type, name string) (resource.Resource, bool, bool) {
	m := p.Mesh()
	v, ok := p.view(m, w)
	if !ok {
		return nil, false, false
	}
	return generate.Resource(m, v, t, name)
}

// view finds the workload of an open stream. Where its registration is gone, or
// now belongs to another service than the stream was authorised for, the last
// one that was its own stands.
func (p *ControlPlane) view(m *mesh.Snapshot, s server.Workload) (generate.View, bool) {
	v := generate.View{GRPC: s.Dialect == server.GRPC}
	if w, ok := m.Workload(s.NodeID); ok && generate.SPIFFEID(m, w.Service) == s.ID.String() {
		p.rooms.keep(s.NodeID, w)
		v.Workload = w
		return v, true
	}
	v.Workload = p.rooms.get(s.NodeID)
	return v, v.Workload != nil && generate.SPIFFEID(m, v.Workload.Service) == s.ID.String()
}

// retained remembers the registrations of workloads with open streams.
type retained struct {
	mu   sync.Mutex // guards what follows
	last map[string]*mesh.Workload
}

func newRetained() *retained {
	return &retained{last: map[string]*mesh.Workload{}}
}

// keep notes what a node id last stood for.
func (r *retained) keep(nodeID string, w *mesh.Workload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[nodeID] = w
}

func (r *retained) get(nodeID string) *mesh.Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[nodeID]
}

// connected forgets a workload whose last stream has ended.
func (r *retained) connected(w server.Workload, came bool) {
	if came {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, w.NodeID)
}
