package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// tokenPrefix starts the textual form of a join token and names its version.
const tokenPrefix = "parrel1."

// maxToken bounds the textual form.
const maxToken = 8 << 10

// macSize is the length of the HMAC-SHA256 that ends a token.
const macSize = sha256.Size

// Token is what a join token says. Whoever holds one can read it; only the CA
// that made it can say whether it is genuine.
type Token struct {
	ID          string   `json:"id"`           // unique; what is recorded as used
	TrustDomain string   `json:"td"`           // of the identities that it gives
	Plane       string   `json:"cp,omitempty"` // trust domain of the control plane, where it differs
	Partition   string   `json:"ap,omitempty"` // "" is "default"
	Namespace   string   `json:"ns,omitempty"` // "" is "default"
	Datacenter  string   `json:"dc"`           //
	Services    []string `json:"svc"`          // each may be joined once
	Expires     int64    `json:"exp"`          // Unix seconds
	Pins        []string `json:"pin"`          // see KeyHash, of the CA's roots, active first
}

// KeyHash is the SHA-256 of a certificate's SubjectPublicKeyInfo, in
// hexadecimal: what a token pins. It survives a renewal of the certificate
// with the same key.
func KeyHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// ErrToken is wrapped by errors about a text that is no token.
var ErrToken = errors.New("not a join token")

// FormatToken gives the textual form, "parrel1." and base64url of the JSON
// followed by its authenticator. mac is called with the bytes to authenticate.
func FormatToken(t Token, mac func([]byte) []byte) (string, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("mtls: token: %w", err)
	}
	text := tokenPrefix + base64.RawURLEncoding.EncodeToString(append(body, mac([]byte(tokenPrefix+string(body)))...))
	if len(text) > maxToken {
		return "", fmt.Errorf("mtls: the token would have %d bytes, at most %d are allowed: name fewer services", len(text), maxToken)
	}
	return text, nil
}

// ParseToken reads a token without knowing whether it is genuine. signed and
// mac are for the CA that checks it.
func ParseToken(text string) (t Token, signed, mac []byte, err error) {
	bad := func(why string) (Token, []byte, []byte, error) {
		return Token{}, nil, nil, fmt.Errorf("mtls: %w: %s; make one with `parrel token create --service NAME` and copy all of it", ErrToken, why)
	}
	text = strings.TrimSpace(text)
	enc, ok := strings.CutPrefix(text, tokenPrefix)
	switch {
	case text == "":
		return bad("it is empty")
	case !ok:
		return bad(fmt.Sprintf("it does not begin with %q", tokenPrefix))
	case len(text) > maxToken:
		return bad(fmt.Sprintf("it has more than %d bytes", maxToken))
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(enc)
	if err != nil || len(raw) <= macSize {
		return bad("it is damaged or cut off")
	}
	body, mac := raw[:len(raw)-macSize], raw[len(raw)-macSize:]
	if err := json.Unmarshal(body, &t); err != nil {
		return bad("it is damaged or cut off")
	}
	if t.ID == "" || len(t.Services) == 0 || len(t.Pins) == 0 {
		return bad("it lacks an id, a service or the root's key hash")
	}
	if _, err := spiffeid.TrustDomainFromString(t.TrustDomain); err != nil {
		return bad("its trust domain is not one")
	}
	return t, []byte(tokenPrefix + string(body)), mac, nil
}

// Expiry is when the token stops being accepted.
func (t Token) Expiry() time.Time { return time.Unix(t.Expires, 0) }

// Allows says whether the token is for this service.
func (t Token) Allows(service string) bool { return slices.Contains(t.Services, service) }

// ServiceID is the identity that the token gives for one of its services.
func (t Token) ServiceID(service string) (spiffeid.ID, error) {
	td, err := spiffeid.TrustDomainFromString(t.TrustDomain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return Service{Partition: t.Partition, Namespace: t.Namespace, Datacenter: t.Datacenter, Name: service}.ID(td)
}

// ControlPlane is the identity that the control plane's certificate must have.
func (t Token) ControlPlane() (spiffeid.ID, error) {
	name := t.Plane
	if name == "" {
		name = t.TrustDomain
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("mtls: %w: its control plane's trust domain is not one", ErrToken)
	}
	return ControlPlaneID(td), nil
}
