package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Redeemer uses join tokens; [*ca.CA] is one.
type Redeemer interface {
	Redeem(ctx context.Context, r ca.Redemption) (spiffeid.ID, error)
}

// ServerConfig of a [Server].
type ServerConfig struct {
	Issuer mtls.Issuer // required; signs
	Tokens Redeemer    // required; checks tokens, whoever signs
	// Trust is what clients are to trust, beside the issuer's roots: the roots
	// of the control plane's own certificate. Required.
	Trust func() *x509bundle.Set
	Log   *slog.Logger // nil: discard
}

// Server answers Sign.
type Server struct{ c ServerConfig }

// NewServer returns a server to be given to [RegisterServer].
func NewServer(c ServerConfig) (*Server, error) {
	if c.Issuer == nil || c.Tokens == nil || c.Trust == nil {
		return nil, errors.New("remote: a server needs an issuer, a redeemer of tokens and trust bundles")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{c: c}, nil
}

// RegisterServer adds the Sign call to a gRPC server, whose interceptors must
// be [UnaryInterceptor] and [StreamInterceptor] and whose TLS is [ServerTLS].
func RegisterServer(r grpc.ServiceRegistrar, s *Server) { r.RegisterService(serviceDesc(), s) }

// ServerTLS is the TLS configuration of port 15012: like [mtls.ServerConfig],
// but a client without a certificate may connect, to call Sign. A certificate
// that is presented is verified in any case.
func ServerTLS(p mtls.Params) *tls.Config {
	p.ALPN = []string{"h2"}
	return mtls.ServerConfig(mtls.ServerParams{Params: p, OptionalClientCert: true})
}

type peerKey struct{}

// PeerFromContext returns the verified identity of the caller, which the
// interceptors put there. False: a call of Sign without a certificate.
func PeerFromContext(ctx context.Context) (spiffeid.ID, bool) {
	id, ok := ctx.Value(peerKey{}).(spiffeid.ID)
	return id, ok
}

// withPeer puts the caller's identity in the context; a call that needs one
// and has none is refused.
func withPeer(ctx context.Context, method string) (context.Context, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			if id, ok := mtls.PeerID(info.State); ok {
				return context.WithValue(ctx, peerKey{}, id), nil
			}
		}
	}
	if method == SignMethod {
		return ctx, nil
	}
	return nil, status.Errorf(codes.Unauthenticated, "%s needs a client certificate of the mesh, and this connection has none: join first with a token (only Sign is open to others)", method)
}

// UnaryInterceptor refuses every call but Sign to a caller without a verified
// identity, and gives the identity to [PeerFromContext].
func UnaryInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		ctx, err := withPeer(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return h(ctx, req)
	}
}

// StreamInterceptor is UnaryInterceptor for streams.
func StreamInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		ctx, err := withPeer(ss.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return h(srv, peerStream{ss, ctx})
	}
}

type peerStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s peerStream) Context() context.Context { return s.ctx }

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// sign implements signer.
func (s *Server) sign(ctx context.Context, req Request) (*Response, error) {
	if len(req.CSR) > maxCSR || len(req.Token) > maxText || len(req.Service) > maxText || len(req.ID) > maxText {
		return nil, invalid("the request is larger than any that parrel makes")
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err != nil {
		return nil, invalid("the signing request cannot be read: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, invalid("the signing request is not signed by the key it holds: %v", err)
	}
	id, err := s.identify(ctx, req, csr)
	if err != nil {
		s.c.Log.Warn("refused to sign", "service", req.Service, "proxy", req.ID, "error", status.Convert(err).Message())
		return nil, err
	}
	got, err := s.c.Issuer.Sign(ctx, mtls.Request{CSR: csr, ID: id})
	if err != nil {
		s.c.Log.Error("signing failed", "id", id.String(), "error", err)
		return nil, status.Errorf(codes.Unavailable, "the certificate of %s could not be signed: %v", id, err)
	}
	s.c.Log.Info("signed", "id", id.String(), "proxy", req.ID, "expires", got.Chain[0].NotAfter, "by_token", req.Token != "")
	bundles := bundlesOf(s.c.Trust())
	addRoots(bundles, id.TrustDomain().Name(), got.Roots)
	return &Response{SPIFFEID: id.String(), Chain: dersOf(got.Chain), Bundles: bundles,
		NotAfter: got.Chain[0].NotAfter.UTC().Format(time.RFC3339)}, nil
}

// identify says whose certificate may be signed for this call.
func (s *Server) identify(ctx context.Context, req Request, csr *x509.CertificateRequest) (spiffeid.ID, error) {
	if req.Token != "" {
		id, err := s.c.Tokens.Redeem(ctx, ca.Redemption{Token: req.Token, Service: req.Service, CSR: csr})
		if err == nil {
			return id, nil
		}
		if _, ok := errors.AsType[*ca.TokenError](err); ok {
			return spiffeid.ID{}, status.Error(codes.PermissionDenied, err.Error())
		}
		return spiffeid.ID{}, status.Error(codes.Unavailable, err.Error())
	}
	id, ok := PeerFromContext(ctx)
	if !ok {
		return spiffeid.ID{}, status.Error(codes.Unauthenticated,
			"neither a token nor a certificate was presented: make a token with `parrel token create --service NAME`")
	}
	if mtls.Reserved(id) || id.TrustDomain() != s.c.Issuer.TrustDomain() {
		return spiffeid.ID{}, status.Errorf(codes.PermissionDenied, "%s is not an identity that is renewed here", id)
	}
	if svc, err := mtls.ParseServiceID(id); req.Service != "" && (err != nil || svc.Name != req.Service) {
		return spiffeid.ID{}, status.Errorf(codes.PermissionDenied, "%s can renew its own identity only, not become service %q: that needs a token", id, req.Service)
	}
	return id, nil
}

func addRoots(bundles map[string][][]byte, td string, roots []*x509.Certificate) {
	have := map[string]bool{}
	for _, der := range bundles[td] {
		have[string(der)] = true
	}
	for _, c := range roots {
		if !have[string(c.Raw)] {
			bundles[td] = append(bundles[td], c.Raw)
		}
	}
}

// String keeps a token out of logs.
func (r Request) String() string {
	return fmt.Sprintf("{service %q, id %q, csr %d bytes, token %t}", r.Service, r.ID, len(r.CSR), r.Token != "")
}
