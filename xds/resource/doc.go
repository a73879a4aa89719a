// Package resource holds the configuration that parrel executes, as typed,
// immutable, comparable values: listeners, routes, clusters, endpoints, secrets
// and the configuration of each filter and load-balancing policy (ext_NAME.go).
//
// Owns: the types, Equal, Hash and Validate. Models only what parrel executes;
// what a proto can say beyond that is xds/wire's business to report.
//
// Does not know: protos, gRPC, either plane.
//
// Invariants: a resource is never changed after it was handed on. The law is
// wire.Decode(wire.Encode(x)) == x for every valid x; empty and nil slices and
// maps are the same value (Normalise makes them nil).
//
// Entry points: Validate on each type, [Normalise], [Equal], [Hash]. Tests draw
// valid resources from xds/resource/resourcetest. Read first: TestValidate.
package resource
