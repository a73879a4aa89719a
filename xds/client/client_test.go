package client_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper is a handler that keeps what it is given, and a log of it.
type keeper struct {
	mu   sync.Mutex
	have map[resource.Type]map[string]resource.Resource
	log  []string
	then func(client.Update)
}

func newKeeper() *keeper {
	k := &keeper{have: map[resource.Type]map[string]resource.Resource{}}
	for _, t := range resource.Types() {
		k.have[t] = map[string]resource.Resource{}
	}
	return k
}

func (k *keeper) Apply(u client.Update) {
	k.mu.Lock()
	line := u.Type.Short()
	if u.FromDisk {
		line += " (disk)"
	}
	var names []string
	for _, r := range u.Upserted {
		if u.Versions[r.ResourceName()] == "" {
			panic("no version for " + r.ResourceName())
		}
		k.have[u.Type][r.ResourceName()] = r
		names = append(names, "+"+r.ResourceName())
	}
	for _, n := range u.Removed {
		delete(k.have[u.Type], n)
		names = append(names, "-"+n)
	}
	slices.Sort(names)
	k.log = append(k.log, line+" "+strings.Join(names, " "))
	then := k.then
	k.mu.Unlock()
	if then != nil {
		then(u)
	}
}

// took returns the log since the last call.
func (k *keeper) took() []string {
	synctest.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.log
	k.log = nil
	return l
}

func (k *keeper) names(t resource.Type) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.have[t]))
}

type world struct {
	*testing.T
	mesh *xdstest.Mesh
	srv  *server.Server
	net  *xdstest.Net
}

// run calls f with a world, in a bubble of virtual time.
func run(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { inside(t, f) })
}

func inside(t *testing.T, f func(w *world)) {
	w := &world{T: t, mesh: xdstest.NewMesh()}
	w.srv = server.New(server.Config{Authoriser: w.mesh, Provider: w.mesh, Origin: "cp-1", Peer: xdstest.Peer, Encode: xdstest.Encode})
	w.net = xdstest.Listen(w.srv.Register, server.ServerOptions()...)
	defer func() {
		w.srv.Close()
		w.net.Close()
	}()
	f(w)
}

// change reports c, and that web's names may be others.
func (w *world) change(c server.Change) {
	w.Helper()
	c.Workloads = append(c.Workloads, "web")
	w.srv.Changed(c)
	synctest.Wait()
}

// start runs a client until stop.
func (w *world) start(cfg client.Config) (c *client.Client, k *keeper, stop func()) {
	w.Helper()
	k, _ = cfg.Handler.(*keeper)
	if k == nil {
		k = newKeeper()
		cfg.Handler = k
	}
	if cfg.Node.ID == "" {
		cfg.Node.ID = "web"
	}
	if cfg.Dial == nil {
		cfg.Dial = func(context.Context) (*grpc.ClientConn, error) { return w.net.Dial("web", client.DialOptions()...) }
	}
	cfg.Decode = xdstest.Decode
	if cfg.Rand == nil {
		cfg.Rand = func() uint64 { return 0 }
	}
	c, err := client.New(cfg)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.Errorf("Run ended with %v", err)
		}
	}
	w.Cleanup(stop)
	synctest.Wait()
	return c, k, stop
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func cluster(name string, v int) *resource.Cluster {
	return &resource.Cluster{Name: name, ConnectTimeout: time.Duration(v) * time.Second}
}

func bad(name string) *resource.Cluster { return &resource.Cluster{Name: name, EDSName: xdstest.Bad} }

func one(t resource.Type, name string, v int) resource.Resource {
	switch t {
	case resource.TypeCluster:
		return cluster(name, v)
	case resource.TypeEndpoints:
		return xdstest.Endpoints(name, 2, uint16(v))
	case resource.TypeListener:
		return &resource.Listener{
			Name: name, Address: resource.Address{Host: "127.0.0.1", Port: uint16(v)},
			Chains: []resource.FilterChain{{Name: "tcp", TCP: &resource.TCPProxy{StatPrefix: name, Cluster: "a"}}},
		}
	case resource.TypeRoute:
		return &resource.RouteConfig{Name: name, VirtualHosts: []resource.VirtualHost{{Name: fmt.Sprint(v), Domains: []string{"*"}}}}
	}
	return &resource.Secret{Name: name, TrustPEM: []resource.TrustBundle{{TrustDomain: "mesh.test", RootsPEM: []byte(fmt.Sprint("root ", v))}}}
}

func wildcard(t resource.Type) bool { return t == resource.TypeListener || t == resource.TypeCluster }

func both(t *testing.T, f func(t *testing.T, sotw bool)) {
	t.Run("delta", func(t *testing.T) { f(t, false) })
	t.Run("sotw", func(t *testing.T) { f(t, true) })
}

func TestEachType(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		for _, typ := range resource.Types() {
			t.Run(typ.Short(), func(t *testing.T) {
				run(t, func(w *world) {
					set := func(rs ...resource.Resource) {
						c := w.mesh.Set(rs...)
						c.Workloads = []string{"web"}
						w.change(c)
					}
					short := typ.Short()
					set(one(typ, "a", 1))
					c, k, _ := w.start(client.Config{SotW: sotw})
					c.Subscribe(typ, []string{"a", "b"})
					first := []string{short + " +a"}
					if !wildcard(typ) && !sotw { // only delta can say that b is not there
						first = []string{short + " +a -b"}
					}
					got := k.took()
					if len(got) == 2 { // asked for and absent may come after what exists
						got = []string{got[0] + strings.TrimPrefix(got[1], short)}
					}
					expect(t, got, first...)

					set(one(typ, "a", 2))
					expect(t, k.took(), short+" +a")
					set(one(typ, "a", 2))
					expect(t, k.took())
					set(one(typ, "b", 1), one(typ, "c", 1))
					if wildcard(typ) {
						expect(t, k.took(), short+" +b +c")
					} else {
						expect(t, k.took(), short+" +b")
					}
					ch := w.mesh.Unset(typ, "a")
					ch.Workloads = []string{"web"}
					w.change(ch)
					if sotw && !wildcard(typ) { // ends when nothing refers to it
						expect(t, k.took())
						c.Subscribe(typ, []string{"b"})
						expect(t, k.took())
					} else {
						expect(t, k.took(), short+" -a")
					}

					c.Subscribe(typ, nil) // nothing for the wildcard types
					set(one(typ, "b", 9))
					if wildcard(typ) {
						expect(t, k.took(), short+" +b")
					} else {
						expect(t, k.took())
						c.Subscribe(typ, []string{"b"})
						expect(t, k.took(), short+" +b")
					}
					st := c.Status()
					if !st.Connected || st.Server != "cp-1" || st.Attempts != 0 {
						t.Errorf("status: %+v", st)
					}
					for _, ss := range w.srv.Status() {
						for _, ts := range ss.Types {
							if ts.Wanted != ts.Acked || ts.Age != 0 || ts.NACKs != 0 {
								t.Errorf("server's view of %s: %+v", ts.Type.Short(), ts)
							}
						}
					}
				})
			})
		}
	})
}

func TestBadAmongGood(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1), cluster("b", 1), cluster("c", 1))
			c, k, _ := w.start(client.Config{SotW: sotw, Check: func(r resource.Resource) error {
				if r.(*resource.Cluster).ConnectTimeout == 13*time.Second {
					return &resource.FieldError{Field: "connect_timeout", Reason: "13 is unlucky"}
				}
				return nil
			}})
			expect(t, k.took(), "CDS +a +b +c")

			// b is bad, c beyond this sidecar, a is applied; the old ones stay.
			w.change(w.mesh.Set(cluster("a", 2), bad("b"), cluster("c", 13), bad("new")))
			expect(t, k.took(), "CDS +a")
			if got := k.names(resource.TypeCluster); !slices.Equal(got, []string{"a", "b", "c"}) {
				t.Fatalf("held after the refusal: %v", got)
			}
			ts := w.srv.Status()[0].Types[0]
			var refused []string
			for _, r := range ts.LastNACK.Resources {
				refused = append(refused, r.Name+": "+r.Reason)
			}
			want := []string{
				"b: eds_cluster_config.service_name: it is bad",
				"c: connect_timeout: 13 is unlucky",
				"new: eds_cluster_config.service_name: it is bad",
			}
			if !slices.Equal(refused, want) || len(ts.Refused) != 3 {
				t.Errorf("the server knows of %q", refused)
			}
			if !strings.Contains(ts.LastNACK.Text, `CDS "b": eds_cluster_config.service_name: it is bad`) {
				t.Errorf("the text is %q", ts.LastNACK.Text)
			}
			for _, h := range c.Held() {
				if (h.Name == "a") != (h.Refused == "") {
					t.Errorf("%s is held with refusal %q", h.Name, h.Refused)
				}
				if (h.Name == "new") != (h.Resource == nil) {
					t.Errorf("%s is held as %v", h.Name, h.Resource)
				}
			}

			// Another change does not bring the refused ones back, nor take the old away.
			nacks := ts.NACKs
			w.change(w.mesh.Set(cluster("a", 3)))
			expect(t, k.took(), "CDS +a")
			if n := w.srv.Status()[0].Types[0].NACKs; n > nacks+1 || !sotw && n != nacks {
				t.Errorf("%d refusals after one more change, %d before", n, nacks)
			}
			if got := k.names(resource.TypeCluster); !slices.Equal(got, []string{"a", "b", "c"}) {
				t.Fatalf("held after the next change: %v", got)
			}

			w.change(w.mesh.Set(cluster("b", 2), cluster("c", 2), cluster("new", 1)))
			expect(t, k.took(), "CDS +b +c +new")
			ts = w.srv.Status()[0].Types[0]
			if ts.Wanted != ts.Acked || len(ts.Refused) != 0 {
				t.Errorf("after the repair: %+v", ts)
			}
			w.change(w.mesh.Unset(resource.TypeCluster, "b"))
			w.change(server.Change{All: true})
			expect(t, k.took(), "CDS -b")
		})
	})
}

func TestUnreadableAmongGoodRemovesNothing(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1), cluster("b", 1))
			_, k, _ := w.start(client.Config{SotW: sotw})
			expect(t, k.took(), "CDS +a +b")
			w.change(w.mesh.Set(&resource.Cluster{Name: "a", EDSName: "!unreadable"}, cluster("b", 2)))
			expect(t, k.took(), "CDS +b")
			if got := k.names(resource.TypeCluster); !slices.Equal(got, []string{"a", "b"}) {
				t.Fatalf("held: %v", got)
			}
		})
	})
}

// Clusters name what endpoints are wanted: Subscribe from within Apply.
func TestSubscribeFromApply(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1), xdstest.Endpoints("a", 3, 1), cluster("b", 1), xdstest.Endpoints("b", 3, 1))
			k := newKeeper()
			var c *client.Client
			k.then = func(u client.Update) {
				if u.Type == resource.TypeCluster {
					c.Subscribe(resource.TypeEndpoints, k.names(resource.TypeCluster))
				}
			}
			ready := make(chan struct{})
			c, _, _ = w.start(client.Config{SotW: sotw, Handler: k, Dial: func(context.Context) (*grpc.ClientConn, error) {
				<-ready
				return w.net.Dial("web")
			}})
			close(ready)
			expect(t, k.took(), "CDS +a +b", "EDS +a +b")
			w.change(w.mesh.Set(cluster("c", 1), xdstest.Endpoints("c", 3, 1)))
			ch := w.mesh.Unset(resource.TypeCluster, "a")
			ch.All = true
			w.change(ch)
			got := k.took()
			if !slices.Contains(got, "CDS +c") || !slices.Contains(got, "EDS +c") || !slices.Contains(got, "CDS -a") {
				t.Errorf("got %q", got)
			}
		})
	})
}

func TestControlPlaneGone(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1), cluster("b", 1), xdstest.Endpoints("a", 2, 1))
			c, k, _ := w.start(client.Config{SotW: sotw})
			c.Subscribe(resource.TypeEndpoints, []string{"a"})
			expect(t, k.took(), "CDS +a +b", "EDS +a")

			w.net.Down(true)
			time.Sleep(48 * time.Hour)
			synctest.Wait()
			expect(t, k.took())
			st := c.Status()
			if st.Connected || time.Since(st.Since) < 47*time.Hour || st.LastError == "" || st.Attempts == 0 {
				t.Errorf("status while it is gone: %+v", st)
			}
			if got := len(st.Types[0].Versions); got != 2 {
				t.Errorf("%d clusters are left", got)
			}

			// Back, unchanged but for one: only that one is applied.
			before := w.srv.Metrics().Bytes["CDS"]
			w.net.Down(false)
			time.Sleep(time.Minute)
			expect(t, k.took())
			if n := w.srv.Metrics().Bytes["CDS"] - before; !sotw && n > 100 {
				t.Errorf("resuming unchanged took %d bytes", n)
			}
			w.net.Down(true)
			w.mesh.Set(cluster("b", 2))
			w.change(server.Change{All: true})
			w.net.Down(false)
			time.Sleep(time.Minute)
			expect(t, k.took(), "CDS +b")
			if st := c.Status(); !st.Connected || st.Attempts != 0 {
				t.Errorf("status after it is back: %+v", st)
			}
		})
	})
}

func TestBackoff(t *testing.T) {
	run(t, func(w *world) {
		var tries []time.Duration
		begun := time.Now()
		draws := uint64(0)
		_, _, stop := w.start(client.Config{
			Rand:    func() uint64 { draws++; return 0 },
			Backoff: client.Backoff{Min: time.Second, Max: 8 * time.Second},
			Dial: func(context.Context) (*grpc.ClientConn, error) {
				tries = append(tries, time.Since(begun))
				return nil, errors.New("refused")
			},
		})
		time.Sleep(20 * time.Second)
		stop()
		want := []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3500 * time.Millisecond, 7500 * time.Millisecond, 11500 * time.Millisecond, 15500 * time.Millisecond, 19500 * time.Millisecond}
		if !slices.Equal(tries, want) {
			t.Errorf("attempts at %v, want %v", tries, want)
		}
		if draws != uint64(len(want)) {
			t.Errorf("%d draws for %d pauses", draws, len(want))
		}
	})
}

func TestServerEndsTheStream(t *testing.T) {
	run(t, func(w *world) {
		w.mesh.Set(cluster("a", 1))
		c, k, _ := w.start(client.Config{Node: client.Node{ID: "api"}, Dial: func(context.Context) (*grpc.ClientConn, error) { return w.net.Dial("web") }})
		time.Sleep(10 * time.Second)
		st := c.Status()
		if st.Connected || !strings.Contains(st.LastError, "PermissionDenied") || !strings.Contains(st.LastError, `may not speak as node "api"`) {
			t.Errorf("a refused client reports %+v", st)
		}
		expect(t, k.took())
	})
}

// silentServer takes streams and says nothing.
type silentServer struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	streams atomic.Int32
}

func (s *silentServer) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s.streams.Add(1)
	<-g.Context().Done()
	return nil
}

func TestSilentServerIsLeft(t *testing.T) {
	run(t, func(w *world) {
		mute := &silentServer{}
		net := xdstest.Listen(func(r grpc.ServiceRegistrar) { discovery.RegisterAggregatedDiscoveryServiceServer(r, mute) }, server.ServerOptions()...)
		c, _, stop := w.start(client.Config{Dial: func(context.Context) (*grpc.ClientConn, error) { return net.Dial("web", client.DialOptions()...) }})
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if n := mute.streams.Load(); n < 2 {
			t.Errorf("%d streams in 65 s of silence", n)
		}
		if e := c.Status().LastError; !strings.Contains(e, "did not answer") {
			t.Errorf("the error is %q", e)
		}
		stop()
		net.Close()
	})
}

// A connection over which nothing arrives any more, without an end: gRPC's
// keepalive finds it, and what changed meanwhile comes over the next one.
func TestHalfDeadConnection(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1))
			c, k, _ := w.start(client.Config{SotW: sotw})
			expect(t, k.took(), "CDS +a")
			w.net.Stall()
			w.change(w.mesh.Set(cluster("a", 2)))
			expect(t, k.took(), "CDS +a") // this way still works, its ACK is lost
			w.change(w.mesh.Set(cluster("a", 3)))
			expect(t, k.took())
			time.Sleep(45 * time.Second)
			expect(t, k.took(), "CDS +a")
			if st := c.Status(); !st.Connected || time.Since(st.Since) > 25*time.Second {
				t.Errorf("status: %+v", st)
			}
		})
	})
}

func TestLastGoodOnDisk(t *testing.T) {
	both(t, func(t *testing.T, sotw bool) {
		path := filepath.Join(t.TempDir(), "xds", "web")
		run(t, func(w *world) {
			w.mesh.Set(cluster("a", 1), cluster("b", 1), xdstest.Endpoints("a", 2, 1))
			w.mesh.SetPrivate("web", one(resource.TypeListener, "in", 1), one(resource.TypeSecret, "ROOTCA", 1),
				&resource.Secret{Name: "default", ChainPEM: []byte("chain"), KeyPEM: []byte("THE-PRIVATE-KEY")})
			store := client.NewFileStore(path, client.FileOptions{NodeID: "web"})
			c, k, stop := w.start(client.Config{SotW: sotw, Store: store})
			c.Subscribe(resource.TypeEndpoints, []string{"a"})
			c.Subscribe(resource.TypeSecret, []string{"ROOTCA", "default"})
			k.took()
			w.change(w.mesh.Set(bad("b"))) // refused: the good one is what is saved
			stop()

			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(raw), "THE-PRIVATE-KEY") || strings.Contains(string(raw), "VEhFLVBSSVZBVEUtS0VZ") {
				t.Error("a private key is on disk")
			}
			if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", fi.Mode())
			}

			// Everything else is dead.
			w.net.Down(true)
			c, k, stop = w.start(client.Config{SotW: sotw, Store: store})
			expect(t, k.took(), "CDS (disk) +a +b", "EDS (disk) +a", "LDS (disk) +in", "SDS (disk) +ROOTCA")
			if got := k.have[resource.TypeCluster]["b"]; !resource.Equal(got, cluster("b", 1)) {
				t.Errorf("b came back as %+v", got)
			}
			if st := c.Status(); st.FromDisk.IsZero() || st.StoreErr != "" {
				t.Errorf("status: %+v", st)
			}
			c.Subscribe(resource.TypeEndpoints, []string{"a"})
			c.Subscribe(resource.TypeSecret, []string{"ROOTCA"})
			w.net.Down(false)
			time.Sleep(time.Minute)
			expect(t, k.took()) // the same versions: nothing to apply
			stop()
		})
	})
}

func TestWritesAreGathered(t *testing.T) {
	run(t, func(w *world) {
		w.mesh.Set(cluster("a", 1))
		s := &countingStore{}
		_, _, stop := w.start(client.Config{Store: s, SaveDelay: 5 * time.Second})
		for i := range 20 {
			w.change(w.mesh.Set(cluster("a", i+2)))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s.saves != 1 {
			t.Errorf("%d writes for 20 changes within 2 s", s.saves)
		}
		w.change(w.mesh.Set(cluster("a", 99)))
		stop()
		if s.saves != 2 || len(s.last.Types[resource.TypeCluster]) != 1 {
			t.Errorf("%d writes after the end, the last %+v", s.saves, s.last)
		}
	})
}

// A set that nothing changes for months is not too old on disk while the server
// confirms it; once the server is gone, its age counts.
func TestUnchangedStaysYoung(t *testing.T) {
	run(t, func(w *world) {
		w.mesh.Set(cluster("a", 1))
		s := &countingStore{}
		w.start(client.Config{Store: s})
		time.Sleep(60 * 24 * time.Hour)
		synctest.Wait()
		if age := time.Since(s.last.Created); age > 25*time.Hour || s.saves > 65 {
			t.Errorf("after 60 quiet days the set on disk is %s old, written %d times", age, s.saves)
		}
		w.net.Down(true)
		time.Sleep(10 * 24 * time.Hour)
		if age := time.Since(s.last.Created); age < 9*24*time.Hour {
			t.Errorf("10 days without a server, and the set on disk says %s", age)
		}
	})
}

type countingStore struct {
	saves int
	last  *client.State
}

func (s *countingStore) Load() (*client.State, error) { return nil, nil }
func (s *countingStore) Save(st *client.State) error  { s.saves++; s.last = st; return nil }

func TestNewRefuses(t *testing.T) {
	dial := func(context.Context) (*grpc.ClientConn, error) { return nil, nil }
	for want, cfg := range map[string]client.Config{
		"Node.ID": {Dial: dial, Handler: newKeeper()},
		"Dial":    {Node: client.Node{ID: "x"}, Handler: newKeeper()},
		"Handler": {Node: client.Node{ID: "x"}, Dial: dial},
	} {
		if _, err := client.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", want, err)
		}
	}
}
