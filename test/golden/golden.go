// Package golden compares what a test made with a file that people read in
// review, and rewrites the file when `go test -update` says so.
//
// It owns the flag -update: a package whose tests import it has the flag, so only
// test files may import it. It knows nothing of what it compares but that it is
// text. Entry points: Check for a whole file, Part for the made part of a
// document. Read TestCompare first.
package golden

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files and the generated parts of documents")

// Check holds got to the content of the file, which -update rewrites. A
// difference fails the test and lets it go on; a file that cannot be read ends it.
func Check[T string | []byte](t testing.TB, path string, got T) {
	t.Helper()
	d, err := compare(path, string(got), *update)
	if err != nil {
		t.Fatal(err)
	}
	if d != "" {
		t.Errorf("%s differs; go test -update rewrites it (-want +got):\n%s", path, d)
	}
}

// Part holds the part of the document between the marks
//
//	<!-- made by go test PACKAGE -update -->
//	<!-- end -->
//
// to got; -update rewrites the part and leaves the rest alone.
func Part(t testing.TB, document, pkg, got string) {
	t.Helper()
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := replacePart(string(b), pkg, got)
	if err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	Check(t, document, whole)
}

// compare is the difference between the file and got, "" if there is none. With
// rewrite the file is written first, with its folder.
func compare(path, got string, rewrite bool) (string, error) {
	if rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			return "", err
		}
	}
	want, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w; go test -update makes it", err)
	case err != nil:
		return "", err
	}
	return cmp.Diff(string(want), got), nil
}

func replacePart(document, pkg, got string) (string, error) {
	first, last := "<!-- made by go test "+pkg+" -update -->\n", "<!-- end -->"
	from := strings.Index(document, first)
	to := strings.LastIndex(document, last)
	if from < 0 || to < from {
		return "", fmt.Errorf("no part between %q and %q", first, last)
	}
	return document[:from+len(first)] + got + document[to:], nil
}
