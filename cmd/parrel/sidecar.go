package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parrel-mesh/parrel/deploy/notify"
	"github.com/parrel-mesh/parrel/deploy/run"
	"github.com/parrel-mesh/parrel/discovery/consul"
	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// sidecarFlags are the command's flags.
type sidecarFlags struct {
	services         []string
	proxyID          string
	service          string
	token, tokenFile string
	bindAddress      string
	accessLog        string
	httpAddr         string
	consulTokenFile  string
	consulCA         string
	definition       string
	protocol         string
	bootstrap        bootstrapFlags
	limits           limitFlags
	local            localFlags
	cfg              sidecar.Config
	log              logFlags
	waitForApp       string
	delay            time.Duration
	command          string // for messages: sidecar or run
}

func sidecarCommand() *cobra.Command {
	f := sidecarFlags{command: "sidecar"}
	cmd := &cobra.Command{
		Use:   "sidecar",
		Short: "Run a sidecar for one service instance, or for several",
		Long: `Runs the sidecar of a service instance: joins with a token, keeps its identity
and its last good configuration in --data-dir, listens with mTLS where the
proxy's registration says, and on loopback for each explicit upstream.

--sidecar-for ID is the id of the service instance; repeated, one process
carries several workloads, each with an identity and a stream of its own.
ID=SERVICE names the service too, where no Consul agent can be asked.

With a Consul agent (--http-addr or CONSUL_HTTP_ADDR) the sidecar looks its
service up and registers its connect-proxy itself where nobody did; without one
the proxy has to be registered already. A restart needs nothing but --data-dir.

    parrel sidecar --sidecar-for web-1 --grpc-addr cp:15012 --token-file web.token --data-dir /var/lib/parrel/web

With --all-local one process carries whatever this host's Consul agent has:
each service with a connect-proxy, or with parrel-uid, parrel-user or
parrel-cgroup in its Meta, which say whose its processes are. Services that are
registered later get their workload then; those that go take it with them.
--redirect makes the rules that hand their traffic to the sidecar
(docs/transparent.md); without it ` + "`parrel redirect apply --from-sidecar`" + ` does.

    parrel sidecar --all-local --transparent --redirect --token-dir /etc/parrel/tokens --grpc-addr cp:15012 --data-dir /var/lib/parrel/host

With -c FILE (or --config-yaml TEXT) it is a proxy by itself: an Envoy v3
bootstrap in YAML or JSON says everything, and there is no control plane, no
identity and no data directory. docs/static.md says what is read.
--mode validate checks the file and ends.

    parrel sidecar -c gateway.yaml

At SIGTERM or SIGINT inbound traffic ends first and outbound traffic after it;
a second signal ends at once. Where the application is ended at the same time,
--wait-for-app keeps its outbound traffic alive until it has gone, or
--drain-time has passed once more. WHAT is port (where the configuration says
that it listens), port:NUMBER, pid:NUMBER, pidfile:PATH or cgroup:PATH, such as
cgroup:/system.slice/web.service. ` + "`parrel run`" + ` minds the application itself, and
needs none of this. docs/lifecycle.md tells which to choose.

Under systemd (Type=notify, WatchdogSec=) the unit is started when the sidecar
serves.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd) },
	}
	fs := cmd.Flags()
	f.bind(cmd, fs)
	fs.StringVar(&f.bootstrap.mode, "mode", "serve", "with a static configuration: serve, or validate, which checks it and ends")
	fs.StringVar(&f.waitForApp, "wait-for-app", "", "at the end keep outbound traffic until the application has gone: port, port:N, pid:N, pidfile:PATH, cgroup:PATH")
	fs.StringVar(&f.accessLog, "admin-access-log-path", "/dev/stdout", "access log; \"\" turns it off")
	return cmd
}

// bind makes the flags that `parrel sidecar` and `parrel run` have.
func (f *sidecarFlags) bind(cmd *cobra.Command, fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.services, "sidecar-for", nil, "id of the service instance, ID or ID=SERVICE; repeat for several")
	fs.StringVar(&f.proxyID, "proxy-id", "", "id of the proxy's registration, instead of or beside one --sidecar-for (default: ID-sidecar-proxy)")
	fs.StringVar(&f.service, "service", "", "with --proxy-id: the name of the service")
	fs.StringVar(&f.cfg.ControlPlane, "grpc-addr", "127.0.0.1:15012", "the control plane, HOST:PORT; several separated by commas")
	fs.StringVar(&f.token, "token", "", "join token; needed at first contact only (better: --token-file)")
	fs.StringVar(&f.tokenFile, "token-file", "", "file that holds the join token")
	fs.StringVar(&f.cfg.DataDir, "data-dir", "", "directory for keys, identity and last good configuration (0700); required")
	fs.StringVar(&f.cfg.Admin, "admin-bind", "127.0.0.1:15000", "admin listener: loopback HOST:PORT or unix:PATH; \"\" turns it off")
	fs.StringVar(&f.cfg.Ready, "ready-bind", "", "further listener that answers GET /ready and nothing else, such as 0.0.0.0:15021")
	fs.DurationVar(&f.cfg.Drain, "drain-time", 10*time.Second, "how long requests in hand may take at the end")
	fs.DurationVar(&f.delay, "shutdown-delay", 500*time.Millisecond, "how long to go on accepting after the catalogue was told at the end, so that callers hear of it first")
	fs.BoolVar(&f.cfg.SotW, "sotw", false, "use xDS state of the world, for control planes that have no delta")
	fs.StringVar(&f.bindAddress, "bind-address", "", "address of a proxy that the sidecar registers itself (default: the service's)")
	fs.StringVar(&f.httpAddr, "http-addr", "", "Consul agent on this host (default: CONSUL_HTTP_ADDR; none: Consul is not touched)")
	fs.StringVar(&f.consulTokenFile, "consul-token-file", "", "file with Consul's ACL token (default: CONSUL_HTTP_TOKEN_FILE or CONSUL_HTTP_TOKEN)")
	fs.StringVar(&f.cfg.ResolvConf, "resolv-conf", "/etc/resolv.conf", "file that names the resolvers to which DNS queries are forwarded, and the search domains")
	fs.StringVar(&f.consulCA, "ca-file", "", "CA of Consul's HTTPS (default: CONSUL_CACERT)")
	fs.StringVar(&f.definition, "service-definition", "", "the service itself, as for `consul services register` and in JSON: the sidecar registers it and its proxy, and takes them away at the end")
	fs.StringVar(&f.protocol, "service-protocol", "", "with --service-definition: its protocol, written into a service-defaults entry where there is none")
	f.bootstrap.bind(fs)
	f.limits.bind(fs)
	f.local.bind(cmd)
	f.log.bind(cmd)
}

func (f *sidecarFlags) run(ctx context.Context, cmd *cobra.Command) error {
	logger, level, err := f.log.leveled(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if f.bootstrap.mode != "serve" {
		return f.validateBootstrap(cmd, logger, level)
	}
	var s *process
	var hasten context.Context
	p, err := f.parts(cmd, logger, level)
	if err != nil {
		return err
	}
	defer p.close()
	if f.waitForApp != "" {
		gone, err := run.ParseGone(f.waitForApp)
		if err != nil {
			return fmt.Errorf("sidecar: --wait-for-app: %w", err)
		}
		p.deps.BeforeOutbound = func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, f.cfg.Drain)
			defer cancel()
			defer context.AfterFunc(hasten, cancel)()
			logger.Info("sidecar: waiting for the application to go", "what", f.waitForApp, "at_most", f.cfg.Drain.String())
			if err := gone.Wait(ctx, s.Applications(), func() bool { return s.Connections() == 0 }); err != nil {
				logger.Warn("sidecar: the application is not seen to have gone: its outbound traffic ends now", "what", f.waitForApp, "err", err.Error())
			}
		}
	}
	settle(ctx)
	if s, err = p.process(); err != nil {
		return err
	}
	hasten, again := secondSignal(ctx, s.Hasten)
	defer again()
	tell, ended := announce(s, true, logger)
	defer ended()
	stopping := sync.OnceFunc(func() { tell(notify.Stopping, notify.Status+"leaving: what is in hand ends") })
	defer context.AfterFunc(ctx, stopping)()
	err = s.Run(ctx)
	stopping()
	return err
}

// secondSignal calls f at the first signal after the one that ended ctx. The
// context that it returns is over then too.
func secondSignal(ctx context.Context, f func()) (context.Context, func()) {
	hasten, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		second := make(chan os.Signal, 1)
		signal.Notify(second, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(second)
		select {
		case <-second:
			f()
			cancel()
		case <-hasten.Done():
		}
	})
	return hasten, func() { stop(); cancel() }
}

// parts is what a sidecar is made of.
type parts struct {
	cfg   sidecar.Config
	deps  sidecar.Deps
	own   *self  // registers the service; nil: somebody else does
	close func() // when it has ended
}

// process is a sidecar that registers its service, too, where it has to.
type process struct {
	*sidecar.Sidecar
	own *self // nil: it has not
}

// process makes one life of a sidecar.
func (p *parts) process() (*process, error) {
	s, err := sidecar.New(p.cfg, p.deps)
	if err != nil {
		return nil, err
	}
	out := &process{Sidecar: s}
	if p.own != nil {
		own := *p.own
		own.done = make(chan struct{})
		out.own = &own
	}
	return out, nil
}

// Run is the sidecar's, with its service registered meanwhile.
func (p *process) Run(ctx context.Context) error {
	if p.own != nil {
		registered, stop := context.WithCancel(ctx)
		go p.own.run(registered)
		defer func() { stop(); p.own.leave() }()
	}
	return p.Sidecar.Run(ctx)
}

// parts reads the flags: those of a workload of the mesh, or -c.
func (f *sidecarFlags) parts(cmd *cobra.Command, logger *slog.Logger, level *slog.LevelVar) (*parts, error) {
	if f.cfg.Drain < 0 {
		return nil, fmt.Errorf("%s: --drain-time %s is below zero: give 0s or more", f.command, f.cfg.Drain)
	}
	if f.delay < 0 {
		return nil, fmt.Errorf("%s: --shutdown-delay %s is below zero: give 0s or more", f.command, f.delay)
	}
	if f.cfg.Leave = f.delay; f.delay == 0 {
		f.cfg.Leave = -1 // none
	}
	if f.bootstrap.given() {
		return f.bootstrapParts(cmd, logger, level)
	}
	p := &parts{close: func() {}}
	registrar, err := f.registrar(logger)
	if err != nil {
		return nil, err
	}
	if p.own, err = f.newSelf(registrar, logger); err != nil {
		return nil, err
	}
	if f.cfg.Workloads, err = f.workloads(); err != nil {
		return nil, err
	}
	if err := checkConsulAddress(f.command, f.httpAddr); err != nil {
		return nil, err
	}
	if f.accessLog != "" {
		f.cfg.AccessLog = []resource.AccessLog{{Path: f.accessLog}}
	}
	f.cfg.Version = version
	if f.cfg.Limits, err = f.limits.config(); err != nil {
		return nil, err
	}
	p.deps = sidecar.Deps{Net: netio.OS{}, Log: logger, Level: level, MemoryLimit: collectBelow}
	if registrar != nil {
		p.close = registrar.Close
		p.deps.Registrar = localCatalogue{registrar, logger}
	}
	if err := f.local.apply(cmd, &f.cfg, &p.deps, f.base()); err != nil {
		return nil, err
	}
	p.cfg = f.cfg
	return p, nil
}

// workloads reads --sidecar-for and --proxy-id.
func (f *sidecarFlags) workloads() ([]sidecar.Workload, error) {
	if len(f.services) == 0 && f.proxyID == "" {
		if f.local.all {
			return nil, nil
		}
		return nil, errors.New(f.command + ": for which service instance? Give --sidecar-for ID, the id under which it is registered (or -c FILE, a static configuration)")
	}
	if f.token != "" && f.tokenFile != "" {
		return nil, errors.New(f.command + ": --token and --token-file are both given: give one")
	}
	if f.proxyID != "" && len(f.services) > 1 {
		return nil, errors.New(f.command + ": --proxy-id names one proxy and --sidecar-for several services: leave --proxy-id out")
	}
	if f.service != "" && len(f.services) > 1 {
		return nil, errors.New(f.command + ": --service names one service and --sidecar-for several instances: write --sidecar-for ID=SERVICE for each")
	}
	base := f.base()
	if len(f.services) == 0 {
		if f.service == "" {
			return nil, errors.New(f.command + ": --proxy-id alone does not say which service it stands for: add --service NAME or --sidecar-for ID")
		}
		return []sidecar.Workload{base}, nil
	}
	var out []sidecar.Workload
	for _, s := range f.services {
		w := base
		id, name, named := strings.Cut(s, "=")
		w.ServiceID = id
		if named {
			w.Service = name
		}
		if id == "" || named && name == "" {
			return nil, fmt.Errorf("%s: --sidecar-for %q: write ID or ID=SERVICE", f.command, s)
		}
		out = append(out, w)
	}
	return out, nil
}

// base is what every workload has.
func (f *sidecarFlags) base() sidecar.Workload {
	return sidecar.Workload{Proxy: f.proxyID, Service: f.service, Token: f.token, TokenFile: f.tokenFile, Address: f.bindAddress}
}

func (f *sidecarFlags) registrar(log *slog.Logger) (*consul.Registrar, error) {
	if f.httpAddr == "" && os.Getenv("CONSUL_HTTP_ADDR") == "" {
		log.Info("no Consul agent given: the proxy has to be registered already", "remedy", "--http-addr or CONSUL_HTTP_ADDR")
		return nil, nil
	}
	return consul.NewRegistrar(consul.Config{Address: f.httpAddr, TokenFile: f.consulTokenFile, CAFile: f.consulCA, Log: log})
}

// localCatalogue gives the sidecar the part of Consul that it touches, in the
// sidecar's own words: the planes and the catalogue do not know each other.
type localCatalogue struct {
	r   *consul.Registrar
	log *slog.Logger // nil: none
}

func (l localCatalogue) Lookup(ctx context.Context, id string) (sidecar.LocalService, error) {
	s, err := l.r.Lookup(ctx, id)
	if errors.Is(err, consul.ErrNotRegistered) {
		return sidecar.LocalService{}, fmt.Errorf("%w: %w", sidecar.ErrNotRegistered, err)
	}
	if err != nil {
		return sidecar.LocalService{}, err
	}
	return localService(&s), nil
}

func (l localCatalogue) RegisterProxy(ctx context.Context, p sidecar.ProxyRegistration) error {
	return l.r.RegisterProxy(ctx, consul.ProxyRegistration(p))
}

func (l localCatalogue) DeregisterProxy(ctx context.Context, id string) error {
	return l.r.DeregisterProxy(ctx, id)
}

func (l localCatalogue) SetMaintenance(ctx context.Context, id string, on bool) error {
	return l.r.SetMaintenance(ctx, id, on)
}
