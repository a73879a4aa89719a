package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// versionInfo is what version prints.
type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"` // operating system and processor
}

func versionCommand() *cobra.Command {
	out := outputFlag{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionInfo{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return out.print(cmd.OutOrStdout(), v, func(t *table) {
				fmt.Fprintf(t, "parrel %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			})
		},
	}
	out.bind(cmd)
	return cmd
}
