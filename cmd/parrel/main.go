// Command parrel is the whole mesh in one binary: control plane, sidecar,
// debugger and demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().run(ctx, os.Args[1:])
	stop()
	if err != nil {
		if msg := err.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, "parrel: "+msg)
		}
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		os.Exit(1)
	}
}

// exitCode ends the process with a code of its own and prints nothing more.
type exitCode int

func (exitCode) Error() string { return "" }

type root struct{ *cobra.Command }

func newRoot() root {
	cmd := &cobra.Command{
		Use:   "parrel",
		Short: "A service mesh for services outside of Kubernetes",
		Long: `parrel is a service mesh for virtual machines, bare metal, Nomad and
docker-compose. Its catalogue is Consul. This one binary is the control plane,
the sidecar, the debugger and the demo.

Start with:  parrel demo`,
		SilenceUsage:       true,
		SilenceErrors:      true,
		Version:            version,
		Args:               rootArgs,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true}, // a wrong command is said before its flags
		RunE:               func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.SetFlagErrorFunc(badFlag)
	cmd.SetHelpCommand(helpCommand(cmd))
	cmd.AddCommand(
		demoCommand(),
		controlplaneCommand(),
		sidecarCommand(),
		runCommand(),
		drainCommand(),
		checkCommand(),
		tokenCommand(),
		caCommand(),
		svidCommand(),
		redirectCommand(),
		injectCommand(),
		superviseCommand(),
		statusCommand(),
		configCommand(),
		explainCommand(),
		analyzeCommand(),
		versionCommand(),
		shopCommand(),
	)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return root{cmd}
}

func (r root) run(ctx context.Context, args []string) error {
	r.SetArgs(doubleDashes(args))
	return r.ExecuteContext(ctx)
}

// doubleDashes rewrites -flag to --flag, since users of Consul write both.
// Single letters (-o, -o=json, -ojson) and negative numbers stay, and nothing
// after "--" is touched.
func doubleDashes(args []string) []string {
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			return append(out, args[i:]...)
		}
		if len(a) > 2 && a[0] == '-' && a[1] != '-' && a[2] != '=' && !isValue(a) {
			a = "-" + a
		}
		out = append(out, a)
	}
	return out
}

// isValue says that an argument with one dash is no flag's name.
func isValue(a string) bool {
	return a[1] >= '0' && a[1] <= '9' || a[1] == '.' || slices.Contains(outputs, strings.TrimPrefix(a, "-o"))
}
