package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/user"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/admin"
	"github.com/parrel-mesh/parrel/sidecar/intercept"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Config of a process.
type Config struct {
	Workloads []Workload
	// AllLocal: whatever is registered on this host, beside Workloads; needs a
	// Registrar that is a [Follower]. nil: Workloads alone.
	AllLocal *AllLocal
	// ControlPlane is host:port of its xDS port; several, separated by commas,
	// are tried in order.
	ControlPlane string
	// DataDir keeps identities and last good configurations, each workload's
	// in files of its own (0700, 0600).
	DataDir string
	Admin   string // "127.0.0.1:15000", "unix:PATH"; "": none
	Ready   string // address of the readiness port, such as "0.0.0.0:15021"; "": none
	// Drain bounds how long requests in hand may take at the end; 0: 10 s.
	Drain time.Duration
	// Leave is how long the sidecar goes on accepting after it told the
	// catalogue that it leaves, so that peers hear of it first; 0: 500 ms,
	// negative: none.
	Leave time.Duration
	// HoldInbound keeps inbound listeners closed until [Sidecar.OpenInbound]: the
	// application is not there yet, and who is refused a connection goes elsewhere.
	HoldInbound bool
	// Linger is how long a removed cluster stays usable for requests that were
	// routed before; 0: 5 s.
	Linger time.Duration
	// AccessLog is used by every HTTP connection manager that has none of its
	// own. None: no access log.
	AccessLog []resource.AccessLog
	// Static: the configuration is the owner's own, whole from the start
	// (Deps.Source), and holds the certificates that it needs: there is neither
	// identity nor control plane nor catalogue, and nothing is kept on disk. What
	// cannot be put in force at the start ends Run with an error.
	Static bool
	// Limits of the process's traffic; the zero value bounds connections where it
	// knows the number of descriptors, and does not watch memory.
	Limits  overload.Config
	Version string // parrel's, for admin and metrics
	// ResolvConf names the resolvers that DNS listeners forward to; "":
	// /etc/resolv.conf.
	ResolvConf string
	SotW       bool // the control plane has state of the world only
}

// Workload is one proxy that the process runs.
type Workload struct {
	// Proxy is the id of the proxy's registration: the xDS node id. "": found
	// by the Registrar, else Consul's "<ServiceID>-sidecar-proxy".
	Proxy string
	// ServiceID is the id of the service instance that the proxy stands for.
	// "" is allowed where Proxy and Service are given.
	ServiceID string
	// Service is that service's name; "": found by the Registrar, else ServiceID.
	Service string
	// Token, or a file with one, for the first contact with the control plane.
	Token, TokenFile string
	// Metadata goes into the xDS node.
	Metadata map[string]string
	// Address and Port of a proxy that the sidecar registers itself: "" takes
	// the service's address, 0 the first free port from Consul's range.
	Address string
	Port    int
	// Transparent makes a proxy that the sidecar registers itself a transparent one.
	Transparent bool
}

// AllLocal makes workloads of whatever is registered on this host.
type AllLocal struct {
	// TokenDir holds the join token of each service, in a file of the service's
	// name; TokenFile is one for all. They are read when they are needed. At most
	// one is given.
	TokenDir, TokenFile string
	// Address and Transparent are Workload's.
	Address     string
	Transparent bool
}

// Redirect says how the sidecar redirects connections to itself.
type Redirect struct {
	Manager intercept.Manager
	// Base holds what is not the sidecar's to know: exclusions, ProxyUID, FailOpen,
	// IPv6. Workloads and ports are filled in.
	Base intercept.Config
}

// Deps are what a process's sidecars use.
type Deps struct {
	Net netio.Net
	Log *slog.Logger // nil: none
	// Level changes Log's level by the admin API; may be nil.
	Level *slog.LevelVar
	Rand  func() uint64    // safe for concurrent use; nil: math/rand/v2
	Now   func() time.Time // nil: time.Now
	// MemoryLimit is told below what the collector should keep the heap where
	// Limits caps memory; nil: nobody is (debug.SetMemoryLimit).
	MemoryLimit func(bytes int64)
	// BeforeOutbound is called once at a soft end, when inbound traffic has
	// drained: outbound traffic goes on until it returns. Its ctx ends where the
	// process cannot go on. nil: outbound traffic drains at once.
	BeforeOutbound func(ctx context.Context)
	// Registrar registers proxies; nil: they are registered already.
	Registrar Registrar
	// Identity gives a workload's identity; nil: the control plane
	// (mtls/remote).
	Identity func(Workload) (Identity, error)
	// Source gives a workload's configuration; nil: the xDS client.
	Source func(Workload, client.Handler) (Source, error)

	// Redirect makes rules of redirection; nil: somebody else does.
	Redirect *Redirect
	// LookupUser finds a user of this host; nil: user.Lookup.
	LookupUser func(name string) (*user.User, error)

	wall bool // Now is time.Now
}

// Identity is a source of identities with its background work.
type Identity interface {
	mtls.Source
	Run(ctx context.Context) error
}

// Source delivers configuration to the handler that it was made with;
// *client.Client is one.
type Source interface {
	Subscribe(t resource.Type, names []string)
	Run(ctx context.Context) error
	Status() client.Status
	Held() []client.Held
}

// Registrar is the catalogue of this machine, as far as a sidecar touches it.
// Its methods return promptly when ctx ends.
type Registrar interface {
	// Lookup finds a service instance by its id. ErrNotRegistered: the
	// catalogue answered, and there is none.
	Lookup(ctx context.Context, serviceID string) (LocalService, error)
	// RegisterProxy registers a connect-proxy with an alias check of its
	// service. Registering the same again changes nothing.
	RegisterProxy(ctx context.Context, p ProxyRegistration) error
	// DeregisterProxy takes a registration away; none there is no error.
	DeregisterProxy(ctx context.Context, proxyID string) error
	// SetMaintenance takes a proxy out of what callers choose from, or puts it
	// back; only what it took out itself is put back.
	SetMaintenance(ctx context.Context, proxyID string, on bool) error
}

// Follower is a Registrar that says what is registered, now and later.
type Follower interface {
	Registrar
	// Follow calls f with every instance of a service that is registered on this
	// host, sorted by id, as soon as that is known and after each change, until ctx
	// ends. f does not block.
	Follow(ctx context.Context, f func([]LocalService)) error
}

// ErrNotRegistered says that a service is not in the catalogue.
var ErrNotRegistered = errors.New("not registered")

// LocalService is one registered instance of a service.
type LocalService struct {
	ID, Name             string
	Namespace, Partition string
	Address              string // the service's, else the node's
	Port                 int
	Meta                 map[string]string // MetaUID, MetaUser or MetaCgroup among it
	// Proxy is the connect-proxy that is registered for it; nil: none is.
	Proxy *LocalProxy
}

// LocalProxy is a connect-proxy's registration.
type LocalProxy struct {
	ID, Name, Address string
	Port              int
	Meta              map[string]string
}

// ProxyRegistration is a connect-proxy that the sidecar registers.
type ProxyRegistration struct {
	ID, Name             string // "<service id>-sidecar-proxy", "<service>-sidecar-proxy"
	Namespace, Partition string
	Address              string // where peers reach it
	Port                 int
	Service, ServiceID   string // what it stands for: the alias check's target
	ServiceAddress       string // where the application listens: "127.0.0.1"
	ServicePort          int
	Transparent          bool // Proxy.Mode "transparent"
}

// Ports of Consul's sidecar registrations (ports.sidecar_min_port, _max_port).
const (
	sidecarMinPort = 21000
	sidecarMaxPort = 21255
)

func (c *Config) withDefaults() {
	c.Drain = cmp.Or(c.Drain, 10*time.Second)
	c.Leave = cmp.Or(c.Leave, 500*time.Millisecond)
	if c.Static {
		c.Leave = -1 // nobody is told
	}
	c.Linger = cmp.Or(c.Linger, 5*time.Second)
}

func (d *Deps) withDefaults() {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	if d.Now == nil {
		d.Now, d.wall = time.Now, true
	}
	if d.LookupUser == nil {
		d.LookupUser = user.Lookup
	}
}

// validate says, in sentences for the user, what New cannot work with.
func (c *Config) validate(d *Deps) error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf("sidecar: "+format, a...)) }
	if d.Net == nil {
		bad("no network was given (Deps.Net)")
	}
	if a := c.AllLocal; a != nil {
		if _, ok := d.Registrar.(Follower); !ok {
			bad("all local services are to be carried, and there is no Consul agent that could say which there are: give --http-addr or CONSUL_HTTP_ADDR")
		}
		if a.TokenDir != "" && a.TokenFile != "" {
			bad("both a directory of tokens and a token file are given: give one")
		}
	}
	if len(c.Workloads) == 0 && c.AllLocal == nil {
		bad("no workload given: name a service with --sidecar-for, or a proxy with --proxy-id")
	}
	if c.Static && d.Source == nil {
		bad("there is no static configuration (Deps.Source)")
	}
	if !c.Static && c.DataDir == "" && (d.Identity == nil || d.Source == nil) {
		bad("no data directory given: set --data-dir; identities and the last good configuration are kept there")
	}
	if !c.Static && (d.Source == nil || d.Identity == nil) {
		for a := range strings.SplitSeq(c.ControlPlane, ",") {
			if _, _, err := net.SplitHostPort(strings.TrimSpace(a)); err != nil {
				bad("address of the control plane %q: %v; write host:port, such as 127.0.0.1:15012", a, err)
			}
		}
	}
	if c.Admin != "" {
		if err := admin.CheckAddress(c.Admin); err != nil {
			errs = append(errs, err)
		}
	}
	if c.Ready != "" {
		if _, err := netip.ParseAddrPort(c.Ready); err != nil {
			bad("readiness address %q: %v; write address:port, such as 0.0.0.0:15021", c.Ready, err)
		}
	}
	seen := map[string]bool{}
	for i, w := range c.Workloads {
		if w.ServiceID == "" && (w.Proxy == "" || w.Service == "") {
			bad("workload %d: neither a service's id, nor a proxy's id with its service's name is given", i)
		}
		if w.Token != "" && w.TokenFile != "" {
			bad("workload %s: both a token and a token file are given: give one", w.name())
		}
		if w.Port < 0 || w.Port > 65535 {
			bad("workload %s: %d is no port", w.name(), w.Port)
		}
		if seen[w.name()] {
			bad("workload %s is given twice", w.name())
		}
		seen[w.name()] = true
	}
	return errors.Join(errs...)
}

// name is the proxy's id, as far as it is known before the catalogue was asked:
// it names the workload's files and must stay the same for its life.
func (w Workload) name() string {
	return cmp.Or(w.Proxy, w.ServiceID+"-sidecar-proxy")
}
