package file

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// TestFirstDeliveryHasBeenChecked: what is delivered first says what the checks
// found, and a check that does not answer holds it up for a second at most.
func TestFirstDeliveryHasBeenChecked(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
		hang  bool
		want  discovery.Health
		most  time.Duration
	}{
		{"answers", accept, false, discovery.Passing, 0},
		{"hangs", nil, true, discovery.Critical, firstChecksWithin},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				text := `service { name = "web" port = 80 address = "127.0.0.1" check { tcp = "127.0.0.1:80" interval = "10s" timeout = "5s" } }`
				if err := os.WriteFile(filepath.Join(dir, "web.hcl"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				n := &network{up: map[string]func(net.Conn){}}
				n.set("127.0.0.1:80", c.serve)
				dial := n.dial
				if c.hang {
					dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
				}
				s, err := New(Config{Dir: dir, Checks: true, Dial: dial, Watch: func(context.Context, string) (<-chan struct{}, error) { return nil, nil }})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				began := time.Now()
				seen := false
				err = s.Run(ctx, discovery.SinkFunc(func(d discovery.Delta) {
					if seen || !d.Full {
						return
					}
					seen = true
					for _, svc := range d.Services {
						for _, i := range svc.Instances {
							if took := time.Since(began); i.Health != c.want || took > c.most {
								t.Errorf("first delivery after %v: %v, want %v within %v", took, i.Health, c.want, c.most)
							}
						}
					}
					cancel()
				}))
				if err != context.Canceled || !seen {
					t.Errorf("ended with %v, delivered %v", err, seen)
				}
			})
		})
	}
}
