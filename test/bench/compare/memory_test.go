package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parrel-mesh/parrel/test/bench/internal/run"
)

// The committed configuration has the form that services are added to.
func TestServices(t *testing.T) {
	t.Chdir(filepath.Join("..", "..", ".."))
	b := &run.Bench{Dir: t.TempDir(), Parrel: "bin/parrel"}
	cmd, err := services(b, 100)
	if err != nil {
		t.Fatal(err)
	}
	if place(b, cmd) != "bin/parrel sidecar -c "+b.Dir+"/hundred.yaml" {
		t.Errorf("command %q", cmd)
	}
	text, err := os.ReadFile(filepath.Join(b.Dir, "hundred.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	if strings.Count(got, "type: STATIC") != 101 || strings.Count(got, "domains: [s") != 101 { // shop is one of them
		t.Errorf("%d clusters and %d domains", strings.Count(got, "type: STATIC"), strings.Count(got, "domains: [s"))
	}
	if strings.Contains(got, "port_value: 8901") || strings.Contains(got, "port_value: 9901") {
		t.Error("it would listen on the ports of h1.yaml")
	}
}
