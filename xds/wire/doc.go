// Package wire translates between xds/resource and Envoy's v3 protos, one file
// per type and extension, and holds the table of honoured fields.
//
// Owns: Encode, Decode, the table. Does not know: streams.
// The law: Decode(Encode(x)) == x for every valid x. Nothing is ignored in
// silence: Decode walks every populated field by protoreflect against the
// table; an unhonoured field in RBAC, TLS and JWT refuses the resource, and is
// a named warning elsewhere.
//
// The surface (signatures are fixed):
//
//	func Encode(r resource.Resource) (*anypb.Any, error) // deterministic
//	func Decode(a *anypb.Any) (resource.Resource, []Warning, error) // error: *Error{Type, Name, Field, Reason}, possibly joined
//	type Warning struct { Type resource.Type; Name, Field, Reason string }
package wire
