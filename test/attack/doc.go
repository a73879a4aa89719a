// Package attack attacks a whole sidecar from both sides over real sockets:
// clients that write bytes, not requests, and backends that keep a strict account
// of the bytes that arrive.
//
// Read TestSmuggling first; kit_test.go has the sidecar, client_test.go and
// backend_test.go both sides. What needs a process of its own (limits of memory
// and descriptors, storms) runs the test binary again as a sidecar: child_test.go.
package attack
