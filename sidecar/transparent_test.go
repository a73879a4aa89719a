package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// capturing is an outbound capture listener: virtual addresses lead to services,
// by HTTP or not, everything else where it was going.
func capturing(port uint16, to map[string]string) *resource.Listener {
	l := &resource.Listener{Name: "outbound_listener", Direction: resource.Outbound, UseOriginalDst: true,
		Address: resource.Address{Host: "127.0.0.1", Port: port},
		Default: &resource.FilterChain{Name: "passthrough", TCP: &resource.TCPProxy{StatPrefix: "s", Cluster: "original-destination"}}}
	for _, vip := range slices.Sorted(maps.Keys(to)) {
		l.Chains = append(l.Chains, resource.FilterChain{Name: to[vip], HTTP: manager(to[vip]),
			Match: resource.ChainMatch{DestinationPrefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(vip), 32)}}})
	}
	return l
}

func originalDestination() *resource.Cluster {
	return &resource.Cluster{Name: "original-destination", Discovery: resource.DiscoveryOriginalDst}
}

// capturingInbound takes what is for a service's own port, by mTLS.
func capturingInbound(service string, port uint16, allowed ...string) *resource.Listener {
	l := public(service, "0.0.0.0", 15006, true, allowed...)
	l.Name, l.UseOriginalDst = "inbound_listener:0.0.0.0:15006", true
	l.Chains[0].Match.DestinationPort = port
	return l
}

// redirected are programs of a host whose connections the kernel hands to a
// capture port, but those to loopback.
func redirected(h *netio.Host, port uint16) netio.Net {
	return h.As(func(dst netip.AddrPort) (netip.AddrPort, bool) {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), !dst.Addr().IsLoopback()
	})
}

// by fetches over a network.
func by(t *testing.T, n netio.Net, url string) (int, string, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return n.Dial(ctx, network, address)
	}}
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// callee is api on a host of its own, whose application says who called.
func callee(m *mesh, allowed ...string) *process {
	h := m.net.Host("api", "10.0.0.2")
	m.app(h, 8080, func(w http.ResponseWriter, r *http.Request) {
		xfcc := r.Header.Get("X-Forwarded-Client-Cert")
		_, uri, _ := strings.Cut(xfcc, "URI=")
		_, _ = fmt.Fprintf(w, "%s from %s", r.URL.Path, uri)
	})
	p := m.sidecar(h, nil, "api")
	l := public("api", "10.0.0.2", 21000, true, allowed...)
	l.Chains[0].HTTP.XFCC = resource.SanitizeSetXFCC
	p.feeds["api"].up(testpki.Trust(m.pki), l, local(8080))
	synctest.Wait()
	return p
}

func toAPI(m *mesh, f *feed, port uint16) {
	f.up(testpki.Trust(m.pki), capturing(port, map[string]string{"240.0.0.1": "api"}), originalDestination(),
		routeAll("api", "api"), upstream("api", true), at("api", "10.0.0.2:21000"))
	synctest.Wait()
}

// plan asks the admin API.
func (p *process) planned(t *testing.T) intercept.Plan {
	t.Helper()
	var out intercept.Plan
	status, body := p.get("/redirect")
	if err := json.Unmarshal([]byte(body), &out); status != 200 || err != nil {
		t.Fatalf("%d %s %v", status, body, err)
	}
	return out
}

// Several workloads have one capture port in their configuration, and each gets
// its own, by which its calls are told from the others'; a restart changes
// nothing, whoever comes first.
func TestCapturePortsAreTheirOwn(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		callee(m, "web", "orders", "stock")
		h := m.net.Host("shop", "10.0.0.1")
		dir := t.TempDir()
		services := []string{"web", "orders", "stock"}
		start := func(order ...string) *process {
			p := m.sidecar(h, func(c *Config, d *Deps) { c.DataDir = dir }, services...)
			for _, s := range order {
				toAPI(m, p.feeds[s], 15001)
			}
			return p
		}
		ports := map[string]uint16{"web": 15001, "orders": 15101, "stock": 15102}
		check := func(p *process) {
			t.Helper()
			for s, port := range ports {
				status, body, err := by(t, redirected(h, port), "http://240.0.0.1/"+s)
				if want := "/" + s + " from spiffe://mesh.test/ns/default/dc/dc1/svc/" + s; status != 200 || body != want || err != nil {
					t.Errorf("%s by %d: %d %q %v", s, port, status, body, err)
				}
			}
			for _, x := range p.planned(t).Proxies {
				if x.Error == "" || x.OutboundPort != 0 {
					t.Errorf("three workloads that nothing tells apart: %+v", x)
				}
			}
		}
		p := start("web", "orders", "stock")
		check(p)
		p.stop()
		<-p.done
		p = start("stock", "orders", "web")
		check(p)
		p.stop()
		<-p.done
		if found, _ := filepath.Glob(dir + "/capture-ports.json*"); len(found) != 1 {
			t.Errorf("%s", found)
		}
	})
}

// A port that was asked for by number is kept, and two workloads that ask for one
// are told of each other.
func TestCapturePortsThatCollide(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		callee(m, "web", "orders")
		h := m.net.Host("shop", "10.0.0.1")
		p := m.sidecar(h, nil, "web", "orders", "stock")
		toAPI(m, p.feeds["web"], 15010)
		toAPI(m, p.feeds["orders"], 15010)
		toAPI(m, p.feeds["stock"], 15101)
		if _, body, err := by(t, redirected(h, 15010), "http://240.0.0.1/x"); !strings.HasSuffix(body, "svc/web") {
			t.Errorf("%q %v", body, err)
		}
		_, body := p.get("/ready")
		if want := "the workload web-sidecar-proxy of this process has 127.0.0.1:15010"; !strings.Contains(body, "orders-sidecar-proxy: ") || !strings.Contains(body, want) {
			t.Errorf("not said: %s", body)
		}
	})
}

// One inbound capture socket serves all: the destination says whose a connection
// is, and what is nobody's is reset.
func TestInboundIsShared(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h, peer := m.net.Host("shop", "10.0.0.1", "10.0.0.9"), m.net.Host("peer", "10.0.0.2")
		for _, port := range []int{8080, 8081} {
			m.app(h, port, func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, "%d", port) })
		}
		p := m.sidecar(h, nil, "web", "orders", "stock")
		p.feeds["web"].up(testpki.Trust(m.pki), capturingInbound("web", 8080, "peer"), local(8080))
		p.feeds["orders"].up(testpki.Trust(m.pki), capturingInbound("orders", 8081, "peer"), local(8081))
		p.feeds["stock"].up(testpki.Trust(m.pki), capturing(15001, nil), originalDestination())
		synctest.Wait()
		captured := peer.As(func(dst netip.AddrPort) (netip.AddrPort, bool) {
			return netip.AddrPortFrom(dst.Addr(), 15006), dst.Port() != 15006
		})
		direct := m.sidecar(peer, func(_ *Config, d *Deps) { d.Net = captured }, "peer")
		tls := func(name, service string) *resource.Cluster {
			c := upstream(service, true)
			c.Name, c.Discovery = name, resource.DiscoveryOriginalDst
			return c
		}
		// The peer dials instances at their own addresses, and knows whom it expects.
		l := capturing(15001, map[string]string{"10.0.0.1": "web"})
		l.Chains[0].Match.DestinationPort = 8080
		second := l.Chains[0]
		second.Name, second.HTTP, second.Match.DestinationPort = "orders", manager("orders"), 8081
		wrong := l.Chains[0]
		wrong.Name, wrong.Match.DestinationPrefixes = "wrong", []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")}
		wrong.HTTP, wrong.Match.DestinationPort = manager("wrong"), 8081
		l.Chains = append(l.Chains, second, wrong)
		direct.feeds["peer"].up(testpki.Trust(m.pki), l, originalDestination(), tls("web", "web"), routeAll("web", "web"),
			tls("orders", "orders"), routeAll("orders", "orders"), tls("wrong", "web"), routeAll("wrong", "wrong"))
		synctest.Wait()
		app := redirected(peer, 15001)
		for url, want := range map[string]string{"http://10.0.0.1:8080/": "200 8080", "http://10.0.0.1:8081/": "200 8081", "http://10.0.0.9:8081/": "503 "} {
			status, body, err := by(t, app, url)
			if got := fmt.Sprintf("%d %s", status, body); !strings.HasPrefix(got, want) || err != nil {
				t.Errorf("%s: %s %v, want %s", url, got, err, want)
			}
		}
		// Plaintext, a port that is nobody's, and the capture port itself.
		for _, url := range []string{"http://10.0.0.1:8080/", "http://10.0.0.1:9999/", "http://10.0.0.1:15006/"} {
			if status, body, err := by(t, captured, url); err == nil {
				t.Errorf("%s: %d %s", url, status, body)
			}
			time.Sleep(2 * time.Second) // the log has one line a second
		}
		for _, want := range []string{"no service of this host has the port of 10.0.0.1:9999", "made to the capture port 0.0.0.0:15006 itself"} {
			if !strings.Contains(m.log.String(), want) {
				t.Errorf("the log does not say %q", want)
			}
		}
		plan := p.planned(t)
		var ports []uint16
		for _, x := range plan.Proxies {
			ports = append(ports, x.ServicePorts...)
		}
		slices.Sort(ports)
		if plan.InboundPort != 15006 || !slices.Equal(ports, []uint16{8080, 8081}) {
			t.Errorf("%+v", plan)
		}
		// The one that goes takes its port with it.
		p.feeds["orders"].down(resource.TypeListener, "inbound_listener:0.0.0.0:15006")
		synctest.Wait()
		if _, _, err := by(t, app, "http://10.0.0.1:8081/"); err != nil {
			t.Error(err) // an answer of the peer's own sidecar: 503
		}
		if status, body, _ := by(t, app, "http://10.0.0.1:8080/"); status != 200 {
			t.Errorf("%d %s", status, body)
		}
	})
}

// What is outside of the mesh is passed on as it is, plainly; a service calls
// itself by its virtual address as anybody else does.
func TestPassthroughAndSelf(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h, out := m.net.Host("web", "10.0.0.1"), m.net.Host("outside", "192.0.2.1")
		m.app(h, 8080, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "myself") })
		ln, err := out.Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, "outside %s %q", r.Host, r.Header.Get("X-Request-Id"))
		})}
		m.wg.Go(func() { _ = srv.Serve(onlyConns{ln}) })
		defer srv.Close()
		p := m.sidecar(h, nil, "web")
		p.feeds["web"].up(testpki.Trust(m.pki), public("web", "10.0.0.1", 21000, true, "web"), local(8080),
			capturing(15001, map[string]string{"240.0.0.1": "web"}), originalDestination(), routeAll("web", "web"), upstream("web", true), at("web", "10.0.0.1:21000"))
		synctest.Wait()
		app := redirected(h, 15001)
		if status, body, err := by(t, app, "http://192.0.2.1/"); status != 200 || body != `outside 192.0.2.1 ""` || err != nil {
			t.Errorf("%d %q %v", status, body, err)
		}
		if status, body, err := by(t, app, "http://240.0.0.1/"); status != 200 || body != "myself" || err != nil {
			t.Errorf("%d %q %v", status, body, err)
		}
		if _, _, err := by(t, h.As(to15001), "http://127.0.0.9:15001/"); err == nil {
			t.Error("a call of the capture port came through")
		}
		if _, body := p.get("/stats/prometheus"); !strings.Contains(body, `parrel_errors_total{code="capture_loop",flag="NR"} 1`) {
			t.Error("the loop is not counted")
		}
		if _, body := p.get("/clusters"); !strings.Contains(body, "original-destination::192.0.2.1:80::rq_total::1") {
			t.Errorf("/clusters: %s", body)
		}
		plan := p.planned(t)
		if len(plan.Proxies) != 1 || plan.Proxies[0].OutboundPort != 15001 || plan.Proxies[0].UID != nil || plan.Proxies[0].Error != "" || !plan.Proxies[0].Ready ||
			!slices.Equal(plan.PublicPorts, []uint16{21000}) {
			t.Errorf("%+v", plan)
		}
	})
}

func to15001(netip.AddrPort) (netip.AddrPort, bool) {
	return netip.MustParseAddrPort("127.0.0.1:15001"), true
}

// node is an agent whose registrations are followed.
type node struct {
	agent
	lists chan []LocalService
}

func (n *node) Follow(ctx context.Context, f func([]LocalService)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l := <-n.lists:
			n.mu.Lock()
			n.services = map[string]LocalService{}
			for _, s := range l {
				n.services[s.ID] = s
			}
			n.mu.Unlock()
			f(l)
		}
	}
}

func (n *node) registered(l ...LocalService) {
	n.lists <- l
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func service(name string, port int, meta ...string) LocalService {
	s := LocalService{ID: name + "-1", Name: name, Address: "10.0.0.1", Port: port, Meta: map[string]string{}}
	for i := 0; i+1 < len(meta); i += 2 {
		s.Meta[meta[i]] = meta[i+1]
	}
	return s
}

// Services come and go while the process runs: each gets its workload, and takes
// it with it; who is told by nothing, or by the same as another, is not captured.
func TestAllLocal(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		callee(m, "web", "orders")
		h := m.net.Host("shop", "10.0.0.1")
		n := &node{agent: agent{services: map[string]LocalService{}, host: h, maintained: map[string]bool{}}, lists: make(chan []LocalService)}
		var mu sync.Mutex
		feeds := map[string]*feed{}
		tokens := map[string]string{}
		get := func(s string) *feed { mu.Lock(); defer mu.Unlock(); return feeds[s] }
		p := m.sidecar(h, func(c *Config, d *Deps) {
			c.AllLocal, c.DataDir = &AllLocal{TokenDir: "/tokens", Transparent: true}, t.TempDir()
			d.Registrar = n
			d.LookupUser = func(name string) (*user.User, error) {
				if name != "orders" {
					return nil, user.UnknownUserError(name)
				}
				return &user.User{Uid: "1002"}, nil
			}
			d.Source = func(w Workload, h client.Handler) (Source, error) {
				mu.Lock()
				defer mu.Unlock()
				feeds[w.Service], tokens[w.Service] = &feed{h: h, subs: map[resource.Type][]string{}}, w.TokenFile
				return feeds[w.Service], nil
			}
		})
		if status, body := p.get("/ready"); status != 503 || !strings.Contains(body, "which services are registered") {
			t.Errorf("%d %s", status, body)
		}
		n.registered()
		if status, body := p.get("/ready"); status != 200 {
			t.Errorf("nothing is registered: %d %s", status, body)
		}
		web, orders := service("web", 8080, MetaUID, "1001"), service("orders", 8081, MetaUser, "orders")
		stranger := service("consul-exporter", 9107)
		n.registered(web, stranger)
		toAPI(m, get("web"), 15001)
		n.registered(web, stranger, orders)
		toAPI(m, get("orders"), 15001)
		if len(feeds) != 2 || tokens["web"] != "/tokens/web" {
			t.Errorf("%v %v", feeds, tokens)
		}
		for s, port := range map[string]uint16{"web": 15001, "orders": 15101} {
			if _, body, err := by(t, redirected(h, port), "http://240.0.0.1/"); !strings.HasSuffix(body, "svc/"+s) {
				t.Errorf("%s: %q %v", s, body, err)
			}
		}
		got := map[string]string{}
		read := func() {
			clear(got)
			for _, x := range p.planned(t).Proxies {
				who := "nobody"
				if x.UID != nil {
					who = fmt.Sprint(*x.UID)
				} else if x.Cgroup != "" {
					who = x.Cgroup
				}
				got[x.ProxyID] = fmt.Sprintf("%s %d %s", who, x.OutboundPort, x.Error)
			}
		}
		expect := func(id, want string) {
			t.Helper()
			if read(); !strings.Contains(got[id], want) {
				t.Errorf("%s is %q, want %q", id, got[id], want)
			}
		}
		expect("web-1-sidecar-proxy", "1001 15001 ")
		expect("orders-1-sidecar-proxy", "1002 15101 ")
		if !strings.Contains(strings.Join(n.calls, "\n"), "register web-1-sidecar-proxy for web-1 at 10.0.0.1:21000, open") {
			t.Errorf("%q", n.calls)
		}
		proxied := func(s LocalService) LocalService {
			s.Proxy = &LocalProxy{ID: s.ID + "-sidecar-proxy", Name: s.Name + "-sidecar-proxy", Address: "10.0.0.1", Port: 21000}
			return s
		}
		// Meta changes while the workload goes on.
		for _, tt := range []struct{ meta, value, want string }{
			{MetaUID, "1002", "nobody 0 uid 1002 is said to be that of several services (orders-1-sidecar-proxy, web-1-sidecar-proxy)"},
			{MetaUID, "web", "nobody 0 the service web-1 has parrel-uid=\"web\" in its Meta, which is no user id"},
			{MetaUser, "nobody-such", "nobody 0 the service web-1 has parrel-user=\"nobody-such\" in its Meta, and this host has no such user"},
			{MetaCgroup, "/../..", "nobody 0 the service web-1 has parrel-cgroup=\"/../..\" in its Meta, which is no control group"},
			{MetaCgroup, "/system.slice/web.service", "system.slice/web.service 15001 "},
		} {
			w := proxied(service("web", 8080, tt.meta, tt.value))
			n.registered(w, orders)
			expect("web-1-sidecar-proxy", tt.want)
		}
		both := proxied(service("web", 8080, MetaUID, "1001", MetaCgroup, "x"))
		n.registered(both, orders)
		expect("web-1-sidecar-proxy", "more than one of parrel-uid, parrel-user and parrel-cgroup")
		n.registered(proxied(service("web", 8080)), orders)
		expect("web-1-sidecar-proxy", "nobody 0 the service has none of parrel-uid")
		// A short absence changes nothing; a long one ends the workload and closes its
		// ports, and its return gives it the same.
		before := get("web")
		n.registered(orders)
		n.registered(web, orders)
		if get("web") != before {
			t.Error("a short absence began anew")
		}
		n.registered(orders)
		time.Sleep(goneFor + 2*time.Second)
		synctest.Wait()
		if read(); len(got) != 1 {
			t.Errorf("%v", got)
		}
		if _, err := h.Dial(t.Context(), "tcp", "127.0.0.1:15001"); err == nil {
			t.Error("the capture port of a service that is gone is open")
		}
		if !strings.Contains(strings.Join(n.calls, "\n"), "deregister web-1-sidecar-proxy") {
			t.Errorf("%q", n.calls)
		}
		if _, body, err := by(t, redirected(h, 15101), "http://240.0.0.1/"); !strings.HasSuffix(body, "svc/orders") {
			t.Errorf("%q %v", body, err)
		}
		n.registered(web, orders)
		if get("web") == before {
			t.Error("it did not begin anew")
		}
		toAPI(m, get("web"), 15001)
		expect("web-1-sidecar-proxy", "1001 15001 ")
		if status, body := p.get("/ready"); status != 200 {
			t.Errorf("%d %s", status, body)
		}
	})
}

// A workload that cannot go on is tried again, and the others are not disturbed.
func TestAllLocalTriesAgain(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		h := m.net.Host("shop", "10.0.0.1")
		n := &node{agent: agent{services: map[string]LocalService{}, host: h, maintained: map[string]bool{}}, lists: make(chan []LocalService)}
		tries := 0
		p := m.sidecar(h, func(c *Config, d *Deps) {
			c.AllLocal, c.DataDir = &AllLocal{}, t.TempDir()
			d.Registrar = n
			d.Identity = func(w Workload) (Identity, error) {
				if w.Service == "bad" {
					if tries++; tries < 3 {
						return nil, errors.New("no token")
					}
				}
				return identity{m.pki.Identity(w.Service)}, nil
			}
			d.Source = func(w Workload, h client.Handler) (Source, error) {
				return &feed{h: h, subs: map[resource.Type][]string{}}, nil
			}
		})
		n.registered(service("bad", 1, MetaUID, "1"), service("good", 2, MetaUID, "2"))
		if _, body := p.get("/ready"); !strings.Contains(body, "bad-1-sidecar-proxy: it ended: ") || !strings.Contains(body, "no token") || strings.Contains(body, "good-1-sidecar-proxy: it ended") {
			t.Error(body)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, body := p.get("/ready"); tries != 3 || strings.Contains(body, "it ended") {
			t.Errorf("%d tries: %s", tries, body)
		}
	})
}
