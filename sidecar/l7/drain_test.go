package l7

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// TestDrainUnderLoad: connections of both versions are drained again and again
// while they are used, streaming bodies both ways; not one request is lost, every
// connection that was drained ends, and every request is counted (DP6).
func TestDrainUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, rounds = 8, 30
		var answered atomic.Int64
		g := newRig(t, func(ctx context.Context, req *stream.Request) (*stream.Response, error) {
			answered.Add(1)
			p := newParts(ctx)
			go func() { // at once, slowly, and with a part of the body after the drain
				defer close(p.c)
				p.c <- "a"
				time.Sleep(time.Duration(answered.Load()%7) * 5 * time.Millisecond)
				p.c <- all(req.Body)
			}()
			return &stream.Response{Head: stream.ResponseHead{Status: 200, ContentLength: -1}, Body: p}, nil
		}, nil)
		var load sync.WaitGroup
		var failed atomic.Int64
		for i := range clients {
			c := g.h1()
			if i%2 == 0 {
				c = g.h2()
			}
			load.Go(func() {
				for range rounds {
					var body io.Reader
					method, want := "GET", "a"
					if i%2 == 0 { // GOAWAY says what was not processed: even what may not be repeated is
						method, body, want = "POST", strings.NewReader("body"), "abody"
					}
					r, _ := http.NewRequestWithContext(t.Context(), method, "http://app/", body)
					resp, err := c.Do(r)
					for again := 0; err != nil && method == "GET" && again < 3; again++ {
						// An idle connection may end while a request is written to it. Who
						// asks repeats what may be repeated (RFC 9112, section 9.3.1); net/http
						// does in most cases. The counts below tell that it was not processed.
						resp, err = c.Do(r)
					}
					if err != nil {
						t.Errorf("client %d: %v", i, err)
						failed.Add(1)
						continue
					}
					got, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err != nil || string(got) != want || resp.StatusCode != 200 {
						t.Errorf("client %d: %d %q %v", i, resp.StatusCode, got, err)
						failed.Add(1)
					}
				}
			})
		}
		stop := make(chan struct{})
		var drains sync.WaitGroup
		drained := 0
		drains.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(17 * time.Millisecond):
				}
				g.connMu.Lock()
				old := g.drain
				g.drain = new(stream.Scope) // of connections from now on
				g.connMu.Unlock()
				old.Cancel(nil)
				drained++
			}
		})
		load.Wait()
		close(stop)
		drains.Wait()
		g.drain.Cancel(nil)
		time.Sleep(10 * time.Second)
		if n := g.host.Open(); n != 0 {
			t.Errorf("%d connections are open after the drain", n)
		}
		g.rec.mu.Lock()
		defer g.rec.mu.Unlock()
		if len(g.rec.got) != clients*rounds || int(answered.Load()) != clients*rounds || drained < 5 {
			t.Errorf("%d recorded, %d answered of %d; %d drains", len(g.rec.got), answered.Load(), clients*rounds, drained)
		}
		for _, r := range g.rec.got {
			if r.Code != telemetry.OK {
				t.Errorf("%+v", r)
			}
		}
		t.Logf("%d requests over %d connections and %d drains", len(g.rec.got), len(g.conns), drained)
	})
}
