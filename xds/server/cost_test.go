package server_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// One endpoint of 10,000 (1,000 services of 10) changes: every subscriber of
// its service gets that one ClusterLoadAssignment and nothing else, others get
// nothing, and the resource is made once for all of them.
func TestOneEndpointOfTenThousand(t *testing.T) {
	run(t, server.Limits{}, func(w *world) {
		const services, subscribers = 1000, 20
		names := make([]string, services)
		for i := range services {
			names[i] = fmt.Sprintf("service-%04d", i)
			w.mesh.Set(xdstest.Endpoints(names[i], 10, 1))
		}
		var all []*raw
		for i := range subscribers {
			c := w.delta(fmt.Sprint("node-", i))
			c.subscribe(resource.TypeEndpoints, names...)
			for n := 0; n < services; {
				m := c.next()
				n += len(m.Resources)
				c.ack(m)
			}
			all = append(all, c)
		}
		other := w.delta("other")
		other.subscribe(resource.TypeEndpoints, names[1:]...)
		for n := 0; n < services-1; {
			m := other.next()
			n += len(m.Resources)
			other.ack(m)
		}
		made := w.mesh.Made(resource.TypeEndpoints, names[0])
		changed := xdstest.Endpoints(names[0], 10, 2)
		w.change(w.mesh.Set(changed))
		if n := w.mesh.Made(resource.TypeEndpoints, names[0]) - made; n != 1 {
			t.Errorf("made %d times for %d subscribers", n, subscribers)
		}
		a, _ := xdstest.Encode(changed)
		for _, c := range all {
			m := c.next()
			if show(m) != "EDS +service-0000" {
				t.Fatalf("got %s", show(m))
			}
			// What is around the resource itself is small; how large that one
			// is, is the codec's business.
			if over := proto.Size(m) - proto.Size(a); over > 160 {
				t.Errorf("%d bytes around a resource of %d", over, proto.Size(a))
			}
			c.ack(m)
			c.silent()
		}
		other.silent()
	})
}

// fakeStream is a delta stream without a network, whose client acknowledges
// everything at once.
type fakeStream struct {
	grpc.ServerStream
	ctx  context.Context
	reqs chan *discovery.DeltaDiscoveryRequest
	got  chan<- int
}

func (f *fakeStream) Context() context.Context { return f.ctx }

func (f *fakeStream) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r := <-f.reqs:
		return r, nil
	case <-f.ctx.Done():
		return nil, io.EOF
	}
}

func (f *fakeStream) Send(m *discovery.DeltaDiscoveryResponse) error {
	f.reqs <- &discovery.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce}
	f.got <- len(m.Resources)
	return nil
}

// BenchmarkChanged: 5,000 streams, 10 of which hold the changed service, from
// the report of the change to the last of the 10 sends. With "all" every stream
// holds it. The cost follows the holders, not the streams.
func BenchmarkChanged(b *testing.B) {
	for _, c := range []struct{ streams, holders int }{{10, 10}, {1000, 10}, {5000, 10}, {5000, 100}, {5000, 5000}} {
		b.Run(fmt.Sprintf("streams=%d/holders=%d", c.streams, c.holders), func(b *testing.B) {
			benchmarkChanged(b, c.streams, c.holders)
		})
	}
}

func benchmarkChanged(b *testing.B, streams, holders int) {
	mesh := xdstest.NewMesh()
	srv := server.New(server.Config{Authoriser: mesh, Provider: mesh, Peer: xdstest.Peer, Encode: xdstest.Encode})
	got := make(chan int, streams)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, streams)
	const each = 20
	for i := range each {
		mesh.Set(xdstest.Endpoints(fmt.Sprint("common-", i), 10, 1))
	}
	mesh.Set(xdstest.Endpoints("hot", 10, 1))
	for i := range streams {
		node := fmt.Sprint("n", i)
		f := &fakeStream{
			ctx:  metadata.NewIncomingContext(ctx, metadata.Pairs("test-peer", node)),
			reqs: make(chan *discovery.DeltaDiscoveryRequest, 4), got: got,
		}
		names := make([]string, each)
		for j := range each {
			names[j] = fmt.Sprint("common-", j)
		}
		if i < holders {
			names = append(names, "hot")
		}
		f.reqs <- &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: node}, TypeUrl: string(resource.TypeEndpoints), ResourceNamesSubscribe: names}
		go func() {
			_ = srv.DeltaAggregatedResources(f)
			done <- struct{}{}
		}()
	}
	for range streams {
		<-got
	}
	v := 1
	b.ReportAllocs()
	for b.Loop() {
		v++
		srv.Changed(mesh.Set(xdstest.Endpoints("hot", 10, uint16(v))))
		for range holders {
			<-got
		}
	}
	b.StopTimer()
	cancel()
	for range streams {
		<-done
	}
	srv.Close()
}
