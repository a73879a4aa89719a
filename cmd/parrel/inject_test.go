package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/parrel-mesh/parrel/discovery/consul"
)

// TestInjectCommand: the compose file goes to standard output, what was left as it
// is to standard error, and --uninject gives the original back.
func TestInjectCommand(t *testing.T) {
	dir := t.TempDir()
	file, mesh := filepath.Join(dir, "compose.yaml"), filepath.Join(dir, "mesh.yaml")
	text := "services:\n  web: # front\n    image: x\n    ports: [\"80:80\"]\n  host:\n    image: y\n    network_mode: host\n"
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, text)
	out, notes, err := parrel(t, "inject", file)
	if err != nil || !strings.Contains(out, "web-sidecar:") {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := file + ":7: host: left as it is: network_mode host"; !strings.Contains(notes, want) {
		t.Errorf("standard error does not say %q:\n%s", want, notes)
	}
	write(mesh, out)
	if back, _, err := parrel(t, "inject", "--uninject", mesh); err != nil || back != text {
		t.Errorf("%v\n%s", err, back)
	}
	edited := strings.Replace(out, "read_only: true", "read_only: false", 1)
	write(mesh, edited)
	for _, args := range [][]string{{"inject", "--uninject", mesh}, {"inject", mesh}} {
		if out, _, err := parrel(t, args...); err == nil || out != "" || !strings.Contains(err.Error(), "was changed by hand here") {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	if back, _, err := parrel(t, "inject", "--uninject", "--overwrite", mesh); err != nil || back != text {
		t.Errorf("%v\n%s", err, back)
	}
	for _, c := range []struct{ args, want string }{
		{"inject", "inject: FILE is missing"},
		{"inject " + dir, "is a folder: name the compose file in it"},
		{"inject " + filepath.Join(dir, "none"), "no such file or directory"},
		{"inject --mode bridge " + file, `inject: --mode "bridge": there are transparent and explicit`},
		{"inject --token-dir a --token-volume b " + file, "give one"},
		{"inject --after x:y " + file, "write SERVICE or SERVICE:CONDITION"},
		{"inject --env x " + file, "write KEY=VALUE"},
		{"inject --proxy-uid -1 " + file, "give a user id above 0"},
		{"supervise", "supervise: run what?"},
		{"supervise --redirect -- sidecar", "supervise: --redirect needs --proxy-uid"},
		{"supervise --exclude-inbound-port 80 -- sidecar", "exclusions without --redirect"},
		{"sidecar --data-dir d --service-definition {}", "sidecar: --service-definition"},
		{"sidecar --data-dir d --sidecar-for web --service-protocol http", "--service-protocol is for --service-definition"},
		{`sidecar --data-dir d --service-definition {"service":{"name":"web","prot":1}}`, "Consul has no such field here"},
		{`sidecar --data-dir d --service-definition {"name":"web"}`, "needs a Consul agent to register with"},
	} {
		if _, _, err := parrel(t, strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

// TestInjectedCommandLines: what sidecars in the corpus of inject are started
// with are commands whose flags exist and whose values are read.
func TestInjectedCommandLines(t *testing.T) {
	files, err := filepath.Glob("../../deploy/inject/testdata/corpus/*.mesh.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	sidecars := 0
	for _, f := range append(files, "../../examples/compose/docker-compose.yaml") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Services map[string]struct {
				Command yaml.Node
			}
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		for name, s := range doc.Services {
			var args []string
			if !strings.HasSuffix(name, "-sidecar") || s.Command.Decode(&args) != nil {
				continue
			}
			sidecars++
			for i, a := range args { // as compose puts a port's variable in
				args[i] = strings.NewReplacer("${INNER:-80}", "80", "${WEB_PORT:-8080}", "8080").Replace(a)
			}
			parseCommand(t, f+" "+name, args)
			rest := args[1:]
			for rest[0] != "--" {
				rest = rest[1:]
			}
			cmd := parseCommand(t, f+" "+name, rest[1:])
			d := cmd["service-definition"]
			if _, err := consul.ParseDefinition(d); err != nil {
				t.Errorf("%s %s: %s: %v", f, name, d, err)
			}
		}
	}
	if sidecars < 20 {
		t.Errorf("only %d sidecars were looked at", sidecars)
	}
}

// parseCommand reads a command line and gives the values of its flags.
func parseCommand(t *testing.T, what string, args []string) map[string]string {
	t.Helper()
	cmd, rest, err := newRoot().Find(args)
	if err != nil || cmd.Name() != args[0] {
		t.Fatalf("%s: %s: no such command: %v", what, args, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	out := map[string]string{}
	for _, name := range []string{"service-definition", "proxy-uid"} {
		if f := cmd.Flags().Lookup(name); f != nil {
			out[name] = f.Value.String()
		}
	}
	return out
}

// TestInjectSystemd writes units below a folder, parses every command line in
// them, and takes them away again without touching what is not its own.
func TestInjectSystemd(t *testing.T) {
	root := t.TempDir()
	printed, _, err := parrel(t, "inject", "systemd", "web", "--service-port", "8080")
	if err != nil || !strings.Contains(printed, "# /etc/systemd/system/web.service.d/50-parrel.conf\n") {
		t.Fatalf("%v\n%s", err, printed)
	}
	lines := 0
	explicit, _, err := parrel(t, "inject", "systemd", "web", "--mode", "explicit")
	if err != nil || strings.Contains(explicit, "redirect apply") {
		t.Fatalf("%v\n%s", err, explicit)
	}
	for line := range strings.Lines(printed + explicit) {
		_, command, ok := strings.Cut(strings.TrimSpace(line), "="+strings.Repeat("+", strings.Count(line, "=+"))+"/usr/local/bin/parrel ")
		if !ok || !strings.HasPrefix(line, "Exec") {
			continue
		}
		lines++
		cmd, args, err := newRoot().Find(strings.Fields(strings.NewReplacer("%I", "web", "%i", "web", "%n", "web.service", "%S", "/var/lib", "%t", "/run", "$PARREL_SIDECAR_FLAGS", "--transparent --ready-bind 127.0.0.1:15021").Replace(command)))
		if err != nil || !cmd.HasParent() {
			t.Errorf("%s: no such command: %v", command, err)
		} else if err := cmd.ParseFlags(args); err != nil || cmd.Flags().NArg() > 0 {
			t.Errorf("%s: %v %q", command, err, cmd.Flags().Args())
		}
	}
	if lines != 4 {
		t.Errorf("%d command lines were found in the units, want 4:\n%s", lines, printed)
	}

	for range 2 { // the second time it writes over its own
		if _, _, err := parrel(t, "inject", "systemd", "web", "--root", root); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := parrel(t, "inject", "systemd", "api", "--root", root); err != nil {
		t.Fatal(err)
	}
	template := filepath.Join(root, "etc/systemd/system/parrel-sidecar@.service")
	mine := filepath.Join(root, "etc/systemd/system/web.service.d/10-mine.conf")
	if err := os.WriteFile(mine, []byte("[Service]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := parrel(t, "inject", "systemd", "web", "--root", root, "--uninject"); err != nil {
		t.Fatal(err)
	}
	for _, stays := range []string{template, mine} {
		if _, err := os.Stat(stays); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := parrel(t, "inject", "systemd", "api", "--root", root, "--uninject"); err != nil {
		t.Fatal(err)
	}
	for _, goes := range []string{template, filepath.Join(root, "etc/systemd/system/api.service.d"), filepath.Join(root, "etc/sysusers.d/parrel.conf")} {
		if _, err := os.Stat(goes); err == nil {
			t.Errorf("%s is still there", goes)
		}
	}
	if err := os.WriteFile(template, []byte("[Unit]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := parrel(t, "inject", "systemd", "web", "--root", root); err == nil || !strings.Contains(err.Error(), "is there and not made by inject") {
		t.Errorf("a unit of somebody else: %v", err)
	}
	if _, _, err := parrel(t, "inject", "systemd", "web", "--uninject"); err == nil || !strings.Contains(err.Error(), "Give --root") {
		t.Error(err)
	}
}
