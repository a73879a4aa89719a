package inject

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/golden"
)

// corpus lists the compose files of testdata: files as people have them.
func corpus(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/corpus/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("the corpus has %d files: %v", len(files), err)
	}
	var out []string
	for _, f := range files {
		if !strings.HasSuffix(f, ".mesh.yaml") {
			out = append(out, f)
		}
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// optionsOf reads the options for a file of the corpus from its first line:
// "# options: mode=\"explicit\"".
func optionsOf(t *testing.T, text string) Options {
	t.Helper()
	first, _, _ := strings.Cut(text, "\n")
	words, ok := strings.CutPrefix(first, "# options: ")
	if !ok {
		return Options{}
	}
	o, err := (Options{}).over("options", words)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestCorpus injects every file, holds the result and what is said about it to
// what stands beside it, takes it back, and injects the result again.
func TestCorpus(t *testing.T) {
	for _, f := range corpus(t) {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text := read(t, f)
			res, err := Compose(filepath.Base(f), text, optionsOf(t, text))
			if err != nil {
				t.Fatal(err)
			}
			base := strings.TrimSuffix(f, ".yaml")
			golden.Check(t, base+".mesh.yaml", res.Text)
			var notes strings.Builder
			for _, n := range res.Notes {
				notes.WriteString(n.String() + "\n")
			}
			golden.Check(t, base+".notes", notes.String())
			back, err := Uninject("mesh", res.Text, false)
			if err != nil || back != text {
				t.Errorf("it does not come back as it was: %v\n%s", err, back)
			}
			again, err := Compose("mesh", res.Text, Options{})
			if err != nil || again.Text != res.Text {
				t.Errorf("injected again it differs: %v", err)
			}
		})
	}
}

// TestComposeReads has the installed docker-compose read every result; it finds
// in it every service that is in the file.
func TestComposeReads(t *testing.T) {
	compose, err := exec.LookPath("docker-compose")
	if err != nil {
		t.Skip("LOUD: there is no docker-compose on this machine: no result of inject was read by it; apt-get install docker-compose")
	}
	for _, f := range corpus(t) {
		t.Run(filepath.Base(f), func(t *testing.T) {
			if strings.Contains(read(t, f), "# only: compose v2") {
				t.Skip("the file itself is for Compose v2 only: docker-compose 1.29 does not read it")
			}
			out := composeConfig(t, compose, strings.TrimSuffix(f, ".yaml")+".mesh.yaml")
			for _, want := range []string{"services:", "network_mode: service:"} {
				if !strings.Contains(out, want) {
					t.Errorf("docker-compose config does not say %q:\n%s", want, out)
				}
			}
		})
	}
}

// TestComposeV2Reads has Compose v2's own library read every result, which
// checks it against the Compose specification.
func TestComposeV2Reads(t *testing.T) {
	check, err := filepath.Abs("../../bin/composecheck")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(check); err != nil {
		t.Fatalf("Compose v2's reader is not there: run `make compose-check` (%v)", err)
	}
	run := func(t *testing.T, text string) (string, error) {
		path := composeFolder(t, text)
		cmd := exec.Command(check, path)
		cmd.Env = append(os.Environ(), "TAG=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, f := range corpus(t) {
		t.Run(filepath.Base(f), func(t *testing.T) {
			out, err := run(t, read(t, strings.TrimSuffix(f, ".yaml")+".mesh.yaml"))
			if err != nil || !strings.Contains(out, "network_mode: service:") || !strings.Contains(out, "condition: service_healthy") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	// It refuses what is wrong.
	if out, err := run(t, "services:\n  web:\n    image: x\n    network_mode: host\n    networks: [a]\nnetworks: {a: }\n"); err == nil {
		t.Errorf("the reader takes everything:\n%s", out)
	}
}

// composeConfig runs `docker-compose config` on a file.
func composeConfig(t *testing.T, compose, file string) string {
	t.Helper()
	path := composeFolder(t, read(t, file))
	cmd := exec.Command(compose, "-f", path, "config")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix:///nowhere", "TAG=1", "COMPOSE_PROFILES=debug,tools")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("docker-compose config: %v\n%s", err, out)
	}
	return string(out)
}

// composeFolder puts a file into a folder where what the corpus refers to is to
// be found, and gives its path.
func composeFolder(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"api", "web", "worker", "admin", "build"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	others, err := os.ReadDir("testdata/refs")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range others {
		if err := os.WriteFile(filepath.Join(dir, o.Name()), []byte(read(t, filepath.Join("testdata/refs", o.Name()))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "docker-compose.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBad: each file of testdata/bad is refused with the error beside it, which
// names the place.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text := read(t, f)
			res, err := Compose(filepath.Base(f), text, optionsOf(t, text))
			if err == nil {
				t.Fatalf("it was taken:\n%s", res.Text)
			}
			golden.Check(t, strings.TrimSuffix(f, ".yaml")+".error", err.Error()+"\n")
		})
	}
}

// TestLabelsAreDocumented holds the table of docs/inject.md to the labels that
// are read.
func TestLabelsAreDocumented(t *testing.T) {
	doc := read(t, "../../docs/inject.md")
	for _, l := range labelHelp {
		if row := "| `" + l.name + "` | " + strings.ReplaceAll(l.text, `"`, `"`) + " |"; !strings.Contains(strings.ReplaceAll(doc, "`\"false\"`", `"false"`), row) {
			t.Errorf("docs/inject.md has no row %q", row)
		}
	}
}
