package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

var five = []string{"web", "api", "users", "orders", "billing"}

// Each of five workloads may speak as itself only, and sees no listener and no
// secret of the four others, however it asks.
func TestPairwiseIsolation(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("shared"))
		for i, n := range five {
			w.mesh.SetPrivate(n, listener(n+"-in", uint16(i+1)), listener("0-in", uint16(i+1)),
				&resource.Secret{Name: "default", ChainPEM: []byte("chain of " + n), KeyPEM: []byte("key of " + n)},
				&resource.Secret{Name: n + "-secret", ChainPEM: []byte("chain of " + n), KeyPEM: []byte("key of " + n)})
		}
		for _, peer := range five {
			for _, node := range five {
				if peer == node {
					continue
				}
				c := w.deltaAs(peer, node)
				c.subscribe(resource.TypeListener)
				err := c.ended()
				if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), fmt.Sprintf("spiffe://mesh.test/svc/%s may not speak as node %q", peer, node)) {
					t.Fatalf("%s as %s: %v", peer, node, err)
				}
			}
		}
		if n := len(w.srv.Connected()); n != 0 {
			t.Errorf("%d refused workloads count as connected", n)
		}
		streams := map[string]*raw{}
		for _, n := range five { // all at once, so that everything is in the cache
			c := w.delta(n)
			streams[n] = c
			c.subscribe(resource.TypeListener)
			c.expect("LDS +0-in +" + n + "-in")
			c.subscribe(resource.TypeSecret, "default", n+"-secret")
			m := c.next()
			for _, x := range m.Resources {
				if len(m.Resources) != 2 {
					t.Fatalf("%s got %s", n, show(m))
				}
				own, _, _ := xdstest.Decode(x.Resource)
				if got := string(own.(*resource.Secret).KeyPEM); got != "key of "+n {
					t.Errorf("%s was given the %s", n, got)
				}
			}
			c.ack(m)
		}
		for _, n := range five {
			for _, other := range five {
				if n == other {
					continue
				}
				streams[n].subscribe(resource.TypeListener, other+"-in")
				streams[n].expect("LDS -" + other + "-in")
				streams[n].subscribe(resource.TypeSecret, other+"-secret")
				streams[n].expect("SDS -" + other + "-secret")
			}
		}
		for _, n := range five { // and when they change it stays so
			w.change(w.mesh.SetPrivate(n, listener(n+"-in", 99), one(resource.TypeSecret, n+"-secret", 7)))
			for _, other := range five {
				if n != other {
					streams[other].silent()
				}
			}
			streams[n].expect("LDS +"+n+"-in", "SDS +"+n+"-secret")
		}
	})
}

// What is shared, but not for everybody, is checked per workload.
func TestSharedButHidden(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		w.mesh.Set(cluster("payroll"))
		w.mesh.Hide("web", resource.TypeCluster, "payroll", true)
		api, web := w.delta("api"), w.delta("web")
		api.subscribe(resource.TypeCluster)
		api.expect("CDS +payroll")
		web.subscribe(resource.TypeCluster, "payroll")
		web.expect("CDS -payroll")
		w.change(w.mesh.Set(clusterV("payroll", 2)))
		api.expect("CDS +payroll")
		web.silent()
		w.change(w.mesh.Hide("web", resource.TypeCluster, "payroll", false))
		web.expect("CDS +payroll")
		w.change(w.mesh.Hide("web", resource.TypeCluster, "payroll", true))
		web.expect("CDS -payroll")
		api.silent()
	})
}

func TestNoCertificate(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		c := w.deltaAs("", "web")
		c.subscribe(resource.TypeListener)
		if err := c.ended(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "presented no certificate") {
			t.Errorf("without a certificate: %v", err)
		}
		if m := w.srv.Metrics(); m.StreamsDenied != 1 || m.StreamsClosed["denied"] != 1 {
			t.Errorf("metrics: %+v", m)
		}
	})
}

func TestNodeMustBeNamedAndStay(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		c := w.delta("web")
		c.begun = true
		c.subscribe(resource.TypeListener)
		if err := c.ended(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "must carry node.id") {
			t.Errorf("without a node: %v", err)
		}
		c = w.delta("web")
		c.subscribe(resource.TypeListener)
		c.expect("LDS")
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(resource.TypeCluster), Node: &core.Node{Id: "web"}})
		c.expect("CDS")
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: string(resource.TypeSecret), Node: &core.Node{Id: "api"}})
		if err := c.ended(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `node "web" now says that it is "api"`) {
			t.Errorf("changed node: %v", err)
		}
	})
}

func TestConnectedAndOnConnect(t *testing.T) {
	run(t, server.Limits{StreamsPerNode: 2}, func(w *world) {
		var log []string
		w.srv.OnConnect(func(x server.Workload, came bool) { log = append(log, fmt.Sprint(x.NodeID, " ", x.Dialect, " ", came)) })
		a, b := w.delta("web"), w.sotw("web", "gRPC Go")
		a.subscribe(resource.TypeListener)
		b.ask(resource.TypeListener)
		third := w.delta("web")
		third.subscribe(resource.TypeListener)
		if err := third.ended(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a third stream: %v", err)
		}
		api := w.delta("api")
		api.subscribe(resource.TypeListener)
		var names []string
		for _, x := range w.srv.Connected() {
			names = append(names, x.NodeID+" "+x.ID.String())
		}
		if !slices.Equal(names, []string{"api spiffe://mesh.test/svc/api", "web spiffe://mesh.test/svc/web"}) {
			t.Errorf("connected: %q", names)
		}
		a.close()
		api.close()
		if !slices.Equal(log, []string{"web parrel true", "api parrel true", "api parrel false"}) {
			t.Errorf("told of: %q", log)
		}
		st := w.srv.Status()
		if len(st) != 1 || !st[0].SotW || st[0].Workload.Dialect != server.GRPC || st[0].UserAgent != "gRPC Go" {
			t.Errorf("status: %+v", st)
		}
	})
}

func TestTooManyNamesAndTypes(t *testing.T) {
	run(t, server.Limits{Names: 3}, func(w *world) {
		c := w.delta("web")
		c.subscribe(resource.TypeEndpoints, "a", "b", "c", "d")
		if err := c.ended(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "3 resources at most, this one wants 4") {
			t.Errorf("too many names: %v", err)
		}
		c = w.delta("web")
		for i := range 17 {
			c.g.Send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "web"}, TypeUrl: fmt.Sprint("type/", i)})
		}
		synctest.Wait()
		for len(c.got) > 0 {
			<-c.got
		}
		if err := c.ended(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("too many types: %v", err)
		}
	})
}

func TestSilentClientIsClosed(t *testing.T) {
	run(t, server.Limits{AckTimeout: 20 * time.Second, FirstRequest: 5 * time.Second}, func(w *world) {
		w.mesh.Set(clusterV("a", 1))
		good, bad, mute := w.delta("web"), w.delta("api"), w.delta("users")
		good.subscribe(resource.TypeCluster)
		good.expect("CDS +a")
		bad.subscribe(resource.TypeCluster)
		bad.next() // never answered
		for v := range 1000 {
			w.change(w.mesh.Set(clusterV("a", v+2)))
			good.expect("CDS +a")
			bad.silent() // nothing piles up for it
		}
		time.Sleep(6 * time.Second)
		if err := mute.ended(); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "no request within 5s") {
			t.Errorf("a stream that said nothing: %v", err)
		}
		time.Sleep(15 * time.Second)
		if err := bad.ended(); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), `node "api" did not acknowledge or refuse`) {
			t.Errorf("a client that did not answer: %v", err)
		}
		time.Sleep(time.Hour) // one that has nothing to answer stays
		w.change(w.mesh.Set(clusterV("a", 1)))
		good.expect("CDS +a")
		if m := w.srv.Metrics(); m.StreamsClosed["silent"] != 2 || m.Streams != 1 {
			t.Errorf("metrics: %+v", m)
		}
	})
}

// A client that does not even read: gRPC takes one response above its quota,
// the next send blocks. Others go on, and it is closed.
func TestSlowClientIsClosed(t *testing.T) {
	run(t, server.Limits{AckTimeout: 20 * time.Second}, func(w *world) {
		for i := range 200 {
			w.mesh.Set(xdstest.Endpoints(fmt.Sprintf("s%03d", i), 50, 1))
		}
		conn, err := w.net.Dial("api")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		g, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(w.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.mesh.Set(cluster("a"))
		for _, typ := range []resource.Type{resource.TypeEndpoints, resource.TypeCluster} {
			err = g.Send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "api"}, TypeUrl: string(typ), ResourceNamesSubscribe: []string{"*"}})
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		good := w.delta("web")
		good.subscribe(resource.TypeEndpoints, "s000")
		good.expect("EDS +s000")
		for v := range 50 {
			w.change(w.mesh.Set(xdstest.Endpoints("s000", 50, uint16(v+2))))
			good.expect("EDS +s000")
		}
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if m := w.srv.Metrics(); m.StreamsClosed["slow"] != 1 || m.Streams != 1 {
			t.Errorf("metrics: %+v", m)
		}
	})
}

func TestPeerFromTLS(t *testing.T) {
	uri, _ := url.Parse("spiffe://mesh.test/ns/default/dc/dc1/svc/web")
	with := func(info credentials.AuthInfo) (spiffeid.ID, error) {
		return server.PeerFromTLS(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{}, AuthInfo: info}))
	}
	state := func(certs ...*x509.Certificate) credentials.TLSInfo {
		return credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: certs}}
	}
	id, err := with(state(&x509.Certificate{URIs: []*url.URL{uri}}))
	if err != nil || id.String() != uri.String() {
		t.Errorf("%v, %v", id, err)
	}
	for want, info := range map[string]credentials.AuthInfo{
		"not TLS":                  nil,
		"presented no certificate": state(),
		"carries no SPIFFE id":     state(&x509.Certificate{}),
	} {
		if _, err := with(info); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, err := server.PeerFromTLS(t.Context()); err == nil {
		t.Error("no peer, no error")
	}
}

func TestCloseEndsStreams(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		c := w.delta("web")
		c.subscribe(resource.TypeListener)
		c.expect("LDS")
		w.srv.Close()
		if err := c.ended(); status.Code(err) != codes.Unavailable {
			t.Errorf("closed: %v", err)
		}
		c = w.delta("web")
		if err := c.ended(); status.Code(err) != codes.Unavailable {
			t.Errorf("after Close: %v", err)
		}
	})
}

// The stream ends with the certificate that opened it.
func TestExpiredCertificateEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := xdstest.NewMesh()
		srv := server.New(server.Config{Authoriser: mesh, Provider: mesh, Encode: xdstest.Encode})
		uri, _ := url.Parse("spiffe://mesh.test/svc/web")
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{}, AuthInfo: credentials.TLSInfo{
			State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{uri}, NotAfter: time.Now().Add(72 * time.Hour)}}},
		}})
		ctx, cancel := context.WithCancel(ctx)
		f := &fakeStream{ctx: ctx, reqs: make(chan *discovery.DeltaDiscoveryRequest, 4), got: make(chan int, 4)}
		f.reqs <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "web"}, TypeUrl: string(resource.TypeListener)}
		done := make(chan error, 1)
		go func() { done <- srv.DeltaAggregatedResources(f) }()
		time.Sleep(71 * time.Hour)
		synctest.Wait()
		if len(srv.Connected()) != 1 {
			t.Fatal("the stream ended before its certificate")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case err := <-done:
			if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
				t.Errorf("ended with %v", err)
			}
		default:
			t.Error("the stream outlives its certificate")
		}
		cancel()
		srv.Close()
	})
}

// A resource that cannot be serialised does not take the one before it away.
func TestEncodeFailureKeepsTheLastGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, mesh: xdstest.NewMesh()}
		w.srv = server.New(server.Config{Authoriser: w.mesh, Provider: w.mesh, Peer: xdstest.Peer, Encode: func(r resource.Resource) (*anypb.Any, error) {
			if c, ok := r.(*resource.Cluster); ok && c.ConnectTimeout == 13*time.Second {
				return nil, errors.New("cannot")
			}
			return xdstest.Encode(r)
		}})
		w.net = xdstest.Listen(w.srv.Register)
		c := w.delta("web")
		defer func() {
			c.close()
			w.srv.Close()
			w.net.Close()
		}()
		w.mesh.Set(clusterV("a", 1), clusterV("b", 1), clusterV("never", 13))
		c.subscribe(resource.TypeCluster)
		c.expect("CDS +a +b")
		w.change(w.mesh.Set(clusterV("a", 13), clusterV("b", 2)))
		c.expect("CDS +b")
		ch := w.mesh.Set(clusterV("a", 3))
		ch.All = true
		w.change(ch)
		c.expect("CDS +a")
	})
}
