package remote

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// SignMethod is the full name of the one call that needs no certificate.
const SignMethod = "/" + serviceName + "/Sign"

const serviceName = "parrel.identity.v1.Identity"

// Bounds of a request, which may come from anybody.
const (
	maxCSR  = 16 << 10
	maxText = 16 << 10
)

// Request asks for a certificate: with a token for the first one, without for
// a renewal over a connection that presents the present one.
type Request struct {
	Token   string `json:"token,omitempty"`
	CSR     []byte `json:"csr"`               // DER of PKCS#10; only its key counts
	Service string `json:"service,omitempty"` // Consul's service name
	ID      string `json:"id,omitempty"`      // the proxy's id, for the server's log
}

// Response holds the certificate and what to trust.
type Response struct {
	SPIFFEID string              `json:"spiffe_id"`
	Chain    [][]byte            `json:"chain"`     // DER, leaf first, without the root
	Bundles  map[string][][]byte `json:"bundles"`   // DER of the roots by trust domain
	NotAfter string              `json:"not_after"` // RFC 3339
}

func toStruct(v any) (*structpb.Struct, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	s := new(structpb.Struct)
	return s, protojson.Unmarshal(data, s)
}

func fromStruct(s *structpb.Struct, v any) error {
	data, err := protojson.Marshal(s)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// signer is the server's side of the service.
type signer interface {
	sign(context.Context, Request) (*Response, error)
}

func handleSign(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	in := new(structpb.Struct)
	if err := decode(in); err != nil {
		return nil, err
	}
	call := func(ctx context.Context, in any) (any, error) {
		var req Request
		if err := fromStruct(in.(*structpb.Struct), &req); err != nil {
			return nil, invalid("the request is not of the form {token, csr, service, id}: %v", err)
		}
		resp, err := srv.(signer).sign(ctx, req)
		if err != nil {
			return nil, err
		}
		return toStruct(resp)
	}
	if interceptor == nil {
		return call(ctx, in)
	}
	return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: SignMethod}, call)
}

func serviceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*signer)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Sign", Handler: handleSign}},
		Metadata:    "parrel/identity/v1/identity.proto",
	}
}

// bundlesOf turns a set into its form on the wire and on disk.
func bundlesOf(set *x509bundle.Set) map[string][][]byte {
	out := map[string][][]byte{}
	if set == nil {
		return out
	}
	for _, b := range set.Bundles() {
		for _, c := range b.X509Authorities() {
			out[b.TrustDomain().Name()] = append(out[b.TrustDomain().Name()], c.Raw)
		}
	}
	return out
}

// setOf is the inverse of bundlesOf.
func setOf(bundles map[string][][]byte) (*x509bundle.Set, error) {
	set := x509bundle.NewSet()
	for name, ders := range bundles {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, fmt.Errorf("bundle of trust domain %q: %w", name, err)
		}
		certs, err := certsOf(ders)
		if err != nil || len(certs) == 0 {
			return nil, fmt.Errorf("bundle of trust domain %q: no roots can be read: %w", name, err)
		}
		set.Add(x509bundle.FromX509Authorities(td, certs))
	}
	return set, nil
}

func certsOf(ders [][]byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func dersOf(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}
