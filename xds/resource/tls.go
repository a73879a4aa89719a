package resource

// CertSource says where a side's own certificate or its trust comes from.
// Exactly one form is set.
type CertSource struct {
	SDS      string // secret name, over ADS
	Provider string // certificate provider instance, as grpc-go has them in its bootstrap
	Files    *CertFiles
}

// CertFiles names PEM files, for static configuration.
type CertFiles struct{ Cert, Key, CA string }

// Secret is the name of the secret that holds what the source names: that of
// SDS, or, for files, one that whoever reads the files gives ([FileSecret]). ""
// where the source is empty, or a provider's.
func (s CertSource) Secret() string {
	if s.Files != nil {
		return FileSecret(*s.Files)
	}
	return s.SDS
}

// FileSecret is the name of the secret that is read from these files.
func FileSecret(f CertFiles) string {
	if f.CA != "" {
		return "file:" + f.CA
	}
	return "file:" + f.Cert + "," + f.Key
}

// TLSParams are common to both sides.
type TLSParams struct {
	Certificate CertSource
	Trust       CertSource // zero on the downstream side: client certificates are not checked
	// PeerSANs: the peer's SPIFFE id (URI SAN) must match one of these; empty
	// means that any peer that Trust vouches for is accepted.
	PeerSANs []StringMatch
	// PeerDNS: or one of its DNS names must match one of these. Static
	// configuration only: peers of the mesh are known by their SPIFFE id.
	PeerDNS []StringMatch
	// AcceptUntrusted opens TLS to whoever answers. Static configuration of the
	// upstream side only.
	AcceptUntrusted bool
	ALPN            []string
	// MinVersion and MaxVersion are "", "1.2" or "1.3"; "" = 1.3.
	MinVersion, MaxVersion string
	// Curves are the key exchanges, in order of preference, in Envoy's names
	// ([Curves]); none: Go's own. Static configuration only.
	Curves []string
}

// Curves are the names of key exchanges that [TLSParams] may have.
func Curves() []string {
	return []string{"X25519MLKEM768", "X25519", "P-256", "P-384", "P-521"}
}

// DownstreamTLS terminates TLS on a filter chain.
type DownstreamTLS struct {
	TLSParams
	RequireClientCert bool
}

// UpstreamTLS opens TLS to a cluster's endpoints.
type UpstreamTLS struct {
	TLSParams
	SNI string
}

// Fixed SDS names.
const (
	SecretIdentity = "default" // the workload's own SVID
	SecretTrust    = "ROOTCA"  // the trust bundles
)

// Secret is envoy.extensions.transport_sockets.tls.v3.Secret. Exactly one of
// the two forms is set. The private key is redacted wherever a secret is shown.
type Secret struct {
	Name     string
	TrustPEM []TrustBundle // validation context
	ChainPEM []byte        // tls_certificate, for foreign clients only
	KeyPEM   []byte
	// Files says where static configuration reads the secret's text from; the
	// text itself is then empty until it was read.
	Files *CertFiles
}

// TrustBundle is the roots of one trust domain. An unnamed bundle (from a
// foreign control plane) vouches for every trust domain.
type TrustBundle struct {
	TrustDomain string
	RootsPEM    []byte
}

func (*Secret) ResourceType() Type     { return TypeSecret }
func (s *Secret) ResourceName() string { return s.Name }
