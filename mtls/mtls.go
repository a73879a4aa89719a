package mtls

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Snapshot is one consistent set of identities and trust. Read-only.
type Snapshot struct {
	// SVID is the identity to present; nil while there is none.
	SVID *x509svid.SVID
	// Bundles are the roots by trust domain; nil while there are none.
	Bundles *x509bundle.Set
	// Err says why there is no usable identity, in one sentence.
	Err error
}

// Source gives the current identities of one workload. Safe for concurrent use.
type Source interface {
	// Current never blocks and never returns nil.
	Current() *Snapshot
	// Changed is closed at the next change of Current.
	Changed() <-chan struct{}
}

// Request is one certificate signing request that was already authorised.
type Request struct {
	CSR *x509.CertificateRequest // its signature was verified
	ID  spiffeid.ID              // what the certificate will say, whatever the CSR says
	TTL time.Duration            // 0: the issuer's default, 72 h
	DNS []string                 // further SANs; control plane certificates only
	IPs []string
}

// Issued is what an issuer made.
type Issued struct {
	Chain []*x509.Certificate // leaf first, root excluded
	Roots []*x509.Certificate // trust bundle of the leaf's trust domain
}

// Issuer signs SVIDs: the built-in CA, or Consul's.
type Issuer interface {
	TrustDomain() spiffeid.TrustDomain
	// Roots returns the trust bundle, active root first.
	Roots(ctx context.Context) ([]*x509.Certificate, error)
	Sign(ctx context.Context, r Request) (*Issued, error)
}
