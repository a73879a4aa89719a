package sidecar

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// rules is a kernel's that are only written down.
type rules struct {
	mu     sync.Mutex
	log    []string
	state  intercept.State
	broken error
	clean  chan struct{} // somebody else cleaned
	groups map[string]uint64
}

func (r *rules) say(format string, a ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, fmt.Sprintf(format, a...))
	return r.broken
}

func (r *rules) took() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := strings.Join(r.log, "; ")
	r.log = nil
	return out
}

func (r *rules) Apply(_ context.Context, c intercept.Config) error {
	var who []string
	for _, w := range c.Outbound {
		by := "all"
		if w.UID != nil {
			by = fmt.Sprint(*w.UID)
		} else if w.Cgroup != "" {
			by = w.Cgroup
		}
		who = append(who, fmt.Sprintf("%s=%s:%d", strings.TrimSuffix(w.Name, "-1-sidecar-proxy"), by, w.OutboundPort))
	}
	return r.say("apply %s in=%d %v", strings.Join(who, ","), c.InboundPort, c.ServicePorts)
}
func (r *rules) Confirm(context.Context) error                 { return r.say("confirm") }
func (r *rules) Clean(context.Context) error                   { return r.say("clean") }
func (r *rules) Show(context.Context) (intercept.State, error) { return r.state, r.broken }
func (r *rules) Hold(ctx context.Context, _ intercept.Holding) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.clean:
		return intercept.ErrCleaned
	}
}

// machine is a process that carries what is registered, and makes rules.
type machine struct {
	*process
	n     *node
	rules *rules
	mu    sync.Mutex
	feeds map[string]*feed
}

func (h *machine) feed(service string) *feed {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.feeds[service]
}

func newHost(t *testing.T, m *mesh, failOpen bool, state intercept.State) *machine {
	at := m.net.Host("shop", "10.0.0.1")
	h := &machine{feeds: map[string]*feed{}, rules: &rules{clean: make(chan struct{}), state: state, groups: map[string]uint64{}},
		n: &node{agent: agent{services: map[string]LocalService{}, host: at, maintained: map[string]bool{}}, lists: make(chan []LocalService)}}
	uid := uint32(15001)
	h.process = m.sidecar(at, func(c *Config, d *Deps) {
		c.AllLocal, c.DataDir = &AllLocal{}, t.TempDir()
		d.Registrar = h.n
		d.Redirect = &Redirect{Manager: h.rules, Base: intercept.Config{FailOpen: failOpen, ProxyUID: &uid}}
		d.Source = func(w Workload, on client.Handler) (Source, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.feeds[w.Service] = &feed{h: on, subs: map[resource.Type][]string{}}
			return h.feeds[w.Service], nil
		}
	})
	h.redirector.cgroups = func(intercept.Config) (map[string]uint64, error) {
		h.rules.mu.Lock()
		defer h.rules.mu.Unlock()
		out := map[string]uint64{}
		for k, v := range h.rules.groups {
			out[k] = v
		}
		return out, nil
	}
	return h
}

// configured gives a workload what it waits for.
func (h *machine) configured(service string, port uint16) {
	h.feed(service).up(testpki.Trust(h.m.pki), capturing(15001, nil), originalDestination(), capturingInbound(service, port, "x"), local(port))
	time.Sleep(time.Second)
}

// Rules are made for each workload when it is ready, follow what comes and goes,
// and go with a sidecar whose rules fail open.
func TestRedirection(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := newHost(t, m, true, intercept.State{})
		if _, body := h.get("/ready"); !strings.Contains(body, "redirection is not in force yet") {
			t.Error(body)
		}
		web, orders := service("web", 8080, MetaUID, "1001"), service("orders", 8081, MetaCgroup, "orders.slice")
		h.n.registered(web, orders)
		if got := h.rules.took(); got != "" {
			t.Errorf("before anything is ready: %s", got)
		}
		h.configured("web", 8080)
		if got, want := h.rules.took(), "apply web=1001:15001 in=15006 [8080]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		h.configured("orders", 8081) // its cgroup is not there
		if got, want := h.rules.took(), "apply web=1001:15001 in=15006 [8081 8080]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if !strings.Contains(m.log.String(), "there is no cgroup orders.slice yet") {
			t.Error("not said")
		}
		for id := range uint64(2) { // it comes, and another of its name
			h.rules.mu.Lock()
			h.rules.groups["orders.slice"] = id
			h.rules.mu.Unlock()
			time.Sleep(time.Second)
			if got, want := h.rules.took(), "apply orders=orders.slice:15101,web=1001:15001 in=15006 [8081 8080]"; got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		if status, body := h.get("/ready"); status != 200 {
			t.Errorf("%d %s", status, body)
		}
		h.rules.mu.Lock()
		h.rules.broken = errors.New("no room")
		h.rules.mu.Unlock()
		h.n.registered(orders)
		time.Sleep(goneFor + 3*time.Second)
		if _, body := h.get("/ready"); !strings.Contains(body, "redirection cannot be made: no room") {
			t.Error(body)
		}
		h.rules.mu.Lock()
		h.rules.broken = nil
		h.rules.mu.Unlock()
		h.rules.took()
		time.Sleep(redirectRetry + time.Second)
		if got, want := h.rules.took(), "apply orders=orders.slice:15101 in=15006 [8081]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		h.n.registered()
		time.Sleep(goneFor + 3*time.Second)
		if got := h.rules.took(); got != "clean" {
			t.Errorf("%s, want clean", got)
		}
		h.n.registered(orders)
		h.configured("orders", 8081)
		h.rules.took()
		h.stop()
		<-h.done
		if got := h.rules.took(); got != "clean" {
			t.Errorf("at the end: %s, want clean", got)
		}
	})
}

// Rules that fail closed stand from a life before until their workload is ready
// again, and stay at the end.
func TestRedirectionThatStands(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		one, two := uint32(1001), uint32(1002)
		h := newHost(t, m, false, intercept.State{Installed: true, Workloads: []intercept.WorkloadState{
			{Name: "web-1-sidecar-proxy", UID: &one, OutboundPort: 15001}, {Name: "orders-1-sidecar-proxy", UID: &two, OutboundPort: 15101},
			{Name: "gone-1-sidecar-proxy", UID: new(uint32), OutboundPort: 15102}}})
		h.n.registered(service("web", 8080, MetaUID, "1001"), service("orders", 8081, MetaUID, "1002"))
		h.rules.took()
		h.configured("web", 8080)
		if got, want := h.rules.took(), "apply web=1001:15001,orders=1002:15101 in=15006 [8080]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		h.configured("orders", 8081)
		if got, want := h.rules.took(), "apply orders=1002:15101,web=1001:15001 in=15006 [8081 8080]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		h.stop()
		<-h.done
		if got := h.rules.took(); got != "" {
			t.Errorf("at the end: %s", got)
		}
		if !strings.Contains(m.log.String(), "fails closed and stays") {
			t.Error("not said")
		}
	})
}

// Who cleans means it; and where there can be no rules the process says so and ends.
func TestRedirectionIsTakenAway(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := newHost(t, m, true, intercept.State{})
		h.n.registered(service("web", 8080, MetaUID, "1001"))
		h.configured("web", 8080)
		h.rules.took()
		close(h.rules.clean)
		time.Sleep(time.Minute)
		if got := h.rules.took(); got != "" {
			t.Errorf("made again: %s", got)
		}
		if !strings.Contains(m.log.String(), "somebody took the redirection away") {
			t.Error("not said")
		}
	})
	inMesh(t, func(t *testing.T, m *mesh) {
		at := m.net.Host("shop", "10.0.0.1")
		p := m.sidecar(at, func(c *Config, d *Deps) {
			d.Redirect = &Redirect{Manager: &rules{broken: errors.New("not permitted: CAP_NET_ADMIN")}}
		}, "web")
		if err := <-p.done; err == nil || !strings.Contains(err.Error(), "redirection: not permitted: CAP_NET_ADMIN") {
			t.Error(err)
		}
	})
}
