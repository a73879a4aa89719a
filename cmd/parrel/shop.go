package main

import (
	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/examples/shop"
)

// shopCommand runs one program of the demo's shop. It is hidden: people who
// want the shop without the demo build examples/shop/cmd/shop.
func shopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "shop",
		Short:  "Run one program of the demo's shop",
		Args:   noArgs,
		Hidden: true,
	}
	cfg := shop.BindFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		staySmall(cmd.Context())
		return shop.Run(cmd.Context(), *cfg)
	}
	return cmd
}
