package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/sidecar/static"
	"github.com/parrel-mesh/parrel/xds/bootstrap"
	"github.com/parrel-mesh/parrel/xds/client"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// bootstrapFlags are those of a sidecar with a static configuration, in Envoy's
// names.
type bootstrapFlags struct{ path, text, mode string }

func (b *bootstrapFlags) bind(fs *pflag.FlagSet) {
	fs.StringVarP(&b.path, "config-path", "c", "", "static configuration: an Envoy v3 bootstrap, YAML or JSON (\"-\": standard input)")
	fs.StringVar(&b.text, "config-yaml", "", "the same, given in place of a file")
}

func (b *bootstrapFlags) given() bool { return b.path != "" || b.text != "" }

// withBootstrap are the flags that mean something beside -c.
var withBootstrap = []string{"config-path", "config-yaml", "mode", "admin-bind", "ready-bind", "admin-access-log-path", "drain-time", "log-level", "log-json",
	"memory-limit", "max-connections", "max-connections-per-listener", "max-connections-per-source", "wait-for-app",
	"wait", "start-timeout", "user", "stop-order", "stop-signals", "app-signal", "kill-after", "on-sidecar-exit", "hold-inbound"}

// read gives the configuration's name for messages, and its text.
func (b *bootstrapFlags) read(cmd *cobra.Command) (string, []byte, error) {
	var wrong []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if !slices.Contains(withBootstrap, f.Name) {
			wrong = append(wrong, "--"+f.Name)
		}
	})
	switch {
	case len(wrong) > 0:
		return "", nil, fmt.Errorf("sidecar: %s: a static configuration has no control plane; leave it out, or leave -c out", strings.Join(wrong, ", "))
	case b.mode != "serve" && b.mode != "validate":
		return "", nil, fmt.Errorf("sidecar: --mode %q: write serve or validate", b.mode)
	case b.path != "" && b.text != "":
		return "", nil, errors.New("sidecar: -c and --config-yaml are both given: give one")
	case b.text != "":
		return "--config-yaml", []byte(b.text), nil
	case b.path == "":
		return "", nil, fmt.Errorf("sidecar: --mode %s checks a static configuration: give it by -c FILE", b.mode)
	case b.path == "-":
		text, err := io.ReadAll(cmd.InOrStdin())
		return "standard input", text, err
	}
	text, err := os.ReadFile(b.path)
	if err != nil {
		return "", nil, fmt.Errorf("sidecar: configuration: %w", err)
	}
	return b.path, text, nil
}

// readBootstrap reads and checks a static configuration; bad is what of it
// cannot be read as a set of resources.
func (f *sidecarFlags) readBootstrap(cmd *cobra.Command, log *slog.Logger, level *slog.LevelVar) (name string, b *bootstrap.Bootstrap, source *static.Source, p *parts, err error) {
	name, text, err := f.bootstrap.read(cmd)
	if err != nil {
		return "", nil, nil, nil, err
	}
	if b, err = bootstrap.Parse(name, text); err != nil {
		return "", nil, nil, nil, err
	}
	f.static(cmd, b)
	if f.cfg.Limits, err = f.limits.config(); err != nil {
		return "", nil, nil, nil, err
	}
	if n := b.Overload.HeapBytes; n > 0 && !cmd.Flags().Changed("memory-limit") {
		f.cfg.Limits.Memory = n
	}
	if n := b.Overload.Connections; n > 0 && !cmd.Flags().Changed("max-connections") {
		f.cfg.Limits.Connections = n
	}
	c := static.Config{Listeners: b.Listeners, Clusters: b.Clusters, Secrets: b.Secrets, Log: log}
	if source, err = static.New(c); err != nil {
		return "", nil, nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	p = &parts{cfg: f.cfg, close: func() {}, deps: sidecar.Deps{Net: netio.OS{}, Log: log, Level: level, MemoryLimit: collectBelow,
		Source: func(_ sidecar.Workload, h client.Handler) (sidecar.Source, error) {
			c.Handler = h
			return static.New(c)
		}}}
	return name, b, source, p, nil
}

// validateBootstrap is --mode validate.
func (f *sidecarFlags) validateBootstrap(cmd *cobra.Command, log *slog.Logger, level *slog.LevelVar) error {
	name, b, source, p, err := f.readBootstrap(cmd, log, level)
	if err != nil {
		return err
	}
	for _, w := range b.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w.String())
	}
	if errs := sidecar.CheckStatic(p.cfg, p.deps, source.Resources()); len(errs) > 0 {
		return fmt.Errorf("%s: %w", name, errors.Join(errs...))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "configuration %s OK\n", name)
	return nil
}

// bootstrapParts is what a sidecar with a static configuration is made of.
func (f *sidecarFlags) bootstrapParts(cmd *cobra.Command, log *slog.Logger, level *slog.LevelVar) (*parts, error) {
	_, b, _, p, err := f.readBootstrap(cmd, log, level)
	if err != nil {
		return nil, err
	}
	for _, w := range b.Warnings {
		log.Warn("configuration", "place", fmt.Sprintf("%s:%d:%d", w.File, w.Line, w.Column), "path", w.Path, "reason", w.Reason)
	}
	return p, nil
}

// static fills the process's configuration from the file; a flag that was given
// goes before what the file says.
func (f *sidecarFlags) static(cmd *cobra.Command, b *bootstrap.Bootstrap) {
	f.cfg.Static, f.cfg.Version = true, version
	id := b.Node.ID
	if id == "" {
		id = "parrel"
	}
	service := b.Node.Cluster
	if service == "" {
		service = id
	}
	f.cfg.Workloads = []sidecar.Workload{{Proxy: id, Service: service, Metadata: b.Node.Metadata}}
	if !cmd.Flags().Changed("admin-bind") {
		f.cfg.Admin = ""
		if a := b.Admin; a != nil {
			f.cfg.Admin = net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
			if a.Path != "" {
				f.cfg.Admin = "unix:" + a.Path
			}
		}
	}
	// As with Envoy, an access log is what the file says; a flag adds one to
	// listeners that have none.
	if cmd.Flags().Changed("admin-access-log-path") && f.accessLog != "" {
		f.cfg.AccessLog = []resource.AccessLog{{Path: f.accessLog}}
	}
}
