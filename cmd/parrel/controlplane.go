package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/controlplane"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/discovery/consul"
	"github.com/parrel-mesh/parrel/discovery/file"
	"github.com/parrel-mesh/parrel/mtls/ca"
)

// controlplaneFlags are the command's flags.
type controlplaneFlags struct {
	grpcBind, httpBind string
	advertise          []string
	apiHosts           []string
	caDir, trustDomain string
	leafTTL            time.Duration
	datacenter         string
	defaultIntention   string
	drain              time.Duration
	catalogDir         string
	noChecks           bool
	consul             consul.Config
	log                logFlags
}

func controlplaneCommand() *cobra.Command {
	var f controlplaneFlags
	cmd := &cobra.Command{
		Use:   "controlplane",
		Short: "Run the control plane",
		Long: `Reads the catalogue, policy and config entries from Consul (CONSUL_HTTP_ADDR,
CONSUL_HTTP_TOKEN, CONSUL_CACERT and the rest of Consul's variables are
honoured) or from a folder of Consul's own definition files, and streams Envoy's
xDS to the sidecars. Signs their identities with the CA in --ca-dir, which is
made where there is none; several control planes may share that directory.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := f.log.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), logger)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.grpcBind, "grpc-bind", "127.0.0.1:15012", "address for xDS and joining; to serve other hosts bind one that they reach")
	fs.StringVar(&f.httpBind, "http-bind", "127.0.0.1:15080", "address of the JSON API; \"\" turns it off")
	fs.StringArrayVar(&f.advertise, "advertise", nil, "DNS name or IP address under which foreign xDS clients know the control plane; repeat for several")
	fs.StringArrayVar(&f.apiHosts, "api-host", nil, "Host header that the API answers to beside loopback's names; repeat for several")
	fs.StringVar(&f.caDir, "ca-dir", "", "directory of the built-in CA (0700); required")
	fs.StringVar(&f.trustDomain, "trust-domain", "", "trust domain of a new CA (default: a random one, UUID.parrel)")
	fs.DurationVar(&f.leafTTL, "leaf-ttl", ca.DefaultLeafTTL, "how long the identities that it signs live; they are renewed at half")
	fs.StringVar(&f.datacenter, "datacenter", "dc1", "the datacenter of this mesh")
	fs.StringVar(&f.defaultIntention, "default-intention", "", "allow or deny a call that no intention names (default: what Consul says, else deny)")
	fs.DurationVar(&f.drain, "drain-time", 5*time.Second, "how long calls in hand may take at the end")
	fs.StringVar(&f.catalogDir, "catalog-dir", "", "read this folder of definitions and config entries instead of Consul")
	fs.BoolVar(&f.noChecks, "no-checks", false, "with --catalog-dir: do not run the definitions' checks; every instance counts as passing")
	fs.StringVar(&f.consul.Address, "http-addr", "", "Consul's HTTP address (default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500)")
	fs.StringVar(&f.consul.TokenFile, "consul-token-file", "", "file with Consul's ACL token (default: CONSUL_HTTP_TOKEN_FILE or CONSUL_HTTP_TOKEN)")
	fs.StringVar(&f.consul.CAFile, "ca-file", "", "CA of Consul's HTTPS (default: CONSUL_CACERT)")
	f.log.bind(cmd)
	return cmd
}

func (f *controlplaneFlags) run(ctx context.Context, log *slog.Logger) error {
	if f.caDir == "" {
		return errors.New("controlplane: where is the CA? Give --ca-dir, a directory that only this user can read; it is filled where it is empty")
	}
	if f.catalogDir != "" && f.consul.Address != "" {
		return errors.New("controlplane: --catalog-dir and --http-addr name two catalogues: give one")
	}
	action := discovery.IntentionAction(f.defaultIntention)
	if action != "" && action != discovery.Allow && action != discovery.Deny {
		return fmt.Errorf("controlplane: --default-intention %q: use allow or deny", f.defaultIntention)
	}
	if f.leafTTL < minLeafTTL {
		return fmt.Errorf("controlplane: --leaf-ttl %s is too short to be renewed in time: give at least %s", f.leafTTL, minLeafTTL)
	}
	if err := f.check(); err != nil {
		return err
	}
	source, err := f.source(action, log) // before anything is made: it finds what is wrong with the catalogue's flags
	if err != nil {
		return err
	}
	used, err := f.usedTokens()
	if err != nil {
		return err
	}
	authority, err := f.openCA(used, log)
	if err != nil {
		return err
	}
	dns, ips := f.names()
	identity, err := authority.ControlPlaneCert(ctx, dns, ips)
	if err != nil {
		return err
	}
	xds, err := net.Listen("tcp", f.grpcBind)
	if err != nil {
		return fmt.Errorf("controlplane: cannot listen for xDS: %w; choose another address with --grpc-bind", err)
	}
	var api net.Listener
	if f.httpBind != "" {
		if api, err = net.Listen("tcp", f.httpBind); err != nil {
			xds.Close()
			return fmt.Errorf("controlplane: cannot listen for the API: %w; choose another address with --http-bind", err)
		}
	}
	name, err := os.Hostname()
	if err != nil {
		name = "parrel"
	}
	cp, err := controlplane.New(controlplane.Config{
		Name: name, Datacenter: f.datacenter, DefaultIntention: action, Drain: f.drain, APIHosts: f.apiHosts,
	}, controlplane.Deps{
		Source: source, Issuer: authority, Identity: identity, Tokens: authority, XDS: xds, API: api,
		Background: []func(context.Context) error{identity.Run}, Log: log,
	})
	if err != nil {
		xds.Close()
		if api != nil {
			api.Close()
		}
		return err
	}
	log.Info("control plane", "xds", xds.Addr().String(), "api", f.httpBind, "trust_domain", authority.TrustDomain().Name())
	settle(ctx)
	return cp.Run(ctx)
}

// check refuses addresses and names that cannot be any, before a CA is made.
func (f *controlplaneFlags) check() error {
	for _, a := range []struct{ flag, value string }{{"--grpc-bind", f.grpcBind}, {"--http-bind", f.httpBind}} {
		if _, _, err := net.SplitHostPort(a.value); err != nil && (a.value != "" || a.flag == "--grpc-bind") {
			return fmt.Errorf("controlplane: %s %q: %w; write HOST:PORT", a.flag, a.value, err)
		}
	}
	for _, n := range f.advertise {
		if _, err := netip.ParseAddr(n); err != nil && !isDNSName(n) {
			return fmt.Errorf("controlplane: --advertise %q is neither a DNS name nor an IP address: write it without scheme and port", n)
		}
	}
	for _, n := range f.apiHosts {
		if _, err := netip.ParseAddr(n); err != nil && !isDNSName(n) {
			return fmt.Errorf("controlplane: --api-host %q is no name of a host: write it without scheme and port", n)
		}
	}
	if f.drain < 0 {
		return fmt.Errorf("controlplane: --drain-time %s is below zero: give 0s or more", f.drain)
	}
	if f.catalogDir == "" && f.noChecks {
		return errors.New("controlplane: --no-checks is for --catalog-dir alone: Consul's agents run their checks themselves")
	}
	if f.catalogDir != "" && (f.consul.TokenFile != "" || f.consul.CAFile != "") {
		return errors.New("controlplane: --consul-token-file and --ca-file are for Consul, and --catalog-dir is given: leave one out")
	}
	return checkConsulAddress("controlplane", f.consul.Address)
}

// checkConsulAddress refuses what cannot be the address of an agent's HTTP API;
// "" leaves it to the environment.
func checkConsulAddress(command, address string) error {
	if address == "" || strings.HasPrefix(address, "unix://") {
		return nil
	}
	host := strings.TrimPrefix(strings.TrimPrefix(address, "http://"), "https://")
	if u, err := url.Parse("http://" + host); err != nil || u.Hostname() == "" || strings.Contains(u.Hostname(), ":") && u.Host[0] != '[' {
		return fmt.Errorf("%s: --http-addr %q is no address: write HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix://PATH", command, address)
	}
	return nil
}

// isDNSName says whether a name can be one of a host (RFC 1123, section 2.1).
func isDNSName(n string) bool {
	n = strings.TrimSuffix(n, ".")
	if n == "" || len(n) > 253 {
		return false
	}
	for label := range strings.SplitSeq(n, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// minLeafTTL leaves a sidecar, and the control plane itself, which looks every
// 10 s, time to renew at half of the life.
const minLeafTTL = 30 * time.Second

// usedTokens is where used join tokens are recorded: with Consul in its KV, so
// that all control planes know of them; nil: in the CA's directory.
func (f *controlplaneFlags) usedTokens() (ca.UsedTokens, error) {
	if f.catalogDir != "" {
		return nil, nil
	}
	return consul.NewUsedTokens(f.consul)
}

func (f *controlplaneFlags) openCA(used ca.UsedTokens, log *slog.Logger) (*ca.CA, error) {
	conf := ca.Config{LeafTTL: f.leafTTL, Used: used, Log: log}
	name := f.trustDomain
	if name == "" {
		if _, err := os.Stat(f.caDir); err == nil {
			// What is there has its trust domain; an empty folder says so.
			if a, err := ca.Open(f.caDir, conf); err == nil {
				return a, nil
			} else if entries, readErr := os.ReadDir(f.caDir); readErr != nil || len(entries) > 0 {
				return nil, err
			}
		}
		var id [16]byte
		if _, err := rand.Read(id[:]); err != nil {
			return nil, err
		}
		name = fmt.Sprintf("%x-%x-%x-%x-%x.parrel", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, fmt.Errorf("controlplane: --trust-domain %q: %w; write it as mesh.example", name, err)
	}
	conf.TrustDomain = td
	return ca.Open(f.caDir, conf)
}

// names are the SANs of the control plane's certificate for foreign clients;
// our own check its SPIFFE id.
func (f *controlplaneFlags) names() (dns []string, ips []netip.Addr) {
	all := append([]string{"localhost", "127.0.0.1", "::1"}, f.advertise...)
	if host, _, err := net.SplitHostPort(f.grpcBind); err == nil {
		all = append(all, host)
	}
	for _, n := range all {
		if ip, err := netip.ParseAddr(n); err == nil {
			if !ip.IsUnspecified() {
				ips = append(ips, ip)
			}
		} else if n != "" {
			dns = append(dns, strings.ToLower(n))
		}
	}
	return dns, ips
}

// source makes the catalogue. This is the list of catalogues.
func (f *controlplaneFlags) source(action discovery.IntentionAction, log *slog.Logger) (discovery.Source, error) {
	if f.catalogDir != "" {
		return file.New(file.Config{Dir: f.catalogDir, Datacenter: f.datacenter, Checks: !f.noChecks, DefaultIntention: action, Log: log})
	}
	c := f.consul
	c.Log = log
	source, err := consul.New(c)
	if err != nil {
		return nil, err
	}
	if action != "" {
		return ownDefault{source}, nil
	}
	return source, nil
}

// ownDefault is a catalogue whose word on calls that no intention names does not
// count, since the user has said it with --default-intention.
type ownDefault struct{ discovery.Source }

func (o ownDefault) Run(ctx context.Context, sink discovery.Sink) error {
	return o.Source.Run(ctx, discovery.SinkFunc(func(d discovery.Delta) {
		d.DefaultIntention = ""
		sink.Apply(d)
	}))
}
