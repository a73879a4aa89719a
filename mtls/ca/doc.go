// Package ca is parrel's built-in certificate authority: the issuer of small
// meshes and of the demo, and always the issuer of the control plane's own
// certificate and of join tokens.
//
// Owns: the root key and its rotation, leaves, join tokens and the record of
// used ones. Does not know: gRPC, xDS, who asks.
//
// Entry points: [Open], [CA.Sign] (an [mtls.Issuer]), [CA.ControlPlaneCert],
// [CA.Mint], [CA.Redeem], [CA.Rotate].
//
// Invariants: the whole CA is one file that changes by one rename under a
// lock, so that no crash leaves half of it and several control planes share
// it; of a CSR nothing counts but the key; the control plane's identity is
// signed for nobody else; a token is used once for each service it names, by
// one key.
//
// Read TestOpen and TestRotate first.
package ca
