package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// unitSections are what a unit may hold (systemd.unit(5), systemd.service(5),
// systemd.exec(5)), as far as the examples use it.
var unitSections = map[string]string{
	"Unit": "Description Documentation After Wants Requires PropagatesStopTo",
	"Service": "Type NotifyAccess WatchdogSec TimeoutStartSec KillMode SuccessExitStatus ExecStop User Group StateDirectory StateDirectoryMode RuntimeDirectory RuntimeDirectoryMode LogsDirectory Environment EnvironmentFile " +
		"ExecStart Restart RestartSec TimeoutStopSec LimitNOFILE LimitCORE NoNewPrivileges ProtectSystem ProtectHome PrivateTmp PrivateDevices",
	"Install": "WantedBy",
}

// TestUnits: the units of examples/systemd can be read, and what they start is a
// command whose flags exist and whose values can be parsed.
func TestUnits(t *testing.T) {
	files, err := filepath.Glob("../../examples/systemd/*.service")
	if err != nil || len(files) != 4 {
		t.Fatalf("%v %v", files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		unit := readUnit(t, file, string(b))
		if stop := strings.TrimLeft(unit["ExecStop"], "-+"); stop != "" {
			unitCommand(t, file, stop)
		}
		if !strings.Contains(unit["ExecStart"], "/parrel ") { // an application
			continue
		}
		cmd := unitCommand(t, file, strings.ReplaceAll(unit["ExecStart"], "%i", "web-1"))
		needs := 0.0
		for _, flag := range []string{"drain-time", "kill-after", "shutdown-delay"} {
			if f := cmd.Flags().Lookup(flag); f != nil {
				needs += seconds(t, f.Value.String())
			}
		}
		if stop := unit["TimeoutStopSec"] + "s"; seconds(t, stop) <= needs {
			t.Errorf("%s is killed after %s, before its end of %gs at most is over", file, stop, needs)
		}
	}
}

// unitCommand is the command of parrel that a line of a unit runs.
func unitCommand(t *testing.T, file, line string) *cobra.Command {
	t.Helper()
	start := strings.Fields(line)
	if len(start) < 2 || start[0] != "/usr/local/bin/parrel" {
		t.Fatalf("%s starts %q", file, start)
	}
	cmd, args, err := newRoot().Find(doubleDashes(start[1:]))
	if err != nil || cmd.Name() == "parrel" {
		t.Fatalf("%s: %v", file, err)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Errorf("%s: %v", file, err)
	}
	if rest := cmd.Flags().Args(); len(rest) > 0 && cmd.Flags().ArgsLenAtDash() != 0 {
		t.Errorf("%s: %q is no flag", file, rest)
	}
	return cmd
}

func seconds(t *testing.T, s string) float64 {
	t.Helper()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	d := fs.Duration("d", 0, "")
	if err := fs.Parse([]string{"--d", s}); err != nil {
		t.Fatal(err)
	}
	return d.Seconds()
}

// readUnit reads a unit's settings, of which each of the examples has one.
func readUnit(t *testing.T, file, text string) map[string]string {
	t.Helper()
	out := map[string]string{}
	section := ""
	for n, line := range strings.Split(text, "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
			if unitSections[section] == "" {
				t.Errorf("%s:%d: there is no section %s", file, n+1, section)
			}
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || !strings.Contains(" "+unitSections[section]+" ", " "+key+" ") {
				t.Errorf("%s:%d: %q is no setting of [%s]", file, n+1, line, section)
			}
			out[key] = value
		}
	}
	return out
}

// TestDocumentedCommandLines: what the documents and examples tell to type, as
// lines of their own, can be parsed.
func TestDocumentedCommandLines(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/adr/*.md", "../../examples/*/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	seen := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			cmd, args, ok := commandLine(line)
			if !ok {
				continue
			}
			seen++
			if cmd == nil {
				t.Errorf("%s: %s: no such command", file, line)
			} else if err := cmd.ParseFlags(args); err != nil {
				t.Errorf("%s: %s: %v", file, line, err)
			}
		}
	}
	if seen < 10 {
		t.Errorf("%d command lines were found: the search is broken", seen)
	}
}

// substituted is what a shell puts another command's output for.
var substituted = regexp.MustCompile(`"?\$\([^)]*\)"?`)

// commandLine finds an indented call of parrel.
func commandLine(line string) (cmd *cobra.Command, args []string, ok bool) {
	text, ok := strings.CutPrefix(line, "    ")
	if !ok {
		return nil, nil, false
	}
	text = substituted.ReplaceAllString(text, "X")
	text, _, _ = strings.Cut(text, " # ")
	text += " "
	at := strings.LastIndex(" "+text, "parrel ")
	if at < 1 || (" " + text)[at-1] == '=' || strings.Contains(text, "[flags]") || strings.HasPrefix(strings.TrimSpace(line), "#") {
		return nil, nil, false
	}
	text = (" " + text)[at+len("parrel "):]
	for _, end := range []string{" > ", " | ", " && "} {
		text, _, _ = strings.Cut(text, end)
	}
	cmd, args, err := newRoot().Find(doubleDashes(strings.Fields(text)))
	if err != nil || !cmd.HasParent() {
		return nil, nil, true
	}
	return cmd, args, true
}
