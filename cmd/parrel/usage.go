package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// What cobra says of wrong arguments names neither place nor remedy; these do.

// noArgs refuses every argument.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %q is one argument too many: it takes flags only; see `%s --help`", name(cmd), args[0], cmd.CommandPath())
}

// oneArg demands exactly one argument, which what names.
func oneArg(what, example string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s: %s is missing: write `%s %s`", name(cmd), what, cmd.CommandPath(), example)
		case len(args) > 1:
			return fmt.Errorf("%s: %q is one argument too many: it takes one %s", name(cmd), args[1], what)
		}
		return nil
	}
}

// atMost allows up to n arguments.
func atMost(n int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return fmt.Errorf("%s: %q is one argument too many: write `%s %s`", name(cmd), args[n], cmd.CommandPath(), usage)
	}
}

// name is the command's path without the binary: "token create".
func name(cmd *cobra.Command) string {
	_, rest, _ := strings.Cut(cmd.CommandPath(), " ")
	return rest
}

// group makes a command that does nothing by itself but name its own commands.
func group(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subs...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var known []string
		for _, s := range subs {
			known = append(known, s.Name())
		}
		where := ""
		if n := name(cmd); n != "" {
			where = n + ": "
		}
		if len(args) == 0 {
			return fmt.Errorf("%swhat? Give one of: %s", where, strings.Join(known, ", "))
		}
		return fmt.Errorf("%s%q is no command: there are %s", where, args[0], strings.Join(known, ", "))
	}
	return cmd
}

// badFlag is what a wrong flag comes to.
func badFlag(cmd *cobra.Command, err error) error {
	where := ""
	if n := name(cmd); n != "" {
		where = n + ": "
	}
	return fmt.Errorf("%s%w; see `%s --help`", where, err, cmd.CommandPath())
}

// rootArgs refuses what is no command, and says what may have been meant.
func rootArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	meant := "`parrel help` lists all"
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		meant = "did you mean " + strings.Join(s, " or ") + "?"
	}
	return fmt.Errorf("%q is no command: %s", args[0], meant)
}

// helpCommand is `parrel help COMMAND`, with an error for what is no command.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Tell of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == nil || len(rest) > 0 {
				return fmt.Errorf("help: there is no command %q: `parrel help` lists all", strings.Join(args, " "))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}
