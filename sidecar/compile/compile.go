package compile

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/parrel-mesh/parrel/sidecar/filter"
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
	// Filters builds the HTTP filters of a connection manager.
	Filters func(*resource.HTTPManager) (*filter.Chain, error)
	// Current is the snapshot in force: an atomic load. It may return nil
	// before the first.
	Current func() *Snapshot
	// Static: the configuration is the owner's own, and names certificates. Else
	// the only one is the workload's identity.
	Static bool
	Now    func() time.Time // nil: time.Now
}

// HTTP is what an HTTP engine is made of.
type HTTP struct {
	Listener *resource.Listener
	Chain    *resource.FilterChain
	Manager  *resource.HTTPManager
	// Routes are the routes in force now, or, once the engine is replaced, the
	// last that it had; nil while there are none. To be called once per request.
	Routes func() *decide.Routes
	// Filters are the filters in force now, or the last, likewise. Never nil.
	Filters func() *filter.Chain
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
	TLS       *tls.Config         // by certificates of the configuration; nil: the identity's, or none
}

// Snapshot is the runtime configuration of one workload. Immutable.
type Snapshot struct {
	Version   string
	Set       *warm.Set
	Listeners []listener.Config    // by name
	DNS       []*resource.Listener // by name: those that answer DNS, which have no chains
	Upstreams []Upstream           // by name

	routes  map[string]compiledRoutes
	trust   map[string]compiledTrust
	certs   map[string]compiledCert
	engines map[engineID]engine
	mark    *mark
}

type compiledRoutes struct {
	rc     *resource.RouteConfig
	routes *decide.Routes
}

type compiledTrust struct {
	secret *resource.Secret
	set    *x509bundle.Set
	pool   *x509.CertPool // static configuration only
}

type compiledCert struct {
	secret *resource.Secret
	cert   *tls.Certificate
}

type engineID struct{ listener, chain string }

// engine is one engine, a digest of what it was made of, and the filters that it
// looks up.
type engine struct {
	made    string
	handler listener.Handler
	look    *lookup       // nil: it looks nothing up
	filters *filter.Chain // nil: it has none
	// filtersMade is a digest of what filters were built of.
	filtersMade string
}

// lookup gives an engine what is in force at each request: routes and filters,
// which change without a new engine, and so without an end of its connections.
// What an engine had last stays with it: its connections outlive it, and a
// request that comes on one of them before the client has heard that it is to
// end is still decided on, by names that the snapshot in force may no longer
// have.
type lookup struct {
	id      engineID
	key     string // of the routes
	current func() *Snapshot

	seen        atomic.Pointer[inForce]
	lastRoutes  atomic.Pointer[decide.Routes]
	lastFilters atomic.Pointer[filter.Chain]
}

// inForce is what a lookup found in one snapshot.
type inForce struct {
	mark    *mark // of the snapshot; the snapshot itself is not held
	routes  *decide.Routes
	filters *filter.Chain
}

// mark tells snapshots apart by its address.
type mark struct{ _ byte }

// get finds what is in force: one load and a comparison where nothing changed.
func (l *lookup) get() *inForce {
	now := l.current()
	var m *mark
	if now != nil {
		m = now.mark
	}
	if v := l.seen.Load(); v != nil && v.mark == m && m != nil {
		return v
	}
	v := &inForce{mark: m}
	if now != nil {
		v.routes = now.Routes(l.key)
		if e := now.engines[l.id]; e.look == l {
			v.filters = e.filters
		}
	}
	if v.routes == nil {
		v.routes = l.lastRoutes.Load()
	}
	if v.filters == nil {
		v.filters = l.lastFilters.Load()
	}
	l.seen.Store(v)
	return v
}

func (l *lookup) routes() *decide.Routes { return l.get().routes }
func (l *lookup) filters() *filter.Chain { return l.get().filters }

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
		certs:   make(map[string]compiledCert),
		engines: make(map[engineID]engine, len(previous.engines)),
		mark:    new(mark),
	}}
	b.secrets()
	b.routeConfigs()
	b.listeners()
	for _, e := range b.s.engines {
		if e.look == nil {
			continue
		}
		if r := b.s.Routes(e.look.key); r != nil {
			e.look.lastRoutes.Store(r)
		}
		if e.filters != nil {
			e.look.lastFilters.Store(e.filters)
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
		if len(secret.ChainPEM) > 0 && b.deps.Static {
			b.certificate(name, secret)
			continue
		}
		old, had := b.old.trust[name]
		if had && old.secret == secret {
			b.s.trust[name] = old
			continue
		}
		bundles, err := trustSet(secret)
		if err == nil {
			t := compiledTrust{secret: secret, set: bundles}
			if b.deps.Static {
				t.pool = pool(bundles)
			}
			b.s.trust[name] = t
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
		if l.DNS != nil {
			b.s.DNS = append(b.s.DNS, l)
			continue
		}
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
		if b.deps.Static {
			b.clientTLS(&u)
			b.s.Upstreams = append(b.s.Upstreams, u)
			continue
		}
		if c.TLS != nil && c.TLS.Trust.SDS != "" {
			if u.Trust = b.s.Trust(c.TLS.Trust.SDS); u.Trust == nil {
				u.Trust = x509bundle.NewSet() // named, and not there: nobody is trusted
			}
		}
		b.s.Upstreams = append(b.s.Upstreams, u)
	}
}
