package intercept

import (
	"context"
	"time"
)

// Manager makes, shows and removes redirection in one network namespace. Its
// methods may be called by several goroutines, and several processes may manage
// the same namespace: the last configuration applied is the one in force.
type Manager interface {
	// Apply puts c in force in place of whatever was applied before, atomically. An
	// error leaves what was in force before. See Config for how long it stays.
	Apply(ctx context.Context, c Config) error
	// Confirm makes provisional rules stand by themselves; rules that fail open it
	// only holds once more. An error when nothing is in force.
	Confirm(ctx context.Context) error
	// Hold keeps the rules that this Manager applied in force until ctx ends, and
	// returns nil then, leaving them as they are: rules that lapse are renewed in time,
	// rules that somebody else removed (`nft flush ruleset`, a reloaded firewall) are made
	// again, and a cgroup that was removed and made anew is found again, each within
	// a third of HoldFor. Rules that somebody took away by Clean stay away: Hold
	// returns ErrCleaned.
	Hold(ctx context.Context, h Holding) error
	// Show says what is in force, read from the kernel.
	Show(ctx context.Context) (State, error)
	// Clean removes what Apply made and nothing else. Nothing to remove is no error.
	Clean(ctx context.Context) error
}

// Holding is how Hold holds. The zero value holds as long as it runs.
type Holding struct {
	// Alive says whether the sidecar can take connections: asked each third of
	// HoldFor, under a deadline of as much. While it returns an error nothing is renewed, and rules
	// that fail open lapse. Nil: it can.
	Alive func(context.Context) error
	// Notify, when not nil, is told of each repair, of every failure to repair, and of
	// each change of what Alive says, in Hold's goroutine.
	Notify func(error)
}

// Mode is a mechanism.
type Mode uint8

// The mechanisms. Room is left for programs attached to cgroups (eBPF).
const (
	ModeNFT Mode = iota // nftables
)

var modes = []string{"nft"}

// String is the flag's word.
func (m Mode) String() string { return word(modes, m) }

// Options are for New.
type Options struct {
	Mode Mode
	// NetNS names the network namespace: a path such as /proc/1234/ns/net, or a name
	// below /run/netns. Empty: the caller's own.
	NetNS string
	// Trace, when not nil, is told each step before it is taken, in the caller's
	// goroutine.
	Trace func(step string)
}

// State is what is in force, as the kernel tells it.
type State struct {
	Installed bool    `json:"installed"`
	Mode      string  `json:"mode"`
	Capture   Capture `json:"capture"`
	FailOpen  bool    `json:"fail_open"`
	// Lapses is how long until the rules stop to capture unless somebody holds them.
	// 0 when they stand by themselves or have lapsed.
	Lapses time.Duration `json:"-"`
	// LapsesSeconds is Lapses for reports.
	LapsesSeconds float64 `json:"lapses_seconds,omitempty"`

	Workloads   []WorkloadState `json:"workloads,omitempty"`
	InboundPort uint16          `json:"inbound_port,omitempty"`
	InboundMode string          `json:"inbound_mode,omitempty"`
	// InboundPorts are the only ones captured; empty stands for all.
	InboundPorts       []string `json:"inbound_ports,omitempty"`
	InboundConnections uint64   `json:"inbound_connections"`
	DNSPort            uint16   `json:"dns_port,omitempty"`

	ExcludeInboundPorts  []string `json:"exclude_inbound_ports,omitempty"`
	ExcludeOutboundPorts []string `json:"exclude_outbound_ports,omitempty"`
	ExcludeInboundCIDRs  []string `json:"exclude_inbound_cidrs,omitempty"`
	ExcludeOutboundCIDRs []string `json:"exclude_outbound_cidrs,omitempty"`
	ExcludeUIDs          []uint32 `json:"exclude_uids,omitempty"` // the sidecar's among them
	ExcludeGIDs          []uint32 `json:"exclude_gids,omitempty"` // the sidecar's among them
	ExcludeDNSUIDs       []uint32 `json:"exclude_dns_uids,omitempty"`
	ExcludeCgroups       []string `json:"exclude_cgroups,omitempty"`
	ExcludeInterfaces    []string `json:"exclude_interfaces,omitempty"`

	// Routes are those of the virtual addresses and of TPROXY, with the policy rules,
	// in the words of ip(8).
	Routes []string `json:"routes,omitempty"`
}

// WorkloadState is one workload of State.
type WorkloadState struct {
	Name         string  `json:"name"`
	UID          *uint32 `json:"uid,omitempty"`
	Cgroup       string  `json:"cgroup,omitempty"`
	OutboundPort uint16  `json:"outbound_port"`
	// Connections and Queries were captured since the rules were made.
	Connections uint64 `json:"connections"`
	Queries     uint64 `json:"queries"`
}

// Capture says whether the rules capture, and for how long.
type Capture string

// The values of Capture.
const (
	CaptureNone   Capture = "none"   // no rules
	CaptureStands Capture = "stands" // until they are removed: fail-closed
	CaptureHeld   Capture = "held"   // as long as somebody holds them: fail-open, or provisional
	CaptureLapsed Capture = "lapsed" // nobody held them: traffic flows past
)
