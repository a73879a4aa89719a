package mtls

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reason is why a handshake was refused. The list is closed: the values are
// metric labels and words of the logs, and never change their meaning.
type Reason string

// What can be wrong with the peer.
const (
	NoCertificate    Reason = "no_certificate"     // the peer presented none
	Malformed        Reason = "malformed"          // not a certificate that can be parsed
	NoURISAN         Reason = "no_uri_san"         // no SPIFFE id in it
	SeveralURISANs   Reason = "several_uri_sans"   // more than one URI SAN
	BadSPIFFEID      Reason = "bad_spiffe_id"      // the URI SAN is not a workload's SPIFFE id (characters, NUL, length, path)
	CALeaf           Reason = "ca_leaf"            // the leaf is, or may sign as, a CA
	BadKeyUsage      Reason = "bad_key_usage"      // key usage or extended key usage forbids this role
	NotYetValid      Reason = "not_yet_valid"      // valid only later, by our clock
	Expired          Reason = "expired"            // no longer valid, by our clock
	WrongTrustDomain Reason = "wrong_trust_domain" // no bundle for the id's trust domain
	UnknownAuthority Reason = "unknown_authority"  // not signed by a root of that trust domain
	BadChain         Reason = "bad_chain"          // name constraints, path length, critical extensions, …
	UnexpectedID     Reason = "unexpected_id"      // a good certificate of somebody else
)

// What can be wrong with our own side.
const (
	OwnMissing     Reason = "own_certificate_missing"
	OwnExpired     Reason = "own_certificate_expired"
	OwnNotYetValid Reason = "own_certificate_not_yet_valid"
	NoTrust        Reason = "no_trust_bundle"
)

// Reasons returns the closed list, in a fixed order.
func Reasons() []Reason {
	return []Reason{NoCertificate, Malformed, NoURISAN, SeveralURISANs, BadSPIFFEID, CALeaf, BadKeyUsage, NotYetValid, Expired,
		WrongTrustDomain, UnknownAuthority, BadChain, UnexpectedID, OwnMissing, OwnExpired, OwnNotYetValid, NoTrust}
}

// PeerError says why a peer's certificate was refused.
type PeerError struct {
	Reason Reason
	ID     spiffeid.ID // the peer's, where it could be read
	Detail string      // one sentence without the reason's name
	Err    error       // the cause, may be nil
}

func (e *PeerError) Error() string {
	who := "peer"
	if !e.ID.IsZero() {
		who = "peer " + e.ID.String()
	}
	return fmt.Sprintf("mtls: %s refused (%s): %s", who, e.Reason, e.Detail)
}

func (e *PeerError) Unwrap() error { return e.Err }

// IdentityError says why our own side cannot take part in a handshake.
type IdentityError struct {
	Reason Reason
	Detail string
	Err    error
}

func (e *IdentityError) Error() string {
	return fmt.Sprintf("mtls: own identity unusable (%s): %s", e.Reason, e.Detail)
}

func (e *IdentityError) Unwrap() error { return e.Err }

// ReasonOf finds the reason in an error of a handshake. False: the handshake
// failed of something else, or the other side refused (a TLS alert, which says
// little: its reason stands in the log of that side).
func ReasonOf(err error) (Reason, bool) {
	if pe, ok := errors.AsType[*PeerError](err); ok {
		return pe.Reason, true
	}
	if ie, ok := errors.AsType[*IdentityError](err); ok {
		return ie.Reason, true
	}
	if err == nil {
		return "", false
	}
	// crypto/tls parses certificates before it asks us, and its error is text
	// only: crypto/x509 refuses a URI SAN with control characters there.
	switch text := err.Error(); {
	case strings.Contains(text, "x509: cannot parse URI"), strings.Contains(text, "x509: SAN uniformResourceIdentifier is malformed"):
		return BadSPIFFEID, true
	case strings.Contains(text, "tls: failed to parse c"): // "certificate from server", "client certificate"
		return Malformed, true
	}
	return "", false
}
