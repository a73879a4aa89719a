package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testdata", "x.golden")
	if _, err := compare(path, "a\n", false); err == nil || !strings.Contains(err.Error(), "go test -update makes it") {
		t.Errorf("a missing file: %v", err)
	}
	if d, err := compare(path, "a\nb\n", true); d != "" || err != nil {
		t.Fatalf("rewriting: %q %v", d, err)
	}
	if d, err := compare(path, "a\nb\n", false); d != "" || err != nil {
		t.Errorf("the same: %q %v", d, err)
	}
	for _, other := range []string{"a\nc\n", "a\nb", "a\nb\n\n", ""} {
		if d, err := compare(path, other, false); d == "" || err != nil {
			t.Errorf("%q passes for what is written: %v", other, err)
		}
	}
	if b, err := os.ReadFile(path); string(b) != "a\nb\n" || err != nil {
		t.Errorf("comparing wrote %q, %v", b, err)
	}
	if _, err := compare(filepath.Dir(path), "", false); err == nil || strings.Contains(err.Error(), "-update") {
		t.Errorf("a folder: %v", err)
	}
}

func TestReplacePart(t *testing.T) {
	const document = "# Title\n<!-- made by go test ./x -update -->\nold\n<!-- end -->\nrest\n"
	got, err := replacePart(document, "./x", "$1 new\n")
	if want := "# Title\n<!-- made by go test ./x -update -->\n$1 new\n<!-- end -->\nrest\n"; got != want || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "<!-- end -->\n<!-- made by go test ./x -update -->\n", "<!-- made by go test ./x -update -->\nold\n",
		strings.ReplaceAll(document, "./x", "./y")} {
		if got, err := replacePart(bad, "./x", ""); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
