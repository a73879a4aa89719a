package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/mtls/ca"
)

func caCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "ca",
		Short: "Look after the built-in CA",
	}, caRotateCommand())
}

func caRotateCommand() *cobra.Command {
	var (
		dir     string
		overlap time.Duration
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the CA's root, with overlap",
		Long: `Makes a new root on a host that has the CA's directory. It is in the bundle that
everybody trusts at once and signs after --overlap, by when every sidecar has
heard of it; the root before leaves the bundle when its last leaf has expired.
The control planes that share the directory follow by themselves.

    parrel ca rotate --ca-dir /var/lib/parrel/ca`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := haveCA(dir); err != nil {
				return fmt.Errorf("ca rotate: %w", err)
			}
			authority, err := ca.Open(dir, ca.Config{})
			if err != nil {
				return err
			}
			if err := authority.Rotate(cmd.Context(), overlap); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "a new root of %s is trusted from now on and signs from %s on\n",
				authority.TrustDomain().Name(), time.Now().Add(overlap).UTC().Format(time.RFC3339))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "ca-dir", "", "the CA's directory; required")
	cmd.Flags().DurationVar(&overlap, "overlap", ca.DefaultLeafTTL, "how long the new root is only trusted; at least as long as a sidecar may be off")
	return cmd
}

// haveCA says whether a directory can hold a CA that exists: nothing is made by
// a mistyped name.
func haveCA(dir string) error {
	if dir == "" {
		return errors.New("where is the CA? Give --ca-dir, the directory that the control plane has")
	}
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("--ca-dir: %w; give the directory that the control plane has", err)
	} else if !info.IsDir() {
		return fmt.Errorf("--ca-dir: %s is no directory; give the directory that the control plane has", dir)
	}
	return nil
}
