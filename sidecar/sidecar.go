package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/sidecar/admin"
	"github.com/parrel-mesh/parrel/sidecar/dns"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/overload"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/sidecar/wheel"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Sidecar is one process with its workloads.
type Sidecar struct {
	cfg      Config
	deps     Deps
	metrics  *telemetry.Metrics
	logs     *telemetry.Logs
	record   telemetry.Recorder
	overload *overload.Manager
	wheel    *wheel.Wheel // the process's time-outs
	dns      *dns.Set     // shared by the workloads
	traffic  netio.Net    // for listeners and upstreams: counted, and held back under pressure
	running  running
	captures *captures // capture ports, which workloads share
	start    time.Time

	opened   sync.WaitGroup // workloads whose listener sets exist
	leaving  sync.WaitGroup // workloads that have not told the catalogue that they leave
	draining atomic.Bool
	quitOnce sync.Once
	quit     chan struct{}
	drains   chan drainRequest // of the admin API
	hasten   context.Context   // over: no time for a soft end is left
	goFaster context.CancelFunc
	tell     func()      // tells the catalogue that the process leaves; set by Run before it drains
	alone    atomic.Bool // the application has ended
	listed   atomic.Bool // AllLocal: it is known what is registered

	redirector *redirector // nil: somebody else makes the rules
	uncaptured sync.Map    // proxy's id to why
}

// New checks the configuration and prepares the workloads. Nothing runs, and no
// socket is open, before Run; the data directory is made.
func New(c Config, d Deps) (*Sidecar, error) {
	c.withDefaults()
	if err := c.validate(&d); err != nil {
		return nil, err
	}
	d.withDefaults()
	s := &Sidecar{cfg: c, deps: d, start: d.Now(), quit: make(chan struct{}), drains: make(chan drainRequest, 8),
		metrics: telemetry.NewMetrics(telemetry.MetricsConfig{Version: c.Version, Now: d.Now}),
		logs:    telemetry.NewLogs(telemetry.LogsConfig{}),
	}
	s.hasten, s.goFaster = context.WithCancel(context.Background())
	s.record = s.metrics
	s.wheel = wheel.New()
	s.overload = overload.New(c.Limits, overload.Deps{Log: d.Log, Limit: d.MemoryLimit, Wheel: s.wheel})
	s.traffic = s.overload.Net(d.Net)
	s.dns = dns.NewSet(dns.Config{ResolvConf: c.ResolvConf}, dns.Deps{Net: s.traffic, Log: d.Log, Rand: d.Rand, Error: s.metrics.MeshError})
	s.metrics.Registry().MustRegister(s.overload.Collector(), s.dns.Collector())
	file := ""
	if c.DataDir != "" && !c.Static {
		if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
			return nil, fmt.Errorf("sidecar: data directory: %w", err)
		}
		file = filepath.Join(c.DataDir, "capture-ports.json")
	}
	var err error
	if s.captures, err = newCaptures(s, file); err != nil {
		return nil, err
	}
	if d.Redirect != nil {
		s.redirector = newRedirector(s, d.Redirect)
	}
	for _, w := range c.Workloads {
		one, err := newWorkload(s, w)
		if err != nil {
			return nil, err
		}
		s.running.list = append(s.running.list, one)
	}
	slices.SortFunc(s.running.list, func(a, b *workload) int { return strings.Compare(a.cfg.name(), b.cfg.name()) })
	return s, nil
}

// Metrics are the process's, for further collectors.
func (s *Sidecar) Metrics() *telemetry.Metrics { return s.metrics }

// Run serves until ctx ends (or somebody posts /quitquitquit), then leaves in
// this order: readiness fails; the catalogue is told; inbound connections end
// after the work in hand, within Config.Drain; Deps.BeforeOutbound; outbound
// ones end too; everything else ends. It returns nil after such an end, an error
// where the process cannot go on.
func (s *Sidecar) Run(ctx context.Context) error {
	hard, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	leave, goNow := context.WithCancel(hard)
	defer goNow()
	s.tell = sync.OnceFunc(func() { s.noMore(); goNow(); s.leaving.Wait() })

	g := newGroup(hard)
	if err := s.serveHTTP(g); err != nil {
		g.cancel()
		return errors.Join(err, g.wait())
	}
	g.start("metrics", s.metrics.Run)
	g.start("access logs", s.logs.Run)
	g.start("overload", s.overload.Run)
	g.start("dns", s.dns.Run)
	for _, w := range s.all() {
		s.opened.Add(1)
		s.leaving.Add(1)
		s.launch(g, leave, w)
	}
	s.opened.Wait()
	g.start("drains", s.drainWhenAsked)
	if s.redirector != nil {
		g.start("redirection", s.redirector.run)
	}
	if s.cfg.AllLocal != nil {
		g.start("local services", s.follow(g, leave, func() { s.listed.Store(true) }))
	}
	s.untilEnd(ctx, g)
	s.depart(g.ctx)
	s.noMore()
	g.cancel()
	err := g.wait()
	s.captures.wg.Wait()
	return err
}

func (s *Sidecar) untilEnd(ctx context.Context, g *group) {
	select {
	case <-ctx.Done():
	case <-s.quit:
	case <-g.ctx.Done():
	}
}

// Connections is how many connections of the workloads' listeners are open.
func (s *Sidecar) Connections() int { return s.open() }

// open is the number of connections in all workloads.
func (s *Sidecar) open() (n int) {
	for _, w := range s.all() {
		n += w.live.Len()
	}
	return n
}

func (s *Sidecar) drain(ctx context.Context, directions ...resource.Direction) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, w := range s.all() {
		wg.Go(func() {
			if err := w.listeners.Drain(ctx, directions...); err != nil {
				w.log.Warn("sidecar: not everything ended in time", telemetry.KeyCode, telemetry.DrainTimeout.String(), telemetry.KeyError, err.Error())
			}
		})
	}
}

// serveHTTP opens the admin and readiness ports.
func (s *Sidecar) serveHTTP(g *group) error {
	if s.cfg.Admin != "" {
		h := admin.Handler(admin.Deps{
			Version: s.cfg.Version, Start: s.start, Workloads: s.view, Redirect: s.plan, Metrics: s.metrics.Handler(), Gatherer: s.metrics.Registry(),
			Level: s.deps.Level, Now: s.deps.Now, Reopen: s.logs.Reopen, Draining: s.draining.Load,
			Quit:  func() { s.quitOnce.Do(func() { close(s.quit) }) },
			Drain: s.askToDrain,
		})
		network, address := "tcp", s.cfg.Admin
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
		} else if strings.HasPrefix(address, "/") {
			network = "unix"
		}
		if err := s.listenHTTP(g, "admin", network, address, h, "choose another with --admin-bind"); err != nil {
			return err
		}
	}
	if s.cfg.Ready == "" {
		return nil
	}
	mux := http.NewServeMux()
	ready := func(w http.ResponseWriter, _ *http.Request) {
		status, body := admin.Ready(s.readiness(), s.draining.Load())
		http.Error(w, strings.TrimSuffix(body, "\n"), status)
	}
	mux.HandleFunc("GET /ready", ready)
	mux.HandleFunc("GET /healthz/ready", ready)
	return s.listenHTTP(g, "readiness", "tcp", s.cfg.Ready, mux, "choose another readiness address")
}

func (s *Sidecar) listenHTTP(g *group, name, network, address string, h http.Handler, remedy string) error {
	ln, err := s.deps.Net.Listen(g.ctx, network, address)
	if err != nil {
		return fmt.Errorf("sidecar: %s address %s: %w; %s", name, address, err, remedy)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	g.start(name, func(ctx context.Context) error {
		ended := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(ended)
			// Whoever asked for the end gets an answer.
			soft, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if srv.Shutdown(soft) != nil {
				_ = srv.Close()
			}
		})
		err := srv.Serve(onlyConns{ln})
		if !stop() {
			<-ended
			return nil
		}
		return err
	})
	return nil
}

// onlyConns hides what netio's listener can do beyond net.Listener.
type onlyConns struct{ net.Listener }
