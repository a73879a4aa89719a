package sidecar

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
)

// TestOutboundOutlivesInbound: at the end inbound traffic ends first; outbound
// traffic, new connections too, goes on until BeforeOutbound returns.
func TestOutboundOutlivesInbound(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h, callee := m.net.Host("api", "10.0.0.2"), m.net.Host("ledger", "10.0.0.3")
		m.echo(callee, 9000)
		m.echo(h, 8080)
		ledger := m.sidecar(callee, nil, "ledger")
		ledger.feeds["ledger"].up(testpki.Trust(m.pki), public("ledger", "10.0.0.3", 21001, false, "api"), local(9000))
		exited := make(chan struct{})
		var asked atomic.Int64
		api := m.sidecar(h, func(_ *Config, d *Deps) {
			d.BeforeOutbound = func(ctx context.Context) {
				asked.Add(1)
				select {
				case <-exited:
				case <-ctx.Done():
				}
			}
		}, "api")
		api.feeds["api"].up(testpki.Trust(m.pki), public("api", "10.0.0.2", 21000, false, "web"), local(8080),
			outbound("ledger", 1000, false), upstream("ledger", false), at("ledger", "10.0.0.3:21001"))
		synctest.Wait()
		call := func() error {
			c, err := h.Dial(t.Context(), "tcp", "127.0.0.1:1000")
			if err != nil {
				return err
			}
			defer c.Close()
			return says(c, "hello")
		}
		before, err := h.Dial(t.Context(), "tcp", "127.0.0.1:1000")
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		if err := says(before, "hello"); err != nil {
			t.Fatal(err)
		}

		api.stop()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if asked.Load() != 1 {
			t.Fatalf("BeforeOutbound was called %d times", asked.Load())
		}
		if c, err := callee.Dial(t.Context(), "tcp", "10.0.0.2:21000"); err == nil {
			c.Close()
			t.Error("inbound connections are still taken")
		}
		if _, body := api.get("/ready"); !strings.HasPrefix(body, "DRAINING") {
			t.Errorf("/ready: %q", body)
		}
		time.Sleep(time.Hour) // longer than any drain
		if err := says(before, "still here"); err != nil {
			t.Errorf("an outbound connection from before: %v", err)
		}
		if err := call(); err != nil {
			t.Errorf("a new outbound connection: %v", err)
		}
		before.Close()
		close(exited)
		start := time.Now()
		if err := <-api.done; err != nil || time.Since(start) > time.Second {
			t.Errorf("ended %s after the application: %v", time.Since(start), err)
		}
	})
}

// TestHasten: what a soft end waits for is cut short, in every phase.
func TestHasten(t *testing.T) {
	for _, during := range []time.Duration{100 * time.Millisecond, 2 * time.Second} { // the delay, the drain
		t.Run(during.String(), func(t *testing.T) {
			inMesh(t, func(t *testing.T, m *mesh) {
				s := newShop(m)
				c := s.ledger(t, 1001) // ends only when the client wants
				defer c.Close()
				if err := says(c, "hello"); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				s.api.stop()
				time.Sleep(during)
				s.api.Hasten()
				if err := <-s.api.done; err != nil {
					t.Error(err)
				}
				if d := time.Since(start); d > during+100*time.Millisecond {
					t.Errorf("ended %s after it was hastened", d-during)
				}
			})
		})
	}
}

// TestHoldInbound: outbound traffic works, callers are refused and the proxy is
// in maintenance, until the application is said to be there.
func TestHoldInbound(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("h", "10.0.0.2")
		m.echo(h, 8080)
		a := m.agent(h, LocalService{ID: "api-1", Name: "api", Address: "10.0.0.2", Port: 8080,
			Proxy: &LocalProxy{ID: "my-proxy", Name: "api-sidecar-proxy", Address: "10.0.0.2", Port: 20000}})
		// A life before has left it in maintenance.
		if err := a.SetMaintenance(t.Context(), "my-proxy", true); err != nil {
			t.Fatal(err)
		}
		a.take()
		change := forService("api-1", t.TempDir(), a)
		p := m.sidecar(h, func(c *Config, d *Deps) {
			change(c, d)
			c.HoldInbound = true
		}, "api")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := p.AwaitOutbound(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "no complete configuration yet") {
			t.Errorf("AwaitOutbound without a configuration: %v", err)
		}
		app := local(8080)
		app.Name = "local_app|127.0.0.1:8080|tcp"
		l := public("api", "10.0.0.2", 20000, false, "web")
		l.Chains[0].TCP.Cluster = app.Name
		p.feeds["api"].up(testpki.Trust(m.pki), l, app)
		if err := p.AwaitOutbound(t.Context()); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(p.Applications()); got != "[127.0.0.1:8080]" {
			t.Errorf("applications: %s", got)
		}
		time.Sleep(time.Minute)
		if c, err := h.Dial(t.Context(), "tcp", "10.0.0.2:20000"); err == nil {
			c.Close()
			t.Error("callers are let in before the application is there")
		}
		if code, body := p.get("/ready"); code != 503 || !strings.Contains(body, "the application does not answer yet: public_listener opens when it does") {
			t.Errorf("/ready: %d %q", code, body)
		}
		if got := a.take(); got != "" {
			t.Errorf("the agent heard %q", got)
		}
		p.OpenInbound()
		if err := p.Await(t.Context()); err != nil {
			t.Error(err)
		}
		var c net.Conn
		if c, err = h.Dial(t.Context(), "tcp", "10.0.0.2:20000"); err != nil {
			t.Fatalf("callers are not let in: %v", err)
		}
		c.Close()
		time.Sleep(time.Second)
		if got := a.take(); got != "maintenance of my-proxy: false" {
			t.Errorf("the agent heard %q", got)
		}
		stopped(t, p)
		p.OpenInbound() // too late: nothing opens
		if c, err := h.Dial(t.Context(), "tcp", "10.0.0.2:20000"); err == nil {
			c.Close()
			t.Error("callers are let in after the end")
		}
		if got := a.take(); got != "maintenance of my-proxy: true" {
			t.Errorf("at the end the agent heard %q", got)
		}
	})
}

// TestDrainByAdmin: inbound traffic ends, the catalogue is told, the rest goes on.
func TestDrainByAdmin(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		s := newShop(m)
		answer := make(chan int, 1)
		m.wg.Go(func() {
			code, _ := s.call(t, 1000, "/slow?sleep=3s")
			answer <- code
		})
		time.Sleep(time.Second)
		start := time.Now()
		resp, err := httpOn(s.api.host).Post("http://127.0.0.1:15000/drain_listeners?inboundonly&wait=1m", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if code, body := read(t, resp); code != 200 || time.Since(start) < time.Second {
			t.Errorf("%d %q after %s", code, body, time.Since(start))
		}
		if code := <-answer; code != 200 {
			t.Errorf("the request in hand: %d", code)
		}
		if code, _ := s.call(t, 1000, "/"); code != 503 {
			t.Errorf("a request after the drain: %d", code)
		}
		if code, _ := s.api.get("/server_info"); code != 200 {
			t.Errorf("the process: %d", code)
		}
	})
}
