package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]+\b`)
	namedFile = regexp.MustCompile(`\b[a-z0-9_]+_test\.go\b`)
)

// TestPackageDocs: each doc.go of the product says what its package owns, what it
// does not know and what to read first, and what it tells to read exists.
func TestPackageDocs(t *testing.T) {
	top, found := root(t), 0
	for _, tree := range []string{"sidecar", "controlplane", "xds", "discovery", "mtls", "deploy"} {
		err := filepath.WalkDir(filepath.Join(top, tree), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.Name() != "doc.go" {
				return err
			}
			found++
			checkPackageDoc(t, path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 25 {
		t.Errorf("%d doc.go were found: the walk is broken", found)
	}
}

func checkPackageDoc(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "\n// ", " ")
	file := rel(t, path)
	for _, word := range []string{"Owns: ", "oes not know: "} {
		if !strings.Contains(text, word) {
			t.Errorf("%s does not say %q", file, word)
		}
	}
	tests, files := namedTest.FindAllString(text, -1), namedFile.FindAllString(text, -1)
	if len(tests)+len(files) == 0 && !strings.Contains(path, "/internal/") {
		t.Errorf("%s names no test to read first", file)
	}
	dir := filepath.Dir(path)
	for _, name := range tests {
		if !hasFunc(t, dir, name) {
			t.Errorf("%s names %s, which the package does not have", file, name)
		}
	}
	for _, name := range files {
		here, _ := filepath.Glob(filepath.Join(dir, name))
		elsewhere, _ := filepath.Glob(filepath.Join(dir, "..", "*", name))
		if len(here)+len(elsewhere) == 0 {
			t.Errorf("%s names %s, which does not exist", file, name)
		}
	}
}
