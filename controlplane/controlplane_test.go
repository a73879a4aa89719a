package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/parrel-mesh/parrel/controlplane/internal/meshtest"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// feed is a catalogue that a test writes by hand.
type feed chan discovery.Delta

func (f feed) Run(ctx context.Context, sink discovery.Sink) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-f:
			sink.Apply(d)
		}
	}
}

// world is a control plane that runs in a bubble.
type world struct {
	t    *testing.T
	ca   *ca.CA
	cp   *ControlPlane
	feed feed
	net  *bufconn.Listener
	stop func()
	done chan error
}

func start(t *testing.T) *world {
	t.Helper()
	authority, err := ca.Open(t.TempDir(), ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(meshtest.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	identity, err := authority.ControlPlaneCert(t.Context(), []string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: authority, feed: make(feed), net: bufconn.Listen(1 << 20), done: make(chan error, 1)}
	w.cp, err = New(Config{Name: "cp-1", Datacenter: meshtest.Datacenter}, Deps{
		Source: w.feed, Issuer: authority, Identity: identity, Tokens: authority, XDS: w.net,
		Background: []func(context.Context) error{identity.Run},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- w.cp.Run(ctx) }()
	return w
}

// end stops the control plane and requires it to end well.
func (w *world) end() {
	w.t.Helper()
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("Run: %v", err)
	}
}

// join obtains an identity for a service, by token, and keeps it fresh until
// the returned function is called.
func (w *world) join(service string) (*remote.Source, func()) {
	w.t.Helper()
	token, err := w.ca.Mint(ca.TokenSpec{Services: []string{service}, Datacenter: meshtest.Datacenter})
	if err != nil {
		w.t.Fatal(err)
	}
	src, err := remote.New(remote.Config{
		Address: "cp:15012", DataDir: w.t.TempDir(), Service: service, Token: token,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) { return w.net.DialContext(ctx) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := src.Run(ctx); !errors.Is(err, context.Canceled) {
			w.t.Errorf("identity of %s: %v", service, err)
		}
	}()
	for src.Current().SVID == nil {
		<-src.Changed()
	}
	return src, func() { cancel(); <-done }
}

// sidecar is the receiving end of one stream.
type sidecar struct {
	*client.Client
	mu   sync.Mutex
	have map[resource.Type]map[string]resource.Resource
	stop func()
}

func (s *sidecar) Apply(u client.Update) {
	s.mu.Lock()
	if s.have[u.Type] == nil {
		s.have[u.Type] = map[string]resource.Resource{}
	}
	for _, r := range u.Upserted {
		s.have[u.Type][r.ResourceName()] = r
	}
	for _, n := range u.Removed {
		delete(s.have[u.Type], n)
	}
	s.mu.Unlock()
	if u.Type == resource.TypeCluster {
		var eds []string
		for _, r := range u.Upserted {
			if c := r.(*resource.Cluster); c.Discovery == resource.DiscoveryEDS {
				eds = append(eds, c.EDSResource())
			}
		}
		if len(eds) > 0 {
			s.Subscribe(resource.TypeEndpoints, eds)
		}
	}
}

func (s *sidecar) names(t resource.Type) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for n := range s.have[t] {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func get[R resource.Resource](s *sidecar, t resource.Type, name string) R {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _ := s.have[t][name].(R)
	return r
}

// connect opens a stream as node, with an identity (nil: none).
func (w *world) connect(node string, id mtls.Source) *sidecar {
	w.t.Helper()
	s := &sidecar{have: map[resource.Type]map[string]resource.Resource{}}
	var err error
	s.Client, err = client.New(client.Config{
		Node: client.Node{ID: node}, Handler: s,
		Dial: func(context.Context) (*grpc.ClientConn, error) {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} // a client without identity; it verifies nothing and must get nothing
			if id != nil {
				cfg = mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{
					Identity: id, ALPN: []string{"h2"},
					Authorise: mtls.Expect(mtls.ControlPlaneID(spiffeid.RequireTrustDomainFromString(meshtest.TrustDomain))),
				}})
			}
			return grpc.NewClient("passthrough:///cp", append(client.DialOptions(),
				grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.net.DialContext(ctx) }))...)
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s.Subscribe(resource.TypeSecret, []string{resource.SecretTrust})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	s.stop = func() { cancel(); <-done }
	return s
}

// settle lets everything that is under way arrive.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

// TestControlPlane tells the life of a sidecar: join, first configuration,
// changes, a registration that vanishes, the end.
func TestControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		defer w.end()
		w.feed <- meshtest.MustRead(meshtest.Shop)
		<-w.cp.Ready()

		id, leave := w.join("api")
		defer leave()
		s := w.connect("api-sidecar-proxy", id)
		defer s.stop()
		settle()
		if got, want := s.names(resource.TypeListener), []string{"orders:127.0.0.1:9002", "public_listener", "users:127.0.0.1:9003"}; !slices.Equal(got, want) {
			t.Fatalf("listeners are %v, want %v; %+v", got, want, s.Status())
		}
		if got := s.names(resource.TypeSecret); !slices.Equal(got, []string{resource.SecretTrust}) {
			t.Errorf("secrets are %v: trust only", got)
		}
		secret := get[*resource.Secret](s, resource.TypeSecret, resource.SecretTrust)
		if len(secret.KeyPEM) > 0 || !strings.Contains(string(secret.TrustPEM[0].RootsPEM), "BEGIN CERTIFICATE") {
			t.Errorf("the trust secret holds %+v", secret)
		}
		users := "users.default.dc1.internal.parrel.test"
		if e := get[*resource.Endpoints](s, resource.TypeEndpoints, users); len(e.Localities[0].Endpoints) != 2 {
			t.Errorf("endpoints of users: %+v", e)
		}

		t.Log("the intention for api turns to deny")
		d := meshtest.MustRead(strings.Replace(meshtest.Shop, "{name: web, action: allow}", "{name: web, action: deny}", 1))
		w.feed <- discovery.Delta{Entries: d.Entries}
		settle()
		l := get[*resource.Listener](s, resource.TypeListener, "public_listener")
		if n := len(l.Chains[0].HTTP.Filters[0].RBAC.Rules.Policies); n != 0 {
			t.Errorf("after the denial %d policies allow", n)
		}

		t.Log("an instance of users goes")
		svc := d.Services[w.cp.Mesh().Local("users")]
		less := *svc
		less.Proxies = svc.Proxies[:1]
		w.feed <- discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{less.Name: &less}}
		settle()
		if e := get[*resource.Endpoints](s, resource.TypeEndpoints, users); len(e.Localities[0].Endpoints) != 1 {
			t.Errorf("endpoints of users: %+v", e)
		}

		t.Log("the registration of api vanishes: what is open keeps what it has")
		w.feed <- discovery.Delta{Services: map[discovery.ServiceName]*discovery.Service{w.cp.Mesh().Local("api"): nil}}
		settle()
		if got := s.names(resource.TypeListener); len(got) != 3 {
			t.Errorf("listeners are %v", got)
		}
		if !s.Status().Connected {
			t.Error("the stream ended")
		}
	})
}

// TestIdentity: a stream speaks for a proxy of its own service, or not at all.
func TestIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		defer w.end()
		w.feed <- meshtest.MustRead(meshtest.Shop)
		<-w.cp.Ready()
		id, leave := w.join("api")
		defer leave()
		for _, c := range []struct {
			node string
			id   mtls.Source
			want string
		}{
			{"web-sidecar-proxy", id, "is a proxy of service web"},
			{"users-1-sidecar-proxy", id, "is a proxy of service users"},
			{"nobody", id, "is not registered"},
			{"api", id, "is not registered"},
			{"api-sidecar-proxy", nil, "certificate"},
		} {
			s := w.connect(c.node, c.id)
			time.Sleep(6 * time.Second)
			synctest.Wait()
			st := s.Status()
			if st.Connected || !strings.Contains(st.LastError, c.want) {
				t.Errorf("node %s: connected=%v, error %q, want %q", c.node, st.Connected, st.LastError, c.want)
			}
			for _, typ := range resource.Types() {
				if got := s.names(typ); len(got) > 0 {
					t.Errorf("node %s was given %s %v", c.node, typ.Short(), got)
				}
			}
			s.stop()
		}
	})
}

// TestRegistrationAfterStream: who opens the stream a moment before the
// catalogue knows it is waited for, and not refused.
func TestRegistrationAfterStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		defer w.end()
		w.feed <- discovery.Delta{Full: true}
		<-w.cp.Ready()
		id, leave := w.join("api")
		defer leave()
		s := w.connect("api-sidecar-proxy", id)
		defer s.stop()
		time.Sleep(2 * time.Second)
		if s.Status().Connected {
			t.Fatal("connected without a registration")
		}
		w.feed <- meshtest.MustRead(meshtest.Shop)
		settle()
		if st := s.Status(); !st.Connected || st.Attempts != 0 {
			t.Errorf("connected=%v after %d failed attempts: %s", st.Connected, st.Attempts, st.LastError)
		}
	})
}

// TestAPI: the API answers from the running control plane.
func TestAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		defer w.end()
		get := func(path string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = "localhost:15080"
			rec := httptest.NewRecorder()
			w.cp.API().ServeHTTP(rec, r)
			return rec
		}
		if c := get("/healthz").Code; c != http.StatusServiceUnavailable {
			t.Errorf("healthz before the catalogue: %d", c)
		}
		w.feed <- meshtest.MustRead(meshtest.Shop)
		<-w.cp.Ready()
		if c := get("/healthz").Code; c != http.StatusOK {
			t.Errorf("healthz: %d", c)
		}
		if body := get("/v1/explain?from=web&to=api&path=/x").Body.String(); !strings.Contains(body, `"verdict": "allowed"`) {
			t.Errorf("explain: %s", body)
		}
	})
}

// broken is a catalogue that no retry can mend.
type broken struct{}

func (broken) Run(context.Context, discovery.Sink) error { return errors.New("no such directory") }

// TestBrokenSource: an error that no retry can mend ends Run, and everything
// with it.
func TestBrokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.end()
		again, err := New(Config{Datacenter: meshtest.Datacenter}, Deps{
			Source: broken{}, Issuer: w.ca, Identity: w.cp.deps.Identity, Tokens: w.ca, XDS: bufconn.Listen(1 << 10), API: bufconn.Listen(1 << 10),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Run(t.Context()); err == nil || err.Error() != "controlplane: catalogue: no such directory" {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestDrain: the end of the control plane does not wait for streams, and takes
// nothing from who held one.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.feed <- meshtest.MustRead(meshtest.Shop)
		<-w.cp.Ready()
		id, leave := w.join("api")
		defer leave()
		s := w.connect("api-sidecar-proxy", id)
		defer s.stop()
		settle()
		before := time.Now()
		w.end()
		if d := time.Since(before); d > 2*time.Second {
			t.Errorf("the end took %s", d)
		}
		settle()
		if st := s.Status(); st.Connected || len(s.names(resource.TypeListener)) != 3 {
			t.Errorf("connected=%v, listeners %v", st.Connected, s.names(resource.TypeListener))
		}
	})
}

// TestNew: what is missing is said.
func TestNew(t *testing.T) {
	if _, err := New(Config{}, Deps{}); err == nil || !strings.Contains(err.Error(), "--datacenter") {
		t.Errorf("without a datacenter: %v", err)
	}
	if _, err := New(Config{Datacenter: "dc1"}, Deps{}); err == nil || !strings.Contains(err.Error(), "source") {
		t.Errorf("without dependencies: %v", err)
	}
}
