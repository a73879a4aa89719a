package server_test

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/internal/refusal"
	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server over a map of resources, in a bubble of virtual time.
type world struct {
	*testing.T
	mesh *xdstest.Mesh
	srv  *server.Server
	net  *xdstest.Net
	end  []func()
	made atomic.Int64 // resources serialised
}

func run(t *testing.T, limits server.Limits, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, mesh: xdstest.NewMesh()}
		w.srv = server.New(server.Config{
			Authoriser: w.mesh, Provider: w.mesh, Origin: "cp-1", Limits: limits, Peer: xdstest.Peer,
			Encode: func(r resource.Resource) (*anypb.Any, error) { w.made.Add(1); return xdstest.Encode(r) },
		})
		w.net = xdstest.Listen(w.srv.Register)
		defer func() {
			for _, f := range w.end {
				f()
			}
			w.srv.Close()
			w.net.Close()
		}()
		f(w)
	})
}

func (w *world) change(c server.Change) {
	w.Helper()
	w.srv.Changed(c)
	synctest.Wait()
}

// raw is a client that says exactly what a test tells it to.
type raw struct {
	*world
	node  string
	g     discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	got   chan *discovery.DeltaDiscoveryResponse
	err   chan error
	close func()
	begun bool
}

func (w *world) delta(node string) *raw { return w.deltaAs(node, node) }

func (w *world) deltaAs(peer, node string) *raw {
	w.Helper()
	conn, err := w.net.Dial(peer)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	g, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		w.Fatal(err)
	}
	r := &raw{world: w, node: node, g: g, got: make(chan *discovery.DeltaDiscoveryResponse, 100), err: make(chan error, 1)}
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
	r.close = func() { cancel(); conn.Close(); <-done; synctest.Wait() }
	w.end = append(w.end, r.close)
	return r
}

func (r *raw) send(q *discovery.DeltaDiscoveryRequest) {
	r.Helper()
	if !r.begun {
		r.begun = true
		q.Node = &core.Node{Id: r.node, UserAgentName: "parrel"}
	}
	if err := r.g.Send(q); err != nil {
		r.Fatal(err)
	}
	synctest.Wait()
}

func (r *raw) subscribe(t resource.Type, names ...string) {
	r.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(t), ResourceNamesSubscribe: names})
}

func (r *raw) unsubscribe(t resource.Type, names ...string) {
	r.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(t), ResourceNamesUnsubscribe: names})
}

func (r *raw) ack(m *discovery.DeltaDiscoveryResponse) {
	r.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce})
}

func (r *raw) nack(m *discovery.DeltaDiscoveryResponse, bad ...refusal.Refused) {
	r.Helper()
	st := refusal.Status(bad)
	if len(bad) == 0 {
		st.Message = "something is wrong"
	}
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce, ErrorDetail: st})
}

// next is the next response, which must be there already.
func (r *raw) next() *discovery.DeltaDiscoveryResponse {
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

func (r *raw) silent() {
	r.Helper()
	synctest.Wait()
	select {
	case m := <-r.got:
		r.Fatalf("unexpected response: %s", show(m))
	case err := <-r.err:
		r.Fatalf("stream ended: %v", err)
	default:
	}
}

// ended is the error that the stream ended with.
func (r *raw) ended() error {
	r.Helper()
	synctest.Wait()
	select {
	case err := <-r.err:
		return err
	default:
		r.Fatal("the stream is still open")
	}
	return nil
}

func show(m *discovery.DeltaDiscoveryResponse) string {
	var parts []string
	for _, x := range m.Resources {
		parts = append(parts, "+"+x.Name)
	}
	rm := slices.Clone(m.RemovedResources)
	sort.Strings(rm)
	for _, n := range rm {
		parts = append(parts, "-"+n)
	}
	return strings.TrimSpace(resource.Type(m.TypeUrl).Short() + " " + strings.Join(parts, " "))
}

// expect takes responses, acknowledging each, and compares what they said.
func (r *raw) expect(want ...string) {
	r.Helper()
	for i, x := range want {
		m := r.next()
		if got := show(m); got != x {
			r.Fatalf("response %d: got %q, want %q", i, got, x)
		}
		r.ack(m)
	}
	r.silent()
}

func cluster(name string) *resource.Cluster { return &resource.Cluster{Name: name} }

func clusterV(name string, v int) *resource.Cluster {
	return &resource.Cluster{Name: name, ConnectTimeout: time.Duration(v) * time.Second}
}

func listener(name string, port uint16) *resource.Listener {
	return &resource.Listener{Name: name, Address: resource.Address{Host: "127.0.0.1", Port: port}}
}

// make one resource of each type, in version v
func one(t resource.Type, name string, v int) resource.Resource {
	switch t {
	case resource.TypeCluster:
		return clusterV(name, v)
	case resource.TypeEndpoints:
		return xdstest.Endpoints(name, 2, uint16(v))
	case resource.TypeListener:
		return listener(name, uint16(v))
	case resource.TypeRoute:
		return &resource.RouteConfig{Name: name, VirtualHosts: []resource.VirtualHost{{Name: fmt.Sprint(v)}}}
	}
	return &resource.Secret{Name: name, TrustPEM: []resource.TrustBundle{{TrustDomain: fmt.Sprint(v)}}}
}

func TestDeltaEachType(t *testing.T) {
	for _, typ := range resource.Types() {
		for _, private := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s private=%v", typ.Short(), private), func(t *testing.T) {
				run(t, server.Limits{}, func(w *world) {
					set := func(rs ...resource.Resource) server.Change {
						if private {
							return w.mesh.SetPrivate("web", rs...)
						}
						c := w.mesh.Set(rs...)
						c.Workloads = []string{"web"}
						return c
					}
					unset := func(n string) server.Change {
						if private {
							return w.mesh.UnsetPrivate("web", typ, n)
						}
						c := w.mesh.Unset(typ, n)
						c.Workloads = []string{"web"}
						return c
					}
					name := typ.Short()
					set(one(typ, "a", 1))
					wild, named := w.delta("web"), w.delta("web")
					wild.subscribe(typ, "*")
					wild.expect(name + " +a")
					named.subscribe(typ, "a", "b")
					named.expect(name+" +a", name+" -b") // b does not exist, and the client is told

					w.change(set(one(typ, "a", 2)))
					wild.expect(name + " +a")
					named.expect(name + " +a")
					w.change(set(one(typ, "a", 2))) // the same content
					wild.silent()
					named.silent()

					w.change(set(one(typ, "b", 1), one(typ, "c", 1)))
					wild.expect(name + " +b +c")
					named.expect(name + " +b")

					named.unsubscribe(typ, "b")
					named.silent()
					w.change(set(one(typ, "b", 2)))
					wild.expect(name + " +b")
					named.silent()

					w.change(unset("a"))
					wild.expect(name + " -a")
					named.expect(name + " -a")

					// Under the wildcard an unsubscribed name is answered for.
					wild.subscribe(typ, "b", "x")
					wild.expect(name+" +b", name+" -x")
					wild.unsubscribe(typ, "b", "x")
					wild.expect(name+" +b", name+" -x")
					wild.unsubscribe(typ, "*")
					w.change(set(one(typ, "b", 3)))
					wild.silent()
				})
			})
		}
	}
}

func TestLegacyWildcard(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("a"), xdstest.Endpoints("a", 1, 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +a")
		c.subscribe(resource.TypeEndpoints) // names nothing, and means nothing
		c.silent()
		c.subscribe(resource.TypeListener) // an empty set is an answer too
		c.expect("LDS")
	})
}

func TestResumeSendsNothingUnchanged(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("a"), cluster("b"), cluster("gone"), xdstest.Endpoints("a", 2, 1), xdstest.Endpoints("b", 2, 1))
		c := w.delta("web")
		have := map[resource.Type]map[string]string{}
		for _, typ := range []resource.Type{resource.TypeCluster, resource.TypeEndpoints} {
			if typ == resource.TypeCluster {
				c.subscribe(typ)
			} else {
				c.subscribe(typ, "a", "b")
			}
			m := c.next()
			have[typ] = map[string]string{}
			for _, x := range m.Resources {
				have[typ][x.Name] = x.Version
			}
			c.ack(m)
		}
		c.close()

		resume := func() *raw {
			c := w.delta("web")
			c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(resource.TypeCluster), InitialResourceVersions: have[resource.TypeCluster]})
			c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(resource.TypeEndpoints), ResourceNamesSubscribe: []string{"a", "b"}, InitialResourceVersions: have[resource.TypeEndpoints]})
			return c
		}
		c = resume()
		c.expect("CDS")
		if st := w.srv.Status(); len(st) != 1 || st[0].Types[0].Wanted != st[0].Types[0].Acked || st[0].Types[1].Age != 0 || st[0].Types[1].Resources != 2 {
			t.Errorf("after a resume: %+v", st)
		}
		c.close()

		// What changed, came and went in between is told, and only that.
		w.change(w.mesh.Set(xdstest.Endpoints("b", 2, 2), cluster("new")))
		w.change(w.mesh.Unset(resource.TypeCluster, "gone"))
		c = resume()
		c.expect("CDS +new", "EDS +b", "CDS -gone")
	})
}

func TestMakeBeforeBreak(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("old"), xdstest.Endpoints("old", 1, 1))
		w.mesh.SetPrivate("web", listener("out", 1), one(resource.TypeRoute, "r", 1), one(resource.TypeRoute, "r-old", 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +old")
		c.subscribe(resource.TypeListener)
		c.expect("LDS +out")
		c.subscribe(resource.TypeEndpoints, "old", "new")
		c.expect("EDS +old", "EDS -new")
		c.subscribe(resource.TypeRoute, "r", "r-old")
		c.expect("RDS +r +r-old")

		// One change replaces everything.
		w.mesh.Unset(resource.TypeCluster, "old")
		ch := w.mesh.Unset(resource.TypeEndpoints, "old")
		ch.Shared = append(ch.Shared, server.Key{Type: resource.TypeCluster, Name: "old"})
		ch.Shared = append(ch.Shared, w.mesh.Set(cluster("new"), xdstest.Endpoints("new", 1, 1)).Shared...)
		w.mesh.UnsetPrivate("web", resource.TypeRoute, "r-old")
		ch.Workloads = w.mesh.SetPrivate("web", listener("out", 2), one(resource.TypeRoute, "r", 2)).Workloads
		w.change(ch)

		var unanswered []*discovery.DeltaDiscoveryResponse
		for _, want := range []string{"CDS +new", "EDS +new", "LDS +out", "RDS +r"} {
			m := c.next()
			if got := show(m); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			unanswered = append(unanswered, m)
		}
		c.silent() // nothing is taken away while something new is not yet in place
		for _, m := range unanswered {
			c.ack(m)
		}
		c.expect("RDS -r-old", "CDS -old", "EDS -old")
	})
}

func TestLaterTypesWaitForAnEarlierOneInFlight(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(clusterV("a", 1), xdstest.Endpoints("a", 1, 1), one(resource.TypeSecret, "ROOTCA", 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +a")
		c.subscribe(resource.TypeEndpoints, "a")
		c.expect("EDS +a")
		c.subscribe(resource.TypeSecret, "ROOTCA")
		c.expect("SDS +ROOTCA")

		w.change(w.mesh.Set(clusterV("a", 2)))
		first := c.next()
		w.change(w.mesh.Set(clusterV("a", 3), xdstest.Endpoints("a", 1, 2), one(resource.TypeSecret, "ROOTCA", 2)))
		c.expect("SDS +ROOTCA") // a secret waits for nothing
		c.ack(first)
		c.expect("CDS +a", "EDS +a")
	})
}

func TestRefusedVersionIsNotSentAgain(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(clusterV("a", 1), clusterV("b", 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +a +b")

		w.change(w.mesh.Set(clusterV("a", 2), clusterV("b", 2)))
		m := c.next()
		bad := refusal.Refused{Type: resource.TypeCluster, Name: "a", Version: m.Resources[0].Version, Field: "connect_timeout", Reason: "too long"}
		c.nack(m, bad)
		c.silent()
		w.change(server.Change{All: true})
		c.silent()
		time.Sleep(3 * time.Second)
		ts := w.srv.Status()[0].Types[0]
		if ts.Wanted == ts.Acked || ts.Age < 3*time.Second || ts.NACKs != 1 {
			t.Errorf("a refused version counts as in sync: %+v", ts)
		}
		want := server.Refused{Name: "a", Version: bad.Version, Reason: "connect_timeout: too long"}
		if len(ts.Refused) != 1 || ts.Refused[0] != want || len(ts.LastNACK.Resources) != 1 || !strings.Contains(ts.LastNACK.Text, `CDS "a": connect_timeout: too long`) {
			t.Errorf("refusal is recorded as %+v, %+v", ts.Refused, ts.LastNACK)
		}

		// Back to the old one, and once more to the refused: once, never twice.
		w.change(w.mesh.Set(clusterV("a", 1)))
		c.expect("CDS +a")
		w.change(w.mesh.Set(clusterV("a", 2)))
		m = c.next()
		c.nack(m, bad)
		w.change(w.mesh.Set(clusterV("a", 1)))
		c.expect("CDS +a")
		w.change(w.mesh.Set(clusterV("a", 2)))
		c.silent()

		// New content is sent again, and an ACK ends the matter.
		w.change(w.mesh.Set(clusterV("a", 3)))
		c.expect("CDS +a")
		ts = w.srv.Status()[0].Types[0]
		if ts.Wanted != ts.Acked || len(ts.Refused) != 0 || ts.Age != 0 || ts.LastNACK == nil {
			t.Errorf("after the repair: %+v", ts)
		}
	})
}

func TestNackWithoutDetails(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(clusterV("a", 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.nack(c.next())
		c.silent()
		w.change(server.Change{All: true})
		c.silent()
		ts := w.srv.Status()[0].Types[0]
		if len(ts.Refused) != 1 || ts.Refused[0].Name != "a" || ts.LastNACK.Text != "something is wrong" {
			t.Errorf("the only resource of a response was refused, but status says %+v", ts)
		}
	})
}

func TestNonceMismatchIsNoAnswer(t *testing.T) {
	run(t, server.Limits{AckTimeout: 5 * time.Second}, func(w *world) {
		w.mesh.Set(clusterV("a", 1))
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		m := c.next()
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: "999"})
		if ts := w.srv.Status()[0].Types[0]; ts.Acked == ts.Wanted {
			t.Error("a wrong nonce counted as an ACK")
		}
		c.ack(m)
		if ts := w.srv.Status()[0].Types[0]; ts.Acked != ts.Wanted {
			t.Error("the right nonce did not count as an ACK")
		}
		c.ack(m) // twice is harmless
		time.Sleep(6 * time.Second)
		c.silent()
	})
}

func TestDuplicateNamesAreOne(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(xdstest.Endpoints("a", 1, 1))
		c := w.delta("web")
		c.subscribe(resource.TypeEndpoints, "a", "a", "a")
		c.expect("EDS +a")
		c.subscribe(resource.TypeEndpoints, "a") // dropped and wanted again: it has to be answered
		c.expect("EDS +a")
		c.unsubscribe(resource.TypeEndpoints, "a", "a", "never")
		c.silent()
		if m := w.srv.Metrics(); m.Shared != 0 {
			t.Errorf("%d shared resources are kept that nobody holds", m.Shared)
		}
	})
}

func TestOnDemand(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("used"), cluster("rare"))
		w.mesh.Lazy(resource.TypeCluster, "rare")
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +used")
		c.subscribe(resource.TypeCluster, "rare")
		c.expect("CDS +rare")
		w.change(w.mesh.Set(clusterV("rare", 7)))
		c.expect("CDS +rare")
		c.unsubscribe(resource.TypeCluster, "rare")
		c.expect("CDS -rare")
	})
}

func TestLargeResponsesAreSplit(t *testing.T) {
	run(t, server.Limits{ResponseBytes: 2000}, func(w *world) {
		for i := range 40 {
			w.mesh.Set(cluster(fmt.Sprintf("c%02d", i)))
		}
		c := w.delta("web")
		c.subscribe(resource.TypeCluster)
		total, responses := 0, 0
		for total < 40 {
			m := c.next()
			total += len(m.Resources)
			responses++
			c.ack(m)
		}
		c.silent()
		if responses < 3 || total != 40 {
			t.Errorf("%d resources in %d responses", total, responses)
		}
	})
}

// TestOneListenerOfMany: one value that is the listener of many workloads is
// serialised once, and again after it changed.
func TestOneListenerOfMany(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		const workloads = 20
		shared := &resource.Listener{Name: "outbound", Metadata: resource.Metadata{"v": "1"}}
		var all []*raw
		for i := range workloads {
			node := fmt.Sprint("node-", i)
			w.mesh.SetPrivate(node, shared)
			all = append(all, w.delta(node))
		}
		w.made.Store(0)
		for _, c := range all {
			c.subscribe(resource.TypeListener, "*")
			if m := c.next(); show(m) != "LDS +outbound" {
				t.Fatalf("got %s", show(m))
			} else {
				c.ack(m)
			}
		}
		if n := w.made.Load(); n != 1 {
			t.Errorf("serialised %d times for %d workloads", n, workloads)
		}
		next := &resource.Listener{Name: "outbound", Metadata: resource.Metadata{"v": "2"}}
		var ch server.Change
		for i := range workloads {
			node := fmt.Sprint("node-", i)
			w.mesh.SetPrivate(node, next)
			ch.Workloads = append(ch.Workloads, node)
		}
		w.change(ch)
		version := ""
		for _, c := range all {
			m := c.next()
			if show(m) != "LDS +outbound" || version != "" && m.Resources[0].Version != version {
				t.Fatalf("got %s %s", show(m), m.Resources[0].Version)
			}
			version = m.Resources[0].Version
			c.ack(m)
		}
		if n := w.made.Load(); n > workloads/2 { // a few streams may make it at the same time
			t.Errorf("serialised %d times", n)
		}
	})
}
