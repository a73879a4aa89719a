// Package generate makes resources of a mesh snapshot. Pure functions.
//
// Owns: what xDS resources a workload needs and what is in each. Does not
// know: I/O, time, streams.
//
// The surface (signatures are fixed):
//
//	func Names(m *mesh.Snapshot, v View, t resource.Type) []string
//	func Resource(m *mesh.Snapshot, v View, t resource.Type, name string) (r resource.Resource, private, ok bool)
//	type View struct { Workload *mesh.Workload; GRPC bool }
//	// Affected says which resources a change touches, for xds/server's Change.
//	func Affected(old, new *mesh.Snapshot, ch mesh.Change) (shared []Key, workloads []string, all bool)
package generate
