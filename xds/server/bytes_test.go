package server_test

import (
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	"github.com/parrel-mesh/parrel/xds/internal/xdstest"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// What one changed endpoint costs on the wire, with the protos: the whole
// ClusterLoadAssignment of its service is sent, so the size of the service
// matters, and the size of the mesh does not.
func TestBytesOfOneEndpointChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, mesh: xdstest.NewMesh()}
		w.srv = server.New(server.Config{Authoriser: w.mesh, Provider: w.mesh, Origin: "control-plane-1", Peer: xdstest.Peer, Encode: wire.Encode})
		w.net = xdstest.Listen(w.srv.Register)
		c := w.delta("web")
		defer func() {
			c.close()
			w.srv.Close()
			w.net.Close()
		}()
		for _, x := range []struct {
			endpoints int
			max       int
		}{{1, 350}, {5, 700}, {10, 1000}} {
			w.mesh.Set(xdstest.Endpoints("orders.default.dc1", x.endpoints, 1))
			c.subscribe(resource.TypeEndpoints, "orders.default.dc1")
			c.expect("EDS +orders.default.dc1")
			w.change(w.mesh.Set(xdstest.Endpoints("orders.default.dc1", x.endpoints, 2)))
			m := c.next()
			n := proto.Size(m)
			t.Logf("one change in a service of %d endpoints: %d bytes", x.endpoints, n)
			if n > x.max {
				t.Errorf("one change in a service of %d endpoints takes %d bytes, more than %d", x.endpoints, n, x.max)
			}
			c.ack(m)
			c.unsubscribe(resource.TypeEndpoints, "orders.default.dc1")
		}
	})
}
