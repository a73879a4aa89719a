package catalog

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/controlplane/generate"
	"github.com/parrel-mesh/parrel/controlplane/mesh"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/discovery/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLoads: the folder is read without a problem, and all of it is honoured.
func TestLoads(t *testing.T) {
	source, err := file.New(file.Config{Dir: "."})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b := mesh.NewBuilder(mesh.Config{TrustDomain: "mesh.example", Datacenter: "dc1"})
	var got *mesh.Snapshot
	_ = source.Run(ctx, discovery.SinkFunc(func(d discovery.Delta) {
		m, _ := b.Apply(d)
		if d.Full {
			got = m
		}
		cancel()
	}))
	if got == nil {
		t.Fatal("nothing was delivered")
	}
	for _, p := range got.Source.Problems {
		t.Errorf("%s line %d: %s. %s", p.Origin.Place, p.Origin.Line, p.Reason, p.Remedy)
	}
	for _, f := range generate.Analyze(got) {
		t.Errorf("%s %s %s: %s", f.Severity, f.Entry, f.Field, f.Problem)
	}
	if s := got.Stats(); s.Services < 4 || s.Workloads != 5 || s.Entries != 6 {
		t.Errorf("%+v: want web, api twice, ledger and reports, and 6 entries", s)
	}
	for service, protocol := range map[string]string{"web": "http", "api": "http", "ledger": "tcp"} {
		if p := got.Protocol(got.Local(service)).Name; p != protocol {
			t.Errorf("%s speaks %s, want %s", service, p, protocol)
		}
	}
	allowed := func(dst string) (names []string) {
		for _, i := range got.Intentions(got.Local(dst)) {
			if i.Effect == discovery.Allow {
				names = append(names, i.Name)
			}
		}
		return names
	}
	if !slices.Equal(allowed("api"), []string{"reports", "web"}) || !slices.Equal(allowed("ledger"), []string{"api"}) {
		t.Errorf("api is for %v, ledger for %v", allowed("api"), allowed("ledger"))
	}
	w, _ := got.Workload("reports-1-sidecar-proxy")
	if _, transparent := got.Transparent(w); !transparent || !slices.Equal(got.Callable(w.Service), []discovery.ServiceName{got.Local("api")}) {
		t.Errorf("reports is transparent: %v, and may call %v", transparent, got.Callable(w.Service))
	}
}
