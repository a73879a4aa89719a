// Package mtls holds what both planes know of identity: where SVIDs and trust
// bundles come from, who signs them, and the tls.Config builders that turn them
// into mutual TLS whose peer is checked.
//
// Owns: [Source], [Issuer], the tls.Config builders, the rules by which a
// peer's certificate is accepted or refused, Consul's SPIFFE id forms.
//
// Does not know: who issued a certificate, xDS, sockets.
//
// Entry points: [ServerConfig], [ClientConfig], [Verify], [Service.ID],
// [NewStaticFiles], [WatchLife], [ParseToken]. Read TestRefused first.
//
// Invariants: no configuration built here skips verification; a side without
// an identity or without trust refuses (fails closed) and says why; a
// certificate is read at each handshake, so that rotation needs no restart.
package mtls
