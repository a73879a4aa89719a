package ca

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lifetimes of tokens.
const (
	DefaultTokenTTL = 30 * time.Minute
	MaxTokenTTL     = 24 * time.Hour
)

// TokenSpec is what a token is for.
type TokenSpec struct {
	Services   []string // at least one; each can be joined once
	Partition  string   // "" is "default"
	Namespace  string   // "" is "default"
	Datacenter string   // required
	TTL        time.Duration
	// TrustDomain of the identities, where another issuer than this CA signs
	// them; zero: the CA's own.
	TrustDomain spiffeid.TrustDomain
}

// TokenReason is why a token was refused. The list is closed.
type TokenReason string

const (
	TokenGarbage      TokenReason = "garbage"       // not a token
	TokenSignature    TokenReason = "bad_signature" // not made by this CA, or changed
	TokenExpired      TokenReason = "expired"
	TokenUsed         TokenReason = "already_used"
	TokenWrongService TokenReason = "wrong_service"
)

// TokenError says why a token was refused, and what to do about it.
type TokenError struct {
	Reason TokenReason
	Detail string
	Err    error
}

func (e *TokenError) Error() string { return "ca: token refused: " + e.Detail }

func (e *TokenError) Unwrap() error { return e.Err }

// UsedTokens remembers which tokens were used. Use records that the key whose
// digest is by has used id, and says whether it may: it was the first, or the
// one recorded before (a client whose answer was lost asks again with the same
// key). It is atomic between all control planes: in the directory by an
// exclusive link, in Consul's KV by a compare-and-set with index 0 of by under
// a key made of id, comparing the present value where that fails. A record may
// be forgotten after expiry. An error refuses the token.
type UsedTokens interface {
	Use(ctx context.Context, id, by string, expiry time.Time) (first bool, err error)
}

// Mint makes a token. It pins every root in the bundle, the active one first,
// so that a rotation does not spoil it.
func (a *CA) Mint(spec TokenSpec) (string, error) {
	st, err := a.current()
	if err != nil {
		return "", err
	}
	now := a.now()
	if spec.TTL == 0 {
		spec.TTL = DefaultTokenTTL
	}
	switch {
	case len(spec.Services) == 0:
		return "", errors.New("ca: a token is for at least one service: name it with --service")
	case spec.Datacenter == "":
		return "", errors.New("ca: a token needs the datacenter of its services")
	case spec.TTL < time.Second || spec.TTL > MaxTokenTTL:
		return "", fmt.Errorf("ca: a token cannot live for %s: give between 1s and %s", spec.TTL, MaxTokenTTL)
	}
	if _, err := st.active(now); err != nil {
		return "", err
	}
	t := mtls.Token{TrustDomain: st.td.Name(), Partition: spec.Partition, Namespace: spec.Namespace,
		Datacenter: spec.Datacenter, Expires: now.Add(spec.TTL).Unix()}
	if !spec.TrustDomain.IsZero() && spec.TrustDomain != st.td {
		t.TrustDomain, t.Plane = spec.TrustDomain.Name(), st.td.Name()
	}
	for _, s := range spec.Services {
		if t.Allows(s) {
			continue
		}
		if _, err := t.ServiceID(s); err != nil {
			return "", err
		}
		t.Services = append(t.Services, s)
	}
	for _, r := range st.published(now) {
		t.Pins = append(t.Pins, mtls.KeyHash(r.cert))
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	t.ID = hex.EncodeToString(id)
	return mtls.FormatToken(t, func(b []byte) []byte { return authenticate(st.tokenKey, b) })
}

func authenticate(key, msg []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(msg)
	return m.Sum(nil)
}

// Redemption is one use of a token.
type Redemption struct {
	Token string
	// Service that joins; "" where the token names exactly one.
	Service string
	CSR     *x509.CertificateRequest
}

// Redeem uses a token and returns the identity that it gives.
//
// A token is used up service by service: one that names web and api lets a
// node that carries both join each once, in any order. For a service that it
// does not name it gives nothing: a node that joins several services needs one
// token that names them all, or a token for each.
func (a *CA) Redeem(ctx context.Context, r Redemption) (spiffeid.ID, error) {
	fail := func(reason TokenReason, format string, args ...any) (spiffeid.ID, error) {
		return spiffeid.ID{}, &TokenError{Reason: reason, Detail: fmt.Sprintf(format, args...)}
	}
	t, signed, mac, err := mtls.ParseToken(r.Token)
	if err != nil {
		return spiffeid.ID{}, &TokenError{Reason: TokenGarbage, Detail: err.Error(), Err: err}
	}
	st, err := a.current()
	if err != nil {
		return spiffeid.ID{}, err
	}
	if !hmac.Equal(mac, authenticate(st.tokenKey, signed)) {
		return fail(TokenSignature, "it was not made by this control plane's CA, or was changed since; make one here with `parrel token create`")
	}
	if now := a.now(); !now.Before(t.Expiry()) {
		return fail(TokenExpired, "it expired at %s, and it is %s; make a new one with `parrel token create`",
			t.Expiry().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	service := r.Service
	if service == "" && len(t.Services) == 1 {
		service = t.Services[0]
	}
	if !t.Allows(service) {
		return fail(TokenWrongService, "it is for %s and not for %q; make one with `parrel token create --service %s`", strings.Join(t.Services, ", "), service, service)
	}
	if r.CSR == nil {
		return spiffeid.ID{}, errors.New("ca: no certificate signing request came with the token")
	}
	if err := r.CSR.CheckSignature(); err != nil {
		return spiffeid.ID{}, fmt.Errorf("ca: the signing request is not signed by the key it holds: %w", err)
	}
	if err := checkKey(r.CSR.PublicKey); err != nil {
		return spiffeid.ID{}, fmt.Errorf("ca: key of the signing request: %w", err)
	}
	id, err := t.ServiceID(service)
	if err != nil {
		return spiffeid.ID{}, err
	}
	by := sha256.Sum256(r.CSR.RawSubjectPublicKeyInfo)
	first, err := a.used.Use(ctx, t.ID+"."+service, hex.EncodeToString(by[:]), t.Expiry())
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("ca: the use of the token cannot be recorded, so it is not accepted: %w", err)
	}
	if !first {
		return fail(TokenUsed, "it was already used for service %q; each token works once, make a new one with `parrel token create --service %s`", service, service)
	}
	return id, nil
}
