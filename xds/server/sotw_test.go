package server_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// whole is a raw client of state of the world.
type whole struct {
	*world
	node  string
	agent string
	g     discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	got   chan *discovery.DiscoveryResponse
	err   chan error
	begun bool
	names map[resource.Type][]string
	last  map[resource.Type]*discovery.DiscoveryResponse // acknowledged
}

func (w *world) sotw(node, agent string) *whole {
	w.Helper()
	conn, err := w.net.Dial(node)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	g, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		w.Fatal(err)
	}
	r := &whole{
		world: w, node: node, agent: agent, g: g, got: make(chan *discovery.DiscoveryResponse, 100), err: make(chan error, 1),
		names: map[resource.Type][]string{}, last: map[resource.Type]*discovery.DiscoveryResponse{},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := g.Recv()
			if err != nil {
				r.err <- err
				return
			}
			r.got <- m
		}
	}()
	w.end = append(w.end, func() { cancel(); conn.Close(); <-done })
	return r
}

func (r *whole) send(q *discovery.DiscoveryRequest) {
	r.Helper()
	if !r.begun {
		r.begun = true
		q.Node = &core.Node{Id: r.node, UserAgentName: r.agent}
	}
	if err := r.g.Send(q); err != nil {
		r.Fatal(err)
	}
	synctest.Wait()
}

func (r *whole) ask(t resource.Type, names ...string) {
	r.Helper()
	r.names[t] = names
	r.send(&discovery.DiscoveryRequest{TypeUrl: string(t), ResourceNames: names, VersionInfo: r.last[t].GetVersionInfo(), ResponseNonce: r.last[t].GetNonce()})
}

func (r *whole) ack(m *discovery.DiscoveryResponse) {
	r.Helper()
	t := resource.Type(m.TypeUrl)
	r.last[t] = m
	r.ask(t, r.names[t]...)
}

func (r *whole) next() *discovery.DiscoveryResponse {
	r.Helper()
	synctest.Wait()
	select {
	case m := <-r.got:
		return m
	case err := <-r.err:
		r.Fatalf("stream ended: %v", err)
	default:
		r.Fatal("no response")
	}
	return nil
}

func (r *whole) silent() {
	r.Helper()
	synctest.Wait()
	select {
	case m := <-r.got:
		r.Fatalf("unexpected response: %s", contents(r.T, m))
	default:
	}
}

func contents(t *testing.T, m *discovery.DiscoveryResponse) string {
	parts := []string{resource.Type(m.TypeUrl).Short()}
	for _, a := range m.Resources {
		x, _, err := xdstest.Decode(a)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, x.ResourceName())
	}
	slices.Sort(parts[1:])
	return strings.Join(parts, " ")
}

func (r *whole) expect(want ...string) {
	r.Helper()
	for i, x := range want {
		m := r.next()
		if got := contents(r.T, m); got != x {
			r.Fatalf("response %d: got %q, want %q", i, got, x)
		}
		r.ack(m)
	}
	r.silent()
}

func TestSotWListenersAndClusters(t *testing.T) {
	for _, typ := range []resource.Type{resource.TypeListener, resource.TypeCluster} {
		t.Run(typ.Short(), func(t *testing.T) {
			run(t, server.Limits{}, func(w *world) {
				name := typ.Short()
				set := func(rs ...resource.Resource) {
					c := w.mesh.Set(rs...)
					c.Workloads = []string{"web"}
					w.change(c)
				}
				c := w.sotw("web", "envoy")
				c.ask(typ) // legacy wildcard, nothing there: answered all the same
				c.expect(name)
				set(one(typ, "a", 1), one(typ, "b", 1))
				c.expect(name + " a b")
				set(one(typ, "a", 2)) // the whole set comes again
				c.expect(name + " a b")
				ch := w.mesh.Unset(typ, "a")
				ch.Workloads = []string{"web"}
				w.change(ch)
				c.expect(name + " b") // removed by absence

				// Named: what does not exist is answered by its absence.
				g := w.sotw("web", "gRPC Go")
				g.ask(typ, "x")
				g.expect(name)
				g.ask(typ, "x", "b")
				g.expect(name + " b")
				set(one(typ, "x", 1))
				g.expect(name + " b x")
				g.ask(typ) // all unsubscribed: no wildcard by that
				set(one(typ, "x", 2))
				g.silent()
			})
		})
	}
}

// go-control-plane's snapshot cache in ADS mode never answers a request that
// names less than the snapshot holds; grpc-go sends only such ones.
func TestSotWPartialNames(t *testing.T) {
	for _, typ := range []resource.Type{resource.TypeRoute, resource.TypeEndpoints, resource.TypeSecret} {
		t.Run(typ.Short(), func(t *testing.T) {
			run(t, server.Limits{}, func(w *world) {
				name := typ.Short()
				w.mesh.Set(one(typ, "a", 1), one(typ, "b", 1), one(typ, "c", 1))
				c := w.sotw("web", "gRPC Go")
				c.ask(typ, "a")
				c.expect(name + " a")
				c.ask(typ, "a", "b")
				c.expect(name + " b") // only what is new to it
				c.ask(typ, "a", "b", "later")
				c.silent() // does not exist: no answer until it does
				w.change(w.mesh.Set(one(typ, "later", 1), one(typ, "c", 2)))
				c.expect(name + " later")
				w.change(w.mesh.Set(one(typ, "a", 2)))
				c.expect(name + " a")
				w.change(w.mesh.Unset(typ, "b"))
				c.silent()
				w.change(w.mesh.Set(one(typ, "b", 1)))
				c.expect(name + " b")
				c.ask(typ, "b")
				w.change(w.mesh.Set(one(typ, "a", 3)))
				c.silent()
				c.ask(typ, "a", "b") // wanted again: it has to come again
				c.expect(name + " a")
			})
		})
	}
}

func TestSotWRefusalIsNoLoop(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(clusterV("a", 1), clusterV("b", 1))
		c := w.sotw("web", "envoy")
		c.ask(resource.TypeCluster)
		c.expect("CDS a b")
		good := c.last[resource.TypeCluster]

		nack := func(m *discovery.DiscoveryResponse, named ...refusal.Refused) {
			c.send(&discovery.DiscoveryRequest{TypeUrl: m.TypeUrl, VersionInfo: good.VersionInfo, ResponseNonce: m.Nonce, ErrorDetail: refusal.Status(named)})
		}
		w.change(w.mesh.Set(clusterV("a", 2), clusterV("b", 2)))
		nack(c.next())
		c.silent()
		w.change(server.Change{All: true})
		c.silent()
		w.change(w.mesh.Set(clusterV("a", 3), clusterV("b", 3)))

		// Told which one it is, the server sends the one the client kept with the rest.
		nack(c.next(), refusal.Refused{Type: resource.TypeCluster, Name: "a", Reason: "bad"})
		c.silent()
		w.change(w.mesh.Set(clusterV("b", 4)))
		m := c.next()
		var timeouts []int
		for _, x := range m.Resources {
			r, _, _ := xdstest.Decode(x)
			timeouts = append(timeouts, int(r.(*resource.Cluster).ConnectTimeout.Seconds()))
		}
		if !slices.Equal(timeouts, []int{2, 4}) {
			t.Errorf("a was refused in version 3 and b is 4, but what came is %v", timeouts)
		}
		c.ack(m)
		w.change(w.mesh.Set(clusterV("a", 5)))
		c.expect("CDS a b")
	})
}

func TestSotWStaleNonceIsIgnored(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(xdstest.Endpoints("a", 1, 1), xdstest.Endpoints("b", 1, 1))
		c := w.sotw("web", "envoy")
		c.ask(resource.TypeEndpoints, "a")
		m := c.next()
		c.send(&discovery.DiscoveryRequest{TypeUrl: m.TypeUrl, ResourceNames: []string{"b"}, ResponseNonce: "777"})
		c.silent()
		c.names[resource.TypeEndpoints] = []string{"a", "b"}
		c.ack(m)
		c.expect("EDS b")
	})
}

func TestSotWMakeBeforeBreak(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("old"), xdstest.Endpoints("old", 1, 1))
		w.mesh.SetPrivate("web", listener("out", 1), one(resource.TypeRoute, "r", 1))
		c := w.sotw("web", "envoy")
		c.ask(resource.TypeCluster)
		c.expect("CDS old")
		c.ask(resource.TypeEndpoints, "old", "new")
		c.expect("EDS old")
		c.ask(resource.TypeListener)
		c.expect("LDS out")
		c.ask(resource.TypeRoute, "r")
		c.expect("RDS r")

		w.mesh.Unset(resource.TypeCluster, "old")
		ch := w.mesh.Set(cluster("new"), xdstest.Endpoints("new", 1, 1))
		ch.Shared = append(ch.Shared, server.Key{Type: resource.TypeCluster, Name: "old"})
		ch.Workloads = w.mesh.SetPrivate("web", listener("out", 2), one(resource.TypeRoute, "r", 2)).Workloads
		w.change(ch)
		// The old cluster stays until nothing can refer to it.
		c.expect("CDS new old", "EDS new", "LDS out", "RDS r", "CDS new")
	})
}
