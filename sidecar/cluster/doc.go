// Package cluster is one upstream: balancer, health, pools, retry budget and
// breakers behind one handle that survives every change of configuration.
//
// Owns: [Cluster], [Manager] (clusters by name, carried over between
// snapshots), attempts and retries on safe conditions.
// Does not know: routes, listeners, filters.
//
// The surface that engines and compile use (signatures are fixed, the rest of
// the package is its owner's):
//
//	type Deps struct { Net netio.Net; Identity mtls.Source; Log *slog.Logger; Rand func() uint64; Now func() time.Time }
//	func NewManager(Deps) *Manager
//	// Update brings the set of clusters to what is given: equal ones are left
//	// alone, changed ones keep pools, counters and balancer state that the change
//	// does not touch, missing ones drain (no new picks, streams finish).
//	func (m *Manager) Update(specs []Spec)
//	type Spec struct { Cluster *resource.Cluster; Endpoints *resource.Endpoints; Trust *x509bundle.Set }
//	func (m *Manager) Get(name string) (*Cluster, bool)
//	func (m *Manager) Snapshot() []Status            // for admin: endpoints, why in or out, counters
//	func (m *Manager) Run(ctx) error                 // owns background work; returns after all pools are closed
//
//	// RoundTrip sends one request with retries as the policy allows.
//	func (c *Cluster) RoundTrip(ctx, *stream.Request, Options) (*stream.Response, *Attempt, error)
//	// Connect opens a connection for opaque bytes, trying other endpoints where one refuses (T2).
//	func (c *Cluster) Connect(ctx, Options) (netio.Conn, *Attempt, error)
//	type Options struct { Hash uint64; HasHash bool; Retry *resource.Retry; PerTryTimeout time.Duration }
//	// Attempt says where it went: endpoint address, instance id, peer SPIFFE id, number of attempts. Never nil.
//	type Attempt struct { Host, Instance, Peer string; Tries int; TLS bool }
//	// Error carries the telemetry.Code of the failure and its detail.
//	type Error struct { Code telemetry.Code; Detail string; Err error }
package cluster
