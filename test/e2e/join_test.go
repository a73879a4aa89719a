package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/test/consultest"
	"github.com/parrel-mesh/parrel/test/e2e/rig"
)

// joiner runs `parrel svid --once`, each time in a folder of its own.
type joiner struct {
	*rig.Rig
	xds string
}

// join returns the SPIFFE id that came out, or the command's sentence.
func (j joiner) join(token, service string) (id, refusal string) {
	j.T.Helper()
	out, err := os.MkdirTemp(j.Dir, "svid-")
	if err != nil {
		j.T.Fatal(err)
	}
	_, errs, err := j.Command("svid", "--once", "--service", service, "--token", token, "--grpc-addr", j.xds, "--out", out)
	data, readErr := os.ReadFile(filepath.Join(out, "cert.pem"))
	if err != nil {
		if readErr == nil {
			j.T.Errorf("svid failed (%v) and wrote a certificate", err)
		}
		return "", errs
	}
	block, _ := pem.Decode(data)
	if block == nil {
		j.T.Fatalf("cert.pem: %v", readErr)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		j.T.Fatal(err)
	}
	return c.URIs[0].String(), ""
}

// refused wants the command to end with a sentence that says this.
func (j joiner) refused(token, service string, says ...string) {
	j.T.Helper()
	id, text := j.join(token, service)
	if id != "" {
		j.T.Errorf("it got the identity %s", id)
		return
	}
	sentence(j.T, text, says...)
	if token != "" && strings.Contains(text, token) {
		j.T.Errorf("the token is in the log: %s", text)
	}
}

// sentence wants the last line of a command's complaint to say this, in one
// line.
func sentence(t testing.TB, text string, says ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last := lines[len(lines)-1]
	for _, s := range says {
		if !strings.Contains(last, s) {
			t.Errorf("said %q, want %q in it", last, s)
		}
	}
}

// TestJoin goes through what a token gives and what it does not.
func TestJoin(t *testing.T) {
	t.Parallel()
	r := rig.New(t, parrel)
	agent := consultest.Dev(t, consultest.Options{})
	cp := r.ControlPlane(agent.HTTP)
	j := joiner{r, cp.XDS}

	r.Step("a token gives the identity that it names, once")
	token := r.Token("web")
	if id, text := j.join(token, "web"); id != principal("web") {
		t.Fatalf("got %q: %s", id, text)
	}
	j.refused(token, "web", "already used", "parrel token create --service web")

	r.Step("also after the control plane was killed, and at another one with the same CA")
	cp.Kill()
	cp.Start()
	cp.Ready()
	j.refused(token, "web", "already used")
	second := r.ControlPlane(agent.HTTP)
	joiner{r, second.XDS}.refused(token, "web", "already used")
	var keys []string
	agent.Get("/v1/kv/parrel/tokens/?keys", &keys)
	if len(keys) != 1 {
		t.Errorf("Consul's KV holds %q", keys)
	}

	r.Step("a token for two services lets each join once")
	both := r.Token("web", "orders")
	for _, s := range []string{"orders", "web"} {
		if id, text := j.join(both, s); id != principal(s) {
			t.Fatalf("%s got %q: %s", s, id, text)
		}
		j.refused(both, s, "already used")
	}

	r.Step("a token for web gives nothing of api, whoever asks")
	j.refused(r.Token("web"), "api", "for service web", `"api"`)
	if err := sign(t, r, cp.XDS, r.Token("web"), "api"); err == nil || !strings.Contains(err.Error(), `for web and not for "api"`) {
		t.Errorf("the control plane itself says: %v", err)
	}
	forged := forge(t, r.Token("web"))
	j.refused(forged, "api", "not made by this control plane's CA")

	r.Step("an expired token")
	short := r.TokenOf(r.CADir(), []string{"web"}, "--ttl", "1s")
	parsed, _, _, err := mtls.ParseToken(short)
	if err != nil {
		t.Fatal(err)
	}
	r.Eventually(5*time.Second, "the token's expiry", func() error {
		if !time.Now().After(parsed.Expiry()) {
			return context.DeadlineExceeded
		}
		return nil
	})
	j.refused(short, "web", "expired", "parrel token create")
	if err := sign(t, r, cp.XDS, short, "web"); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the control plane itself says: %v", err)
	}

	r.Step("what is no token")
	j.refused("hello", "web", "not a join token", "parrel token create")
	j.refused(token[:len(token)/2], "web", "not a join token")
	j.refused("", "web", "no token is given")

	r.Step("a token of another CA: the control plane is not the one that made it")
	other := r.TokenOf(filepath.Join(r.Dir, "other-ca"), []string{"web"})
	j.refused(other, "web", "not the control plane that made the token", "the token pins root key")

	r.Step("a sidecar with a bad token ends with the same sentence")
	p := r.Process("sidecar-bad", "sidecar", "--sidecar-for", "web-1=web", "--grpc-addr", cp.XDS, "--token", token,
		"--data-dir", filepath.Join(r.Dir, "data-bad"), "--admin-bind", "")
	p.Start()
	if !p.Wait(soon) {
		t.Fatal("it goes on")
	}
	if p.ExitCode() == 0 {
		t.Error("it ended with exit code 0")
	}
	sentence(t, p.Log(), "already used")
}

// sign makes the Sign call by hand, for what our own client refuses before it
// asks.
func sign(t *testing.T, r *rig.Rig, xds, token, service string) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(r.Authority().Cert)
	conn, err := grpc.NewClient("passthrough:///"+xds, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	in, err := structpb.NewStruct(map[string]any{"token": token, "service": service, "csr": base64.StdEncoding.EncodeToString(csr)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	err = conn.Invoke(ctx, remote.SignMethod, in, new(structpb.Struct))
	if err != nil && strings.Contains(err.Error(), "transport") {
		t.Fatalf("the call did not get through: %v", status.Convert(err).Message())
	}
	return err
}

// forge makes a token for api of one for web.
func forge(t *testing.T, token string) string {
	t.Helper()
	parsed, _, mac, err := mtls.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Services = []string{"api"}
	out, err := mtls.FormatToken(parsed, func([]byte) []byte { return mac })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWrongPinSendsNothing: a server that is not the one that made the token
// sees no byte of the token, though it offers TLS and a chain of its own.
func TestWrongPinSendsNothing(t *testing.T) {
	t.Parallel()
	r := rig.New(t, parrel)
	token := r.Token("web")
	foreign := r.Foreign(rig.TrustDomain)
	cert := foreign.Leaf([]string{"spiffe://" + rig.TrustDomain + "/parrel/controlplane"}, nil)
	cert.Certificate = append(cert.Certificate, foreign.Cert.Raw)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var wire, inside bytes.Buffer
	var handshakes []error
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(soon)) // a fresh connection
				rec := &recorder{Conn: c}
				tc := tls.Server(rec, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert})
				err := tc.Handshake()
				b := make([]byte, 4096)
				n, _ := tc.Read(b) // what there is
				mu.Lock()
				defer mu.Unlock()
				handshakes = append(handshakes, err)
				wire.Write(rec.got.Bytes())
				inside.Write(b[:n])
			})
		}
	})
	j := joiner{r, l.Addr().String()}
	j.refused(token, "web", "not the control plane that made the token", l.Addr().String())
	l.Close()
	wg.Wait()
	if len(handshakes) == 0 || wire.Len() == 0 {
		t.Fatal("nobody came: nothing was proved")
	}
	for _, err := range handshakes {
		if err == nil {
			t.Error("the client completed the handshake")
		}
	}
	if inside.Len() > 0 {
		t.Errorf("the server read %q", inside.Bytes())
	}
	if bytes.Contains(wire.Bytes(), []byte(token[:40])) {
		t.Error("the token went over the wire")
	}
}

// recorder keeps what is read.
type recorder struct {
	net.Conn
	got bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.got.Write(b[:n])
	return n, err
}

// TestTokenRace: two control planes that share a CA and a Consul are asked at
// once with the same token: one gives the identity.
func TestTokenRace(t *testing.T) {
	t.Parallel()
	r := rig.New(t, parrel)
	agent := consultest.Dev(t, consultest.Options{})
	planes := []*rig.ControlPlane{r.ControlPlane(agent.HTTP), r.ControlPlane(agent.HTTP)}
	for range 4 {
		token := r.Token("web")
		ids, texts := make([]string, 4), make([]string, 4)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() { ids[i], texts[i] = joiner{r, planes[i%2].XDS}.join(token, "web") })
		}
		wg.Wait()
		won := 0
		for i, id := range ids {
			if id == principal("web") {
				won++
			} else if id == "" {
				sentence(t, texts[i], "already used")
			} else {
				t.Errorf("got %s", id)
			}
		}
		if won != 1 {
			t.Errorf("%d of 4 joined with one token", won)
		}
	}
}

// TestRestartWithoutToken: what is in the data directory is enough, and the
// token file is not looked at.
func TestRestartWithoutToken(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{})
	s := m.apis["api-1"].sidecar
	s.Kill()
	if err := os.Remove(s.Token); err != nil {
		t.Fatal(err)
	}
	m.Step("with the file of the token gone")
	s.Start()
	s.Ready(soon)
	m.Only(soon, m.api, "api-1")
	m.Step("without a word of a token")
	s.Kill()
	var args []string
	for i := 0; i < len(s.Args); i++ {
		if s.Args[i] == "--token-file" {
			i++
			continue
		}
		args = append(args, s.Args[i])
	}
	s.Args = args
	s.Start()
	m.cp.InSync("api-1-sidecar-proxy", "web-1-sidecar-proxy")
	m.Only(soon, m.api, "api-1")
	if n := strings.Count(s.Log(), `"joined"`) + strings.Count(s.Log(), "msg=joined"); n != 1 {
		t.Errorf("the sidecar joined %d times:\n%s", n, s.Log())
	}
	checkPrivate(t, s.DataDir)
}

// checkPrivate wants a directory that only its owner can read.
func checkPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
