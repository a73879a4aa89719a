package main

import (
	"go/parser"
	"go/token"
	"slices"
	"testing"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

func TestProfiled(t *testing.T) {
	b := &run.Bench{Dir: "/run", Parrel: "bin/parrel"}
	cmds, files := profiled([]string{"bin/parrel sidecar -c b.yaml", "bin/parrel sidecar -c a.yaml"}, b, "/x/profiled", "mtls")
	if !slices.Equal(cmds, []string{"env PARREL_CPU_PROFILE=/run/mtls-0.prof /x/profiled sidecar -c b.yaml", "env PARREL_CPU_PROFILE=/run/mtls-1.prof /x/profiled sidecar -c a.yaml"}) {
		t.Errorf("commands %q", cmds)
	}
	if !slices.Equal(files, []string{"/run/mtls-0.prof", "/run/mtls-1.prof"}) {
		t.Errorf("files %q", files)
	}
}

// What is laid over cmd/parrel is a file of its package.
func TestProfilerIsGo(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "profiler.go", profiler, 0)
	if err != nil {
		t.Fatal(err)
	}
	if f.Name.Name != "main" {
		t.Errorf("its package is %s", f.Name.Name)
	}
}
