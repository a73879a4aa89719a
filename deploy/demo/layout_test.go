package demo

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/discovery/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLayout: what the demo writes is a catalogue without a problem, with every
// call allowed that the shop makes and none beside it.
func TestLayout(t *testing.T) {
	l, err := newLayout(t.TempDir(), &portPicker{next: 27000})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(); err != nil {
		t.Fatal(err)
	}
	src, err := file.New(file.Config{Dir: l.catalog(), Datacenter: l.datacenter})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var first discovery.Delta
	err = src.Run(ctx, discovery.SinkFunc(func(d discovery.Delta) {
		if d.Full {
			first = d
			cancel()
		}
	}))
	if err != context.Canceled {
		t.Fatalf("the source ended with %v", err)
	}
	if first.Status != nil && len(first.Status.Problems) > 0 {
		t.Fatalf("problems: %+v", first.Status.Problems)
	}
	proxies := 0
	for _, s := range first.Services {
		proxies += len(s.Proxies)
	}
	if len(first.Services) != len(protocols) || proxies != 7 {
		t.Errorf("%d services with %d proxies, want %d with 7", len(first.Services), proxies, len(protocols))
	}
	allowed := map[string]bool{}
	for _, e := range first.Entries {
		if body, ok := e.Body.(*discovery.ServiceIntentions); ok {
			for _, s := range body.Sources {
				if s.Action == discovery.Allow {
					allowed[s.Name+" → "+e.Key.Name] = true
				}
			}
		}
	}
	for from, tos := range calls {
		for _, to := range tos {
			if !allowed[from+" → "+to] {
				t.Errorf("%s may not call %s", from, to)
			}
			delete(allowed, from+" → "+to)
		}
	}
	if len(allowed) > 0 {
		t.Errorf("more is allowed than the shop needs: %v", allowed)
	}
}

// TestChecks: the demo proves at least what it says it does, each thing once.
func TestChecks(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range (&world{l: &layout{center: &space{}}}).checks() {
		if c.name == "" || c.run == nil || seen[c.name] {
			t.Errorf("check %q is empty or there twice", c.name)
		}
		seen[c.name] = true
	}
	if len(seen) < 15 {
		t.Errorf("%d checks, 15 at least", len(seen))
	}
}

func TestFolder(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := folder(full); err == nil || !strings.Contains(err.Error(), "not an empty folder") {
		t.Errorf("a folder with something in it: %v", err)
	}
	dir, remove, err := folder("")
	if err != nil {
		t.Fatal(err)
	}
	remove()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the temporary folder is left behind: %v", err)
	}
}

// TestProcesses: a process that does not want to end is ended, and nothing is
// left.
func TestProcesses(t *testing.T) {
	p := newProcesses(t.TempDir(), os.Environ())
	c, err := p.start("stubborn", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	if err != nil {
		t.Fatal(err)
	}
	if mb, err := p.residentMB(); err != nil || mb < 1 {
		t.Errorf("resident %v MB, %v", mb, err)
	}
	p.stopAll(t.Context(), 200*time.Millisecond)
	if c.alive() {
		t.Error("still alive")
	}
}

// TestAddWithoutDemo: the error says what to do.
func TestAddWithoutDemo(t *testing.T) {
	if _, err := Add(t.Context(), t.TempDir(), "users"); err == nil || !strings.Contains(err.Error(), "start one with `parrel demo`") {
		t.Errorf("error %v", err)
	}
}
