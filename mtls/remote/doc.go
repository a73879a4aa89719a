// Package remote is parrel's control plane as a source of identities, both
// ends of it: parrel.identity.v1.Identity/Sign.
//
// The surface (being filled in):
//
//	// Control plane, port 15012:
//	func ServerTLS(p mtls.ServerParams) *tls.Config   // certificate optional, h2
//	func UnaryInterceptor() grpc.UnaryServerInterceptor   // everything but Sign needs a verified SVID
//	func StreamInterceptor() grpc.StreamServerInterceptor
//	func PeerFromContext(ctx) (spiffeid.ID, bool)
//	func RegisterServer(grpc.ServiceRegistrar, *Server)
//	func NewServer(ServerConfig) *Server // ServerConfig{Issuer mtls.Issuer, Tokens Redeemer, Trust func() *x509bundle.Set, Log, Now}
//	// Sidecar:
//	func New(Config) (*Source, error) // Config{Address, DataDir, Service, ID, Token, TokenFile, Dial, Log, Now, Rand}; a mtls.Source
//	func (*Source) Run(ctx) error
//	// parrel svid:
//	func NewFiles(dir string, src mtls.Source, ...) *Files; func (*Files) Run(ctx) error
package remote
