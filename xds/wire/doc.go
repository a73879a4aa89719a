// Package wire translates between xds/resource and Envoy's v3 protos, one file
// per type and extension, and holds the table of honoured fields.
//
// Owns: [Encode], [Decode], the table. Does not know: streams.
//
// The law: Decode(Encode(x)) == x for every valid, normalised x, and equal
// resources give equal bytes. Nothing is ignored in silence: Decode walks every
// populated field by protoreflect against the table; an unhonoured field in
// RBAC, TLS and JWT refuses the resource, and is a named [Warning] elsewhere. A
// route whose match is only half understood is left out, a filter chain refuses
// its listener, an unknown filter does unless it is optional, and an unknown
// transport socket is never taken for plaintext.
//
// For grpc-go, certificate provider instances ([resource.CertSource].Provider)
// are written in the form that it takes: no tls_params, and SAN matchers in the
// deprecated field too, which Envoy would refuse beside the typed one.
//
// Read first: TestLawListener and its kin, testdata/honoured.txt,
// testdata/foreign.golden.
package wire
