// Package run minds an application and the sidecar beside it, in one process:
// `parrel run`.
//
// Owns: the order in which the two start and end, signals, exit codes, zombies
// (the process may be the first of a PID namespace), the user that the
// application runs as, whether its port is open. Does not know: xDS, Consul, how
// a sidecar works: to it a sidecar is a [Companion].
// Entry point: [Supervise].
//
// Invariants: the application starts once, when outbound traffic works, and gets
// its signal when inbound traffic has ended; the companion ends after it. Every
// child that ends is waited for. Standard input, output and the terminal are the
// application's own: nothing is copied, and on a terminal it stays in the
// foreground process group.
//
// Test to read first: TestOrder.
package run
