package compose

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/deploy/inject"
	"github.com/parrel-mesh/parrel/test/golden"
)

// options are those that README.md tells.
var options = inject.Options{
	ControlPlane: "controlplane-1:15012,controlplane-2:15012", TokenVolume: "join",
	After: []string{"tokens:service_completed_successfully"}, HealthEvery: time.Second,
}

// TestInjected: docker-compose.yaml is shop.yaml injected, no line of it by hand.
func TestInjected(t *testing.T) {
	text, err := os.ReadFile("shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	res, err := inject.Compose("shop.yaml", string(text), options)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "docker-compose.yaml", res.Text)
	back, err := inject.Uninject("docker-compose.yaml", res.Text, false)
	if err != nil || back != string(text) {
		t.Errorf("it does not come back: %v", err)
	}
}

// TestComposeV2Reads has Compose v2's own library read both files.
func TestComposeV2Reads(t *testing.T) {
	for _, file := range []string{"shop.yaml", "docker-compose.yaml"} {
		if out, err := exec.Command("../../bin/composecheck", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s (no such file: run `make compose-check`)", file, err, out)
		}
	}
}

// TestDemo is `make demo-compose`: it builds the images, brings the mesh up,
// checks it and takes it down.
func TestDemo(t *testing.T) {
	if out, err := exec.Command("docker", "info").CombinedOutput(); err != nil {
		t.Skipf("LOUD: NO DOCKER ENGINE RUNS HERE: the mesh of examples/compose WAS NOT TESTED; start dockerd and run make demo-compose (%s)", lastLine(string(out)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "-C", "../..", "--no-print-directory", "demo-compose")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it takes everything down
	cmd.WaitDelay = time.Minute
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	m := regexp.MustCompile(`^demo: (\d+) passed, 0 failed$`).FindStringSubmatch(lastLine(out.String()))
	if err != nil || m == nil || len(m[1]) < 2 {
		t.Fatalf("make demo-compose: %v\n%s\n%s", err, out.String(), errs.String())
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "demo:") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
