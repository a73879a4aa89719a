package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/deploy/inject"
)

func injectSystemdCommand() *cobra.Command {
	var o inject.SystemdOptions
	var root string
	var uninject bool
	cmd := &cobra.Command{
		Use:   "systemd UNIT",
		Short: "Put a sidecar beside a systemd service",
		Long: `Makes the units that give a service a sidecar, and prints them, or writes them
below --root (/ is this machine): the template parrel-sidecar@.service, which
has a user of its own and no capability, and a drop-in of the service, by which
it starts when its sidecar is ready and stops before it. With --mode transparent
the drop-in makes the redirection rules too, for the processes of the unit (by
its control group, version 2) and nobody else, and takes them away.

The service's own unit is not touched; --uninject removes what was written. The
template serves every service with explicit upstreams. Rules are one set for a
host: where several services are to be transparent, run one sidecar for all of
them (parrel sidecar --all-local --redirect).

    parrel inject systemd web.service --root / --service-port 8080 --grpc-addr cp1.mesh.example:15012
    systemd-sysusers
    systemctl daemon-reload
    systemctl restart web.service`,
		Args: oneArg("UNIT", "web.service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := inject.Systemd(args[0], o)
			if err != nil {
				return err
			}
			switch {
			case uninject && root == "":
				return errors.New("inject systemd: --uninject from where? Give --root, / for this machine")
			case uninject:
				return removeUnits(cmd, root, files)
			case root != "":
				return writeUnits(cmd, root, files)
			}
			for i, f := range files {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s", f.Path, f.Text)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&root, "root", "", "write the files below this folder instead of printing them; / is this machine")
	f.BoolVar(&uninject, "uninject", false, "remove the drop-in of UNIT, and the rest where no other service needs it")
	f.StringVar(&o.Binary, "binary", inject.DefaultBinary, "absolute path of parrel there")
	f.StringVar(&o.User, "user", inject.DefaultUser, "user of the sidecar, which no service may have")
	f.StringVar(&o.ControlPlane, "grpc-addr", "127.0.0.1:15012", "the control plane, HOST:PORT; several separated by commas")
	f.StringVar(&o.Consul, "http-addr", "127.0.0.1:8500", "Consul agent of the host")
	f.StringVar(&o.ServiceID, "service-id", "", "id of the service's registration (default: the unit's name)")
	f.IntVar(&o.Port, "service-port", 0, "port on which the service listens, which is captured; 0: none")
	f.StringVar(&o.Slice, "slice", "system.slice", "control group above the unit's (Slice=)")
	f.StringVar(&o.Mode, "mode", inject.Transparent, "transparent, or explicit: upstreams on ports of 127.0.0.1 only")
	return cmd
}

// writeUnits writes all files or none that somebody else has made.
func writeUnits(cmd *cobra.Command, root string, files []inject.File) error {
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("inject systemd: %w", err)
		case !inject.MadeByInject(string(b)):
			return fmt.Errorf("inject systemd: %s is there and not made by inject: move it away, or print the units and merge them by hand", path)
		}
	}
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("inject systemd: %w", err)
		}
		tmp := path + ".parrel-new"
		if err := os.WriteFile(tmp, []byte(f.Text), 0o644); err != nil {
			return fmt.Errorf("inject systemd: %w", err)
		}
		if err := os.Rename(tmp, path); err != nil {
			return fmt.Errorf("inject systemd: %w", err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), path)
	}
	return nil
}

// removeUnits removes what is the service's own, and what is shared with the last
// service that needs it.
func removeUnits(cmd *cobra.Command, root string, files []inject.File) error {
	for _, f := range files {
		if f.Shared {
			continue
		}
		path := filepath.Join(root, f.Path)
		if err := removeUnit(cmd, path); err != nil {
			return err
		}
		left, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(left) > 0 {
			continue // it is gone already, or others' drop-ins are in it
		}
		if err := os.Remove(filepath.Dir(path)); err != nil {
			return fmt.Errorf("inject systemd: %w", err)
		}
	}
	others, err := filepath.Glob(filepath.Join(root, "/etc/systemd/system/*.service.d/50-parrel.conf"))
	if err != nil || len(others) > 0 {
		return err
	}
	for _, f := range files {
		if !f.Shared {
			continue
		}
		if err := removeUnit(cmd, filepath.Join(root, f.Path)); err != nil {
			return err
		}
	}
	return nil
}

func removeUnit(cmd *cobra.Command, path string) error {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("inject systemd: %w", err)
	case !inject.MadeByInject(string(b)):
		return fmt.Errorf("inject systemd: %s is not made by inject, and stays: remove it by hand", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("inject systemd: %w", err)
	}
	fmt.Fprintln(cmd.OutOrStdout(), "removed", path)
	return nil
}
