package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/discovery/consul"
	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// localFlags say for whom on this host a sidecar is, and how their traffic gets
// to it.
type localFlags struct {
	all         bool
	tokenDir    string
	transparent bool
	redirect    string
	rules       redirectFlags
}

// How rules of redirection fail.
const (
	failOpen   = "fail-open"
	failClosed = "fail-closed"
)

func (f *localFlags) bind(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.all, "all-local", false, "carry every service of this host's Consul agent that has a connect-proxy or says whose its processes are, now and later")
	fs.StringVar(&f.tokenDir, "token-dir", "", "with --all-local: directory with each service's join token in a file of the service's name")
	fs.BoolVar(&f.transparent, "transparent", false, "make a proxy that the sidecar registers itself a transparent one (Proxy.Mode)")
	fs.StringVar(&f.redirect, "redirect", "", "redirect traffic to the sidecar once it is ready, fail-closed or fail-open; needs CAP_NET_ADMIN")
	fs.Lookup("redirect").NoOptDefVal = failClosed
	fs.StringVar(&f.rules.proxyUID, "proxy-uid", "", "with --redirect: user (name or number) that the sidecar runs as, whose traffic is not captured (default: this process's)")
	f.rules.bindExclusions(fs)
}

// apply fills in the sidecar's configuration. It says what does not go together.
func (f *localFlags) apply(cmd *cobra.Command, c *sidecar.Config, d *sidecar.Deps, base sidecar.Workload) error {
	switch {
	case !f.all && f.tokenDir != "":
		return errors.New("sidecar: --token-dir is for --all-local; give one service's token by --token-file")
	case f.tokenDir != "" && (base.TokenFile != "" || base.Token != ""):
		return errors.New("sidecar: --token-dir is given beside another token: give one")
	case f.all && base.Token != "":
		return errors.New("sidecar: --all-local takes tokens from files: give --token-dir or --token-file")
	case f.all && (base.Proxy != "" || base.Service != ""):
		return errors.New("sidecar: --all-local carries whatever is registered: leave --proxy-id and --service out")
	}
	for i := range c.Workloads {
		c.Workloads[i].Transparent = f.transparent
	}
	if f.all {
		if f.tokenDir != "" {
			if st, err := os.Stat(f.tokenDir); err != nil || !st.IsDir() {
				return fmt.Errorf("sidecar: --token-dir %s is no directory; make it, and put each service's token into a file of the service's name (`parrel token create`)", f.tokenDir)
			}
		}
		c.AllLocal = &sidecar.AllLocal{TokenDir: f.tokenDir, TokenFile: base.TokenFile, Address: base.Address, Transparent: f.transparent}
	}
	return f.redirection(cmd, d)
}

func (f *localFlags) redirection(cmd *cobra.Command, d *sidecar.Deps) error {
	switch f.redirect {
	case "":
		for _, name := range append(exclusionFlags(), "proxy-uid") {
			if cmd.Flags().Changed(name) {
				return fmt.Errorf("sidecar: --%s is for --redirect, which is not given: add it, or say it to `parrel redirect apply`", name)
			}
		}
		return nil
	case failOpen, failClosed:
	default:
		return fmt.Errorf("sidecar: --redirect=%s: write --redirect=%s or --redirect=%s", f.redirect, failClosed, failOpen)
	}
	c := intercept.Config{DNSPort: 15053} // whose it is does not matter, but that there is one
	f.rules.failOpen = f.redirect == failOpen
	if err := f.rules.fill(&c, cmd); err != nil {
		return err
	}
	c.DNSPort = 0
	if c.ProxyUID == nil {
		uid := uint32(os.Geteuid())
		c.ProxyUID = &uid
	}
	m, err := intercept.New(intercept.Options{})
	if err != nil {
		return err
	}
	d.Redirect = &sidecar.Redirect{Manager: m, Base: c}
	return nil
}

// Follow implements [sidecar.Follower].
func (l localCatalogue) Follow(ctx context.Context, f func([]sidecar.LocalService)) error {
	log := l.log
	if log == nil {
		log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return l.r.FollowLocal(ctx, func(all []consul.LocalService) {
		out := make([]sidecar.LocalService, len(all))
		for i := range all {
			out[i] = localService(&all[i])
		}
		f(out)
	}, func(err error) {
		log.Warn("sidecar: the Consul agent does not say what is registered; what is known stays", "err", err.Error())
	}, func() { log.Info("sidecar: the Consul agent answers again") })
}

func localService(s *consul.LocalService) sidecar.LocalService {
	out := sidecar.LocalService{ID: s.ID, Name: s.Name, Namespace: s.Namespace, Partition: s.Partition, Address: s.Address, Port: s.Port, Meta: s.Meta}
	if p := s.Proxy; p != nil {
		out.Proxy = &sidecar.LocalProxy{ID: p.ID, Name: p.Name, Address: p.Address, Port: p.Port, Meta: p.Meta}
	}
	return out
}
