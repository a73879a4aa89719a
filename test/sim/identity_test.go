package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/sidecar"
)

// burst sends n requests of each kind, one after another, and returns those
// that failed.
func (s *shop) burst(n int) (failed []string) {
	note := func(err error) {
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
	channel := s.web.Channel(usersPort)
	defer channel.Close()
	for range n {
		status, _, body, err := s.web.Get(apiPort, "/")
		if err == nil && status != 200 {
			err = fmt.Errorf("api: %d %s", status, body)
		}
		note(err)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_, err = say(ctx, channel, "hello")
		cancel()
		note(err)
		note(s.lineOnce())
	}
	return failed
}

func (s *shop) lineOnce() error {
	c, err := s.web.Line(ledgerPort)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = c.Say("hello")
	return err
}

func none(t *testing.T, what string, failed []string) {
	t.Helper()
	if len(failed) > 0 {
		t.Errorf("%s: %d failed, first: %s", what, len(failed), failed[0])
	}
}

// TestHundredRotations: every identity of the mesh is renewed 100 times under
// load, and nothing fails (ID1).
func TestHundredRotations(t *testing.T) {
	const n = 100
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var sources []*remote.Source
		s := newShop(t, Config{Seed: 11, Latency: time.Millisecond, Sidecar: func(c *sidecar.Config, d *sidecar.Deps) {
			d.Identity = func(w sidecar.Workload) (sidecar.Identity, error) {
				src, err := remote.New(remote.Config{Address: c.ControlPlane, DataDir: c.DataDir, Service: w.Service, ID: w.ServiceID + "-sidecar-proxy",
					Token: w.Token, Log: d.Log, Dial: func(ctx context.Context, a string) (net.Conn, error) { return d.Net.Dial(ctx, "tcp", a) }})
				mu.Lock()
				defer mu.Unlock()
				sources = append(sources, src)
				return src, err
			}
		}}, 1)
		held, err := s.web.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		loads := s.load(LoadConfig{RPS: 20})
		serials := map[string]bool{}
		for range n {
			for _, src := range sources {
				src.Renew()
			}
			time.Sleep(time.Second)
			if _, err := held.Say("still here"); err != nil {
				t.Fatalf("the held connection: %v", err)
			}
			for _, src := range sources {
				serials[src.Current().SVID.Certificates[0].SerialNumber.String()] = true
			}
		}
		clean(t, loads, 1500)
		if want := n * len(sources); len(serials) < want {
			t.Errorf("%d certificates were seen, want %d", len(serials), want)
		}
	})
}

// TestRootRotation: the root is replaced with overlap; nothing fails before,
// during and after, the old root leaves the bundles, and new workloads join
// (ID1).
func TestRootRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 12, Latency: time.Millisecond, LeafTTL: 2 * time.Hour}, 1)
		none(t, "before", s.burst(5))
		old, err := s.CA.RootKeyHash()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CA.Rotate(t.Context(), 30*time.Minute); err != nil {
			t.Fatal(err)
		}
		t.Log("published at once, signing after 30 min, the old one retired 3 h later")
		for i := range 150 {
			none(t, fmt.Sprintf("after %d × 2 min", i), s.burst(1))
			time.Sleep(2 * time.Minute)
		}
		now, err := s.CA.RootKeyHash()
		if err != nil {
			t.Fatal(err)
		}
		roots, err := s.CA.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if now == old || len(roots) != 1 {
			t.Fatalf("the rotation is not over: %d roots, the same one signs: %t", len(roots), now == old)
		}
		late := s.Add(Spec{Service: "api", Protocol: HTTP})
		s.Ready()
		served := late.App.Served()
		none(t, "with a new instance", s.burst(20))
		if late.App.Served() == served {
			t.Errorf("the instance that joined under the new root served nothing")
		}
	})
}

// TestDenyClosesConnections: an intention that turns to deny ends the open TCP
// connections of whom it names within a second, and no others (ID7).
func TestDenyClosesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 13, Latency: time.Millisecond}, 1)
		s.Catalogue.Intentions("ledger", "web", "allow", "orders", "allow")
		orders := s.Add(Spec{Service: "orders", Upstreams: []Upstream{{Service: "ledger", Port: ledgerPort}}})
		s.Ready()
		denied, err := s.web.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer denied.Close()
		allowed, err := orders.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer allowed.Close()
		for _, c := range []*LineConn{denied, allowed} {
			if _, err := c.Say("hello"); err != nil {
				t.Fatal(err)
			}
		}
		s.Catalogue.Intentions("ledger", "web", "deny", "orders", "allow")
		start := time.Now()
		_ = denied.SetReadDeadline(start.Add(10 * time.Second))
		_, err = denied.in.ReadByte()
		if took := time.Since(start); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || took >= time.Second {
			t.Errorf("the denied connection ended after %s: %v", took, err)
		}
		if _, err := allowed.Say("still here"); err != nil {
			t.Errorf("the allowed connection was touched: %v", err)
		}
		if err := s.lineOnce(); err == nil {
			t.Error("a new connection of the denied service was served")
		}
		if n := len(s.Log.Find("ledger-1", "open connection ended", "svc/web")); n != 1 {
			t.Errorf("%d log entries say that the connection was ended", n)
		}
		s.Catalogue.Intentions("ledger", "web", "allow", "orders", "allow")
		time.Sleep(time.Second)
		if err := s.lineOnce(); err != nil {
			t.Errorf("allowed again: %v", err)
		}
		s.ledger[0].SetHealth(discovery.Critical)
		time.Sleep(time.Second)
		if _, err := allowed.Say("hello"); err != nil {
			t.Errorf("an open connection to an instance that became critical: %v", err)
		}
	})
}

// TestDefaultTurnsToDeny: the same where nothing but the default changes.
func TestDefaultTurnsToDeny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: 14, Default: discovery.Allow}, 1)
		other := s.Add(Spec{Service: "other", Upstreams: webUpstreams})
		s.Ready()
		c, err := other.Line(ledgerPort)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Say("hello"); err != nil {
			t.Fatalf("what no intention names is allowed here: %v", err)
		}
		if status, _, body, err := other.Get(apiPort, "/"); err != nil || status != 200 {
			t.Fatalf("%d %s %v", status, body, err)
		}
		s.Catalogue.Intentions("*", "*", "deny")
		time.Sleep(time.Second)
		if _, err := c.Say("hello"); err == nil {
			t.Error("an open connection outlived its permission by a second")
		}
		if status, _, body, err := other.Get(apiPort, "/"); err != nil || status == 200 || !strings.Contains(body, "parrel") {
			t.Errorf("a request without permission: %d %q %v", status, body, err)
		}
		none(t, "those who are named", s.burst(5))
	})
}
