package client_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// Six clients, delta and state of the world, under random changes, refusals,
// cuts and on-demand subscriptions. Whenever it is quiet, each client holds
// exactly what the mesh says, and the server's status says that it does; at
// every moment no listener refers to a cluster that is not there.
func TestRandomChangesConverge(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inside(t, func(w *world) { (&chaos{world: w, rnd: rand.New(rand.NewPCG(seed, 7))}).run() })
			})
		})
	}
}

const services = 8

var nodes = []string{"web", "api", "users", "orders", "cart", "mail"}

type chaos struct {
	*world
	rnd     *rand.Rand
	clients map[string]*client.Client
	keepers map[string]*keeper
	refers  map[string]string // node → cluster that its listener names
	exists  map[string]bool   // clusters
}

func (c *chaos) run() {
	c.clients, c.keepers, c.refers, c.exists = map[string]*client.Client{}, map[string]*keeper{}, map[string]string{}, map[string]bool{}
	for i := range services {
		c.setService(fmt.Sprint("s", i), 1)
	}
	ready := make(chan struct{})
	for i, n := range nodes {
		c.setListener(n, "s0")
		k := newKeeper()
		k.then = func(u client.Update) { c.follow(n, u) }
		c.keepers[n] = k
		cl, _, _ := c.start(client.Config{Node: client.Node{ID: n}, SotW: i%2 == 1, Handler: k, Dial: func(context.Context) (*grpc.ClientConn, error) {
			<-ready
			return c.net.Dial(n)
		}})
		c.clients[n] = cl
	}
	close(ready)
	for step := range 150 {
		c.step(step)
		if c.rnd.IntN(3) == 0 {
			time.Sleep(time.Minute) // longer than any back-off
			synctest.Wait()
			c.compare(step)
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	c.compare(-1)
}

func (c *chaos) setService(name string, v int) server.Change {
	c.exists[name] = true
	return c.mesh.Set(cluster(name, v), xdstest.Endpoints(name, 3, uint16(v)))
}

func (c *chaos) setListener(node, to string) server.Change {
	c.refers[node] = to
	return c.mesh.SetPrivate(node, &resource.Listener{
		Name: "out", Address: resource.Address{Host: "127.0.0.1", Port: 1},
		Chains: []resource.FilterChain{{Name: "tcp", TCP: &resource.TCPProxy{StatPrefix: "out", Cluster: to}}},
	}, one(resource.TypeSecret, "ROOTCA", c.rnd.IntN(1000)))
}

func (c *chaos) step(n int) {
	name := fmt.Sprint("s", c.rnd.IntN(services))
	var ch server.Change
	switch c.rnd.IntN(8) {
	case 0, 1, 2: // endpoints
		if c.exists[name] {
			ch = c.mesh.Set(xdstest.Endpoints(name, 1+c.rnd.IntN(5), uint16(n+2)))
		}
	case 3:
		ch = c.setService(name, 2+n)
		ch.Workloads = nodes
	case 4: // a service goes, and who referred to it refers to another
		ch = c.moveAway(name)
	case 5:
		node := nodes[c.rnd.IntN(len(nodes))]
		if c.exists[name] {
			ch = c.setListener(node, name)
		}
	case 6:
		c.net.Down(true)
		time.Sleep(time.Duration(c.rnd.IntN(3000)) * time.Millisecond)
		c.net.Down(false)
	case 7:
		ch.All = true
	}
	c.srv.Changed(ch)
}

func (c *chaos) moveAway(name string) (ch server.Change) {
	if !c.exists[name] || len(c.living()) < 2 {
		return ch
	}
	delete(c.exists, name)
	to := c.living()[0]
	for _, n := range nodes {
		if c.refers[n] == name {
			c.setListener(n, to)
		}
	}
	c.mesh.Unset(resource.TypeEndpoints, name)
	ch = c.mesh.Unset(resource.TypeCluster, name)
	ch.Shared = append(ch.Shared, server.Key{Type: resource.TypeEndpoints, Name: name})
	ch.Workloads = nodes
	return ch
}

func (c *chaos) living() (out []string) {
	for i := range services {
		if n := fmt.Sprint("s", i); c.exists[n] {
			out = append(out, n)
		}
	}
	return out
}

// follow is a sidecar in small: it wants the endpoints of its clusters, and
// checks that nothing it refers to is missing.
func (c *chaos) follow(node string, u client.Update) {
	k := c.keepers[node]
	if u.Type == resource.TypeCluster {
		c.clients[node].Subscribe(resource.TypeEndpoints, k.names(resource.TypeCluster))
		c.clients[node].Subscribe(resource.TypeSecret, []string{"ROOTCA"})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.have[resource.TypeListener] {
		if to := r.(*resource.Listener).Chains[0].TCP.Cluster; k.have[resource.TypeCluster][to] == nil {
			c.Errorf("%s: after %v the listener refers to cluster %s, which is not there", node, k.log[len(k.log)-1], to)
		}
	}
}

func (c *chaos) compare(step int) {
	c.Helper()
	for _, n := range nodes {
		k := c.keepers[n]
		w := server.Workload{NodeID: n}
		for _, t := range resource.Types() {
			names := c.mesh.Names(w, t)
			if t == resource.TypeEndpoints { // what the handler keeps beyond its subscription is not the client's
				for have := range k.have[t] {
					if !c.exists[have] {
						delete(k.have[t], have)
					}
				}
			}
			if len(names) != len(k.have[t]) {
				c.Fatalf("step %d: %s holds %d of %s: %v, want %v", step, n, len(k.have[t]), t.Short(), k.names(t), names)
			}
			for _, name := range names {
				want, _, _ := c.mesh.Resource(w, t, name)
				if !resource.Equal(k.have[t][name], want) {
					c.Fatalf("step %d: %s holds another version of %s %s", step, n, t.Short(), name)
				}
			}
		}
	}
	st := c.srv.Status()
	if len(st) != len(nodes) {
		c.Fatalf("step %d: %d streams for %d clients", step, len(st), len(nodes))
	}
	for _, s := range st {
		for _, ts := range s.Types {
			if ts.Wanted != ts.Acked || ts.Age != 0 {
				c.Errorf("step %d: %s %s: in sync, but status says %+v", step, s.Workload.NodeID, ts.Type.Short(), ts)
			}
		}
	}
}
