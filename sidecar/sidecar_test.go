package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// shop is web on one host calling api on another, over HTTP and over TCP.
type shop struct {
	*mesh
	web, api *process
	served   atomic.Int64
}

func newShop(m *mesh) *shop {
	s := &shop{mesh: m}
	webHost, apiHost := m.net.Host("web", "10.0.0.1"), m.net.Host("api", "10.0.0.2")
	m.app(apiHost, 8080, func(w http.ResponseWriter, r *http.Request) {
		s.served.Add(1)
		if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
			time.Sleep(d)
		}
		_, _ = fmt.Fprintf(w, "api %s", r.URL.Path)
	})
	m.echo(apiHost, 9000)
	s.api = m.sidecar(apiHost, nil, "api", "ledger")
	s.web = m.sidecar(webHost, nil, "web", "orders")
	s.api.feeds["api"].up(testpki.Trust(m.pki), public("api", "10.0.0.2", 21000, true, "web"), local(8080))
	s.api.feeds["ledger"].up(testpki.Trust(m.pki), public("ledger", "10.0.0.2", 21001, false, "web", "orders"), local(9000))
	for i, f := range []*feed{s.web.feeds["web"], s.web.feeds["orders"]} {
		port := uint16(1000 * (i + 1))
		f.up(testpki.Trust(m.pki), outbound("api", port, true), routeAll("api", "api"), upstream("api", true), at("api", "10.0.0.2:21000"),
			outbound("ledger", port+1, false), upstream("ledger", false), at("ledger", "10.0.0.2:21001"))
	}
	synctest.Wait()
	return s
}

func (s *shop) call(t *testing.T, port int, path string) (int, string) {
	t.Helper()
	resp, err := httpOn(s.web.host).Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func (s *shop) ledger(t *testing.T, port int) net.Conn {
	t.Helper()
	c, err := s.web.host.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func says(c net.Conn, line string) error {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && got != line+"\n" {
		return fmt.Errorf("answered %q", got)
	}
	return err
}

func TestServesAndFollowsChanges(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		s := newShop(m)
		for _, p := range []*process{s.web, s.api} {
			if code, body := p.get("/ready"); code != 200 || body != "LIVE\n" {
				t.Fatalf("/ready: %d %s", code, body)
			}
		}
		if code, body := s.call(t, 1000, "/hello"); code != 200 || body != "api /hello" {
			t.Fatalf("%d %q", code, body)
		}
		c := s.ledger(t, 1001)
		if err := says(c, "one"); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()

		t.Log("identities are the workloads' own: orders shares web's process, and api lets web alone in")
		if code, body := s.call(t, 2000, "/hello"); code != 503 {
			t.Errorf("orders was served by api: %d %q", code, body)
		}
		c = s.ledger(t, 2001)
		if err := says(c, "two"); err != nil {
			t.Errorf("orders is allowed to use ledger: %v", err)
		}
		_ = c.Close()

		t.Log("the endpoint moves: the next request goes there")
		s.api.feeds["api"].up(public("api", "10.0.0.2", 22000, true, "web"))
		s.web.feeds["web"].up(at("api", "10.0.0.2:22000"))
		synctest.Wait()
		if code, body := s.call(t, 1000, "/moved"); code != 200 || body != "api /moved" {
			t.Errorf("%d %q", code, body)
		}
	})
}

func TestDenyClosesOpenTCPWithinASecond(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		s := newShop(m)
		web, orders := s.ledger(t, 1001), s.ledger(t, 2001)
		for _, c := range []net.Conn{web, orders} {
			if err := says(c, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		s.api.feeds["ledger"].up(public("ledger", "10.0.0.2", 21001, false, "orders"))
		_ = web.SetReadDeadline(start.Add(5 * time.Second))
		if _, err := io.ReadAll(web); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("the denied connection: %v", err)
		}
		if d := time.Since(start); d >= time.Second {
			t.Errorf("closed after %s", d)
		}
		if err := says(orders, "still here"); err != nil {
			t.Errorf("the allowed connection was touched: %v", err)
		}
		again := s.ledger(t, 1001)
		if err := says(again, "hello"); err == nil {
			t.Error("a new connection of the denied service was served")
		}
		_, _, _ = web.Close(), orders.Close(), again.Close()
	})
}

func TestChangesFailNoRequest(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		s := newShop(m)
		stop := make(chan struct{})
		var sent, failed atomic.Int64
		for range 4 {
			m.wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					resp, err := httpOn(s.web.host).Get("http://127.0.0.1:1000/load")
					sent.Add(1)
					if err != nil || resp.StatusCode != 200 {
						failed.Add(1)
						t.Logf("request %d: %v", i, err)
					}
					if err == nil {
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		web := s.web.feeds["web"]
		for i := range 100 {
			name := fmt.Sprintf("api-%d", i)
			// Break before make, as a careless control plane sends it: the
			// route first, then its cluster, then its endpoints.
			c := upstream("api", true)
			c.Name = name
			if i > 0 {
				web.down(resource.TypeCluster, fmt.Sprintf("api-%d", i-1))
			}
			web.up(routeAll("api", name))
			time.Sleep(time.Duration(i%5) * time.Millisecond)
			web.up(c)
			time.Sleep(time.Duration(i%3) * time.Millisecond)
			web.up(at(name, "10.0.0.2:21000"))
			if i%10 == 0 {
				s.api.feeds["api"].up(public("api", "10.0.0.2", 21000, true, "web", fmt.Sprintf("other-%d", i)))
			}
			time.Sleep(3 * time.Millisecond)
		}
		close(stop)
		time.Sleep(10 * time.Second)
		if sent.Load() < 500 || failed.Load() > 0 {
			t.Errorf("%d requests, %d failed", sent.Load(), failed.Load())
		}
		synctest.Wait()
		if names := clusterNames(s.web); strings.Join(names, " ") != "api api-99 ledger" {
			t.Errorf("clusters left: %v", names)
		}
	})
}

func clusterNames(p *process) (out []string) {
	for _, w := range p.all() {
		if w.cfg.Service == "web" {
			for _, c := range w.parts.Load().clusters.Snapshot() {
				if !c.Removed {
					out = append(out, c.Name)
				}
			}
		}
	}
	return out
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		s := newShop(m)
		type answer struct {
			code int
			body string
		}
		answers := make(chan answer, 1)
		m.wg.Go(func() {
			code, body := s.call(t, 1000, "/slow?sleep=3s")
			answers <- answer{code, body}
		})
		time.Sleep(time.Second)
		start := time.Now()
		s.api.stop()
		if err := <-s.api.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if a := <-answers; a.code != 200 || a.body != "api /slow" {
			t.Errorf("the request in flight: %+v", a)
		}
		if d := time.Since(start); d < 2*time.Second || d > 4*time.Second {
			t.Errorf("ended after %s, want soon after the request in flight", d)
		}
		if n := s.api.host.Open(); n > 0 {
			within(t, time.Minute, "no connection is left on api's host", func() bool { return s.api.host.Open() == 0 })
		}
	})
}

func TestReadySaysWhatIsMissing(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		p := m.sidecar(m.net.Host("h", "10.0.0.1"), nil, "web", "orders")
		if code, body := p.get("/ready"); code != 503 || !strings.Contains(body, "web-sidecar-proxy: no complete configuration yet: no stream to the control plane: nobody there") {
			t.Errorf("%d %s", code, body)
		}
		for _, f := range p.feeds {
			f.up(testpki.Trust(m.pki), local(1))
		}
		p.feeds["web"].up(outbound("api", 1000, true), upstream("api", true), routeAll("api", "api"))
		p.feeds["orders"].up(outbound("api", 2000, true), upstream("api", true), routeAll("api", "api"), at("api"))
		synctest.Wait()
		code, body := p.get("/ready")
		if code != 503 || !strings.Contains(body, "CDS api waits for EDS api") || strings.Contains(body, "orders") {
			t.Errorf("%d %s", code, body)
		}
		p.feeds["web"].up(at("api"))
		synctest.Wait()
		if code, body := p.get("/ready"); code != 200 {
			t.Errorf("%d %s", code, body)
		}
	})
}

// failing is an identity that cannot be had.
type failing struct{ identity }

func (failing) Run(context.Context) error { return errors.New("the token was used already") }

func TestOneBadWorkloadEndsAlone(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		spoil := func(_ *Config, d *Deps) {
			d.Identity = func(w Workload) (Identity, error) {
				id := identity{m.pki.Identity(w.Service)}
				if w.Service == "orders" {
					return failing{id}, nil
				}
				return id, nil
			}
		}
		p := m.sidecar(m.net.Host("h", "10.0.0.1"), spoil, "web", "orders")
		p.feeds["web"].up(testpki.Trust(m.pki), local(1))
		p.feeds["web"].up(outbound("api", 1000, true), upstream("api", true), routeAll("api", "api"), at("api"))
		synctest.Wait()
		code, body := p.get("/ready")
		if code != 503 || body != "INITIALIZING\norders-sidecar-proxy: it ended: identity: the token was used already\n" {
			t.Errorf("%d %s", code, body)
		}
		stopped(t, p)

		t.Log("alone, it ends the process")
		p = m.sidecar(p.host, spoil, "orders")
		if err := <-p.done; err == nil || !strings.Contains(err.Error(), "workload orders-sidecar-proxy: identity: the token was used already") {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestQuitByAdmin(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		p := m.sidecar(m.net.Host("h", "10.0.0.1"), nil, "web")
		if code, _ := p.get("/quitquitquit"); code != http.StatusMethodNotAllowed {
			t.Errorf("GET: %d", code)
		}
		resp, err := httpOn(p.host).Post("http://127.0.0.1:15000/quitquitquit", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := read(t, resp); code != 200 {
			t.Errorf("POST: %d", code)
		}
		if err := <-p.done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	m := &mesh{t: t}
	_ = m
	for _, tt := range []struct {
		name string
		c    Config
		want string
	}{
		{"nothing", Config{}, "no workload given"},
		{"control plane", Config{Workloads: []Workload{{ServiceID: "web"}}, DataDir: "d", ControlPlane: "nowhere"}, `"nowhere": address nowhere: missing port in address; write host:port`},
		{"admin", Config{Workloads: []Workload{{ServiceID: "web"}}, DataDir: "d", ControlPlane: "a:1", Admin: "0.0.0.0:15000"}, "not on loopback"},
		{"twice", Config{Workloads: []Workload{{ServiceID: "web"}, {ServiceID: "web"}}, DataDir: "d", ControlPlane: "a:1"}, "web-sidecar-proxy is given twice"},
		{"tokens", Config{Workloads: []Workload{{ServiceID: "web", Token: "a", TokenFile: "b"}}, DataDir: "d", ControlPlane: "a:1"}, "both a token and a token file"},
		{"whom", Config{Workloads: []Workload{{Proxy: "web"}}, DataDir: "d", ControlPlane: "a:1"}, "neither a service's id"},
		{"no data directory", Config{Workloads: []Workload{{ServiceID: "web"}}, ControlPlane: "a:1"}, "set --data-dir"},
	} {
		if _, err := New(tt.c, Deps{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
