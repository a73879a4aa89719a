// Package e2e runs whole meshes on a real Consul, with real processes of
// parrel on loopback: what the documents promise, as a user meets it.
//
// Owns: the tests that need processes, a real catalogue and real time. What a
// test needs of the world is in test/e2e/rig.
//
// Invariants: every wait is bounded; every process is ended by its id; when a
// test fails, the end of every log is shown. Read TestRegisteredIsUsed first.
package e2e
