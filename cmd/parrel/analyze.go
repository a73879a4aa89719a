package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/parrel-mesh/parrel/controlplane/api"
)

func analyzeCommand() *cobra.Command {
	var (
		from apiFlag
		out  outputFlag
	)
	cmd := &cobra.Command{
		Use:   "analyze",
		Short: "Name what of your configuration is wrong or not honoured",
		Long: `Lists, field by field, what parrel does not honour of the config entries and
registrations in the catalogue, what the source refused and why, what sidecars
refused, and what cannot work (an upstream without a service, an intention for
nobody). The exit code is 1 when a finding is an error.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var a api.Analysis
			if err := from.get(cmd.Context(), "/v1/analyze", nil, &a); err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), a, func(t *table) { showAnalysis(t, a) }); err != nil {
				return err
			}
			if a.Counts["error"] > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	from.bind(cmd)
	out.bind(cmd)
	return cmd
}

func showAnalysis(t *table, a api.Analysis) {
	if len(a.Findings) == 0 {
		fmt.Fprintln(t, "nothing found")
		return
	}
	t.row("SEVERITY", "ENTRY", "FIELD", "PROBLEM")
	for _, f := range a.Findings {
		t.row(f.Severity, f.Entry, orDash(f.Field), f.Problem)
		for _, more := range []struct{ name, value string }{{"instead", f.Instead}, {"remedy", f.Remedy}, {"place", f.Place}} {
			if more.value != "" {
				t.row("", "", "", "  "+more.name+": "+more.value)
			}
		}
	}
	fmt.Fprintf(t, "\n%s, %s, %s\n", count(a.Counts["error"], "error"), count(a.Counts["warning"], "warning"), count(a.Counts["info"], "note"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
