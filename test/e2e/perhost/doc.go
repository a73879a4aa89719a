// Package perhost runs one sidecar process for fifty services of a host: the real
// binary, a real Consul agent, the kernel's redirection by uid.
//
// The tests run in a network namespace of their own, into which the test binary
// starts itself again; a peer is a second one. Read TestFiftyServices first.
package perhost
