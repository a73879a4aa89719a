package remote_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const webID = "spiffe://mesh.test/ns/default/dc/dc1/svc/web"

// plane is a control plane in memory that can be stopped and started.
type plane struct {
	t   *testing.T
	ca  *ca.CA
	own *ca.ControlPlane

	mu  sync.Mutex
	l   *bufconn.Listener
	srv *grpc.Server
	end chan struct{}
}

func newPlane(t *testing.T, dir string) *plane {
	t.Helper()
	a, err := ca.Open(dir, ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("mesh.test")})
	if err != nil {
		t.Fatal(err)
	}
	own, err := a.ControlPlaneCert(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, ca: a, own: own}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *plane) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l, p.end = bufconn.Listen(1<<16), make(chan struct{})
	p.srv = grpc.NewServer(grpc.Creds(credentials.NewTLS(remote.ServerTLS(mtls.Params{Identity: p.own}))),
		grpc.UnaryInterceptor(remote.UnaryInterceptor()), grpc.StreamInterceptor(remote.StreamInterceptor()))
	s, err := remote.NewServer(remote.ServerConfig{Issuer: p.ca, Tokens: p.ca, Trust: func() *x509bundle.Set { return p.own.Current().Bundles }})
	if err != nil {
		p.t.Fatal(err)
	}
	remote.RegisterServer(p.srv, s)
	p.srv.RegisterService(secretService(), struct{}{})
	go func(srv *grpc.Server, l *bufconn.Listener, end chan struct{}) {
		defer close(end)
		_ = srv.Serve(l)
	}(p.srv, p.l, p.end)
}

func (p *plane) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.srv != nil {
		p.srv.Stop()
		<-p.end
		p.srv, p.l = nil, nil
	}
}

func (p *plane) dial(ctx context.Context, _ string) (net.Conn, error) {
	p.mu.Lock()
	l := p.l
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	return l.DialContext(ctx)
}

func (p *plane) token(services ...string) string {
	p.t.Helper()
	text, err := p.ca.Mint(ca.TokenSpec{Services: services, Datacenter: "dc1"})
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// secretService stands for everything that is not Sign.
func secretService() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: "test.Secret", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: func(_ any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
			in := new(emptypb.Empty)
			if err := dec(in); err != nil {
				return nil, err
			}
			return ic(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Secret/Get"}, func(ctx context.Context, _ any) (any, error) {
				if id, ok := remote.PeerFromContext(ctx); !ok || id.String() != webID {
					return nil, status.Errorf(codes.Internal, "peer is %v, %t", id, ok)
				}
				return &emptypb.Empty{}, nil
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			if id, ok := remote.PeerFromContext(ss.Context()); !ok || id.String() != webID {
				return status.Errorf(codes.Internal, "peer is %v, %t", id, ok)
			}
			return ss.SendMsg(&emptypb.Empty{})
		}}},
	}
}

// run runs src until the test ends and returns how to hear its end.
func run(t *testing.T, src *remote.Source) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error { once.Do(func() { cancel(); err = <-done }); return err }
	t.Cleanup(func() { _ = stop() })
	return stop
}

func source(t *testing.T, p *plane, dir string, edit ...func(*remote.Config)) *remote.Source {
	t.Helper()
	c := remote.Config{Address: "cp:15012", DataDir: dir, Service: "web", ID: "web-1-sidecar-proxy", Dial: p.dial, Rand: func() float64 { return 0 }}
	for _, e := range edit {
		e(&c)
	}
	s, err := remote.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func withToken(text string) func(*remote.Config) { return func(c *remote.Config) { c.Token = text } }

// bubble runs f in virtual time, at a date that certificates know.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// TestJoinRestartRenew is the life of an identity: joined by token, found again
// after a restart with everything else dead, renewed at half of its life.
func TestJoinRestartRenew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, dir := newPlane(t, t.TempDir()), t.TempDir()
		s := source(t, p, dir, withToken(p.token("web")))
		if err := s.Current().Err; err == nil {
			t.Error("an identity before joining")
		}
		stop := run(t, s)
		synctest.Wait()
		first := s.Current().SVID
		if first == nil || first.ID.String() != webID {
			t.Fatalf("%+v, %v", first, s.Current().Err)
		}
		own := filepath.Join(dir, "web-1-sidecar-proxy")
		for path, want := range map[string]os.FileMode{own: 0o700, filepath.Join(own, "identity.json"): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		}
		stop()
		p.stop()

		s = source(t, p, dir) // no token any more
		if got := s.Current(); got.Err != nil || !got.SVID.Certificates[0].Equal(first.Certificates[0]) || got.Bundles.Len() != 1 {
			t.Fatalf("after a restart with the control plane dead: %v", got.Err)
		}
		run(t, s)
		time.Sleep(37 * time.Hour) // past half: renewals fail, the identity serves
		if got := s.Current(); got.Err != nil || !got.SVID.Certificates[0].Equal(first.Certificates[0]) {
			t.Fatalf("while renewals fail: %v", got.Err)
		}
		changed := s.Changed()
		p.start()
		time.Sleep(2 * time.Minute)
		second := s.Current().SVID
		if second.Certificates[0].Equal(first.Certificates[0]) || second.ID != first.ID {
			t.Fatal("not renewed when the control plane came back")
		}
		select {
		case <-changed:
		default:
			t.Error("Changed did not say so")
		}
		s.Renew()
		synctest.Wait()
		if s.Current().SVID.Certificates[0].Equal(second.Certificates[0]) {
			t.Error("Renew did nothing")
		}
	})
}

// TestExpires: an identity that was not renewed in time is unusable and says
// why; without a token there is no way back, and Run says that.
func TestExpires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, dir := newPlane(t, t.TempDir()), t.TempDir()
		s := source(t, p, dir, withToken(p.token("web")))
		stop := run(t, s)
		synctest.Wait()
		p.stop()
		time.Sleep(80 * time.Hour)
		stop()
		_, err := mtls.Usable(s.Current(), time.Now())
		if err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("used after its end: %v", err)
		}
		s = source(t, p, dir)
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no token is given; make one with `parrel token create --service web`") {
			t.Errorf("expired, no token, control plane down: %v", err)
		}
	})
}

func TestFirstContactRefusals(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(p *plane, c *remote.Config)
		want  string
		fatal bool
	}{
		{"wrong pin", func(p *plane, c *remote.Config) { c.Token = newPlane(p.t, p.t.TempDir()).token("web") },
			"is refused: it is not the control plane that made the token: the token pins root key ", true},
		{"garbage", func(p *plane, c *remote.Config) { c.Token = "hello" }, `not a join token: it does not begin with "parrel1."`, true},
		{"other service", func(p *plane, c *remote.Config) { c.Token = p.token("api") }, `the token is for service api and not for "web"`, true},
		{"expired", func(p *plane, c *remote.Config) { c.Token = p.token("web"); time.Sleep(time.Hour) }, "the token expired at 2000-01-01T00:30:00Z; make a new one", true},
		{"used", func(p *plane, c *remote.Config) {
			c.Token = p.token("web")
			s := source(p.t, p, p.t.TempDir(), withToken(c.Token))
			stop := run(p.t, s)
			synctest.Wait()
			stop()
			if s.Current().SVID == nil {
				p.t.Fatal(s.Current().Err)
			}
		}, "it was already used for service \"web\"", true},
		{"changed", func(p *plane, c *remote.Config) {
			_, signed, mac, _ := mtls.ParseToken(p.token("web"))
			_ = signed
			mac[0] ^= 1
			tok, _, _, _ := mtls.ParseToken(p.token("web"))
			c.Token, _ = mtls.FormatToken(tok, func([]byte) []byte { return mac })
		}, "it was not made by this control plane's CA, or was changed since", true},
		{"unreachable", func(p *plane, c *remote.Config) { c.Token = p.token("web"); p.stop() },
			"the control plane at cp:15012 cannot be reached: connection refused; check that it runs", false},
		{"no token", func(*plane, *remote.Config) {}, `service "web" has not joined yet, and no token is given`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPlane(t, t.TempDir())
				s := source(t, p, t.TempDir(), func(conf *remote.Config) { c.edit(p, conf) })
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				err := s.Run(ctx)
				if _, fatal := errors.AsType[*remote.FatalError](err); fatal != c.fatal {
					t.Errorf("Run returned %v", err)
				}
				if got := s.Current(); got.SVID != nil || got.Err == nil || !strings.Contains(got.Err.Error(), c.want) {
					t.Errorf("got  %v\nwant %s", got.Err, c.want)
				}
			})
		})
	}
}

// TestImpostor: a server with the pinned root in its chain, but not signed by
// it, or signed as somebody else, is not the control plane.
func TestImpostor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		p := newPlane(t, dir)
		good := source(t, p, t.TempDir(), withToken(p.token("web")))
		stop := run(t, good)
		synctest.Wait()
		stop()
		evil := newPlane(t, t.TempDir())
		svid := *evil.own.Current().SVID
		roots, _ := p.ca.Roots(t.Context())
		svid.Certificates = append(svid.Certificates[:1:1], roots...)
		workload := *good.Current().SVID // a real workload that plays control plane
		workload.Certificates = append(workload.Certificates[:1:1], roots...)
		for want, fake := range map[string]*mtls.Snapshot{
			"unknown_authority": {SVID: &svid, Bundles: evil.own.Current().Bundles},
			"unexpected_id":     {SVID: &workload, Bundles: evil.own.Current().Bundles},
		} {
			l := bufconn.Listen(1 << 16)
			srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(remote.ServerTLS(mtls.Params{Identity: mtls.NewCell(fake)}))))
			done := make(chan struct{})
			go func() { defer close(done); _ = srv.Serve(l) }()
			s := source(t, p, t.TempDir(), withToken(p.token("web")), func(c *remote.Config) {
				c.Dial = func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
			})
			stop := run(t, s)
			synctest.Wait()
			if got := s.Current(); got.SVID != nil || got.Err == nil || !strings.Contains(got.Err.Error(), want) {
				t.Errorf("%v, want %s", got.Err, want)
			}
			stop()
			srv.Stop()
			<-done
		}
	})
}

// TestOnlySignIsOpen: without a certificate there is one call; with one, the
// identity of its own and no other (ID6).
func TestOnlySignIsOpen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t, t.TempDir())
		s := source(t, p, t.TempDir(), withToken(p.token("web")))
		run(t, s)
		synctest.Wait()
		call := func(cfg *tls.Config) (unary, stream error) {
			conn, err := grpc.NewClient("passthrough:///cp", grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithContextDialer(p.dial))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			unary = conn.Invoke(ctx, "/test.Secret/Get", &emptypb.Empty{}, &emptypb.Empty{})
			st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test.Secret/Watch")
			if err != nil {
				return unary, err
			}
			_ = st.SendMsg(&emptypb.Empty{})
			_ = st.CloseSend()
			return unary, st.RecvMsg(&emptypb.Empty{})
		}
		u, st := call(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // the attacker's side
		if status.Code(u) != codes.Unauthenticated || status.Code(st) != codes.Unauthenticated {
			t.Errorf("without a certificate: %v, %v", u, st)
		}
		u, st = call(s.TLS())
		if u != nil || st != nil {
			t.Errorf("with a certificate: %v, %v", u, st)
		}
	})
}

// TestRenewOnlyOneself: an SVID renews itself; it does not become another
// service, nor does the control plane's own certificate renew itself (ID6).
func TestRenewOnlyOneself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t, t.TempDir())
		s := source(t, p, t.TempDir(), withToken(p.token("web")))
		run(t, s)
		synctest.Wait()
		sign := func(cfg *tls.Config, service string) (string, error) {
			conn, err := grpc.NewClient("passthrough:///cp", grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithContextDialer(p.dial))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "api"}}, key)
			if err != nil {
				t.Fatal(err)
			}
			in, err := structpb.NewStruct(map[string]any{"csr": base64.StdEncoding.EncodeToString(der), "service": service})
			if err != nil {
				t.Fatal(err)
			}
			out := new(structpb.Struct)
			err = conn.Invoke(t.Context(), remote.SignMethod, in, out)
			return out.GetFields()["spiffe_id"].GetStringValue(), err
		}
		if id, err := sign(s.TLS(), "web"); err != nil || id != webID {
			t.Errorf("itself: %q, %v", id, err)
		}
		if id, err := sign(s.TLS(), ""); err != nil || id != webID {
			t.Errorf("unnamed: %q, %v", id, err)
		}
		if _, err := sign(s.TLS(), "api"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("another: %v", err)
		}
		own := mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: p.own, ALPN: []string{"h2"}}})
		if _, err := sign(own, ""); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the control plane's: %v", err)
		}
		bare := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // the attacker's side
		if _, err := sign(bare, "web"); status.Code(err) != codes.Unauthenticated {
			t.Errorf("nobody: %v", err)
		}
	})
}

// TestLostAnswer: the token was used and the answer did not arrive; the
// workload asks again, after a restart too, and gets its identity.
func TestLostAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		caDir, dir := t.TempDir(), t.TempDir()
		p := newPlane(t, caDir)
		text := p.token("web")
		deaf := true // the first connections end when the control plane answers
		cut := func(c *remote.Config) {
			c.Dial = func(ctx context.Context, a string) (net.Conn, error) {
				conn, err := p.dial(ctx, a)
				if err == nil && deaf {
					conn = &cutConn{Conn: conn, left: 3000}
				}
				return conn, err
			}
		}
		s := source(t, p, dir, withToken(text), cut)
		stop := run(t, s)
		synctest.Wait()
		stop()
		if used, _ := os.ReadDir(filepath.Join(caDir, "used")); len(used) != 1 || s.Current().SVID != nil {
			t.Fatalf("the answer was not lost after the token's use: %d used, %v", len(used), s.Current().Err)
		}
		deaf = false
		s = source(t, p, dir, withToken(text), cut)
		run(t, s)
		synctest.Wait()
		if s.Current().SVID == nil {
			t.Error(s.Current().Err)
		}
		other := source(t, p, t.TempDir(), withToken(text))
		run(t, other)
		synctest.Wait()
		if other.Current().SVID != nil {
			t.Error("the token worked for another key")
		}
	})
}

// cutConn ends after so many bytes have been read.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		c.Conn.Close()
		return 0, errors.New("connection reset")
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// TestSeveralWorkloads: one process, one data directory, two identities.
func TestSeveralWorkloads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, dir := newPlane(t, t.TempDir()), t.TempDir()
		text := p.token("web", "api")
		web := source(t, p, dir, withToken(text))
		api := source(t, p, dir, withToken(text), func(c *remote.Config) { c.Service, c.ID = "api", "../api" })
		run(t, web)
		run(t, api)
		synctest.Wait()
		if w, a := web.Current(), api.Current(); w.SVID == nil || a.SVID == nil || w.SVID.ID.String() != webID || !strings.HasSuffix(a.SVID.ID.Path(), "/svc/api") {
			t.Fatalf("%v, %v", w.Err, a.Err)
		}
		entries, _ := os.ReadDir(dir)
		if len(entries) != 2 || entries[0].Name() != "%2E.%2Fapi" {
			t.Errorf("%v", entries)
		}
	})
}

// TestDamagedFile: a damaged file is not used; with a token the workload joins
// again, without one it says what to do.
func TestDamagedFile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, dir := newPlane(t, t.TempDir()), t.TempDir()
		s := source(t, p, dir, withToken(p.token("web")))
		stop := run(t, s)
		synctest.Wait()
		stop()
		path := filepath.Join(dir, "web-1-sidecar-proxy", "identity.json")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		spoilt := strings.Replace(string(data), `"service":"web"`, `"service":"wec"`, 1)
		for name, text := range map[string]string{"edited": spoilt, "cut": string(data[:len(data)/2]), "empty": ""} {
			os.WriteFile(path, []byte(text), 0o600)
			_, err := remote.New(remote.Config{Address: "cp", DataDir: dir, Service: "web", ID: "web-1-sidecar-proxy"})
			if err == nil || !strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("%s: %v", name, err)
			}
		}
		s = source(t, p, dir, withToken(p.token("web")))
		run(t, s)
		synctest.Wait()
		if s.Current().SVID == nil {
			t.Errorf("not joined again: %v", s.Current().Err)
		}
	})
}

// TestRootRotation: the identity stays good through a rotation of the root,
// and the new root reaches it.
func TestRootRotation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPlane(t, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = p.own.Run(ctx) }()
		defer func() { cancel(); <-done }()
		early := p.token("web") // minted before, used after
		s := source(t, p, t.TempDir(), withToken(p.token("web")))
		run(t, s)
		synctest.Wait()
		old, _ := p.ca.RootKeyHash()
		if err := p.ca.Rotate(ctx, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Minute)
		if now, _ := p.ca.RootKeyHash(); now == old {
			t.Fatal("the new root is not active")
		}
		late := source(t, p, t.TempDir(), withToken(early))
		run(t, late)
		s.Renew()
		synctest.Wait()
		for _, x := range []*remote.Source{s, late} {
			if x.Current().SVID == nil {
				t.Fatal(x.Current().Err)
			}
			b, _ := x.Current().Bundles.Get(spiffeid.RequireTrustDomainFromString("mesh.test"))
			if len(b.X509Authorities()) != 2 {
				t.Errorf("%d roots, want 2", len(b.X509Authorities()))
			}
		}
	})
}

// TestFiles: the three files always belong together and follow the source.
func TestFiles(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, out := newPlane(t, t.TempDir()), filepath.Join(t.TempDir(), "out")
		s := source(t, p, t.TempDir(), withToken(p.token("web")))
		f, err := remote.NewFiles(out, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = f.Run(ctx) }()
		defer func() { cancel(); <-done }()
		run(t, s)
		for range 3 {
			synctest.Wait()
			got, err := mtls.NewStaticFiles(mtls.StaticConfig{Cert: filepath.Join(out, "cert.pem"), Key: filepath.Join(out, "key.pem"), CA: filepath.Join(out, "ca.pem")})
			if err != nil {
				t.Fatal(err)
			}
			if !got.Current().SVID.Certificates[0].Equal(s.Current().SVID.Certificates[0]) {
				t.Error("the files are old")
			}
			for _, n := range []string{"cert.pem", "key.pem", "ca.pem"} {
				if info, err := os.Stat(filepath.Join(out, n)); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", n, info, err)
				}
			}
			s.Renew()
		}
	})
}
