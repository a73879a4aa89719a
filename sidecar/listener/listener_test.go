package listener

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/internal/testpki"
	"github.com/parrel-mesh/parrel/sidecar/live"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// records keeps what was recorded.
type records struct {
	mu  sync.Mutex
	all []telemetry.Record
}

func (r *records) Request(*telemetry.Record)    {}
func (r *records) ConnOpened(*telemetry.Record) {}
func (r *records) ConnClosed(x *telemetry.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, *x)
}

func (r *records) take() []telemetry.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.all
	r.all = nil
	return out
}

// locked is a buffer for logs.
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

// bench is one Set on a host of a memory network, and a client host.
type bench struct {
	t      *testing.T
	set    *Set
	live   *live.Index
	rec    *records
	log    *locked
	server *netio.Host
	client *netio.Host
	pki    *testpki.PKI
	trust  *x509bundle.Set
}

// inBubble runs f with a Set that serves, and waits for its end.
func inBubble(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := netio.NewMemory()
		b := &bench{t: t, rec: &records{}, log: &locked{}, live: live.New(live.Config{}),
			server: m.Host("server", "10.0.0.1"), client: m.Host("client", "10.0.0.2"), pki: testpki.New(t, "mesh.test")}
		b.trust = b.pki.Bundles()
		b.set = NewSet(Deps{Net: b.server, Identity: b.pki.Identity("api"), Live: b.live, Record: b.rec,
			Log: slog.New(slog.NewTextHandler(b.log, nil))})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.set.Run(ctx) }()
		f(t, b)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

// echo answers lines; it ends when asked to drain, after the line in hand.
var echo = HandlerFunc(func(_ context.Context, c *Conn) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for r := bufio.NewReader(c); ; {
			s, err := r.ReadString('\n')
			if err != nil {
				return
			}
			lines <- s
		}
	}()
	for {
		select {
		case s, ok := <-lines:
			if !ok {
				return
			}
			_, _ = fmt.Fprintf(c, "%s says %s", c.Peer.Path(), s)
		case <-c.Draining.Done():
			_ = c.Close()
			for range lines {
			}
			return
		}
	}
})

func allow(names ...string) *resource.RBAC {
	r := &resource.RBAC{Rules: &resource.RBACRules{Action: resource.RBACAllow}}
	for _, n := range names {
		r.Rules.Policies = append(r.Rules.Policies, resource.RBACPolicy{Name: "allow " + n, Permissions: []resource.Permission{{Any: true}},
			Principals: []resource.Principal{{Authenticated: &resource.AuthenticatedPrincipal{
				Name: &resource.StringMatch{Kind: resource.StringSuffix, Value: "/svc/" + n}}}}})
	}
	return r
}

// public is an mTLS listener on 10.0.0.1:21000 that lets the named services in.
func (b *bench) public(equal string, allowed ...string) Config {
	fc := resource.FilterChain{Name: "public", TLS: &resource.DownstreamTLS{RequireClientCert: true,
		TLSParams: resource.TLSParams{Certificate: resource.CertSource{SDS: "default"}, Trust: resource.CertSource{SDS: "ROOTCA"}}},
		Network: []resource.NetworkFilter{{Name: "rbac", RBAC: allow(allowed...)}}, TCP: &resource.TCPProxy{Cluster: "local"}}
	l := &resource.Listener{Name: "public_listener", Direction: resource.Inbound, Address: resource.Address{Host: "10.0.0.1", Port: 21000},
		Chains: []resource.FilterChain{fc}, Metadata: resource.Metadata{resource.MetaService: "api"}}
	rbac, err := decide.CompileRBAC(fc.Network[0].RBAC)
	if err != nil {
		b.t.Fatal(err)
	}
	return Config{Resource: l, Chains: map[string]*Chain{"public": {Resource: &l.Chains[0], Handler: echo, Equal: equal,
		Trust: func() *x509bundle.Set { return b.trust }, Authorise: []*decide.RBAC{rbac}}}}
}

// plain is a listener without TLS on 10.0.0.1:port.
func plain(name string, port uint16, h Handler) Config {
	l := &resource.Listener{Name: name, Direction: resource.Outbound, Address: resource.Address{Host: "10.0.0.1", Port: port},
		Chains: []resource.FilterChain{{Name: name, TCP: &resource.TCPProxy{Cluster: "x"}}}}
	return Config{Resource: l, Chains: map[string]*Chain{name: {Resource: &l.Chains[0], Handler: h, Equal: "1"}}}
}

func (b *bench) update(version string, configs ...Config) {
	b.t.Helper()
	for _, err := range b.set.Update(version, configs) {
		b.t.Errorf("Update: %v", err)
	}
}

func (b *bench) dial(port int) netio.Conn {
	b.t.Helper()
	c, err := b.client.Dial(b.t.Context(), "tcp", fmt.Sprintf("10.0.0.1:%d", port))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// as opens mTLS as a service.
func (b *bench) as(service string) (*tls.Conn, error) {
	b.t.Helper()
	c := tls.Client(b.dial(21000), mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{
		Identity: b.pki.Identity(service), Trust: b.pki.Bundles}}))
	return c, c.Handshake()
}

func (b *bench) mustAs(service string) *tls.Conn {
	b.t.Helper()
	c, err := b.as(service)
	if err != nil {
		b.t.Fatalf("as %s: %v", service, err)
	}
	return c
}

func say(c net.Conn, s string) (string, error) {
	if _, err := io.WriteString(c, s+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func (b *bench) talks(c net.Conn, want string) {
	b.t.Helper()
	if got, err := say(c, "hello"); err != nil || got != want {
		b.t.Fatalf("said %q, %v; want %q", got, err, want)
	}
}

// closed fails unless the other side ended the connection within a second.
func (b *bench) closed(c net.Conn) {
	b.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if n, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, context.DeadlineExceeded) || n > 0 {
		b.t.Fatalf("still open: %d bytes, %v", n, err)
	} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		b.t.Fatalf("still open after a second: %v", err)
	}
}

func (b *bench) oneRecord(code telemetry.Code, detail string) {
	b.t.Helper()
	synctest.Wait()
	got := b.rec.take()
	if len(got) != 1 || got[0].Code != code || !strings.Contains(got[0].Detail, detail) {
		b.t.Fatalf("records %+v; want one with %s and %q", got, code, detail)
	}
	if !strings.Contains(b.log.String(), detail) {
		b.t.Fatalf("the log does not say %q:\n%s", detail, b.log.String())
	}
}

func TestDenyEndsOpenConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.public("a", "web", "orders"))
		web, orders := b.mustAs("web"), b.mustAs("orders")
		b.talks(web, "/ns/default/dc/dc1/svc/web says hello")
		b.talks(orders, "/ns/default/dc/dc1/svc/orders says hello")
		if n := b.live.Len(); n != 2 {
			t.Fatalf("%d live connections, want 2", n)
		}

		start := time.Now()
		b.update("2", b.public("a", "orders"))
		counts := b.live.Recheck(t.Context())
		b.closed(web)
		if d := time.Since(start); d >= time.Second {
			t.Errorf("closed after %s, want less than a second", d)
		}
		if counts != (live.Counts{Checked: 2, Kept: 1, Closed: 1}) {
			t.Errorf("recheck: %+v", counts)
		}
		b.talks(orders, "/ns/default/dc/dc1/svc/orders says hello")
		if !strings.Contains(b.log.String(), "open connection ended") || !strings.Contains(b.log.String(), "svc/web") {
			t.Errorf("the log does not name the ended connection:\n%s", b.log.String())
		}
		if _, err := say(b.mustAs("web"), "hello"); err == nil {
			t.Error("a new connection of the denied service was served")
		}
		_ = orders.Close()
		synctest.Wait()
		if n := b.live.Len(); n != 0 {
			t.Errorf("%d live connections at the end", n)
		}
	})
}

func TestTrustWithdrawnEndsOpenConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.public("a", "web"))
		web := b.mustAs("web")
		b.talks(web, "/ns/default/dc/dc1/svc/web says hello")
		b.trust = testpki.New(t, "mesh.test").Bundles()
		b.update("2", b.public("a", "web"))
		b.live.Recheck(t.Context())
		b.closed(web)
		if !strings.Contains(b.log.String(), "no longer trusted") {
			t.Errorf("log:\n%s", b.log.String())
		}
	})
}

func TestRefusals(t *testing.T) {
	other := func(b *bench) *testpki.PKI { return testpki.New(b.t, "other.test") }
	for _, tt := range []struct {
		name   string
		code   telemetry.Code
		detail string
		dial   func(b *bench) error
	}{
		{"denied service", telemetry.RBACDenied, "no policy allows spiffe://mesh.test/ns/default/dc/dc1/svc/users", func(b *bench) error {
			c, err := b.as("users")
			if err == nil {
				_, err = say(c, "hello")
			}
			return err
		}},
		{"plaintext", telemetry.DownstreamTLSFailure, "plaintext", func(b *bench) error {
			_, err := say(b.dial(21000), "GET / HTTP/1.1\r\nHost: api\r\n\r\n")
			return err
		}},
		{"no certificate", telemetry.DownstreamTLSFailure, "no_certificate", func(b *bench) error {
			c := tls.Client(b.dial(21000), &tls.Config{InsecureSkipVerify: true}) // the server is not what is tested here
			_, err := say(c, "hello")
			return err
		}},
		{"other trust domain", telemetry.DownstreamTLSFailure, "wrong_trust_domain", func(b *bench) error {
			o := other(b)
			c := tls.Client(b.dial(21000), mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: o.Identity("web"), Trust: b.pki.Bundles}}))
			_, err := say(c, "hello")
			return err
		}},
		{"silence", telemetry.DownstreamTLSFailure, "not complete after 10s", func(b *bench) error {
			_, err := io.ReadFull(b.dial(21000), make([]byte, 1))
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				b.update("1", b.public("a", "web"))
				if err := tt.dial(b); err == nil {
					t.Error("served")
				}
				b.oneRecord(tt.code, tt.detail)
			})
		})
	}
}

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.public("a", "web"))
		probe := func(n int) {
			for range n {
				if _, err := say(b.dial(21000), "GET / HTTP/1.1\r\nHost: api\r\n\r\n"); err == nil {
					t.Fatal("served")
				}
			}
			synctest.Wait()
		}
		probe(100)
		time.Sleep(refusalWindow + time.Second)
		if n := strings.Count(b.log.String(), "connection refused"); n != refusalLines {
			t.Errorf("%d lines for 100 refusals", n)
		}
		if s := b.log.String(); !strings.Contains(s, "count=90") {
			t.Errorf("the log does not say how many it leaves out:\n%s", s)
		}
		probe(1)
		if n := strings.Count(b.log.String(), "connection refused"); n != refusalLines+1 {
			t.Errorf("%d lines: a refusal after the flood is not in the log", n)
		}
		if n := len(b.rec.take()); n != 101 {
			t.Errorf("%d of 101 refusals were recorded", n)
		}
	})
}

func TestNoIdentityRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.set.Identity = mtls.NewCell(&mtls.Snapshot{Err: errors.New("not joined yet"), Bundles: b.trust})
		b.update("1", b.public("a", "web"))
		if _, err := b.as("web"); err == nil {
			t.Error("served without an identity")
		}
		b.oneRecord(telemetry.NoIdentity, "not joined yet")
	})
}

func TestExpiredIdentityRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.public("a", "web"))
		b.talks(b.mustAs("web"), "/ns/default/dc/dc1/svc/web says hello")
		time.Sleep(25 * time.Hour)
		if _, err := b.as("web"); err == nil {
			t.Error("served with an expired identity")
		}
		b.oneRecord(telemetry.NoIdentity, "own_certificate_expired")
	})
}

func TestUpdateKeepsSocketsThatStay(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", plain("one", 1001, echo), plain("two", 1002, echo))
		one, two := b.dial(1001), b.dial(1002)
		b.talks(one, " says hello")
		b.talks(two, " says hello")

		t.Log("two goes, three comes, one stays")
		b.update("2", plain("one", 1001, echo), plain("three", 1003, echo))
		b.talks(one, " says hello")
		b.closed(two)
		if _, err := b.client.Dial(t.Context(), "tcp", "10.0.0.1:1002"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial a removed listener: %v", err)
		}
		b.talks(b.dial(1003), " says hello")
		b.talks(one, " says hello")

		t.Log("three takes one's place")
		b.update("3", plain("three", 1001, echo))
		b.closed(one)
		b.talks(b.dial(1001), " says hello")
		synctest.Wait() // connections of what was removed are over
		st := b.set.Status()
		if len(st) != 1 || st[0].Name != "three" || st[0].Version != "3" || st[0].Counts.Accepted != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestChangedChainEndsAfterTheWorkInHand(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", b.public("a", "web"))
		web := b.mustAs("web")
		b.talks(web, "/ns/default/dc/dc1/svc/web says hello")
		b.update("2", b.public("b", "web"))
		if c := b.live.Recheck(t.Context()); c.Draining != 1 {
			t.Errorf("recheck %+v, want one draining", c)
		}
		b.closed(web)
		b.talks(b.mustAs("web"), "/ns/default/dc/dc1/svc/web says hello")
	})
}

func TestPortInUseIsTriedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		taken, err := b.server.Listen(t.Context(), "tcp", "10.0.0.1:1001")
		if err != nil {
			t.Fatal(err)
		}
		errs := b.set.Update("1", []Config{plain("one", 1001, echo), plain("two", 1002, echo)})
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "one: cannot listen on 10.0.0.1:1001") {
			t.Fatalf("errors %v", errs)
		}
		b.talks(b.dial(1002), " says hello")
		if err := b.set.Listening(); err == nil {
			t.Error("Listening says that all is well")
		}
		_ = taken.Close()
		time.Sleep(2 * time.Second)
		b.talks(b.dial(1001), " says hello")
		if err := b.set.Listening(); err != nil {
			t.Errorf("Listening: %v", err)
		}
	})
}

func TestHeldPortServesThoseWhoWaited(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		at, err := b.set.Hold(t.Context(), resource.Address{Host: "0.0.0.0", Port: 1001})
		if err != nil || at.Port != 1001 {
			t.Fatalf("%+v, %v", at, err)
		}
		if _, err := b.set.Hold(t.Context(), resource.Address{Host: "0.0.0.0", Port: 1002}); err != nil {
			t.Fatal(err)
		}
		early := b.dial(1002)
		same := plain("two", 1002, echo)
		same.Resource.Address.Host = "0.0.0.0"
		b.update("1", plain("one", 1001, echo), same)
		b.talks(early, " says hello")
		b.talks(b.dial(1001), " says hello")
	})
}

func TestDrain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		slow := HandlerFunc(func(_ context.Context, c *Conn) {
			<-c.Draining.Done()
			time.Sleep(3 * time.Second) // the work in hand
			_, _ = io.WriteString(c, "done\n")
		})
		stuck := HandlerFunc(func(_ context.Context, c *Conn) { _, _ = io.Copy(io.Discard, c) })
		out := plain("out", 1003, echo)
		in, in2 := plain("in", 1001, slow), plain("stuck", 1002, stuck)
		in.Resource.Direction, in2.Resource.Direction = resource.Inbound, resource.Inbound
		b.update("1", in, in2, out)
		busy, hung, other := b.dial(1001), b.dial(1002), b.dial(1003)
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		err := b.set.Drain(ctx, resource.Inbound)
		if err == nil || !strings.Contains(err.Error(), "1 connections were closed") || time.Since(start) != 10*time.Second {
			t.Errorf("Drain: %v after %s", err, time.Since(start))
		}
		if line, err := bufio.NewReader(busy).ReadString('\n'); line != "done\n" {
			t.Errorf("the work in hand: %q, %v", line, err)
		}
		b.closed(hung)
		b.talks(other, " says hello")
		if _, err := b.client.Dial(t.Context(), "tcp", "10.0.0.1:1001"); err == nil {
			t.Error("a drained listener accepts")
		}
	})
}

func TestPanicEndsOneConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.update("1", plain("one", 1001, HandlerFunc(func(_ context.Context, c *Conn) {
			r := bufio.NewReader(c)
			if s, _ := r.ReadString('\n'); s == "die\n" {
				panic("as told")
			}
			_, _ = io.WriteString(c, "fine\n")
		})))
		if _, err := say(b.dial(1001), "die"); err == nil {
			t.Error("answered")
		}
		if got, err := say(b.dial(1001), "live"); got != "fine" {
			t.Errorf("the next connection: %q, %v", got, err)
		}
		if st := b.set.Status(); st[0].Counts.Panics != 1 {
			t.Errorf("counts %+v", st[0].Counts)
		}
	})
}
