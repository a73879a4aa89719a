package compile

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/sidecar/listener"
	"github.com/parrel-mesh/parrel/sidecar/warm"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Deps make the engines. An engine holds no resource until it serves: Check
// builds one and drops it.
type Deps struct {
	HTTP func(HTTP) (listener.Handler, error)
	TCP  func(TCP) (listener.Handler, error)
	// Current is the snapshot in force: an atomic load. It may return nil
	// before the first.
	Current func() *Snapshot
}

// HTTP is what an HTTP engine is made of.
type HTTP struct {
	Listener *resource.Listener
	Chain    *resource.FilterChain
	Manager  *resource.HTTPManager
	// Routes are the routes in force now, or, once the engine is replaced, the
	// last that it had; nil while there are none. To be called once per request.
	Routes func() *decide.Routes
}

// TCP is what an engine for opaque bytes is made of.
type TCP struct {
	Listener *resource.Listener
	Chain    *resource.FilterChain
	Proxy    *resource.TCPProxy
}

// Upstream is one cluster with its endpoints and trust.
type Upstream struct {
	Cluster   *resource.Cluster
	Endpoints *resource.Endpoints // nil: none known
	Trust     *x509bundle.Set     // nil: the cluster names no trust of its own
}

// Snapshot is the runtime configuration of one workload. Immutable.
type Snapshot struct {
	Version   string
	Set       *warm.Set
	Listeners []listener.Config // by name
	Upstreams []Upstream        // by name

	routes  map[string]compiledRoutes
	trust   map[string]compiledTrust
	engines map[engineID]engine
}

type compiledRoutes struct {
	rc     *resource.RouteConfig
	routes *decide.Routes
}

type compiledTrust struct {
	secret *resource.Secret
	set    *x509bundle.Set
}

type engineID struct{ listener, chain string }

// engine is one engine and a digest of what it was made of.
type engine struct {
	made    string
	handler listener.Handler
	routes  *lastRoutes // nil: it has none
}

// lastRoutes are the routes that an engine had last. Its connections outlive
// it: a request that comes on one of them before the client has heard that it
// is to end is still routed, by a name that the snapshot in force may no longer
// have.
type lastRoutes struct {
	key  string
	last atomic.Pointer[decide.Routes]
}

// Routes gives a route configuration by name; nil where there is none. Safe on
// nil.
func (s *Snapshot) Routes(name string) *decide.Routes {
	if s == nil {
		return nil
	}
	return s.routes[name].routes
}

// Trust gives the roots that a secret holds; nil where there are none. Safe on
// nil.
func (s *Snapshot) Trust(secret string) *x509bundle.Set {
	if s == nil {
		return nil
	}
	return s.trust[secret].set
}

// Error is why one resource was refused.
type Error struct {
	Key warm.Key
	Err error
	// Kept says that the version before stays in force.
	Kept bool
}

func (e *Error) Error() string {
	after := "it is left out"
	if e.Kept {
		after = "the version before stays in force"
	}
	return fmt.Sprintf("compile: %s refused, %s: %v", e.Key, after, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Compile makes the snapshot of a set. previous may be nil. The snapshot is
// always usable; each error is an [*Error] about one resource.
func Compile(set *warm.Set, previous *Snapshot, d Deps) (*Snapshot, []error) {
	if previous == nil {
		previous = &Snapshot{Set: &warm.Set{}}
	}
	b := &build{deps: d, set: set, old: previous, s: &Snapshot{
		Version: set.Version,
		Set:     set,
		routes:  make(map[string]compiledRoutes, len(set.Routes)),
		trust:   make(map[string]compiledTrust, len(set.Secrets)),
		engines: make(map[engineID]engine, len(previous.engines)),
	}}
	b.secrets()
	b.routeConfigs()
	b.listeners()
	for _, e := range b.s.engines {
		if e.routes == nil {
			continue
		}
		if r := b.s.Routes(e.routes.key); r != nil {
			e.routes.last.Store(r)
		}
	}
	b.upstreams()
	return b.s, b.errs
}

type build struct {
	deps Deps
	set  *warm.Set
	old  *Snapshot
	s    *Snapshot
	errs []error
}

func (b *build) refuse(t resource.Type, name string, kept bool, err error) {
	b.errs = append(b.errs, &Error{Key: warm.Key{Type: t, Name: name}, Err: err, Kept: kept})
}

func (b *build) secrets() {
	for _, name := range slices.Sorted(maps.Keys(b.set.Secrets)) {
		secret := b.set.Secrets[name]
		old, had := b.old.trust[name]
		if had && old.secret == secret {
			b.s.trust[name] = old
			continue
		}
		bundles, err := trustSet(secret)
		if err == nil {
			b.s.trust[name] = compiledTrust{secret, bundles}
			continue
		}
		if had {
			b.s.trust[name] = old
		}
		b.refuse(resource.TypeSecret, name, had, err)
	}
}

func (b *build) routeConfigs() {
	for _, name := range slices.Sorted(maps.Keys(b.set.Routes)) {
		b.route(name, b.set.Routes[name])
	}
}

// route compiles one route configuration under a key of the snapshot.
func (b *build) route(key string, rc *resource.RouteConfig) {
	old, had := b.old.routes[key]
	if had && (old.rc == rc || resource.Equal(old.rc, rc)) {
		b.s.routes[key] = old
		return
	}
	routes, err := decide.CompileRoutes(rc)
	if err == nil {
		b.s.routes[key] = compiledRoutes{rc, routes}
		return
	}
	if had {
		b.s.routes[key] = old
	}
	b.refuse(resource.TypeRoute, key, had, err)
}

func (b *build) listeners() {
	before := make(map[string]listener.Config, len(b.old.Listeners))
	for _, c := range b.old.Listeners {
		before[c.Resource.Name] = c
	}
	for _, name := range slices.Sorted(maps.Keys(b.set.Listeners)) {
		l := b.set.Listeners[name]
		old, had := before[name]
		if had && old.Resource == l {
			b.carry(old)
			continue
		}
		c, err := b.listener(l)
		if err == nil {
			b.s.Listeners = append(b.s.Listeners, c)
			continue
		}
		if had {
			b.carry(old)
		}
		b.refuse(resource.TypeListener, name, had, err)
	}
}

// carry takes a listener over as it is, with its engines and inline routes.
func (b *build) carry(c listener.Config) {
	b.s.Listeners = append(b.s.Listeners, c)
	for chain := range c.Chains {
		id := engineID{c.Resource.Name, chain}
		b.s.engines[id] = b.old.engines[id]
		if key := inlineRoutes(id); b.old.routes[key].routes != nil {
			b.s.routes[key] = b.old.routes[key]
		}
	}
}

func (b *build) upstreams() {
	b.s.Upstreams = make([]Upstream, 0, len(b.set.Clusters))
	for _, name := range slices.Sorted(maps.Keys(b.set.Clusters)) {
		c := b.set.Clusters[name]
		u := Upstream{Cluster: c, Endpoints: b.set.EndpointsOf(c)}
		if c.TLS != nil && c.TLS.Trust.SDS != "" {
			if u.Trust = b.s.Trust(c.TLS.Trust.SDS); u.Trust == nil {
				u.Trust = x509bundle.NewSet() // named, and not there: nobody is trusted
			}
		}
		b.s.Upstreams = append(b.s.Upstreams, u)
	}
}
