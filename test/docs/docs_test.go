package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// documents returns every Markdown file of the project with its text.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out[path] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 5 {
		t.Fatalf("found %d documents below %s: the walk is broken", len(out), top)
	}
	return out
}

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

func TestLinks(t *testing.T) {
	for file, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", rel(t, file), m[1])
			}
		}
	}
}

func rel(t *testing.T, file string) string {
	t.Helper()
	r, err := filepath.Rel(root(t), file)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// promiseRow is one row of docs/promises.md: | DP1 | promise | tests |.
var promiseRow = regexp.MustCompile(`(?m)^\| ([A-Z]+[0-9]+[a-z]?) \|(.*)\|([^|]*)\|$`)

// testRef is one test of such a row: `sidecar/live TestDenyEndsConnection`.
var testRef = regexp.MustCompile("`([a-z0-9_/]+) (Test[A-Za-z0-9_]+|Fuzz[A-Za-z0-9_]+|Benchmark[A-Za-z0-9_]+)`")

func TestPromisesNameTestsThatExist(t *testing.T) {
	top := root(t)
	b, err := os.ReadFile(filepath.Join(top, "docs", "promises.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := promiseRow.FindAllStringSubmatch(string(b), -1)
	if len(rows) < 10 {
		t.Fatalf("docs/promises.md has %d rows that can be read: the table's form changed", len(rows))
	}
	for _, row := range rows {
		refs := testRef.FindAllStringSubmatch(row[3], -1)
		if len(refs) == 0 {
			t.Errorf("promise %s names no test", row[1])
		}
		for _, ref := range refs {
			if !hasFunc(t, filepath.Join(top, ref[1]), ref[2]) {
				t.Errorf("promise %s: %s has no %s", row[1], ref[1], ref[2])
			}
		}
	}
}

func hasFunc(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

var makeTarget = regexp.MustCompile("(?m)(?:`|^    )make ([a-z][a-z-]*)")

func TestMakeTargets(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range documents(t) {
		for _, m := range makeTarget.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(b) {
				t.Errorf("%s mentions `make %s`, which the Makefile does not have", rel(t, file), m[1])
			}
		}
	}
}

var command = regexp.MustCompile("(?:`|^    |bin/)parrel ([a-z]+)(?: ([a-z]+))?")

// TestCommands: each `parrel X` of the documents is a command of the binary.
func TestCommands(t *testing.T) {
	help := exec.Command("go", "run", "./cmd/parrel", "help")
	help.Dir = root(t)
	out, err := help.CombinedOutput()
	if err != nil {
		t.Fatalf("parrel help: %v\n%s", err, out)
	}
	known := map[string]bool{"help": true}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+) +\S`).FindAllStringSubmatch(string(out), -1) {
		known[m[1]] = true
	}
	if !known["controlplane"] || !known["sidecar"] {
		t.Fatalf("the list of commands cannot be read from:\n%s", out)
	}
	for file, text := range documents(t) {
		if strings.HasSuffix(file, "CHANGELOG.md") {
			continue
		}
		for _, line := range strings.Split(text, "\n") {
			for _, m := range command.FindAllStringSubmatch(line, -1) {
				if !known[m[1]] {
					t.Errorf("%s mentions `parrel %s`, which is no command", rel(t, file), m[1])
				}
			}
		}
	}
}
