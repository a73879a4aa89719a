// Package inject puts sidecars into what other tools run: a compose file, whose
// services it pairs with sidecars, and systemd units.
//
// Owns: the marks by which an injected compose file can be given back byte for
// byte, what belongs to a container's network namespace and moves to the
// sidecar, the shape of the sidecar's service and of the units. Does not know:
// how a sidecar works. It reads and writes text: no file that a compose file
// names is opened, nothing is started.
//
// How a file is edited: by whole lines. A line that has to go stays where it is
// behind "#parrel- ", what is added stands between "#parrel:begin" and
// "#parrel:end" with a checksum, and nothing else is touched. So everything that
// is edited outside of the added lines afterwards survives [Uninject], and what
// is edited inside them is refused with its place, never lost.
//
// Invariants, tested with random files: Uninject(Compose(x)) == x; injecting an
// injected file gives the same file; each service of the result means what it
// meant but for what moved ([Compose] checks its own result and refuses to give
// one that does not hold).
//
// Entry points: [Compose], [Uninject], [Systemd]. Read TestCorpus first.
package inject
