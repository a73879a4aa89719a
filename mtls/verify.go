package mtls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Limits of the SPIFFE-ID specification, section 2.3.
const (
	maxIDLength          = 2048
	maxTrustDomainLength = 255
)

// Role is what a peer is in the connection that is being checked.
type Role uint8

const (
	Server Role = iota // the peer is the server: we are the client
	Client
)

func (r Role) eku() x509.ExtKeyUsage {
	if r == Client {
		return x509.ExtKeyUsageClientAuth
	}
	return x509.ExtKeyUsageServerAuth
}

func (r Role) String() string {
	if r == Client {
		return "client"
	}
	return "server"
}

// Verification is what [Verify] needs besides the certificates.
type Verification struct {
	Role  Role
	Trust *x509bundle.Set // a bundle of the zero trust domain vouches for every trust domain
	Now   time.Time
	// Authorise says whether this identity is one that we want to talk to; nil
	// accepts whoever Trust vouches for.
	Authorise func(spiffeid.ID) error
}

// Verify checks a peer's chain, leaf first, by the X.509-SVID specification
// (sections 2 to 5) and RFC 5280 section 6, and says whose it is. Every doubt
// refuses. The error is a [*PeerError], or an [*IdentityError] when there is
// nothing to verify against.
func Verify(chain []*x509.Certificate, v Verification) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, &PeerError{Reason: NoCertificate, Detail: fmt.Sprintf("the %s presented no certificate", v.Role)}
	}
	leaf := chain[0]
	id, perr := leafID(leaf)
	if perr != nil {
		return spiffeid.ID{}, perr
	}
	if perr := leafUsage(leaf, v); perr != nil {
		perr.ID = id
		return id, perr
	}
	if v.Trust == nil || v.Trust.Len() == 0 {
		return id, &IdentityError{Reason: NoTrust, Detail: fmt.Sprintf("there is no trust bundle to check %s against", id)}
	}
	source := anyDomain{v.Trust}
	if _, err := source.GetX509BundleForTrustDomain(id.TrustDomain()); err != nil {
		return id, &PeerError{Reason: WrongTrustDomain, ID: id, Err: err,
			Detail: fmt.Sprintf("no bundle for trust domain %q (known: %s)", id.TrustDomain(), domains(v.Trust))}
	}
	_, chains, err := x509svid.Verify(chain, source, x509svid.WithTime(v.Now))
	if err != nil {
		return id, chainError(id, chain, v.Now, err)
	}
	if !slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return usableChain(c, v.Role.eku()) }) {
		return id, &PeerError{Reason: BadKeyUsage, ID: id,
			Detail: fmt.Sprintf("the extended key usage of an issuing certificate does not allow a %s", v.Role)}
	}
	if v.Authorise != nil {
		if err := v.Authorise(id); err != nil {
			return id, &PeerError{Reason: UnexpectedID, ID: id, Err: err, Detail: err.Error()}
		}
	}
	return id, nil
}

// leafID reads the SPIFFE id of a leaf.
func leafID(leaf *x509.Certificate) (spiffeid.ID, *PeerError) {
	switch len(leaf.URIs) {
	case 0:
		return spiffeid.ID{}, &PeerError{Reason: NoURISAN, Detail: "its certificate has no URI SAN, so it is no SPIFFE identity"}
	case 1:
	default:
		return spiffeid.ID{}, &PeerError{Reason: SeveralURISANs, Detail: fmt.Sprintf("its certificate has %d URI SANs, where exactly one is allowed", len(leaf.URIs))}
	}
	text := leaf.URIs[0].String()
	id, err := spiffeid.FromString(text)
	switch {
	case err != nil:
	case id.Path() == "":
		err = errors.New("it names a trust domain and no workload")
	case len(text) > maxIDLength:
		err = fmt.Errorf("it has %d bytes, at most %d are allowed", len(text), maxIDLength)
	case len(id.TrustDomain().Name()) > maxTrustDomainLength:
		err = fmt.Errorf("its trust domain has %d bytes, at most %d are allowed", len(id.TrustDomain().Name()), maxTrustDomainLength)
	default:
		return id, nil
	}
	return spiffeid.ID{}, &PeerError{Reason: BadSPIFFEID, Err: err, Detail: fmt.Sprintf("the URI SAN %.200q is not a workload's SPIFFE id: %v", text, err)}
}

// leafUsage checks what the leaf says of itself, before anything is verified.
func leafUsage(leaf *x509.Certificate, v Verification) *PeerError {
	switch {
	case leaf.IsCA:
		return &PeerError{Reason: CALeaf, Detail: "its leaf certificate has the CA flag"}
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return &PeerError{Reason: CALeaf, Detail: "its leaf certificate may sign certificates or revocation lists"}
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return &PeerError{Reason: BadKeyUsage, Detail: "its leaf certificate has no key usage digitalSignature"}
	case !allows(leaf, v.Role.eku()):
		return &PeerError{Reason: BadKeyUsage, Detail: fmt.Sprintf("the extended key usage of its leaf certificate does not allow a %s", v.Role)}
	}
	return validity(leaf, "its certificate", v.Now)
}

func validity(c *x509.Certificate, what string, now time.Time) *PeerError {
	switch {
	case now.Before(c.NotBefore):
		return &PeerError{Reason: NotYetValid, Detail: fmt.Sprintf("%s is valid only from %s, and it is %s: compare the clocks of both hosts", what, stamp(c.NotBefore), stamp(now))}
	case now.After(c.NotAfter):
		return &PeerError{Reason: Expired, Detail: fmt.Sprintf("%s expired at %s, and it is %s", what, stamp(c.NotAfter), stamp(now))}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// allows says whether a certificate's extended key usage, where it has one,
// allows the role (RFC 5280 section 4.2.1.12).
func allows(c *x509.Certificate, want x509.ExtKeyUsage) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, want) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// usableChain: usages nest, as every TLS library has it; the root is trusted
// by configuration and not by what it says.
func usableChain(c []*x509.Certificate, want x509.ExtKeyUsage) bool {
	return !slices.ContainsFunc(c[:max(len(c)-1, 1)], func(x *x509.Certificate) bool { return !allows(x, want) })
}

// chainError turns a refusal of crypto/x509 into a reason.
func chainError(id spiffeid.ID, chain []*x509.Certificate, now time.Time, err error) *PeerError {
	for _, c := range chain[1:] {
		if perr := validity(c, fmt.Sprintf("the intermediate certificate %q of its chain", c.Subject), now); perr != nil {
			perr.ID, perr.Err = id, err
			return perr
		}
	}
	if inv, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		r := BadChain
		if inv.Reason == x509.Expired { // the leaf and the intermediates are good, so it is the root
			r = Expired
		}
		return &PeerError{Reason: r, ID: id, Err: err, Detail: inv.Error()}
	}
	if un, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return &PeerError{Reason: UnknownAuthority, ID: id, Err: err,
			Detail: fmt.Sprintf("its certificate is not signed by a root of trust domain %q (%v)", id.TrustDomain(), un)}
	}
	return &PeerError{Reason: BadChain, ID: id, Err: err, Detail: err.Error()}
}

// anyDomain answers for an unknown trust domain with the bundle that has none.
type anyDomain struct{ *x509bundle.Set }

func (a anyDomain) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b, ok := a.Get(td); ok {
		return b, nil
	}
	if b, ok := a.Get(spiffeid.TrustDomain{}); ok {
		return b, nil
	}
	return nil, fmt.Errorf("mtls: no bundle for trust domain %q", td)
}

func domains(s *x509bundle.Set) string {
	var out string
	for i, b := range s.Bundles() {
		if i > 0 {
			out += ", "
		}
		out += b.TrustDomain().Name()
	}
	return out
}
