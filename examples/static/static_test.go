package static

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/xds/bootstrap"
)

// TestFiles: each file is read without a warning, and stands in the README.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := bootstrap.Parse(file, text)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, w := range b.Warnings {
			t.Error(w)
		}
		if !strings.Contains(string(readme), "`"+file+"`") {
			t.Errorf("README.md does not name %s", file)
		}
	}
}
