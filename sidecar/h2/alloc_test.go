//go:build !race

package h2

import (
	"context"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
)

// Allocations of one exchange, both sides of it together: what is left is the
// body's handle, made for sixteen at a time.
func TestAllocations(t *testing.T) {
	poison := stream.Poison
	stream.Poison = false
	defer func() { stream.Poison = poison }()
	w := wheel.New()
	up, stopUp := link(t, newOrigin(), w)
	defer stopUp()
	cc, stop := link(t, &forwarder{up}, w)
	defer stop()
	once := func(c *ClientConn) func() {
		req := benchGet(benchHeader)
		return func() {
			resp, err := c.Do(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			_ = drainBody(resp.Body)
			_ = resp.Body.Close()
		}
	}
	for _, tt := range []struct {
		name string
		f    func()
		most float64
	}{
		{"client and server", once(up), 0},
		{"client, server, client, server", once(cc), 0},
	} {
		for range 100 {
			tt.f()
		}
		if n := testing.AllocsPerRun(1000, tt.f); n > tt.most {
			t.Errorf("%s: %v allocations, allowed %v", tt.name, n, tt.most)
		}
	}
}
