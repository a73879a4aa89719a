// Package ca is parrel's built-in certificate authority.
//
// The surface (being filled in):
//
//	func Open(dir string, c Config) (*CA, error) // Config{TrustDomain spiffeid.TrustDomain, LeafTTL, RootTTL, Now, Log, Used UsedTokens}
//	func (*CA) TrustDomain() / Roots(ctx) / Sign(ctx, mtls.Request)   // mtls.Issuer
//	func (*CA) RootKeyHash() ([32]byte, error)
//	func (*CA) ControlPlaneCert(ctx, dns []string, ips []netip.Addr) (*ControlPlane, error) // a mtls.Source; Run(ctx) renews it
//	func (*CA) Rotate(ctx, overlap time.Duration) error
//	func (*CA) Mint(TokenSpec) (string, error)  // TokenSpec{Services []string, Namespace, Partition, Datacenter, TTL, TrustDomain}
//	func (*CA) Redeem(ctx, Redemption) (spiffeid.ID, error) // Redemption{Token, Service string, CSR *x509.CertificateRequest}
//	// by is a digest of the key that redeems: the same key may ask again after a lost answer.
//	type UsedTokens interface { Use(ctx context.Context, id, by string, expiry time.Time) (first bool, err error) }
package ca
