package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/deploy/demo"
)

func demoCommand() *cobra.Command {
	started := time.Now()
	cfg := demo.Config{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole mesh on this machine: no Consul, no Docker, no root",
		Long: `Runs a small shop (web → api → {orders, users v1 and v2, pricing over gRPC,
ledger over TCP}) in which every call passes two sidecars with mTLS, through
explicit upstream ports on loopback. It prints what is where and what to try.
Ctrl-C ends everything and leaves nothing behind.

With --netns, as root, each host is a network namespace: programs call each other
by name, at whatever port they like, as users of their own, and the kernel hands
their connections to the one sidecar of their host. The machine's own network is
not touched.

With --once the demo checks itself and ends; the last line on standard output is
"demo: N passed, M failed", and the exit code is 0 or 1.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Started, cfg.Out, cfg.Err = started, cmd.OutOrStdout(), cmd.ErrOrStderr()
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("demo: cannot find this binary: %w", err)
			}
			cfg.Binary = self
			if cfg.Consul {
				if cfg.ConsulBinary, err = findConsul(self, cfg.ConsulBinary); err != nil {
					return err
				}
			}
			staySmall(cmd.Context())
			passed, failed, err := demo.Run(cmd.Context(), cfg)
			if !cfg.Once {
				return err
			}
			if err != nil {
				fmt.Fprintln(cfg.Err, "parrel: "+err.Error())
				failed++
			}
			fmt.Fprintf(cfg.Out, "demo: %d passed, %d failed\n", passed, failed)
			if failed > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&cfg.Once, "once", false, "check the mesh and end")
	f.BoolVar(&cfg.Consul, "consul", false, "on a real Consul agent, which the demo starts, instead of a folder of definitions")
	f.StringVar(&cfg.ConsulBinary, "consul-binary", "", "Consul's binary (default: consul beside parrel, else on the PATH)")
	f.StringVar(&cfg.Dir, "dir", "", "an empty folder to work in, kept at the end (default: a temporary one, removed)")
	f.IntVar(&cfg.PortBase, "port-base", 19000, "the first port on 127.0.0.1 that is tried")
	f.BoolVar(&cfg.Netns, "netns", false, "hosts are network namespaces, and connections are captured instead of sent to upstream ports; needs root")
	cmd.AddCommand(demoAddCommand(), demoHoldCommand(), demoEnterCommand())
	return cmd
}

// demoHoldCommand holds a namespace for --netns.
func demoHoldCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hold", Short: "Hold a namespace until ended", Args: noArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			staySmall(cmd.Context())
			demo.Hold(cmd.Context())
			return nil
		},
	}
}

// demoEnterCommand runs a command in a namespace for --netns.
func demoEnterCommand() *cobra.Command {
	var c demo.EnterConfig
	cmd := &cobra.Command{
		Use: "enter --netns FILE -- COMMAND", Short: "Become a command in a namespace", Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || c.Netns == "" {
				return errors.New("demo enter: write demo enter --netns FILE -- COMMAND")
			}
			c.Command = args
			return demo.Enter(c)
		},
	}
	cmd.Flags().StringVar(&c.Netns, "netns", "", "the namespace's file")
	cmd.Flags().IntVar(&c.UID, "uid", 0, "the user to become")
	cmd.Flags().StringVar(&c.ResolvConf, "resolv-conf", "", "what to show as /etc/resolv.conf")
	return cmd
}

func demoAddCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "add SERVICE",
		Short: "Add an instance of a service to the demo that runs in --dir",
		Args:  oneArg("SERVICE", "orders --dir DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return errors.New("demo add: which demo? Give the folder that `parrel demo` prints as --dir")
			}
			text, err := demo.Add(cmd.Context(), dir, args[0])
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the demo's folder")
	return cmd
}

// findConsul finds the server's binary: the one named, the one beside parrel,
// or the one on the PATH.
func findConsul(self, named string) (string, error) {
	if named != "" {
		if _, err := os.Stat(named); err != nil {
			return "", fmt.Errorf("demo: --consul-binary: %w; run `make consul`, or give the path of Consul's binary", err)
		}
		return filepath.Abs(named)
	}
	beside := filepath.Join(filepath.Dir(self), "consul")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath("consul")
	if err != nil {
		return "", fmt.Errorf("demo: --consul needs Consul's binary and there is none at %s or on the PATH: run `make consul`, or give --consul-binary", beside)
	}
	return path, nil
}
