// Package remote is parrel's control plane as a source of identities, both
// ends of it: the call parrel.identity.v1.Identity/Sign, the rule that a
// connection without a certificate may make that call and no other, and the
// [Source] that obtains, keeps and renews one workload's identity by it.
//
// Owns: the call's messages, the server's interceptors, first contact by the
// token's pin, the identity's file in the data directory, [Files] for foreign
// clients. Does not know: who signs, xDS, what a service is.
//
// Entry points: control plane [ServerTLS], [UnaryInterceptor],
// [StreamInterceptor], [RegisterServer], [PeerFromContext]; sidecar [New];
// `parrel svid` [NewFiles].
//
// The call's request and answer are google.protobuf.Struct holding [Request]
// and [Response] in their JSON form; bytes are standard base64. Thus any gRPC
// client can make it:
//
//	service Identity { rpc Sign(google.protobuf.Struct) returns (google.protobuf.Struct); } // package parrel.identity.v1
//
// Invariants: at first contact nothing is trusted but a server whose chain ends
// in the root key that the token pins and whose id is the control plane's; the
// key never leaves the process that made it, except into its file (0600); that
// file is whole or absent; a renewal gives the same identity or none.
//
// Read TestJoinRestartRenew first.
package remote
