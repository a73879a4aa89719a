package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/parrel-mesh/parrel/controlplane"
	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// Names that every mesh has.
const (
	Datacenter  = "dc1"
	TrustDomain = "sim.test"
	// PlaneAddress is where sidecars find the control plane.
	PlaneAddress = "10.255.0.1:15012"
)

// Config of a mesh. The zero value is a mesh without latency whose intentions
// deny what they do not name.
type Config struct {
	Seed    uint64
	Latency time.Duration // one way, between any two machines
	LeafTTL time.Duration // 0: the CA's default, 72 h
	// Default is what holds where no intention says anything; "" is deny.
	Default discovery.IntentionAction
	// Plane and Sidecar change what control planes and sidecars are started
	// with; nil: nothing.
	Plane   func(*controlplane.Config, *controlplane.Deps)
	Sidecar func(*sidecar.Config, *sidecar.Deps)
	// Level is what is kept of the logs; the zero value keeps Info and above.
	Level slog.Level
}

// Mesh is everything there is. Its methods are for the test's goroutine.
type Mesh struct {
	T         testing.TB
	Net       *netio.Memory
	CA        *ca.CA
	Catalogue *Catalogue
	Plane     *Plane
	Log       *Log
	// Rand is the driver's randomness: seeded, and for the test's goroutine
	// alone, so that its draws come in the same order each time.
	Rand *rand.Rand

	cfg       Config
	dir       string
	hosts     int
	instances []*Instance
	loads     []*Load
	wg        sync.WaitGroup
	ctx       context.Context // ends with the test
}

// New makes a mesh with a running control plane and nothing else. It must be
// called inside a synctest bubble; everything ends with the test.
func New(t testing.TB, c Config) *Mesh {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mesh{T: t, Net: netio.NewMemory(), Log: newLog(c.Level), Rand: rand.New(rand.NewPCG(c.Seed, 0)), cfg: c, dir: t.TempDir(), ctx: ctx}
	m.Net.SetLatency(c.Latency)
	authority, err := ca.Open(filepath.Join(m.dir, "ca"), ca.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString(TrustDomain), LeafTTL: c.LeafTTL, Log: m.Log.For("ca"),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.CA = authority
	m.Catalogue = newCatalogue(m)
	m.Plane = &Plane{m: m, host: m.Net.Host("control-plane", "10.255.0.1")}
	t.Cleanup(func() {
		m.close()
		cancel()
		m.wg.Wait()
		if t.Failed() {
			t.Logf("seed %d\n%s", c.Seed, m.Log.Tail(100))
		}
	})
	m.Plane.Start()
	return m
}

// close ends everything, callers first.
func (m *Mesh) close() {
	for _, l := range m.loads {
		l.Stop()
	}
	var wg sync.WaitGroup
	for _, i := range m.instances {
		wg.Go(func() {
			if i.Sidecar != nil {
				i.Sidecar.Stop()
			}
			if i.App != nil {
				i.App.Stop()
			}
		})
	}
	wg.Wait()
	m.Plane.Stop()
}

// Fork gives randomness of its own to a part of the test that draws from
// another goroutine; the same name gives the same sequence.
func (m *Mesh) Fork(name string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return rand.New(rand.NewPCG(m.cfg.Seed, h.Sum64()))
}

// Go runs f beside the test; the test waits for its end.
func (m *Mesh) Go(f func()) { m.wg.Go(f) }

// Ready waits until every sidecar that runs is ready, and fails the test where
// one is not within a minute.
func (m *Mesh) Ready() {
	m.T.Helper()
	for _, i := range m.instances {
		if s := i.Sidecar; s != nil && s.Running() {
			m.Within(time.Minute, i.ID+" is ready", func() bool { ok, _ := s.Ready(); return ok })
		}
	}
	synctest.Wait()
}

// Within fails the test unless ok becomes true in that time.
func (m *Mesh) Within(d time.Duration, what string, ok func() bool) {
	m.T.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > d {
			m.T.Fatalf("not within %s: %s", d, what)
		}
	}
}

// Partition makes everything between two machines vanish silently, until Heal.
func (m *Mesh) Partition(a, b Machine) { m.Net.Partition(a.machine(), b.machine()) }

// Heal ends a Partition.
func (m *Mesh) Heal(a, b Machine) { m.Net.Heal(a.machine(), b.machine()) }

// Machine is a host of the memory network: an [Instance] or the [Plane].
type Machine interface{ machine() *netio.Host }

// address gives each machine an address of its own.
func (m *Mesh) address() string {
	m.hosts++
	return fmt.Sprintf("10.0.%d.%d", m.hosts/250, 1+m.hosts%250)
}

// draws is seeded randomness that is safe for concurrent use.
func (m *Mesh) draws(name string) func() uint64 {
	r := m.Fork(name)
	var mu sync.Mutex
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
}
