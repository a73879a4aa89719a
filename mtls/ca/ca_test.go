package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

// clock is a hand-set clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t *testing.T, dir string, c *clock) *ca.CA {
	t.Helper()
	a, err := ca.Open(dir, ca.Config{TrustDomain: td, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func csr(t *testing.T, key any, edit ...func(*x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	if key == nil {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key = k
	}
	tmpl := &x509.CertificateRequest{}
	for _, e := range edit {
		e(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func id(t *testing.T, service string) spiffeid.ID {
	t.Helper()
	i, err := mtls.ServiceID(td, "default", "dc1", service)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func verify(t *testing.T, a *ca.CA, chain []*x509.Certificate, now time.Time) error {
	t.Helper()
	set, err := a.Bundles()
	if err != nil {
		t.Fatal(err)
	}
	_, err = mtls.Verify(chain, mtls.Verification{Role: mtls.Server, Trust: set, Now: now})
	return err
}

// TestOpen: many control planes start on one empty directory; they are one CA,
// and its files are for its user only.
func TestOpen(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "ca"), newClock()
	hashes := make([]string, 8)
	var wg sync.WaitGroup
	for i := range hashes {
		wg.Go(func() {
			a, err := ca.Open(dir, ca.Config{TrustDomain: td, Now: c.now})
			if err != nil {
				t.Error(err)
				return
			}
			hashes[i], _ = a.RootKeyHash()
		})
	}
	wg.Wait()
	if slices.Sort(hashes); hashes[0] == "" || hashes[0] != hashes[7] {
		t.Fatalf("several CAs came of one directory: %v", hashes)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "ca.json"): 0o600, filepath.Join(dir, "lock"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	a := open(t, dir, c)
	roots, _ := a.Roots(t.Context())
	r := roots[0]
	if len(roots) != 1 || !r.IsCA || len(r.URIs) != 1 || r.URIs[0].String() != "spiffe://mesh.test" || !slices.Equal(r.PermittedURIDomains, []string{"mesh.test"}) {
		t.Errorf("root: %d, CA %t, URIs %v, constraint %v", len(roots), r.IsCA, r.URIs, r.PermittedURIDomains)
	}
}

// TestKilledWhileOpening: whatever a process that was killed left behind, the
// next one has a whole CA, and the same one if it was made.
func TestKilledWhileOpening(t *testing.T) {
	c := newClock()
	whole := t.TempDir()
	hash, _ := open(t, whole, c).RootKeyHash()
	data, err := os.ReadFile(filepath.Join(whole, "ca.json"))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= len(data); n += len(data) / 5 {
		dir := t.TempDir()
		leftover := filepath.Join(dir, ".ca.json.tmp-123")
		os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600)
		os.WriteFile(leftover, data[:n], 0o600)
		got, err := open(t, dir, c).RootKeyHash()
		if err != nil || got == hash {
			t.Errorf("killed after %d bytes, before the rename: %s, %v", n, got, err)
		}
		if _, err := os.Stat(leftover); err == nil {
			t.Error("the leftover stays")
		}
		if again, _ := open(t, dir, c).RootKeyHash(); again != got {
			t.Error("the next start has another CA")
		}
	}
	// What no crash makes is refused, not repaired.
	for n := 0; n < len(data); n += len(data) / 5 {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "ca.json"), data[:n], 0o600)
		if _, err := ca.Open(dir, ca.Config{TrustDomain: td, Now: c.now}); err == nil || !strings.Contains(err.Error(), "ca.json") {
			t.Errorf("a file of %d bytes: %v", n, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	open(t, dir, c)
	if _, err := ca.Open(dir, ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("other.test")}); err == nil || !strings.Contains(err.Error(), `of trust domain "mesh.test", and "other.test" is configured`) {
		t.Errorf("another trust domain: %v", err)
	}
	os.Chmod(filepath.Join(dir, "ca.json"), 0o644)
	if _, err := ca.Open(dir, ca.Config{TrustDomain: td}); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a key that everybody can read: %v", err)
	}
	if _, err := ca.Open(t.TempDir(), ca.Config{}); err == nil || !strings.Contains(err.Error(), "no trust domain") {
		t.Errorf("no trust domain: %v", err)
	}
}

func TestSign(t *testing.T) {
	c := newClock()
	a := open(t, t.TempDir(), c)
	evil := csr(t, nil, func(r *x509.CertificateRequest) {
		u, _ := url.Parse(mtls.ControlPlaneID(td).String())
		r.URIs, r.DNSNames, r.Subject.CommonName = []*url.URL{u}, []string{"bank.test"}, "root"
	})
	got, err := a.Sign(t.Context(), mtls.Request{CSR: evil, ID: id(t, "web")})
	if err != nil {
		t.Fatal(err)
	}
	leaf := got.Chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id(t, "web").String() || leaf.DNSNames != nil || leaf.Subject.CommonName != "" || leaf.IsCA {
		t.Errorf("the CSR was listened to: %v %v %v", leaf.URIs, leaf.DNSNames, leaf.Subject)
	}
	if life := leaf.NotAfter.Sub(c.now()); life != 72*time.Hour || !leaf.NotBefore.Before(c.now()) {
		t.Errorf("valid from %v for %v", leaf.NotBefore, life)
	}
	if err := verify(t, a, got.Chain, c.now()); err != nil {
		t.Error(err)
	}
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	for name, r := range map[string]mtls.Request{
		"control plane":    {CSR: evil, ID: mtls.ControlPlaneID(td)},
		"other reserved":   {CSR: evil, ID: spiffeid.RequireFromPath(td, "/parrel/x")},
		"foreign domain":   {CSR: evil, ID: spiffeid.RequireFromString("spiffe://other.test/ns/default/dc/dc1/svc/web")},
		"the trust domain": {CSR: evil, ID: td.ID()},
		"nobody":           {CSR: evil},
		"DNS":              {CSR: evil, ID: id(t, "web"), DNS: []string{"x"}},
		"no CSR":           {ID: id(t, "web")},
	} {
		if _, err := a.Sign(t.Context(), r); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
	if weak != nil {
		if _, err := a.Sign(t.Context(), mtls.Request{CSR: csr(t, weak), ID: id(t, "web")}); err == nil {
			t.Error("a weak key was signed")
		}
	}
}

// TestRotate walks through a rotation: published, signing, retired; followed
// by a second control plane on the same directory.
func TestRotate(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a, b := open(t, dir, c), open(t, dir, c)
	old, _ := a.RootKeyHash()
	sign := func(x *ca.CA) *mtls.Issued {
		t.Helper()
		got, err := x.Sign(t.Context(), mtls.Request{CSR: csr(t, nil), ID: id(t, "web")})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := sign(a)
	if err := a.Rotate(t.Context(), 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := b.Rotate(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a second rotation: %v", err)
	}
	during := sign(b)
	if h, _ := b.RootKeyHash(); h != old || len(during.Roots) != 2 || mtls.KeyHash(during.Roots[0]) != old {
		t.Fatalf("published: active %s, %d roots", h, len(during.Roots))
	}
	oldOnly := before.Roots
	c.add(24 * time.Hour)
	after := sign(b)
	fresh, _ := a.RootKeyHash()
	if fresh == old || mtls.KeyHash(after.Roots[0]) != fresh || len(after.Roots) != 2 {
		t.Fatal("the new root does not sign")
	}
	for name, chain := range map[string][]*x509.Certificate{"before": before.Chain, "during": during.Chain, "after": after.Chain} {
		if err := verify(t, a, chain, c.now()); err != nil {
			t.Errorf("a leaf of %s: %v", name, err)
		}
	}
	// Who knows the old root only still knows the control plane.
	plane, err := b.ControlPlaneCert(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mtls.Verify(plane.Current().SVID.Certificates, mtls.Verification{Role: mtls.Server, Now: c.now(),
		Trust: x509bundle.NewSet(x509bundle.FromX509Authorities(td, oldOnly))}); err != nil {
		t.Errorf("the control plane by its old root: %v", err)
	}
	c.add(73 * time.Hour)
	if roots, _ := b.Roots(t.Context()); len(roots) != 1 || mtls.KeyHash(roots[0]) != fresh {
		t.Errorf("the old root is still in the bundle (%d)", len(roots))
	}
	if err := a.Rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "ca.json")); strings.Count(string(data), "BEGIN PRIVATE KEY") != 2 {
		t.Error("the retired root's key is still kept")
	}
}

func TestControlPlaneCert(t *testing.T) {
	a := open(t, t.TempDir(), newClock())
	p, err := a.ControlPlaneCert(t.Context(), []string{"cp.test"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	s := p.Current()
	leaf := s.SVID.Certificates[0]
	if leaf.URIs[0].String() != "spiffe://mesh.test/parrel/controlplane" || leaf.VerifyHostname("cp.test") != nil || leaf.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("%v %v %v", leaf.URIs, leaf.DNSNames, leaf.IPAddresses)
	}
	if _, err := mtls.Verify(s.SVID.Certificates, mtls.Verification{Role: mtls.Server, Now: time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC), Trust: s.Bundles}); err != nil {
		t.Error(err)
	}
	hash, _ := a.RootKeyHash()
	if !slices.ContainsFunc(s.SVID.Certificates, func(c *x509.Certificate) bool { return mtls.KeyHash(c) == hash }) {
		t.Error("the chain does not hold the root: a token's pin would find nothing")
	}
}

func tokenReason(err error) ca.TokenReason {
	if te, ok := errors.AsType[*ca.TokenError](err); ok {
		return te.Reason
	}
	return ""
}

func TestTokens(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	a, b := open(t, dir, c), open(t, dir, c)
	mint := func(spec ca.TokenSpec) string {
		t.Helper()
		spec.Datacenter = "dc1"
		text, err := a.Mint(spec)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	redeem := func(x *ca.CA, text, service string, r *x509.CertificateRequest) (spiffeid.ID, error) {
		return x.Redeem(context.Background(), ca.Redemption{Token: text, Service: service, CSR: r})
	}
	text := mint(ca.TokenSpec{Services: []string{"web", "api"}})
	parsed, _, _, err := mtls.ParseToken(text)
	if hash, _ := a.RootKeyHash(); err != nil || !strings.HasPrefix(text, "parrel1.") || !slices.Equal(parsed.Pins, []string{hash}) {
		t.Fatalf("%s: %+v, %v", text, parsed, err)
	}
	first := csr(t, nil)
	if got, err := redeem(a, text, "web", first); err != nil || got != id(t, "web") {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := redeem(b, text, "web", first); err != nil || got != id(t, "web") {
		t.Errorf("the same key after a lost answer: %v, %v", got, err)
	}
	if _, err := redeem(b, text, "web", csr(t, nil)); tokenReason(err) != ca.TokenUsed {
		t.Errorf("another key: %v", err)
	}
	if got, err := redeem(b, text, "api", csr(t, nil)); err != nil || got != id(t, "api") {
		t.Errorf("the other service of the token: %v, %v", got, err)
	}
	for _, s := range []string{"db", "", "web/../db"} {
		if _, err := redeem(a, text, s, csr(t, nil)); tokenReason(err) != ca.TokenWrongService {
			t.Errorf("service %q: %v", s, err)
		}
	}
	flipped := []byte(mint(ca.TokenSpec{Services: []string{"web"}}))
	flipped[len(flipped)-10] ^= 1
	other := open(t, t.TempDir(), c)
	foreign, err := other.Mint(ca.TokenSpec{Services: []string{"web"}, Datacenter: "dc1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := redeem(a, foreign, "web", csr(t, nil)); tokenReason(err) != ca.TokenSignature {
		t.Errorf("of another CA: %v", err)
	}
	if _, err := redeem(a, string(flipped), "web", csr(t, nil)); err == nil {
		t.Error("a changed token was accepted")
	}
	for _, g := range []string{"", "x", "parrel1.", "parrel1.!!!", "parrel2." + text[8:], text[:40], strings.Repeat("a", 20000)} {
		if _, err := redeem(a, g, "web", csr(t, nil)); tokenReason(err) != ca.TokenGarbage && tokenReason(err) != ca.TokenSignature {
			t.Errorf("%.20q: %v", g, err)
		}
	}
	late := mint(ca.TokenSpec{Services: []string{"web"}, TTL: time.Minute})
	c.add(time.Minute)
	if _, err := redeem(a, late, "web", csr(t, nil)); tokenReason(err) != ca.TokenExpired || !strings.Contains(err.Error(), "expired at 2030-05-01T12:01:00Z") {
		t.Errorf("expired: %v", err)
	}
	for name, spec := range map[string]ca.TokenSpec{"no service": {Datacenter: "dc1"}, "no datacenter": {Services: []string{"web"}},
		"too long": {Services: []string{"web"}, Datacenter: "dc1", TTL: 25 * time.Hour}, "bad name": {Services: []string{"a/b"}, Datacenter: "dc1"}} {
		if _, err := a.Mint(spec); err == nil {
			t.Errorf("%s: a token was made", name)
		}
	}
}

// TestTokenRace: of many nodes with one token one joins.
func TestTokenRace(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	a := open(t, dir, c)
	text, err := a.Mint(ca.TokenSpec{Services: []string{"web"}, Datacenter: "dc1"})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	won := 0
	var wg sync.WaitGroup
	for range 16 {
		r, x := csr(t, nil), open(t, dir, c)
		wg.Go(func() {
			_, err := x.Redeem(context.Background(), ca.Redemption{Token: text, CSR: r})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if tokenReason(err) != ca.TokenUsed {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d nodes joined with one token", won)
	}
	// Records of expired tokens go away.
	c.add(3 * time.Hour)
	text, _ = a.Mint(ca.TokenSpec{Services: []string{"web"}, Datacenter: "dc1"})
	if _, err := a.Redeem(t.Context(), ca.Redemption{Token: text, CSR: csr(t, nil)}); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "used")); len(entries) != 1 {
		t.Errorf("%d records, want 1", len(entries))
	}
}
