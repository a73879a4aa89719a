package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Defaults of [Config].
const (
	DefaultLeafTTL = 72 * time.Hour
	DefaultRootTTL = 10 * 365 * 24 * time.Hour
)

// backdate is how far in the past a certificate begins, for hosts whose clocks
// are behind ours. A leaf that lives shortly begins a tenth of its life ago at
// most: half of its life, when it is renewed, must lie ahead.
const backdate = 5 * time.Minute

// Config of a [CA].
type Config struct {
	TrustDomain spiffeid.TrustDomain // required for a new CA; checked against an existing one unless zero
	LeafTTL     time.Duration        // the default and the most; 0: DefaultLeafTTL
	RootTTL     time.Duration        // of roots made from now on; 0: DefaultRootTTL
	Used        UsedTokens           // nil: the directory "used" below the CA's
	Now         func() time.Time     // nil: time.Now
	Log         *slog.Logger         // nil: discard
}

// CA is the built-in certificate authority. Safe for concurrent use, and for
// several processes on one directory.
type CA struct {
	dir     string // read-only after Open
	leafTTL time.Duration
	rootTTL time.Duration
	used    UsedTokens
	now     func() time.Time
	log     *slog.Logger

	mu    sync.Mutex // guards what follows
	state *state
	stamp fileStamp
}

var _ mtls.Issuer = (*CA)(nil)

// Open loads the CA in dir or, where there is none, makes one. Several
// processes may do so at once: exactly one makes it.
func Open(dir string, c Config) (*CA, error) {
	if dir == "" {
		return nil, errors.New("ca: no directory given: set the CA's directory")
	}
	a := &CA{dir: dir, leafTTL: c.LeafTTL, rootTTL: c.RootTTL, used: c.Used, now: c.Now, log: c.Log}
	if a.leafTTL == 0 {
		a.leafTTL = DefaultLeafTTL
	}
	if a.rootTTL == 0 {
		a.rootTTL = DefaultRootTTL
	}
	if a.leafTTL < 0 || a.rootTTL < a.leafTTL {
		return nil, fmt.Errorf("ca: a leaf lifetime of %s with a root lifetime of %s cannot work: leaves must live for some time, and roots longer", a.leafTTL, a.rootTTL)
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.used == nil {
		a.used = NewUsedDir(filepath.Join(dir, "used"), a.now)
	}
	if err := a.open(c.TrustDomain); err != nil {
		return nil, err
	}
	if td := a.state.td; !c.TrustDomain.IsZero() && td != c.TrustDomain {
		return nil, fmt.Errorf("ca: the CA in %s is of trust domain %q, and %q is configured: use another directory, or configure %q", dir, td, c.TrustDomain, td)
	}
	return a, nil
}

// TrustDomain implements [mtls.Issuer].
func (a *CA) TrustDomain() spiffeid.TrustDomain {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.td
}

// Roots implements [mtls.Issuer]: every root whose leaves may still live, and
// the one that will sign next, the active one first.
func (a *CA) Roots(context.Context) ([]*x509.Certificate, error) {
	st, err := a.current()
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, r := range st.published(a.now()) {
		out = append(out, r.cert)
	}
	return out, nil
}

// Bundles is Roots as a trust bundle.
func (a *CA) Bundles() (*x509bundle.Set, error) {
	roots, err := a.Roots(context.Background())
	if err != nil {
		return nil, err
	}
	return x509bundle.NewSet(x509bundle.FromX509Authorities(a.TrustDomain(), roots)), nil
}

// RootKeyHash is [mtls.KeyHash] of the active root: what a token pins.
func (a *CA) RootKeyHash() (string, error) {
	st, err := a.current()
	if err != nil {
		return "", err
	}
	r, err := st.active(a.now())
	if err != nil {
		return "", err
	}
	return mtls.KeyHash(r.cert), nil
}

// Sign implements [mtls.Issuer]. Of the CSR it takes the public key and
// nothing else.
func (a *CA) Sign(_ context.Context, r mtls.Request) (*mtls.Issued, error) {
	switch {
	case r.CSR == nil:
		return nil, errors.New("ca: no certificate signing request given")
	case mtls.Reserved(r.ID):
		return nil, fmt.Errorf("ca: %s belongs to the control plane and is never issued to a workload", r.ID)
	case len(r.DNS) > 0 || len(r.IPs) > 0:
		return nil, fmt.Errorf("ca: the certificate of workload %s cannot have DNS or IP names: workloads are known by their SPIFFE id", r.ID)
	case r.TTL < 0:
		return nil, fmt.Errorf("ca: a lifetime of %s was asked for %s", r.TTL, r.ID)
	}
	if err := r.CSR.CheckSignature(); err != nil {
		return nil, fmt.Errorf("ca: the signing request for %s is not signed by the key it holds: %w", r.ID, err)
	}
	ttl := a.leafTTL
	if r.TTL > 0 {
		ttl = min(r.TTL, ttl)
	}
	return a.sign(r.ID, r.CSR.PublicKey, ttl, nil, nil)
}

// sign makes a leaf; its checks are those that hold for the control plane too.
func (a *CA) sign(id spiffeid.ID, pub crypto.PublicKey, ttl time.Duration, dns []string, ips []netip.Addr) (*mtls.Issued, error) {
	st, err := a.current()
	if err != nil {
		return nil, err
	}
	if id.IsZero() || id.Path() == "" || id.TrustDomain() != st.td {
		return nil, fmt.Errorf("ca: %q is not an identity of trust domain %q", id, st.td)
	}
	if err := checkKey(pub); err != nil {
		return nil, fmt.Errorf("ca: key of %s: %w", id, err)
	}
	now := a.now()
	root, err := st.active(now)
	if err != nil {
		return nil, err
	}
	end := now.Add(ttl)
	if end.After(root.cert.NotAfter) {
		end = root.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		// An empty subject makes the SAN critical (RFC 5280, 4.2.1.6), as the
		// X.509-SVID specification has it for leaves that are known by it.
		NotBefore:             now.Add(-min(backdate, ttl/10)),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
		DNSNames:              dns,
	}
	for _, ip := range ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root.cert, pub, root.key)
	if err != nil {
		return nil, fmt.Errorf("ca: signing %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("ca: the certificate made for %s cannot be read: %w", id, err)
	}
	out := &mtls.Issued{Chain: []*x509.Certificate{leaf}}
	for _, r := range st.published(now) {
		out.Roots = append(out.Roots, r.cert)
	}
	return out, nil
}

// checkKey refuses keys that nobody should trust today (NIST SP 800-57).
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("curve %s is too weak: use P-256", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA with %d bits is not accepted: use 2048 to 8192, or ECDSA P-256", n)
		}
	default:
		return fmt.Errorf("keys of type %T are not accepted: use ECDSA P-256", pub)
	}
	return nil
}

// serial is 127 random bits, never 0 (RFC 5280, 4.1.2.2).
func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

// newRoot makes a self-signed root for td.
func newRoot(td spiffeid.TrustDomain, key *ecdsa.PrivateKey, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	tmpl := rootTemplate(td, now, ttl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("ca: making the root certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// cross makes a certificate for root's key signed by an older root, so that
// whoever trusts only the older one can verify what the newer one signs.
func cross(root *x509.Certificate, by root, now time.Time) (*x509.Certificate, error) {
	td, err := spiffeid.TrustDomainFromURI(root.URIs[0])
	if err != nil {
		return nil, err
	}
	tmpl := rootTemplate(td, now, by.cert.NotAfter.Sub(now))
	tmpl.Subject = root.Subject
	tmpl.SubjectKeyId = root.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, root.PublicKey, by.key)
	if err != nil {
		return nil, fmt.Errorf("ca: cross-signing the new root: %w", err)
	}
	return x509.ParseCertificate(der)
}

// rootTemplate follows the X.509-SVID specification, section 3.2 and 4: the
// trust domain's id in the SAN, and a name constraint that keeps the root from
// vouching for any other trust domain.
func rootTemplate(td spiffeid.TrustDomain, now time.Time, ttl time.Duration) *x509.Certificate {
	n := serial()
	tmpl := &x509.Certificate{
		SerialNumber: n,
		// The subject differs from root to root, since certificates find their
		// issuer by it.
		Subject:               pkix.Name{Organization: []string{"parrel"}, CommonName: "parrel CA " + n.Text(16)[:8]},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	if constrainable(td.Name()) {
		tmpl.PermittedDNSDomainsCritical = true
		tmpl.PermittedURIDomains = []string{td.Name()}
	}
	return tmpl
}

// constrainable says whether a trust domain's name can stand in a name
// constraint (RFC 5280, 4.2.1.10): a host name, not an IP address.
func constrainable(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if c != '.' && c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && name[0] != '.' && name[0] != '-' && name[len(name)-1] != '.'
}
