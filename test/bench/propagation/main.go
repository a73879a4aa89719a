// Command propagation measures, on a real Consul agent, the time from the
// registration of an instance (with an alias check; its sidecar listens
// already) until a caller's sidecar has the endpoint in use, and how many bytes
// one such change of a service of ten instances is on the wire between control
// plane and sidecar, TLS included. It ends in two lines:
//
//	propagation: p50 N ms p99 N ms
//	propagation: N bytes
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

const (
	changes = 100
	size    = 10                     // instances of the service: an older one goes for each that comes
	pause   = 150 * time.Millisecond // between changes, so that none is merged with the next
)

func main() { run.Main("propagation", measure) }

// mesh is what the benchmark talks to.
type mesh struct {
	consul    *api.Client
	wire      *counter
	clusters  string // URL
	proxyPort int
}

func measure(b *run.Bench) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	m, err := start(ctx, b)
	if err != nil {
		return err
	}
	defer m.wire.close()
	var took []time.Duration
	var bytes []int64
	for i := range changes {
		d, n, err := m.change(ctx, i)
		if err != nil {
			return err
		}
		took = append(took, d)
		bytes = append(bytes, n)
		time.Sleep(pause)
	}
	slices.Sort(took)
	slices.Sort(bytes)
	fmt.Printf("%d registrations, one after the other, of a service that has %d instances; slowest %d ms\n", changes, size, took[changes-1].Milliseconds())
	fmt.Printf("propagation: p50 %d ms p99 %d ms\n", took[changes/2].Milliseconds(), took[changes*99/100-1].Milliseconds())
	fmt.Printf("propagation: %d bytes\n", bytes[changes/2])
	return nil
}

func start(ctx context.Context, b *run.Bench) (*mesh, error) {
	if _, err := os.Stat(b.Consul); err != nil {
		return nil, fmt.Errorf("no %s: run `make consul` at the top of the module first", b.Consul)
	}
	next := 25000
	var err error
	port := func() (p int) {
		if err == nil {
			p, err = run.FreePort(&next)
		}
		return p
	}
	httpPort, grpc, serf, wan, rpc := port(), port(), port(), port(), port()
	xds, apiPort, admin, admin2 := port(), port(), port(), port()
	app, proxy, clientProxy, upstream := port(), port(), port(), port()
	if err != nil {
		return nil, err
	}
	if _, err := b.Start("consul", b.Consul, "agent", "-dev", "-node", "bench", "-log-level", "warn", "-bind", "127.0.0.1", "-client", "127.0.0.1",
		"-http-port", fmt.Sprint(httpPort), "-grpc-port", fmt.Sprint(grpc), "-grpc-tls-port", "-1", "-dns-port", "-1",
		"-serf-lan-port", fmt.Sprint(serf), "-serf-wan-port", fmt.Sprint(wan), "-server-port", fmt.Sprint(rpc)); err != nil {
		return nil, err
	}
	if _, err := run.Until(ctx, "http://"+addr(httpPort)+"/v1/catalog/services"); err != nil {
		return nil, err
	}
	consul, err := api.NewClient(&api.Config{Address: addr(httpPort)})
	if err != nil {
		return nil, err
	}
	m := &mesh{consul: consul, clusters: "http://" + addr(admin) + "/clusters", proxyPort: proxy}
	if err := m.register(app, proxy, clientProxy, upstream); err != nil {
		return nil, err
	}
	token, err := b.Output(b.Parrel, "token", "create", "--ca-dir", b.Dir+"/ca", "--trust-domain", "bench.parrel", "--service", "client", "--service", "target")
	if err != nil {
		return nil, err
	}
	if err := b.Write("token", token); err != nil {
		return nil, err
	}
	if _, err := b.Start("controlplane", b.Parrel, "controlplane", "--http-addr", addr(httpPort), "--ca-dir", b.Dir+"/ca", "--trust-domain", "bench.parrel",
		"--grpc-bind", addr(xds), "--http-bind", addr(apiPort)); err != nil {
		return nil, err
	}
	if m.wire, err = forward(addr(xds)); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		id, service, xds string
		admin            int
	}{{"client-1", "client", m.wire.addr(), admin}, {"target-0", "target", addr(xds), admin2}} {
		if _, err := b.Start("sidecar-"+s.id, b.Parrel, "sidecar", "--sidecar-for", s.id+"="+s.service, "--grpc-addr", s.xds,
			"--data-dir", b.Dir+"/data-"+s.id, "--token-file", b.Dir+"/token", "--admin-bind", addr(s.admin)); err != nil {
			return nil, err
		}
		if _, err := run.Until(ctx, "http://"+addr(s.admin)+"/ready"); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// register puts the two services and the one intention into Consul.
func (m *mesh) register(app, proxy, clientProxy, upstream int) error {
	agent := m.consul.Agent()
	err := agent.ServiceRegister(&api.AgentServiceRegistration{ID: "client-1", Name: "client", Address: "127.0.0.1", Port: app + 1000,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Port: clientProxy, Address: "127.0.0.1",
			Checks: api.AgentServiceChecks{{AliasService: "client-1"}},
			Proxy:  &api.AgentServiceConnectProxyConfig{Upstreams: []api.Upstream{{DestinationName: "target", LocalBindPort: upstream}}}}}})
	if err != nil {
		return err
	}
	if err := m.instance("target-0", "127.0.0.1", app, proxy); err != nil {
		return err
	}
	entries := m.consul.ConfigEntries()
	if _, _, err := entries.Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "target", Protocol: "http"}, nil); err != nil {
		return err
	}
	_, _, err = entries.Set(&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "target",
		Sources: []*api.SourceIntention{{Name: "client", Action: api.IntentionActionAllow}}}, nil)
	return err
}

// instance registers one instance of target whose sidecar is the one that
// listens already, on all of loopback's addresses.
func (m *mesh) instance(id, address string, app, proxy int) error {
	return m.consul.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "target", Address: address, Port: app,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Port: proxy, Address: address,
			// A check is critical until its first run, and the agent may lose the
			// result of an alias check's first one: it says what is known.
			Checks: api.AgentServiceChecks{{AliasService: id, Status: api.HealthPassing}},
			Proxy:  &api.AgentServiceConnectProxyConfig{Config: map[string]any{"bind_address": "0.0.0.0"}}}}})
}

// change registers one more instance and waits until the caller's sidecar has
// it as a healthy endpoint.
func (m *mesh) change(ctx context.Context, i int) (time.Duration, int64, error) {
	address := fmt.Sprintf("127.0.1.%d", i+1)
	want := fmt.Sprintf("%s:%d", address, m.proxyPort)
	before := m.wire.down.Load()
	start := time.Now()
	if err := m.instance(fmt.Sprintf("target-%d", i+1), address, 9000, m.proxyPort); err != nil {
		return 0, 0, err
	}
	for {
		ok, err := m.inUse(ctx, want)
		if err != nil {
			return 0, 0, err
		}
		if ok {
			break
		}
		if time.Since(start) > 15*time.Second {
			return 0, 0, fmt.Errorf("%s is not in use 15 s after its registration; Consul says: %s", want, m.inConsul(address))
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(start)
	time.Sleep(20 * time.Millisecond) // the rest of the change's bytes
	bytes := m.wire.down.Load() - before
	if old := i + 2 - size; old > 0 {
		if err := m.consul.Agent().ServiceDeregister(fmt.Sprintf("target-%d-sidecar-proxy", old)); err != nil {
			return 0, 0, err
		}
		if err := m.consul.Agent().ServiceDeregister(fmt.Sprintf("target-%d", old)); err != nil {
			return 0, 0, err
		}
	}
	return took, bytes, nil
}

// inConsul is what Consul says of the proxy at an address.
func (m *mesh) inConsul(address string) string {
	entries, _, err := m.consul.Health().Connect("target", "", false, nil)
	if err != nil {
		return err.Error()
	}
	for _, e := range entries {
		if e.Service.Address == address {
			return "registered and " + e.Checks.AggregatedStatus()
		}
	}
	return fmt.Sprintf("not registered (%d others are)", len(entries))
}

// inUse says whether the caller's sidecar may pick that endpoint.
func (m *mesh) inUse(ctx context.Context, endpoint string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.clusters, nil)
	if err != nil {
		return false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if strings.Contains(line, endpoint+"::health_flags::") {
			return strings.HasSuffix(line, "::healthy"), nil
		}
	}
	return false, nil
}

// counter forwards connections to one address and counts the bytes that come
// back.
type counter struct {
	l    net.Listener
	down atomic.Int64
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func forward(to string) (*counter, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counter{l: l}
	c.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				conn.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, conn, up)
			c.mu.Unlock()
			c.wg.Go(func() { _, _ = io.Copy(up, conn); up.Close() })
			c.wg.Go(func() { _, _ = io.Copy(io.MultiWriter(conn, c), up); conn.Close() })
		}
	})
	return c, nil
}

// Write counts.
func (c *counter) Write(p []byte) (int, error) { c.down.Add(int64(len(p))); return len(p), nil }

func (c *counter) addr() string { return c.l.Addr().String() }

func (c *counter) close() {
	err := c.l.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		err = errors.Join(err, conn.Close())
	}
	c.mu.Unlock()
	c.wg.Wait()
	_ = err // the benchmark is over
}

func addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
