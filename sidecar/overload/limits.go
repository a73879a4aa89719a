package overload

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// Config is what the process may use. The zero value has the defaults; a
// negative number means no limit.
type Config struct {
	// Memory is the cap in bytes on what the Go runtime holds: heap in use,
	// stacks and its own structures. 0: none is watched. See [MemoryLimit].
	Memory int64
	// Descriptors is the process's RLIMIT_NOFILE. 0: descriptors are not watched.
	// See [RaiseDescriptors].
	Descriptors int
	// Connections bounds the open connections of all listeners together; those
	// beyond it are closed at once. 0: half of the descriptors for traffic, so that
	// each can have one to an upstream, and accepting then waits instead.
	Connections int
	// PerListener bounds those of each listener that Listeners does not name; 0:
	// only the sum is bounded.
	PerListener int
	Listeners   map[string]int
	// PerSource bounds those of one source address over all listeners (of one /64
	// with IPv6). 0: half of the connections that there may be, so that no single
	// address shuts the others out, and none for loopback, which all applications
	// of the host share.
	PerSource int
}

// Shares of a limit at which something is done.
const (
	slowAt, slowUntil     = 85, 80 // per cent: traffic is slowed, and no longer
	refuseAt, refuseUntil = 95, 90 // per cent: new requests are refused, and no longer
	// collectAt is where the collector begins to work against the limit: below
	// slowAt, so that only what is really in use is counted as pressure.
	collectAt = 78
)

const (
	minMemory       = 24 << 20 // below it, a sidecar does not even start well
	defaultMost     = 1 << 20  // connections, where descriptors are plenty
	minPerSource    = 64
	reserveFraction = 16 // of the descriptors, kept for what is not traffic
	minReserve      = 48
	maxReserve      = 512
)

// bounds is Config made definite. Numbers that are 0 bound nothing.
type bounds struct {
	memory      int64
	descriptors int // that traffic may use
	pauseAt     int // of those: accepting waits
	connections int
	waitAt      int // connections at which accepting waits; 0: it does not
	perListener int
	perSource   int
	loopback    bool // perSource is for loopback too
}

func (c Config) bounds() bounds {
	var b bounds
	b.memory = max(c.Memory, 0)
	if b.memory > 0 {
		b.memory = max(b.memory, minMemory)
	}
	if c.Descriptors > 0 {
		reserve := min(max(c.Descriptors/reserveFraction, minReserve), maxReserve, c.Descriptors/2)
		b.descriptors = c.Descriptors - reserve
		b.pauseAt = b.descriptors * slowAt / 100
	}
	switch {
	case c.Connections > 0:
		b.connections = c.Connections
	case c.Connections == 0:
		b.waitAt = defaultMost
		if b.descriptors > 0 {
			b.waitAt = min(max(b.descriptors/2, 1), defaultMost)
		}
	}
	most := max(b.connections, b.waitAt)
	switch {
	case c.PerSource > 0:
		b.perSource, b.loopback = c.PerSource, true
	case c.PerSource == 0 && most > 0:
		b.perSource = max(most/2, minPerSource)
	}
	b.perListener = max(c.PerListener, 0)
	return b
}

// MemoryLimit finds the memory limit of the process's control group, version 2
// or 1, the lowest on the way to the root; 0: there is none. root is the file
// system's, os.DirFS("/").
func MemoryLimit(root fs.FS) int64 {
	own, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return 0
	}
	lowest := int64(math.MaxInt64)
	for line := range strings.SplitSeq(string(own), "\n") {
		// hierarchy-ID:controllers:path (cgroups(7)); version 2 is 0::path.
		id, rest, _ := strings.Cut(line, ":")
		controllers, at, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		var mount, file string
		switch {
		case id == "0" && controllers == "":
			mount, file = "sys/fs/cgroup", "memory.max"
		case strings.Contains(","+controllers+",", ",memory,"):
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for at = path.Clean("/" + at); ; at = path.Dir(at) {
			if v, err := fs.ReadFile(root, path.Join(mount, at, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(v)), 10, 64); err == nil && n > 0 {
					lowest = min(lowest, n)
				}
			}
			if at == "/" {
				break
			}
		}
	}
	if lowest >= 1<<60 { // version 1 says "none" by a very large number
		return 0
	}
	return lowest
}
