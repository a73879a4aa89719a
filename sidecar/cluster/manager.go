package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/sidecar/health"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/pool"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Resolver looks names up for DNS clusters; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Deps are what a Manager uses. Net is required; Identity where a cluster has
// TLS.
type Deps struct {
	Net      netio.Net
	Identity mtls.Source
	Log      *slog.Logger     // nil: none
	Rand     func() uint64    // safe for concurrent use; nil: math/rand/v2
	Now      func() time.Time // nil: time.Now
	Resolver Resolver         // nil: the system's
	Wheel    *wheel.Wheel     // of time-outs and idle connections; nil: one of its own
}

// Spec is one cluster as a snapshot wants it. Read-only.
type Spec struct {
	Cluster   *resource.Cluster
	Endpoints *resource.Endpoints // of EDS clusters; nil while unknown
	Trust     *x509bundle.Set     // nil: the identity's own bundles
	// TLS replaces that with the identity where the cluster has TLS: certificates
	// of the configuration. It stays the same while the cluster does.
	TLS *tls.Config
}

// Manager holds the clusters of one workload. Safe for concurrent use.
type Manager struct {
	d Deps

	ctx  context.Context // of background work; ends with Run
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	clusters map[string]*Cluster
	draining map[*Cluster]struct{} // removed, with connections left
	closed   bool

	// index is a copy of clusters that requests read: they never wait for an Update.
	index atomic.Pointer[map[string]*Cluster]
}

// NewManager makes a manager without clusters. Its background work starts with
// Run, but for name resolution, which starts with Update and ends with Run.
func NewManager(d Deps) *Manager {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Rand == nil {
		d.Rand = rand.Uint64
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Resolver == nil {
		d.Resolver = net.DefaultResolver
	}
	if d.Wheel == nil {
		d.Wheel = wheel.New()
	}
	if d.Identity == nil {
		d.Identity = mtls.NewCell(nil)
	}
	m := &Manager{d: d, clusters: map[string]*Cluster{}, draining: map[*Cluster]struct{}{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.index.Store(&map[string]*Cluster{})
	return m
}

// Update brings the set of clusters to what is given: equal ones are left
// alone, changed ones keep pools, counters and balancer state that the change
// does not touch, missing ones drain (no new picks, streams finish).
func (m *Manager) Update(specs []Spec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	wanted, changed := make(map[string]bool, len(specs)), false
	for _, s := range specs {
		name := s.Cluster.Name
		wanted[name] = true
		c := m.clusters[name]
		if c == nil {
			c = &Cluster{name: name, m: m, tracker: health.NewTracker(),
				pools: map[string]*endpoint{}, retiring: map[*pool.Pool]struct{}{}}
			c.expiry.Init(m.d.Wheel, c.expire)
			c.apply(s)
			c.resolve(s.Cluster)
			m.clusters[name], changed = c, true
			continue
		}
		old := c.state.Load().spec
		if sameSpec(old, s) {
			continue
		}
		c.apply(s)
		if !resource.Equal(old.Cluster, s.Cluster) {
			c.resolve(s.Cluster)
		}
	}
	for name, c := range m.clusters {
		if !wanted[name] {
			c.remove()
			delete(m.clusters, name)
			m.draining[c] = struct{}{}
			changed = true
		}
	}
	if changed {
		index := maps.Clone(m.clusters)
		m.index.Store(&index)
	}
	m.sweep()
}

func sameSpec(a, b Spec) bool {
	if a.Trust != b.Trust && trustKey(a.Trust) != trustKey(b.Trust) {
		return false
	}
	if a.Cluster != b.Cluster && !resource.Equal(a.Cluster, b.Cluster) {
		return false
	}
	if a.Endpoints == b.Endpoints {
		return true
	}
	return a.Endpoints != nil && b.Endpoints != nil && resource.Equal(a.Endpoints, b.Endpoints)
}

// sweep forgets removed clusters that are drained; the caller holds mu.
func (m *Manager) sweep() {
	for c := range m.draining {
		if !c.sweep() {
			delete(m.draining, c)
		}
	}
	for _, c := range m.clusters {
		c.sweep()
	}
}

// Get finds a cluster. The handle may be kept beyond the snapshot.
func (m *Manager) Get(name string) (*Cluster, bool) {
	c, ok := (*m.index.Load())[name]
	return c, ok
}

// Run owns the background work: it drains connections when the identity or its
// trust changes. It returns when ctx ended and all pools are closed; the
// manager is then over.
func (m *Manager) Run(ctx context.Context) error {
	for {
		changed := m.d.Identity.Changed()
		m.reidentify()
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	m.mu.Lock()
	m.closed = true
	var all []*Cluster
	for _, c := range m.clusters {
		all = append(all, c)
	}
	for c := range m.draining {
		all = append(all, c)
	}
	m.mu.Unlock()
	m.stop()
	m.wg.Wait()
	for _, c := range all {
		c.close()
	}
	return nil
}

// reidentify replaces the pools whose connections were made for another
// identity or trust. A rotated leaf of the same identity changes nothing.
func (m *Manager) reidentify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.clusters {
		s := c.state.Load()
		if s.spec.Cluster.TLS != nil {
			c.apply(s.spec)
		}
	}
	m.sweep()
}

// identityKey changes when connections made before are no longer those that we
// would make: another identity of ours, or other roots to trust.
func (m *Manager) identityKey(trust *x509bundle.Set) string {
	snap := m.d.Identity.Current()
	id := ""
	if snap.SVID != nil {
		id = snap.SVID.ID.String()
	}
	if trust == nil {
		trust = snap.Bundles
	}
	return id + trustKey(trust)
}

func trustKey(s *x509bundle.Set) string {
	if s == nil {
		return ""
	}
	h := sha256.New()
	for _, b := range s.Bundles() {
		fmt.Fprintf(h, "%s\n", b.TrustDomain())
		for _, c := range b.X509Authorities() {
			h.Write(c.Raw)
		}
	}
	return string(h.Sum(nil))
}

// tlsConfig builds the client's side; nil for plaintext clusters.
func (c *Cluster) tlsConfig(spec Spec) *tls.Config {
	t := spec.Cluster.TLS
	if t == nil {
		return nil
	}
	if spec.TLS != nil {
		return spec.TLS
	}
	identity := c.m.d.Identity
	return mtls.ClientConfig(mtls.ClientParams{
		SNI: t.SNI,
		Params: mtls.Params{
			Identity: identity,
			Trust: func() *x509bundle.Set {
				if s := c.trust.Load(); s != nil {
					return s
				}
				return identity.Current().Bundles
			},
			Authorise:  expect(t.PeerSANs),
			MinVersion: version(t.MinVersion), MaxVersion: version(t.MaxVersion),
			Now: c.m.d.Now,
		},
	})
}

func version(s string) uint16 {
	switch s {
	case "1.2":
		return tls.VersionTLS12
	case "1.3":
		return tls.VersionTLS13
	}
	return 0
}

// expect authorises peers whose SPIFFE id matches one of the configured names;
// nil where there are none. A name that cannot be compiled matches nobody.
func expect(sans []resource.StringMatch) func(spiffeid.ID) error {
	if len(sans) == 0 {
		return nil
	}
	matchers := make([]func(string) bool, len(sans))
	names := make([]string, len(sans))
	for i, m := range sans {
		matchers[i], names[i] = matcher(m), m.Value
	}
	return func(id spiffeid.ID) error {
		s := id.String()
		for _, match := range matchers {
			if match(s) {
				return nil
			}
		}
		return fmt.Errorf("expected %s", strings.Join(names, " or "))
	}
}

func matcher(m resource.StringMatch) func(string) bool {
	if m.Kind == resource.StringRegex {
		flags := ""
		if m.IgnoreCase {
			flags = "(?i)"
		}
		re, err := regexp.Compile(flags + "^(?:" + m.Value + ")$")
		if err != nil {
			return func(string) bool { return false }
		}
		return re.MatchString
	}
	fold := func(s string) string { return s }
	if m.IgnoreCase {
		fold = strings.ToLower
	}
	value := fold(m.Value)
	test := map[resource.StringKind]func(s, v string) bool{
		resource.StringExact:    func(s, v string) bool { return s == v },
		resource.StringPrefix:   strings.HasPrefix,
		resource.StringSuffix:   strings.HasSuffix,
		resource.StringContains: strings.Contains,
	}[m.Kind]
	return func(s string) bool { return test(fold(s), value) }
}

// Status is one cluster for admin.
type Status struct {
	Name      string
	Endpoints []EndpointStatus
	// Open counts of the cluster's breakers.
	Connections, Pending, Requests, Retries int64
	Removed                                 bool
}

// EndpointStatus is one endpoint for admin.
type EndpointStatus struct {
	Address, Instance string
	Usable            bool
	Why               string // why in or out
	Active            int64
	Requests          uint64
	Failures          uint64
	Connections       int
}

// Snapshot describes every cluster, sorted by name.
func (m *Manager) Snapshot() []Status {
	m.mu.Lock()
	all := make([]*Cluster, 0, len(m.clusters))
	for _, c := range m.clusters {
		all = append(all, c)
	}
	for c := range m.draining {
		all = append(all, c)
	}
	m.mu.Unlock()
	out := make([]Status, 0, len(all))
	for _, c := range all {
		out = append(out, c.Status())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Status describes the cluster.
func (c *Cluster) Status() Status {
	s := c.state.Load()
	if !s.next.IsZero() && !c.m.d.Now().Before(s.next) {
		c.refresh()
		s = c.state.Load()
	}
	st := Status{Name: c.name, Removed: s.removed,
		Connections: c.breakers.connections.n.Load(), Pending: c.breakers.pending.n.Load(),
		Requests: c.breakers.requests.n.Load(), Retries: c.breakers.retries.n.Load()}
	states, _ := c.tracker.States(c.m.d.Now())
	why := make(map[string]health.State, len(states))
	for _, h := range states {
		why[h.Address] = h
	}
	if s.spec.Cluster.Discovery == resource.DiscoveryOriginalDst {
		for _, ep := range c.destinations() {
			st.Endpoints = append(st.Endpoints, EndpointStatus{
				Address: ep.lb.Address, Usable: true, Why: "an original destination", Active: ep.lb.Active(),
				Requests: ep.lb.Total(), Failures: ep.failures.Load(), Connections: ep.pool.Load().Conns(),
			})
		}
	}
	for _, ep := range s.endpoints {
		h := why[ep.lb.Address]
		st.Endpoints = append(st.Endpoints, EndpointStatus{
			Address: ep.lb.Address, Instance: *ep.instance.Load(), Usable: h.Usable, Why: h.Why,
			Active: ep.lb.Active(), Requests: ep.lb.Total(), Failures: ep.failures.Load(),
			Connections: ep.pool.Load().Conns(),
		})
	}
	return st
}
