package intercept

import (
	"net/netip"
	"time"
)

// Config says what is captured, and where to. The zero value captures nothing.
// A value is not changed after it was given to a [Manager].
type Config struct {
	// Outbound are the workloads whose connections are captured. With a single
	// workload that has neither UID nor Cgroup, everybody in the network namespace
	// but the sidecar is the workload; that is a container's or a namespace's form.
	// With several, each is told by its uid or its cgroup and has a port of its own:
	// the port a connection arrives on is then its attribution. Nobody can forge it,
	// since a connection made to a capture port itself is reset.
	// Empty: nothing outbound is captured.
	Outbound []Workload

	// InboundPort is where connections from outside the namespace to its own
	// addresses go, 15006 by convention. 0: nothing inbound is captured.
	InboundPort uint16
	// InboundMode says how they get there.
	InboundMode InboundMode
	// InboundScope says which of them.
	InboundScope InboundScope
	// ServicePorts are those on which the workloads serve. It is an error to exclude
	// one of them, and with [ScopeServices] they are all that is captured.
	ServicePorts []uint16
	// ProxyPorts are those of the sidecar that others reach from outside: public
	// listeners of mTLS, readiness. They are not captured.
	ProxyPorts []PortRange

	// DNSPort takes queries of captured workloads, UDP and TCP, to any resolver's
	// port 53, those on loopback addresses included (Docker's 127.0.0.11,
	// systemd-resolved's 127.0.0.53): 15053 by convention. 0: DNS is not captured.
	DNSPort uint16

	// ProxyUID and ProxyGID are whom the sidecar runs as: nothing of theirs is ever
	// captured. One of them is required when a workload has neither UID nor Cgroup.
	ProxyUID, ProxyGID *uint32

	// What is not captured. Port 22 inbound never is.
	ExcludeInboundPorts  []PortRange
	ExcludeOutboundPorts []PortRange    // by destination; 53 among them turns DNS capture off
	ExcludeInboundCIDRs  []netip.Prefix // by source
	ExcludeOutboundCIDRs []netip.Prefix // by destination; connections, not DNS queries
	ExcludeUIDs          []uint32       // outbound
	ExcludeGIDs          []uint32       // outbound
	ExcludeCgroups       []string       // outbound; form as Workload.Cgroup
	ExcludeInterfaces    []string       // inbound by where it came from, outbound by where it would leave; "docker*" is a prefix
	ExcludeDNSUIDs       []uint32       // queries of local resolvers, which would come back to themselves

	// IPv6 captures IPv6 as well. False: IPv6 is left alone.
	IPv6 bool
	// VirtualCIDRs are where services' virtual addresses lie: connections to them
	// are made possible by a route to this host, and refused when they are not
	// captured. Nil stands for [DefaultVirtualCIDRs]; empty for none.
	VirtualCIDRs []netip.Prefix

	// FailOpen lets traffic flow past a sidecar that is gone: the rules hold as long
	// as somebody holds them ([Manager.Hold]), and lapse HoldFor after the last time.
	// False, fail-closed: the rules stand by themselves.
	FailOpen bool
	// HoldFor is how long rules capture without being held. 0 stands for
	// [DefaultHoldFor].
	HoldFor time.Duration
	// Provisional makes rules that lapse by themselves after this time unless
	// [Manager.Confirm] or [Manager.Hold] is called before: what a failed start leaves behind
	// then heals itself. 0: the rules are for good at once.
	Provisional time.Duration

	// Mark is the packet mark and the connection mark of [TProxy], and Table its
	// routing table. 0 stands for [DefaultMark] and [DefaultTable].
	Mark, Table uint32
}

// Workload is one program, or all programs, whose outbound connections are
// captured.
type Workload struct {
	// Name is for people: the proxy's id or the service's name. Shown by Show and
	// in the rules' comments.
	Name string
	// UID tells the workload by the user that made the socket.
	UID *uint32
	// Cgroup tells it by the control group, v2, of the process that made the socket,
	// or one above: the path below the hierarchy's root, such as
	// "system.slice/web.service"; a leading slash, or the full path of the folder, is
	// taken too. It must exist when the rules are made.
	// A workload has UID or Cgroup or neither, not both. Where a process matches one by uid
	// and one by cgroup, the cgroup decides.
	Cgroup string
	// OutboundPort is where its connections go, on loopback: 15001 by convention for
	// a single workload.
	OutboundPort uint16
}

// InboundMode is how inbound connections get to the sidecar.
type InboundMode uint8

// The modes. A new one gets its name in inboundModes.
const (
	// Redirect changes the destination (NAT): the application sees the sidecar as
	// its client.
	Redirect InboundMode = iota
	// TProxy leaves the packets as they are and hands them to the sidecar's socket,
	// which must be transparent (netio's ListenTransparent). The sidecar can then dial
	// the application from the client's own address, and the application sees that.
	TProxy
)

var inboundModes = []string{"redirect", "tproxy"}

// String is the flag's word.
func (m InboundMode) String() string { return word(inboundModes, m) }

// InboundScope says which inbound connections are captured.
type InboundScope uint8

// The scopes.
const (
	// ScopeAll: those to every port that is not excluded.
	ScopeAll InboundScope = iota
	// ScopeServices: those to ServicePorts. For a host that also serves what has
	// nothing to do with the mesh, such as Consul's own agent.
	ScopeServices
)

var inboundScopes = []string{"all", "services"}

// String is the flag's word.
func (s InboundScope) String() string { return word(inboundScopes, s) }

// The defaults of Config.
const (
	DefaultHoldFor = 10 * time.Second
	DefaultMark    = 0x70617272 // "parr"
	DefaultTable   = 15006
)

// DefaultVirtualCIDRs are Consul's range of virtual addresses and its IPv6 twin,
// whose low 32 bits are the IPv4 address.
func DefaultVirtualCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("fd70:6172:7265:6c::/96")}
}
