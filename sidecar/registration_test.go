package sidecar

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// agent is a catalogue of one node.
type agent struct {
	mu       sync.Mutex
	services map[string]LocalService
	calls    []string
	dead     bool
	host     *netio.Host

	maintained map[string]bool
}

var errDead = errors.New("connection refused")

func (a *agent) Lookup(_ context.Context, id string) (LocalService, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return LocalService{}, errDead
	}
	s, ok := a.services[id]
	if !ok {
		return LocalService{}, fmt.Errorf("agent: %w", ErrNotRegistered)
	}
	return s, nil
}

// RegisterProxy notes whether the port accepted connections when it was told.
func (a *agent) RegisterProxy(ctx context.Context, p ProxyRegistration) error {
	open := "closed"
	if c, err := a.host.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", p.Address, p.Port)); err == nil {
		open = "open"
		_ = c.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return errDead
	}
	a.calls = append(a.calls, fmt.Sprintf("register %s for %s at %s:%d, %s", p.ID, p.ServiceID, p.Address, p.Port, open))
	s := a.services[p.ServiceID]
	s.Proxy = &LocalProxy{ID: p.ID, Name: p.Name, Address: p.Address, Port: p.Port}
	a.services[p.ServiceID] = s
	return nil
}

func (a *agent) DeregisterProxy(_ context.Context, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return errDead
	}
	a.calls = append(a.calls, "deregister "+id)
	for k, s := range a.services {
		if s.Proxy != nil && s.Proxy.ID == id {
			s.Proxy = nil
			a.services[k] = s
		}
	}
	return nil
}

func (a *agent) SetMaintenance(_ context.Context, id string, on bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return errDead
	}
	if a.maintained == nil {
		a.maintained = map[string]bool{}
	}
	if a.maintained[id] != on {
		a.calls = append(a.calls, fmt.Sprintf("maintenance of %s: %t", id, on))
		a.maintained[id] = on
	}
	return nil
}

func (a *agent) set(dead bool, services ...LocalService) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead = dead
	for _, s := range services {
		a.services[s.ID] = s
	}
}

func (a *agent) take() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := strings.Join(a.calls, "; ")
	a.calls = nil
	return out
}

func (m *mesh) agent(h *netio.Host, services ...LocalService) *agent {
	a := &agent{services: map[string]LocalService{}, host: h}
	a.set(false, services...)
	return a
}

// forService changes a configuration to one workload found by its service's id.
func forService(id, dir string, a *agent) func(*Config, *Deps) {
	return func(c *Config, d *Deps) {
		c.Workloads = []Workload{{ServiceID: id}}
		c.DataDir = dir
		d.Registrar = a
		inner := d.Identity
		d.Identity = func(w Workload) (Identity, error) { w.Service = "api"; return inner(w) }
		source := d.Source
		d.Source = func(w Workload, h handler) (Source, error) { w.Service = "api"; return source(w, h) }
	}
}

func stopped(t *testing.T, p *process) {
	t.Helper()
	p.stop()
	if err := <-p.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRegistersWhatNobodyDid(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("h", "10.0.0.2")
		a := m.agent(h, LocalService{ID: "api-1", Name: "api", Address: "10.0.0.2", Port: 8080})
		taken, err := h.Listen(t.Context(), "tcp", "10.0.0.2:21000")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		p := m.sidecar(h, forService("api-1", dir, a), "api")
		if got, want := a.take(), "register api-1-sidecar-proxy for api-1 at 10.0.0.2:21001, open"; got != want {
			t.Errorf("the agent heard %q, want %q", got, want)
		}
		p.feeds["api"].up(testpki.Trust(m.pki), public("api", "10.0.0.2", 21001, true, "web"), local(8080))
		synctest.Wait()
		if code, body := p.get("/ready"); code != 200 {
			t.Errorf("/ready: %d %s", code, body)
		}
		stopped(t, p)
		if got := a.take(); got != "deregister api-1-sidecar-proxy" {
			t.Errorf("at the end the agent heard %q", got)
		}

		t.Log("killed, and started again: the registration is still its own")
		p = m.sidecar(h, forService("api-1", dir, a), "api")
		a.take()
		a.set(true)
		stopped(t, p) // as a kill: the agent does not hear of it
		a.set(false)
		_ = taken.Close()
		p = m.sidecar(h, forService("api-1", dir, a), "api")
		if got := a.take(); got != "" {
			t.Errorf("registered again: %q", got)
		}
		stopped(t, p)
		if got := a.take(); got != "deregister api-1-sidecar-proxy" {
			t.Errorf("at the end the agent heard %q", got)
		}
	})
}

func TestLeavesTheRegistrationsOfOthers(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("h", "10.0.0.2")
		a := m.agent(h, LocalService{ID: "api-1", Name: "api", Address: "10.0.0.2", Port: 8080,
			Proxy: &LocalProxy{ID: "my-proxy", Name: "api-sidecar-proxy", Address: "10.0.0.2", Port: 20000}})
		p := m.sidecar(h, forService("api-1", t.TempDir(), a), "api")
		if _, body := p.get("/server_info"); !strings.Contains(body, `"id": "my-proxy"`) {
			t.Errorf("/server_info:\n%s", body)
		}
		c, err := h.Dial(t.Context(), "tcp", "10.0.0.2:20000")
		if err != nil {
			t.Errorf("the registered port is not open before there is configuration: %v", err)
		} else {
			_ = c.Close()
		}
		if got := a.take(); got != "" {
			t.Errorf("the agent heard %q", got)
		}
		stopped(t, p)
		if got := a.take(); got != "maintenance of my-proxy: true" {
			t.Errorf("at the end the agent heard %q", got)
		}
	})
}

func TestWaitsForTheService(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("h", "10.0.0.2")
		a := m.agent(h)
		p := m.sidecar(h, forService("api-1", t.TempDir(), a), "api")
		time.Sleep(time.Minute)
		if code, body := p.get("/ready"); code != 503 || !strings.Contains(body, "api-1-sidecar-proxy: the service that it stands for is not known yet") {
			t.Errorf("/ready: %d %s", code, body)
		}
		if !strings.Contains(m.log.String(), "register it with `consul services register`") {
			t.Errorf("the log does not say what to do:\n%s", m.log.String())
		}
		a.set(false, LocalService{ID: "api-1", Name: "api", Address: "10.0.0.2", Port: 8080})
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if got := a.take(); !strings.HasPrefix(got, "register api-1-sidecar-proxy") {
			t.Errorf("the agent heard %q", got)
		}
		stopped(t, p)
	})
}

func TestStartsWithADeadCatalogue(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("h", "10.0.0.2")
		a := m.agent(h, LocalService{ID: "api-1", Name: "api", Address: "10.0.0.2", Port: 8080})
		dir := t.TempDir()
		p := m.sidecar(h, forService("api-1", dir, a), "api")
		a.set(true)
		stopped(t, p)
		a.take()
		p = m.sidecar(h, forService("api-1", dir, a), "api")
		p.feeds["api"].up(testpki.Trust(m.pki), public("api", "10.0.0.2", 21000, true, "web"), local(8080))
		synctest.Wait()
		if code, body := p.get("/ready"); code != 200 {
			t.Errorf("/ready with a dead catalogue: %d %s", code, body)
		}
		stopped(t, p)
		if b, err := os.ReadFile(dir + "/config/api-1-sidecar-proxy/registration.json"); err != nil || !strings.Contains(string(b), `"registered": true`) {
			t.Errorf("what is known was lost: %s %v", b, err)
		}
	})
}

func TestFileNames(t *testing.T) {
	for id, want := range map[string]string{"web-1": "web-1", "a/b": "a%2Fb", "..": "%2E.", "a.b": "a.b", "": "", "%": "%25"} {
		if got := fileName(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}
