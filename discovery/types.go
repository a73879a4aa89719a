package discovery

import (
	"cmp"
	"context"
	"strings"
	"time"
)

// Defaults of Consul CE for the parts of a key that CE does not have.
const (
	DefaultPartition = "default"
	DefaultNamespace = "default"
)

// ServiceName is the whole key of a service. It is comparable; two services
// that differ in any part have nothing to do with each other.
type ServiceName struct {
	Peer       string // "" is the local cluster
	Partition  string // never empty: DefaultPartition
	Namespace  string // never empty: DefaultNamespace
	Datacenter string // never empty
	Name       string // never empty
}

// String gives "name" for a service in the default partition and namespace and
// "partition/namespace/name" otherwise, followed by "@datacenter"; a peer goes
// before all as "peer:".
func (n ServiceName) String() string {
	var b strings.Builder
	if n.Peer != "" {
		b.WriteString(n.Peer + ":")
	}
	if n.Partition != DefaultPartition || n.Namespace != DefaultNamespace {
		b.WriteString(n.Partition + "/" + n.Namespace + "/")
	}
	b.WriteString(n.Name + "@" + n.Datacenter)
	return b.String()
}

// Compare orders names for stable output.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(cmp.Compare(n.Name, o.Name), cmp.Compare(n.Datacenter, o.Datacenter),
		cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Partition, o.Partition), cmp.Compare(n.Peer, o.Peer))
}

// Health is the state of a check and, combined, of an instance. The order is
// Consul's: the worst check of node and service decides.
type Health uint8

const (
	Passing Health = iota
	Warning
	Critical
	Maintenance // node or service in maintenance mode
)

func (h Health) String() string {
	return [...]string{"passing", "warning", "critical", "maintenance"}[h&3]
}

// Usable says whether the catalogue lets traffic go to an instance in this
// health: passing and warning, as Consul does.
func (h Health) Usable() bool { return h == Passing || h == Warning }

// Check is one health check of a node or of a service instance.
type Check struct {
	ID      string // Consul's CheckID
	Name    string
	Service string // instance id, "" for a node check
	Health  Health
	Output  string
}

// Kind is Consul's ServiceKind.
type Kind string

const (
	KindService            Kind = ""
	KindConnectProxy       Kind = "connect-proxy"
	KindMeshGateway        Kind = "mesh-gateway"
	KindTerminatingGateway Kind = "terminating-gateway"
	KindIngressGateway     Kind = "ingress-gateway"
	KindAPIGateway         Kind = "api-gateway"
)

// Origin says where the user wrote something, for error messages.
type Origin struct {
	Place string // "file /etc/parrel/web.hcl" or "consul"
	Line  int    // 0 where there is none
}

// Weights of an instance, each at least 1 (Consul's defaults are 1 and 1).
type Weights struct{ Passing, Warning int }

// Instance is one registered instance of a service or of a proxy. Read-only.
type Instance struct {
	Service    ServiceName // of this registration: a proxy's own service name
	ID         string      // unique per node
	Node       string
	Kind       Kind
	Address    string // never empty: the service's address, else its node's
	Port       int    // 0..65535
	SocketPath string
	// Tagged are the hosts of the tagged addresses, by tag: Consul names the
	// service's virtual address "consul-virtual".
	Tagged  map[string]string
	Tags    []string
	Meta    map[string]string
	Weights Weights
	Health  Health // all Checks combined, see CombineHealth
	Checks  []Check
	Proxy   *Proxy // for every Kind but KindService
	Native  bool   // connect { native = true }
	Region  string // locality of the node
	Zone    string
	Origin  Origin
}

// Proxy is the proxy block of a registration.
type Proxy struct {
	DestinationService   string
	DestinationServiceID string
	LocalServiceAddress  string // default 127.0.0.1
	LocalServicePort     int
	LocalServiceSocket   string
	Mode                 string // "", "direct", "transparent"; "" leaves it to service-defaults and proxy-defaults
	TransparentProxy     TransparentProxy
	Config               map[string]any
	Upstreams            []Upstream
	Set                  []string // paths of all fields the user set, for analyze
}

// Modes of a proxy.
const (
	ModeDirect      = "direct"
	ModeTransparent = "transparent"
)

// TransparentProxy is the block of that name in a registration, service-defaults
// and proxy-defaults. Zero fields are not said there.
type TransparentProxy struct {
	// OutboundListenerPort is where the workload's captured connections come in.
	OutboundListenerPort int
	// DialedDirectly: callers may reach instances by their own addresses, beside
	// the service's virtual one.
	DialedDirectly bool
}

// Upstream is one explicit upstream of a proxy.
type Upstream struct {
	DestinationType      string // "service" (default) or "prepared_query"
	DestinationName      string
	DestinationNamespace string
	DestinationPartition string
	DestinationPeer      string
	Datacenter           string
	LocalBindAddress     string // default 127.0.0.1
	LocalBindPort        int
	LocalBindSocketPath  string
	Config               map[string]any
}

// Service is one service of the catalogue with all its instances, sorted by
// (Node, ID). A proxy's registrations are found under the service that the
// proxy stands for, in Proxies, never as a service of their own. Read-only.
type Service struct {
	Name      ServiceName
	Instances []*Instance // of the service itself
	Proxies   []*Instance // connect-proxy instances whose destination is this service, and connect-native instances
	Stale     bool        // kept by the amnesia guard: the source's answer says it is gone and is not yet confirmed
	Index     uint64      // the source's own version, for messages only
}

// EntryKey names a config entry.
type EntryKey struct {
	Kind      string // Consul's kind: "service-defaults", …
	Partition string
	Namespace string
	Name      string
}

// ConfigEntry is one config entry, decoded. Read-only.
type ConfigEntry struct {
	Key    EntryKey
	Meta   map[string]string
	Body   any      // *ServiceDefaults, *ProxyDefaults, *ServiceIntentions, *Mesh; nil for a kind that parrel does not model yet
	Set    []string // paths of every field that the user set, in the API's names: "UpstreamConfig.Defaults.Limits.MaxConnections"; list elements as "[]"
	Origin Origin
	Index  uint64
}

// Status is how the source itself is.
type Status struct {
	Stale    bool          // what was delivered last may be out of date
	Reason   string        // one sentence: why it is stale
	Since    time.Time     // since when
	Age      time.Duration // age of the answers (Consul's LastContact) when last known
	Problems []Problem     // bad files, bad registrations: what is not in the catalogue and why
}

// Problem is something that the user wrote and the source refused. What was
// good before stays in force.
type Problem struct {
	Origin Origin
	Reason string
	Remedy string
}

// Delta is one delivery from a source to its sink.
type Delta struct {
	// Full is true for the first delivery and after every resynchronisation:
	// Services and Entries are then everything there is.
	Full     bool
	Services map[ServiceName]*Service  // nil value: the service is gone, and that is confirmed
	Entries  map[EntryKey]*ConfigEntry // nil value: gone
	Roots    *TrustRoots               // nil: unchanged; only of sources that carry a CA (Consul's)
	Status   *Status                   // nil: unchanged
	// DefaultIntention is what the catalogue says of a call that no intention
	// names (Consul: default_intention_policy, else the ACL default policy);
	// "" leaves it unchanged. Never known means deny.
	DefaultIntention IntentionAction
}

// TrustRoots is what a source with a CA of its own says of trust.
type TrustRoots struct {
	TrustDomain string
	RootsPEM    []string // active first
}

// Sink takes deliveries, one at a time, in order. It must not block for long
// and must not change what it is given.
type Sink interface{ Apply(Delta) }

// SinkFunc makes a Sink of a function.
type SinkFunc func(Delta)

func (f SinkFunc) Apply(d Delta) { f(d) }

// Source is a catalogue. Run delivers the full set first, then changes, until
// ctx ends; it retries by itself and returns only ctx's error or an error that
// no retry can mend (a bad configuration, a directory that is not one).
type Source interface {
	Run(ctx context.Context, sink Sink) error
}
