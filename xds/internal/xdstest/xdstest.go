// Package xdstest is what the tests of xds/server and xds/client share: a codec
// without protos, a mesh that is a map, and an in-memory network on which a
// client says who it is.
//
// Owns: those three. Does not know: either plane. Used by tests only.
package xdstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// Encode puts a resource's JSON where its proto would be.
func Encode(r resource.Resource) (*anypb.Any, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: string(r.ResourceType()), Value: b}, nil
}

// Bad as a cluster's EDSName makes Decode refuse the cluster.
const Bad = "!bad"

// Decode is Encode's inverse. A cluster with EDSName Bad is refused with field
// eds_cluster_config and a reason; one with EDSName "!unreadable" without its name.
func Decode(a *anypb.Any) (resource.Resource, []wire.Warning, error) {
	var r resource.Resource
	switch resource.Type(a.GetTypeUrl()) {
	case resource.TypeCluster:
		r = &resource.Cluster{}
	case resource.TypeEndpoints:
		r = &resource.Endpoints{}
	case resource.TypeListener:
		r = &resource.Listener{}
	case resource.TypeRoute:
		r = &resource.RouteConfig{}
	case resource.TypeSecret:
		r = &resource.Secret{}
	default:
		return nil, nil, &wire.Error{Type: resource.Type(a.GetTypeUrl()), Reason: "unknown type"}
	}
	if err := json.Unmarshal(a.GetValue(), r); err != nil {
		return nil, nil, &wire.Error{Type: r.ResourceType(), Reason: err.Error()}
	}
	if c, ok := r.(*resource.Cluster); ok {
		switch c.EDSName {
		case Bad:
			return nil, nil, &wire.Error{Type: r.ResourceType(), Name: c.Name, Field: "eds_cluster_config.service_name", Reason: "it is bad"}
		case "!unreadable":
			return nil, nil, &wire.Error{Type: r.ResourceType(), Reason: "it cannot be read"}
		}
	}
	return r, nil, nil
}

// Mesh is a Provider and an Authoriser made of maps. Safe for concurrent use.
type Mesh struct {
	mu      sync.Mutex
	shared  map[server.Key]resource.Resource
	private map[string]map[server.Key]resource.Resource // by node id
	hidden  map[string]map[server.Key]bool              // shared, but not for this node
	lazy    map[server.Key]bool                         // exists, but in no wildcard
	made    map[server.Key]int                          // calls of Resource
	named   int                                         // calls of Names
}

// NewMesh makes an empty mesh.
func NewMesh() *Mesh {
	return &Mesh{
		shared: map[server.Key]resource.Resource{}, private: map[string]map[server.Key]resource.Resource{},
		hidden: map[string]map[server.Key]bool{}, lazy: map[server.Key]bool{}, made: map[server.Key]int{},
	}
}

// KeyOf is the key of a resource.
func KeyOf(r resource.Resource) server.Key {
	return server.Key{Type: r.ResourceType(), Name: r.ResourceName()}
}

// Set stores shared resources and says what changed.
func (m *Mesh) Set(rs ...resource.Resource) server.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	var c server.Change
	for _, r := range rs {
		k := KeyOf(r)
		m.shared[k] = r
		c.Shared = append(c.Shared, k)
	}
	return c
}

// Lazy takes names out of wildcards: they are served when asked for.
func (m *Mesh) Lazy(t resource.Type, names ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		m.lazy[server.Key{Type: t, Name: n}] = true
	}
}

// Unset removes shared resources.
func (m *Mesh) Unset(t resource.Type, names ...string) server.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	var c server.Change
	for _, n := range names {
		k := server.Key{Type: t, Name: n}
		delete(m.shared, k)
		c.Shared = append(c.Shared, k)
	}
	return c
}

// SetPrivate stores resources of one node.
func (m *Mesh) SetPrivate(node string, rs ...resource.Resource) server.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.private[node] == nil {
		m.private[node] = map[server.Key]resource.Resource{}
	}
	for _, r := range rs {
		m.private[node][KeyOf(r)] = r
	}
	return server.Change{Workloads: []string{node}}
}

// UnsetPrivate removes resources of one node.
func (m *Mesh) UnsetPrivate(node string, t resource.Type, names ...string) server.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		delete(m.private[node], server.Key{Type: t, Name: n})
	}
	return server.Change{Workloads: []string{node}}
}

// Hide keeps a shared resource from a node, or shows it again.
func (m *Mesh) Hide(node string, t resource.Type, name string, hide bool) server.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hidden[node] == nil {
		m.hidden[node] = map[server.Key]bool{}
	}
	m.hidden[node][server.Key{Type: t, Name: name}] = hide
	return server.Change{Workloads: []string{node}}
}

// Names implements server.Provider.
func (m *Mesh) Names(w server.Workload, t resource.Type) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named++
	var out []string
	for k := range m.shared {
		if k.Type == t && !m.hidden[w.NodeID][k] && !m.lazy[k] {
			out = append(out, k.Name)
		}
	}
	for k := range m.private[w.NodeID] {
		if k.Type == t {
			out = append(out, k.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Resource implements server.Provider.
func (m *Mesh) Resource(w server.Workload, t resource.Type, name string) (resource.Resource, bool, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := server.Key{Type: t, Name: name}
	m.made[k]++
	if r, ok := m.private[w.NodeID][k]; ok {
		return r, true, true
	}
	r, ok := m.shared[k]
	return r, false, ok && !m.hidden[w.NodeID][k]
}

// Made counts the calls of Resource for a key.
func (m *Mesh) Made(t resource.Type, name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.made[server.Key{Type: t, Name: name}]
}

// Authorise implements server.Authoriser: a node is the last segment of its
// peer's id.
func (m *Mesh) Authorise(_ context.Context, peer spiffeid.ID, node string, _ server.Dialect) (server.Workload, error) {
	if p := peer.Path(); p[strings.LastIndexByte(p, '/')+1:] != node {
		return server.Workload{}, fmt.Errorf("%q is no proxy of that service", node)
	}
	return server.Workload{}, nil
}

const peerKey = "test-peer"

// Peer reads what Dial's client says it is.
func Peer(ctx context.Context) (spiffeid.ID, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md[peerKey]) != 1 {
		return spiffeid.ID{}, errors.New("the client presented no certificate")
	}
	return spiffeid.FromString("spiffe://mesh.test/svc/" + md[peerKey][0])
}

// Net is an in-memory network with one gRPC server on it.
type Net struct {
	lis  *bufconn.Listener
	grpc *grpc.Server
	done chan struct{}

	mu    sync.Mutex
	conns []*stallConn
	down  bool
}

// Listen serves what register puts on the server.
func Listen(register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *Net {
	const window = 1 << 20
	n := &Net{lis: bufconn.Listen(window), grpc: grpc.NewServer(opts...), done: make(chan struct{})}
	register(n.grpc)
	go func() {
		defer close(n.done)
		_ = n.grpc.Serve(n.lis)
	}()
	return n
}

// Close stops the server and waits for its listener.
func (n *Net) Close() {
	n.grpc.Stop()
	<-n.done
}

// Down makes dials fail and cuts what is open; false ends that.
func (n *Net) Down(down bool) {
	n.mu.Lock()
	n.down = down
	conns := n.conns
	if down {
		n.conns = nil
	}
	n.mu.Unlock()
	if down {
		for _, c := range conns {
			_ = c.Close()
		}
	}
}

// Stall makes the open connections half-dead: what clients write is lost, and
// nobody is told. New connections work.
func (n *Net) Stall() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.stalled.Store(true)
	}
}

type stallConn struct {
	net.Conn
	stalled atomic.Bool
}

func (c *stallConn) Write(b []byte) (int, error) {
	if c.stalled.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// Dial connects as a peer: "" for a client without a certificate.
func (n *Net) Dial(peer string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///xds", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			n.mu.Lock()
			down := n.down
			n.mu.Unlock()
			if down {
				return nil, errors.New("network is down")
			}
			c, err := n.lis.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			s := &stallConn{Conn: c}
			n.conns = append(n.conns, s)
			return s, nil
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, s grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			if peer != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, peerKey, peer)
			}
			return s(ctx, d, cc, method, o...)
		}),
	}, opts...)...)
}

// Endpoints makes the endpoints of a service: n addresses, the last one on port.
func Endpoints(service string, n int, port uint16) *resource.Endpoints {
	e := &resource.Endpoints{Cluster: service, Localities: []resource.Locality{{Zone: "z1"}}}
	for i := range n {
		p := uint16(21000)
		if i == n-1 {
			p = port
		}
		e.Localities[0].Endpoints = append(e.Localities[0].Endpoints, resource.Endpoint{
			Address: resource.Address{Host: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), Port: p}, Health: resource.Healthy,
			Metadata: resource.Metadata{resource.MetaWorkload: fmt.Sprintf("%s-%d", service, i)},
		})
	}
	return e
}
