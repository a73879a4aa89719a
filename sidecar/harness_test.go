package sidecar

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is hosts on a memory network with sidecars whose configuration the test
// feeds by hand.
type mesh struct {
	t   *testing.T
	net *netio.Memory
	pki *testpki.PKI
	log *locked
	wg  sync.WaitGroup
	end []func()
}

type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func inMesh(t *testing.T, f func(t *testing.T, m *mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{t: t, net: netio.NewMemory(), pki: testpki.New(t, "mesh.test"), log: &locked{}}
		defer func() {
			for _, end := range slices.Backward(m.end) {
				end()
			}
			m.wg.Wait()
			if t.Failed() {
				t.Log(m.log.String())
			}
		}()
		f(t, m)
	})
}

type handler = client.Handler

// identity is a fixed identity with nothing to run.
type identity struct{ *mtls.Cell }

func (identity) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// feed is a source of configuration in the test's hands.
type feed struct {
	mu   sync.Mutex
	h    client.Handler
	subs map[resource.Type][]string
}

func (f *feed) Subscribe(t resource.Type, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[t] = names
}
func (f *feed) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func (f *feed) Status() client.Status         { return client.Status{LastError: "nobody there"} }
func (f *feed) Held() []client.Held           { return nil }

func (f *feed) handler() client.Handler {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.h
}

func (f *feed) up(rs ...resource.Resource) {
	for _, r := range rs {
		f.handler().Apply(client.Update{Type: r.ResourceType(), Upserted: []resource.Resource{r}})
	}
}

func (f *feed) down(t resource.Type, names ...string) {
	f.handler().Apply(client.Update{Type: t, Removed: names})
}

// process is one running sidecar process.
type process struct {
	*Sidecar
	m     *mesh
	host  *netio.Host
	feeds map[string]*feed // by service
	stop  func()           // SIGTERM
	done  chan error
}

// sidecar starts a process with one workload per service.
func (m *mesh) sidecar(host *netio.Host, change func(*Config, *Deps), services ...string) *process {
	m.t.Helper()
	p := &process{m: m, host: host, feeds: map[string]*feed{}, done: make(chan error, 1)}
	c := Config{Admin: "127.0.0.1:15000", Version: "test"}
	for _, s := range services {
		c.Workloads = append(c.Workloads, Workload{Service: s, Proxy: s + "-sidecar-proxy"})
		p.feeds[s] = &feed{subs: map[resource.Type][]string{}}
	}
	d := Deps{Net: host, Log: slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Identity: func(w Workload) (Identity, error) { return identity{m.pki.Identity(w.Service)}, nil },
		Source: func(w Workload, h client.Handler) (Source, error) {
			f := p.feeds[w.Service]
			f.mu.Lock()
			defer f.mu.Unlock()
			f.h = h
			return f, nil
		}}
	if change != nil {
		change(&c, &d)
	}
	s, err := New(c, d)
	if err != nil {
		m.t.Fatal(err)
	}
	p.Sidecar = s
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	m.wg.Go(func() { p.done <- s.Run(ctx) })
	m.end = append(m.end, cancel)
	synctest.Wait()
	return p
}

func (p *process) get(path string) (int, string) {
	p.m.t.Helper()
	resp, err := httpOn(p.host).Get("http://127.0.0.1:15000" + path)
	if err != nil {
		p.m.t.Fatal(err)
	}
	return read(p.m.t, resp)
}

func read(t *testing.T, resp *http.Response) (int, string) {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// httpOn is a client without keep-alive on a host.
func httpOn(h *netio.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return h.Dial(ctx, network, address)
		}}}
}

// app serves HTTP on a host's 127.0.0.1:port.
func (m *mesh) app(h *netio.Host, port int, handler http.HandlerFunc) {
	m.t.Helper()
	ln, err := h.Listen(m.t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		m.t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	m.wg.Go(func() { _ = srv.Serve(onlyConns{ln}) })
	m.end = append(m.end, func() { _ = srv.Close() })
}

// echo answers lines over TCP on a host's 127.0.0.1:port.
func (m *mesh) echo(h *netio.Host, port int) {
	m.t.Helper()
	ln, err := h.Listen(m.t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		m.t.Fatal(err)
	}
	m.wg.Go(func() {
		for {
			c, err := ln.AcceptConn()
			if err != nil {
				return
			}
			m.wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	m.end = append(m.end, func() { _ = ln.Close() })
}

// Resources of the tests' mesh.

func mtlsParams() resource.TLSParams {
	return resource.TLSParams{Certificate: resource.CertSource{SDS: resource.SecretIdentity}, Trust: resource.CertSource{SDS: resource.SecretTrust},
		ALPN: []string{"h2", "http/1.1"}}
}

func allow(services ...string) *resource.RBAC {
	r := &resource.RBAC{Rules: &resource.RBACRules{Action: resource.RBACAllow}}
	for _, s := range services {
		r.Rules.Policies = append(r.Rules.Policies, resource.RBACPolicy{Name: s, Permissions: []resource.Permission{{Any: true}},
			Principals: []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{
				Name: &resource.StringMatch{Kind: resource.StringExact, Value: "spiffe://mesh.test/ns/default/dc/dc1/svc/" + s}}}}})
	}
	return r
}

func routeAll(name, cluster string) *resource.RouteConfig {
	return &resource.RouteConfig{Name: name, VirtualHosts: []resource.VirtualHost{{Name: name, Domains: []string{"*"},
		Routes: []resource.Route{{Match: resource.RouteMatch{Path: "/"}, Forward: &resource.Forward{Cluster: cluster}}}}}}
}

func manager(route string) *resource.HTTPManager {
	return &resource.HTTPManager{StatPrefix: "s", RouteName: route, Filters: []resource.HTTPFilter{{Name: "router", Router: &resource.Router{}}}}
}

// public is the mTLS listener of a service at host:port, in front of local.
func public(service, host string, port uint16, http bool, allowed ...string) *resource.Listener {
	fc := resource.FilterChain{Name: "public", TLS: &resource.DownstreamTLS{RequireClientCert: true, TLSParams: mtlsParams()},
		Network: []resource.NetworkFilter{{Name: "rbac", RBAC: allow(allowed...)}}}
	if http {
		m := manager("")
		m.Route = routeAll("public", "local")
		fc.HTTP = m
	} else {
		fc.TLS.ALPN = nil
		fc.TCP = &resource.TCPProxy{StatPrefix: "s", Cluster: "local"}
	}
	return &resource.Listener{Name: "public_listener", Direction: resource.Inbound, Address: resource.Address{Host: host, Port: port},
		Chains: []resource.FilterChain{fc}, Metadata: resource.Metadata{resource.MetaService: service}}
}

// local is the application's cluster.
func local(port uint16) *resource.Cluster {
	return &resource.Cluster{Name: "local", Discovery: resource.DiscoveryStatic, Protocol: resource.ProtocolHTTP1,
		Endpoints: &resource.Endpoints{Cluster: "local", Localities: []resource.Locality{{Endpoints: []resource.Endpoint{
			{Address: resource.Address{Host: "127.0.0.1", Port: port}}}}}}}
}

// outbound is an explicit upstream on 127.0.0.1:port.
func outbound(service string, port uint16, http bool) *resource.Listener {
	fc := resource.FilterChain{Name: "out"}
	if http {
		fc.HTTP = manager(service)
	} else {
		fc.TCP = &resource.TCPProxy{StatPrefix: "s", Cluster: service}
	}
	return &resource.Listener{Name: service + ":127.0.0.1", Direction: resource.Outbound, Address: resource.Address{Host: "127.0.0.1", Port: port},
		Chains: []resource.FilterChain{fc}, Metadata: resource.Metadata{resource.MetaService: service}}
}

func upstream(service string, http bool) *resource.Cluster {
	c := &resource.Cluster{Name: service, TLS: &resource.UpstreamTLS{TLSParams: mtlsParams(), SNI: service},
		Metadata: resource.Metadata{resource.MetaService: service}}
	c.TLS.PeerSANs = []resource.StringMatch{{Kind: resource.StringExact, Value: "spiffe://mesh.test/ns/default/dc/dc1/svc/" + service}}
	if http {
		c.Protocol = resource.ProtocolAuto
	} else {
		c.TLS.ALPN = nil
	}
	return c
}

func at(service string, hostports ...string) *resource.Endpoints {
	e := &resource.Endpoints{Cluster: service}
	if len(hostports) == 0 {
		return e
	}
	e.Localities = []resource.Locality{{}}
	for _, hp := range hostports {
		host, port, _ := strings.Cut(hp, ":")
		var n uint16
		_, _ = fmt.Sscan(port, &n)
		e.Localities[0].Endpoints = append(e.Localities[0].Endpoints, resource.Endpoint{Address: resource.Address{Host: host, Port: n}})
	}
	return e
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > d {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
