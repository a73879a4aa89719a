package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// pkg is what of `go list -json` matters here.
type pkg struct {
	ImportPath                string
	TestImports, XTestImports []string
}

// harnesses start processes for the tests that import them.
var harnesses = []string{"os/exec", "test/consultest", "test/conformance/procmesh", "test/e2e/rig"}

// alone says that the package's tests start processes. Whatever is below
// test/e2e works with the real machine, too.
func (p pkg) alone() bool {
	return strings.Contains(p.ImportPath+"/", "/test/e2e/") || slices.ContainsFunc(slices.Concat(p.TestImports, p.XTestImports), func(i string) bool {
		return slices.ContainsFunc(harnesses, func(h string) bool { return i == h || strings.HasSuffix(i, "/"+h) })
	})
}

// packages lists those that the patterns name.
func packages(ctx context.Context, patterns []string) (alone, together []string, err error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-json=ImportPath,TestImports,XTestImports"}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w", err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return alone, together, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("go list: %w", err)
		}
		if p.alone() {
			alone = append(alone, p.ImportPath)
		} else {
			together = append(together, p.ImportPath)
		}
	}
}
