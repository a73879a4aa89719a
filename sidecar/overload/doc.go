// Package overload keeps a sidecar alive when it is asked for more than it has:
// it bounds connections, watches memory and file descriptors, slows and then
// refuses traffic before either runs out, and counts what it refused.
//
// Owns: the limits of the process and their defaults, the states of pressure,
// what each state does to connections and requests.
// Does not know: protocols, configuration formats, what a connection carries.
// Limits of one message or one connection are the codecs' own.
// Entry point: [New], then [Manager.Run]; listeners ask [Manager.Admit] and
// [Manager.Await], engines [Manager.Refuse].
//
// Invariants: a connection or request that is refused is counted under its
// code; nothing on a request's path waits for a lock or
// allocates, but in state Slow; no timer runs
// while nothing is asked of the process; descriptors of health checks,
// configuration and administration are never given to traffic.
//
// Test to read first: TestStates.
package overload
