// Package conformance runs outside clients, unmodified, against the mesh: real
// processes on loopback, the binaries built from the present code.
//
// Covered: grpc-go's own xDS client and server with parrel's control plane, and
// each of them with parrel's sidecar; curl and Go's TLS with the files of
// `parrel svid`; parrel's own sidecar by state of the world.
//
// Read first: TestReachesAllInstances.
package conformance
