package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	out := outputFlag{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return out.print(cmd.OutOrStdout(), v, func(t *table) {
				fmt.Fprintf(t, "parrel %s (%s, %s)\n", v["version"], v["go"], v["platform"])
			})
		},
	}
	out.bind(cmd)
	return cmd
}
