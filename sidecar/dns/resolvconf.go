package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

const (
	// maxNameservers is how many nameserver lines count, as in libc (MAXNS).
	maxNameservers = 3
	// rereadAfter is how old what was read may be before a query looks again.
	rereadAfter = 5 * time.Second
)

// resolvConf is what a resolv.conf(5) says, as far as a forwarder is concerned:
// ndots, time-outs and attempts are the clients' own business.
type resolvConf struct {
	servers []netip.AddrPort
	search  []string // lower case, without dots at the ends
	rotate  bool
}

// parseResolvConf reads a file's text. Each of the notes is about something that
// stands there and is not followed. Without a nameserver it is the one on this
// host (resolv.conf(5)).
func parseResolvConf(text string) (c resolvConf, notes []string) {
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			a, err := netip.ParseAddr(words[1])
			switch {
			case err != nil:
				notes = append(notes, fmt.Sprintf("nameserver %s is no IP address", words[1]))
			case len(c.servers) == maxNameservers:
				notes = append(notes, fmt.Sprintf("nameserver %s is the fourth or later; as in libc, three are asked", words[1]))
			default:
				c.servers = append(c.servers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		case "domain", "search": // the last one counts
			c.search = nil
			for _, s := range words[1:] {
				if s = strings.ToLower(strings.Trim(s, ".")); s != "" {
					c.search = append(c.search, s)
				}
			}
		case "options":
			c.rotate = c.rotate || slices.Contains(words[1:], "rotate")
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return c, notes
}

// host is the host's resolv.conf, read again when a query finds it old.
type host struct {
	path string
	log  *slog.Logger
	now  atomic.Pointer[resolvConf]

	next atomic.Int64 // Unix nanoseconds
	mu   sync.Mutex
	text string // guarded by mu
	err  string // guarded by mu: the last one
}

// conf is what the file says; after an error, what it said before.
func (h *host) conf() *resolvConf {
	if now := time.Now().UnixNano(); h.now.Load() == nil || now >= h.next.Load() {
		h.read(now)
	}
	return h.now.Load()
}

func (h *host) read(now int64) {
	if h.now.Load() == nil {
		h.mu.Lock()
	} else if !h.mu.TryLock() {
		return // somebody reads it
	}
	defer h.mu.Unlock()
	h.next.Store(now + int64(rereadAfter))
	b, err := os.ReadFile(h.path)
	if err != nil {
		if err.Error() != h.err {
			h.err = err.Error()
			h.log.Warn("dns: the host's resolvers cannot be read; what was known stays", telemetry.KeyFile, h.path, telemetry.KeyError, h.err)
		}
		if h.now.Load() == nil {
			c, _ := parseResolvConf("")
			h.now.Store(&c)
		}
		return
	}
	h.err = ""
	if h.now.Load() != nil && string(b) == h.text {
		return
	}
	h.text = string(b)
	c, notes := parseResolvConf(h.text)
	for _, n := range notes {
		h.log.Warn("dns: "+n, telemetry.KeyFile, h.path)
	}
	h.now.Store(&c)
}
