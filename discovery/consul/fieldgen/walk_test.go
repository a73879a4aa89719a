package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUpToDate(t *testing.T) {
	want, err := Source()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../fields_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("discovery/fields_gen.go is out of date: run go generate ./discovery/consul")
	}
}

// TestPaths looks at one path of each notation.
func TestPaths(t *testing.T) {
	for kind, paths := range map[string][]string{
		"service-defaults":   {"Protocol", "UpstreamConfig.Overrides[].Limits.MaxConnections", "Meta.*"},
		"service-intentions": {"Sources[].Permissions[].HTTP.Header[].Exact"},
		"service-resolver":   {"Subsets.*.Filter", "Failover.*.Targets[].Datacenter", "ConnectTimeout"},
		"service-router":     {"Routes[].Match.HTTP.PathPrefix", "Routes[].Destination.RetryOnStatusCodes[]"},
		"proxy-defaults":     {"Config.*"},
		"service":            {"Connect.SidecarService.Proxy.Upstreams[].LocalBindPort", "Checks[].ScriptArgs[]", "Check.Header.*[]"},
	} {
		for _, p := range paths {
			if !slices.Contains(discovery.EntryFields[kind], p) {
				t.Errorf("%s has no field %s", kind, p)
			}
		}
	}
	for kind, paths := range discovery.EntryFields {
		if !slices.IsSorted(paths) || len(slices.Compact(slices.Clone(paths))) != len(paths) {
			t.Errorf("%s: not sorted, or twice the same", kind)
		}
		for _, p := range paths {
			if strings.Contains(p, "SidecarService.Connect") {
				t.Errorf("%s: a sidecar within a sidecar: %s", kind, p)
			}
		}
	}
}
