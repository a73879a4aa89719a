package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/controlplane/api"
	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls"
	"github.com/parrel-mesh/parrel/mtls/remote"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/server"
)

// Config of a control plane. Zero durations take the defaults.
type Config struct {
	// Name tells control planes apart in messages and towards clients.
	Name string
	// Datacenter is the mesh's own; required.
	Datacenter string
	// DefaultIntention holds until the catalogue says what its default is; ""
	// is deny.
	DefaultIntention discovery.IntentionAction
	// Coalesce is the least time between two pushes of one service; 100 ms.
	// The first change of a service never waits.
	Coalesce time.Duration
	// RegistrationWait is how long a stream waits for its node id to appear in
	// the catalogue before it is refused; 5 s.
	RegistrationWait time.Duration
	// RootsEvery is how often the issuer is asked for its roots; 30 s.
	RootsEvery time.Duration
	// Drain is how long calls in hand may take when Run ends; 5 s.
	Drain time.Duration
	// APIHosts are Host headers that the API answers to beside loopback names
	// and addresses.
	APIHosts []string
	// Limits bound what one stream may cost.
	Limits server.Limits
}

// Deps is what a control plane is made of. The control plane owns the listeners
// from New on and closes them.
type Deps struct {
	// Source is the catalogue; required.
	Source discovery.Source
	// Issuer signs the workloads' certificates and says what to trust; required.
	Issuer mtls.Issuer
	// Identity is the control plane's own certificate, from the built-in CA;
	// required. Its bundles are trusted on XDS beside the issuer's roots.
	Identity mtls.Source
	// Tokens checks join tokens; required.
	Tokens remote.Redeemer
	// XDS is the listener of port 15012; required.
	XDS net.Listener
	// API is the listener of port 15080; nil: no API.
	API net.Listener
	// Background runs beside the rest, for the same time: the renewal of
	// Identity, for one. An error other than ctx's ends Run.
	Background []func(context.Context) error
	// Encode serialises resources; nil: as xds/wire does. With another one a
	// test serves what no generator makes.
	Encode func(resource.Resource) (*anypb.Any, error)
	Log    *slog.Logger     // nil: none
	Now    func() time.Time // nil: time.Now
}

// ControlPlane is one control plane.
type ControlPlane struct {
	// Read-only after New.
	cfg  Config
	deps Deps
	xds  *server.Server
	grpc *grpc.Server
	http *http.Server

	inbox *inbox
	rooms *retained
	ready chan struct{} // closed after the first full delivery was applied
	kick  chan struct{} // wakes the roots' loop
	roots atomic.Pointer[x509bundle.Set]
	mesh  atomic.Pointer[state]
}

// state is a snapshot and the news of the next one.
type state struct {
	*mesh.Snapshot
	next chan struct{} // closed when there is a newer one
}

// New checks and wires; nothing runs yet.
func New(c Config, d Deps) (*ControlPlane, error) {
	switch {
	case c.Datacenter == "":
		return nil, errors.New("controlplane: no datacenter: name it with --datacenter")
	case d.Source == nil, d.Issuer == nil, d.Identity == nil, d.Tokens == nil, d.XDS == nil:
		return nil, errors.New("controlplane: a source, an issuer, an identity, a redeemer of tokens and a listener are required")
	}
	c.Name = cmp.Or(c.Name, "parrel")
	c.Coalesce = cmp.Or(c.Coalesce, 100*time.Millisecond)
	c.RegistrationWait = cmp.Or(c.RegistrationWait, 5*time.Second)
	c.RootsEvery = cmp.Or(c.RootsEvery, 30*time.Second)
	c.Drain = cmp.Or(c.Drain, 5*time.Second)
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	p := &ControlPlane{
		cfg: c, deps: d, inbox: newInbox(), rooms: newRetained(),
		ready: make(chan struct{}), kick: make(chan struct{}, 1),
	}
	p.mesh.Store(&state{&mesh.Snapshot{Datacenter: c.Datacenter, Default: discovery.Deny}, make(chan struct{})})
	p.roots.Store(x509bundle.NewSet())
	if err := p.wire(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *ControlPlane) wire() error {
	sign, err := remote.NewServer(remote.ServerConfig{
		Issuer: p.deps.Issuer, Tokens: p.deps.Tokens, Trust: p.trust, Log: p.deps.Log,
	})
	if err != nil {
		return fmt.Errorf("controlplane: %w", err)
	}
	p.xds = server.New(server.Config{
		Authoriser: p, Provider: p, Origin: p.cfg.Name, Log: p.deps.Log, Now: p.deps.Now, Limits: p.cfg.Limits, Encode: p.deps.Encode,
		Peer: func(ctx context.Context) (spiffeid.ID, error) {
			id, ok := remote.PeerFromContext(ctx)
			if !ok {
				return id, errors.New("no verified client certificate")
			}
			return id, nil
		},
	})
	p.xds.OnConnect(p.rooms.connected)
	p.grpc = grpc.NewServer(append(server.ServerOptions(),
		grpc.Creds(credentials.NewTLS(remote.ServerTLS(mtls.Params{
			Identity: p.deps.Identity, Trust: p.trust, Now: p.deps.Now,
		}))),
		grpc.UnaryInterceptor(remote.UnaryInterceptor()),
		grpc.StreamInterceptor(remote.StreamInterceptor()),
	)...)
	p.xds.Register(p.grpc)
	remote.RegisterServer(p.grpc, sign)
	p.http = &http.Server{
		Handler:           p.API(),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(p.deps.Log.Handler(), slog.LevelDebug),
	}
	return nil
}

// API is the handler of the JSON API, for whoever serves it elsewhere too.
func (p *ControlPlane) API() http.Handler {
	return api.New(api.Config{Name: p.cfg.Name, Hosts: p.cfg.APIHosts}, api.Deps{
		Mesh: p.Mesh, Streams: p.xds.Status, Subscribed: p.xds.Subscribed, Metrics: p.xds.Metrics, Ready: p.isReady, Now: p.deps.Now,
	})
}

// Mesh returns the present snapshot.
func (p *ControlPlane) Mesh() *mesh.Snapshot { return p.mesh.Load().Snapshot }

// Ready is closed when the first full catalogue is in force.
func (p *ControlPlane) Ready() <-chan struct{} { return p.ready }

func (p *ControlPlane) isReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// Run serves until ctx ends, drains, and returns nil; or the error that keeps
// it from working.
func (p *ControlPlane) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	start := func(what string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("controlplane: %s: %w", what, err)
			}
			return nil
		})
	}
	start("certificate authority", p.watchRoots)
	start("catalogue", func(ctx context.Context) error { return p.deps.Source.Run(ctx, discovery.SinkFunc(p.deliver)) })
	start("mesh", p.build)
	for _, f := range p.deps.Background {
		start("background", f)
	}
	start("xDS server", func(context.Context) error { return p.grpc.Serve(p.deps.XDS) })
	if p.deps.API != nil {
		start("API server", func(context.Context) error {
			if err := p.http.Serve(p.deps.API); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		p.drain()
		return nil
	})
	return g.Wait()
}

// drain ends the streams, whose sidecars go to another control plane or keep
// what they have, and lets calls in hand finish.
func (p *ControlPlane) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Drain)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if p.deps.API != nil && p.http.Shutdown(ctx) != nil {
			_ = p.http.Close()
		}
	})
	p.xds.Close()
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		p.grpc.GracefulStop()
	})
	select {
	case <-done:
	case <-ctx.Done():
		p.grpc.Stop()
	}
	wg.Wait()
}

// deliver takes what the source says. Trust comes from the issuer alone, which
// for Consul's CA is the same authority; news of it only makes us ask sooner.
func (p *ControlPlane) deliver(d discovery.Delta) {
	if d.Roots != nil {
		d.Roots = nil
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
	p.inbox.put(d)
}

// build applies deliveries, one at a time.
func (p *ControlPlane) build(ctx context.Context) error {
	b := mesh.NewBuilder(mesh.Config{
		TrustDomain: p.deps.Issuer.TrustDomain().Name(), Datacenter: p.cfg.Datacenter,
		DefaultIntention: p.cfg.DefaultIntention,
	})
	gate := newGate(p.cfg.Coalesce)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var later <-chan time.Time
		d, wait, ok := p.inbox.take(gate, p.deps.Now())
		if ok {
			p.apply(b, d)
			continue
		}
		if wait > 0 {
			timer.Reset(wait)
			later = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.inbox.news:
		case <-later:
		}
	}
}

func (p *ControlPlane) apply(b *mesh.Builder, d discovery.Delta) {
	old := b.Current()
	next, ch := b.Apply(d)
	if next != old {
		was := p.mesh.Load()
		p.mesh.Store(&state{next, make(chan struct{})})
		close(was.next)
		shared, workloads, all := generate.Affected(old, next, ch)
		keys := make([]server.Key, len(shared))
		for i, k := range shared {
			keys[i] = server.Key{Type: k.Type, Name: k.Name}
		}
		if all || len(keys)+len(workloads) > 0 {
			p.xds.Changed(server.Change{All: all, Shared: keys, Workloads: workloads})
		}
	}
	if d.Full && !p.isReady() {
		s := next.Stats()
		p.deps.Log.Info("the catalogue is complete", "services", s.Services, "workloads", s.Workloads, "entries", s.Entries)
		close(p.ready)
	}
}
