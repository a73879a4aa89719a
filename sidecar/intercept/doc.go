// Package intercept sends a workload's connections to its sidecar without the
// workload knowing: it makes the kernel's redirection rules, shows them and
// takes them away again.
//
// Owns: the meaning of [Config], the rules made of it, the routes of the virtual
// addresses, and how they come and go ([Manager]). The one mechanism today is
// nftables ([ModeNFT]): the table "inet parrel", two routes and, for TPROXY, a
// policy rule, all by netlink; no program is run, so that it works in an image
// that holds nothing but this binary.
// Does not know: services, xDS, listeners, Consul. Who listens on the capture
// ports and what happens to a connection there is the engine's business; where
// it wanted to go is netio's Conn.OriginalDst.
//
// Invariants: the rules are replaced by one transaction, there is never a moment
// with half of them; applying a configuration twice is applying it once, and
// applying it after a death in the middle ends in the same state; [Manager.Clean]
// leaves of the kernel's state exactly what was there before, whoever else has
// rules there; SSH's port and the sidecar's own connections are never captured;
// a connection that was open before the rules is not touched by them; nothing
// but TCP and port 53 is touched at all.
//
// Read config_test.go first, then test/e2e/intercept for what the kernel makes
// of it.
package intercept
