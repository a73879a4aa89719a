package remote

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// PinError says that a server is not the control plane that made the token.
type PinError struct {
	Presented []string // key hashes of what the server presented
	Pins      []string // what the token pins
}

func (e *PinError) Error() string {
	return fmt.Sprintf("it is not the control plane that made the token: the token pins root key %s, and the server presented %s",
		short(e.Pins), short(e.Presented))
}

func short(hashes []string) string {
	if len(hashes) == 0 {
		return "nothing"
	}
	var out []string
	for _, h := range hashes {
		out = append(out, h[:min(len(h), 16)]+"…")
	}
	return strings.Join(out, ", ")
}

// once joins or renews, and keeps what it got.
func (s *Source) once(ctx context.Context) error {
	k := s.current()
	if s.unusable(k) != nil {
		return s.join(ctx)
	}
	err := s.renew(ctx, k)
	// A token of another root than those we know: the mesh was made anew. What
	// we have stays in force until the new one has given us an identity.
	if err != nil && s.foreignToken(k) {
		if joined := s.join(ctx); joined == nil {
			return nil
		}
	}
	return err
}

func (s *Source) foreignToken(k *kept) bool {
	if s.c.Token == "" && s.c.TokenFile == "" {
		return false
	}
	text, err := s.token()
	if err != nil {
		return false
	}
	t, _, _, err := mtls.ParseToken(text)
	if err != nil {
		return false
	}
	for _, b := range k.bundles.Bundles() {
		if pinned(b.X509Authorities(), t.Pins) != nil {
			return false
		}
	}
	return true
}

func pinned(certs []*x509.Certificate, pins []string) *x509.Certificate {
	for _, c := range certs {
		if c.IsCA && slices.Contains(pins, mtls.KeyHash(c)) {
			return c
		}
	}
	return nil
}

// join is the first contact: nothing is trusted but the token's pin.
func (s *Source) join(ctx context.Context) error {
	text, err := s.token()
	if err != nil {
		return err
	}
	t, _, _, err := mtls.ParseToken(text)
	if err != nil {
		return fatalf("remote: %w", err)
	}
	if !t.Allows(s.c.Service) {
		return fatalf("remote: the token is for service %s and not for %q; make one with `parrel token create --service %s`",
			strings.Join(t.Services, ", "), s.c.Service, s.c.Service)
	}
	if !s.c.Now().Before(t.Expiry()) {
		return fatalf("remote: the token expired at %s; make a new one with `parrel token create --service %s`",
			t.Expiry().UTC().Format("2006-01-02T15:04:05Z"), s.c.Service)
	}
	plane, err := t.ControlPlane()
	if err != nil {
		return fatalf("remote: %w", err)
	}
	want, err := t.ServiceID(s.c.Service)
	if err != nil {
		return fatalf("remote: %w", err)
	}
	key, err := s.store.pending()
	if err != nil {
		return err
	}
	got, err := s.call(ctx, s.pinnedTLS(t, plane), text, want, key)
	if err != nil {
		return err
	}
	got.plane = plane.String()
	s.c.Log.Info("joined", "service", s.c.Service, "id", s.c.ID, "spiffe_id", want.String(), "expires", got.svid.Certificates[0].NotAfter)
	return s.keep(got)
}

// renew asks for the same identity anew, with a new key.
func (s *Source) renew(ctx context.Context, k *kept) error {
	plane, err := spiffeid.FromString(k.plane)
	if err != nil {
		return fmt.Errorf("remote: stored id of the control plane: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("remote: making a key: %w", err)
	}
	cfg := mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: mtls.NewCell(k.snapshot(nil)),
		Authorise: mtls.Expect(plane), ALPN: []string{"h2"}, Now: s.c.Now}})
	got, err := s.call(ctx, cfg, "", k.svid.ID, key)
	if err != nil {
		return err
	}
	got.plane = k.plane
	s.c.Log.Info("renewed", "service", s.c.Service, "id", s.c.ID, "spiffe_id", got.svid.ID.String(), "expires", got.svid.Certificates[0].NotAfter)
	return s.keep(got)
}

// keep makes an identity current and stores it. One that cannot be stored is
// used all the same; the error says what is lost.
func (s *Source) keep(k *kept) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.keepLocked(k); err != nil {
		s.c.Log.Error("the identity works, and a restart will not find it", "id", s.c.ID, "error", err)
	}
	return nil
}

// pinnedTLS is the configuration of first contact. The root is taken from the
// server's own chain if, and only if, the token pins its key; the chain must
// lead to it and the leaf must be the control plane's.
func (s *Source) pinnedTLS(t mtls.Token, plane spiffeid.ID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		Time:       s.c.Now,
		// There is no trust yet that crypto/tls could verify against: the pin
		// check below is the verification, on every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			root := pinned(cs.PeerCertificates, t.Pins)
			if root == nil {
				e := &PinError{Pins: t.Pins}
				for _, c := range cs.PeerCertificates {
					if c.IsCA {
						e.Presented = append(e.Presented, mtls.KeyHash(c))
					}
				}
				return e
			}
			_, err := mtls.Verify(cs.PeerCertificates, mtls.Verification{Role: mtls.Server, Now: s.c.Now(), Authorise: mtls.Expect(plane),
				Trust: x509bundle.NewSet(x509bundle.FromX509Authorities(plane.TrustDomain(), []*x509.Certificate{root}))})
			return err
		},
	}
}

// call makes the Sign call at the first address that answers.
func (s *Source) call(ctx context.Context, cfg *tls.Config, token string, want spiffeid.ID, key crypto.Signer) (*kept, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("remote: making the signing request: %w", err)
	}
	in, err := toStruct(Request{Token: token, CSR: csr, Service: s.c.Service, ID: s.c.ID})
	if err != nil {
		return nil, fmt.Errorf("remote: encoding the request: %w", err)
	}
	var errs []error
	for address := range strings.SplitSeq(s.c.Address, ",") {
		address = strings.TrimSpace(address)
		out, err := s.callAt(ctx, address, cfg, in)
		if err == nil {
			k, err := s.accept(out, want, key)
			if err != nil {
				return nil, fmt.Errorf("remote: the answer of the control plane at %s is refused: %w", address, err)
			}
			return k, nil
		}
		errs = append(errs, err)
		if _, fatal := errors.AsType[*FatalError](err); fatal {
			break // the others share tokens and roots with this one
		}
	}
	return nil, errors.Join(errs...)
}

// callAt is one connection and one call. What the handshake said is kept
// beside gRPC, which makes text of it.
func (s *Source) callAt(ctx context.Context, address string, cfg *tls.Config, in *structpb.Struct) (*structpb.Struct, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var mu sync.Mutex
	var dialErr, tlsErr error
	cfg = cfg.Clone()
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		mu.Lock()
		defer mu.Unlock()
		tlsErr = err
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := s.c.Dial(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			dialErr = err
			return c, err
		}),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
	if err != nil {
		return nil, fmt.Errorf("remote: address %q of the control plane: %w", address, err)
	}
	defer conn.Close()
	out := new(structpb.Struct)
	err = conn.Invoke(ctx, SignMethod, in, out)
	if err == nil {
		return out, nil
	}
	mu.Lock()
	defer mu.Unlock()
	return nil, explain(address, err, dialErr, tlsErr)
}

// explain makes one sentence of a failed call.
func explain(address string, err, dialErr, tlsErr error) error {
	if dialErr != nil {
		return fmt.Errorf("remote: the control plane at %s cannot be reached: %w; check that it runs and that the address is right", address, dialErr)
	}
	if pin, ok := errors.AsType[*PinError](tlsErr); ok {
		return fatalf("remote: the server at %s is refused: %w; check the address, or make a token at this control plane", address, pin)
	}
	if tlsErr != nil {
		return fmt.Errorf("remote: the server at %s is refused: %w", address, tlsErr)
	}
	st := status.Convert(err)
	switch st.Code() {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		return fatalf("remote: the control plane at %s refused: %s", address, st.Message())
	case codes.Unimplemented:
		return fatalf("remote: the server at %s is not parrel's control plane, or its identity service is off: %s", address, st.Message())
	}
	return fmt.Errorf("remote: the control plane at %s did not answer: %s", address, st.Message())
}

// accept checks an answer: our key, the identity asked for, a chain that the
// bundles that came with it vouch for.
func (s *Source) accept(out *structpb.Struct, want spiffeid.ID, key crypto.Signer) (*kept, error) {
	var resp Response
	if err := fromStruct(out, &resp); err != nil {
		return nil, fmt.Errorf("it is not of the form that Sign has: %w", err)
	}
	chain, err := certsOf(resp.Chain)
	if err != nil || len(chain) == 0 {
		return nil, fmt.Errorf("it holds no certificate that can be read: %w", err)
	}
	set, err := setOf(resp.Bundles)
	if err != nil {
		return nil, err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("the certificate is for another key than ours")
	}
	if _, err := mtls.Verify(chain, mtls.Verification{Role: mtls.Client, Trust: set, Now: s.c.Now(), Authorise: mtls.Expect(want)}); err != nil {
		return nil, err
	}
	return &kept{svid: &x509svid.SVID{ID: want, Certificates: chain, PrivateKey: key}, bundles: set}, nil
}

// TLS is the configuration of this workload's further connections to the
// control plane, its ADS stream above all: it presents the present identity at
// each handshake and accepts the control plane only. Before the workload has
// joined every handshake fails.
func (s *Source) TLS() *tls.Config {
	return mtls.ClientConfig(mtls.ClientParams{Params: mtls.Params{Identity: s, ALPN: []string{"h2"}, Now: s.c.Now,
		Authorise: func(id spiffeid.ID) error {
			k := s.current()
			if k == nil {
				return errors.New("this workload has not joined yet")
			}
			if id.String() != k.plane {
				return fmt.Errorf("expected %s", k.plane)
			}
			return nil
		}}})
}
