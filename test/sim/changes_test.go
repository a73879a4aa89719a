package sim

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
)

// Ports of web's upstreams with one instance, to which connections are held.
const (
	vaultPort = 9011 // tcp
	chatPort  = 9012 // grpc
)

// editor makes random changes to a mesh that stay legal for web's calls.
type editor struct {
	*shop
	draw      *rand.Rand
	pool      map[string][]*Instance // that may be retired, by service; the first stays
	sick      map[*Instance]bool
	batch     *Instance
	noise     map[string]bool
	webExtra  int            // upstreams of web beyond its own
	webConfig map[string]int // connect_timeout_ms of web's upstreams, 0: none
	made      map[string]int // changes by kind
}

var protocols = map[string]Protocol{"api": HTTP, "users": GRPC, "ledger": TCP, "vault": TCP, "chat": GRPC}

func (e *editor) service() string { return []string{"api", "users", "ledger"}[e.draw.IntN(3)] }
func (e *editor) any() string {
	return []string{"api", "users", "ledger", "vault", "chat"}[e.draw.IntN(5)]
}

// changes are the kinds of change; each says whether it made one.
var changes = []struct {
	name   string
	weight int
	make   func(*editor) bool
}{
	{"add an instance", 3, (*editor).add},
	{"retire an instance", 4, (*editor).retire},
	{"change health", 20, (*editor).health},
	{"change weights", 15, (*editor).weights},
	{"change version", 6, (*editor).version},
	{"edit service-defaults", 12, (*editor).defaults},
	{"edit proxy-defaults", 2, (*editor).global},
	{"edit intentions", 15, (*editor).intentions},
	{"change an unrelated workload's upstreams", 8, (*editor).unrelated},
	{"change web's upstreams", 8, (*editor).upstreams},
	{"add or remove a service", 10, (*editor).services},
}

// step makes one change.
func (e *editor) step() {
	total := 0
	for _, c := range changes {
		total += c.weight
	}
	for {
		n := e.draw.IntN(total)
		for _, c := range changes {
			if n -= c.weight; n < 0 {
				if c.make(e) {
					e.made[c.name]++
					return
				}
				break
			}
		}
	}
}

// well counts the instances of a service that the catalogue calls usable.
func (e *editor) well(service string) (n int) {
	for _, i := range e.pool[service] {
		if !e.sick[i] {
			n++
		}
	}
	return n
}

func (e *editor) add() bool {
	name := e.service()
	if len(e.pool[name]) >= 4 {
		return false
	}
	i := e.Add(Spec{Service: name, Protocol: protocols[name], Checked: true, Meta: map[string]string{"version": "v1"}})
	// It counts once it has had the time to become ready.
	time.Sleep(500 * time.Millisecond)
	if !i.Passing() {
		e.T.Errorf("%s is not passing after 500 ms", i.ID)
	}
	e.pool[name] = append(e.pool[name], i)
	return true
}

func (e *editor) retire() bool {
	name := e.service()
	if len(e.pool[name]) < 2 {
		return false
	}
	at := 1 + e.draw.IntN(len(e.pool[name])-1)
	i := e.pool[name][at]
	if !e.sick[i] && e.well(name) < 2 {
		return false
	}
	e.pool[name] = slices.Delete(e.pool[name], at, at+1)
	i.Retire(2 * time.Second)
	return true
}

func (e *editor) health() bool {
	name := e.service()
	i := e.pool[name][e.draw.IntN(len(e.pool[name]))]
	h := []discovery.Health{discovery.Passing, discovery.Passing, discovery.Warning, discovery.Critical, discovery.Maintenance}[e.draw.IntN(5)]
	if !h.Usable() && !e.sick[i] && e.well(name) < 2 {
		return false
	}
	e.sick[i] = !h.Usable()
	i.SetHealth(h)
	return true
}

func (e *editor) weights() bool {
	name := e.service()
	i := e.pool[name][e.draw.IntN(len(e.pool[name]))]
	i.SetWeights(discovery.Weights{Passing: 1 + e.draw.IntN(10), Warning: 1 + e.draw.IntN(3)})
	return true
}

func (e *editor) version() bool {
	name := e.service()
	i := e.pool[name][e.draw.IntN(len(e.pool[name]))]
	v := fmt.Sprintf("v%d", 1+e.draw.IntN(3))
	e.Catalogue.Edit(i.ID, func(in *discovery.Instance) { in.Meta = map[string]string{"version": v} }, i.ID, i.Proxy())
	return true
}

// defaults keeps the protocol and changes what may change.
func (e *editor) defaults() bool {
	name := e.any()
	f := map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(protocols[name])}
	if e.draw.IntN(2) == 0 {
		f["LocalConnectTimeoutMs"] = 1000 + 500*e.draw.IntN(8)
	}
	if e.draw.IntN(2) == 0 {
		f["LocalRequestTimeoutMs"] = 60_000 + 1000*e.draw.IntN(8)
	}
	if e.draw.IntN(2) == 0 {
		f["UpstreamConfig"] = map[string]any{"Defaults": map[string]any{"ConnectTimeoutMs": 2000 + 500*e.draw.IntN(8),
			"Limits": map[string]any{"MaxConnections": 500 + e.draw.IntN(100), "MaxPendingRequests": 500}}}
	}
	e.Catalogue.Set(f)
	return true
}

func (e *editor) global() bool {
	e.Catalogue.Set(map[string]any{"Kind": "proxy-defaults", "Name": "global",
		"Config": map[string]any{"local_connect_timeout_ms": 1000 + 500*e.draw.IntN(8)}})
	return true
}

// intentions allows web always and strangers at random.
func (e *editor) intentions() bool {
	pairs := []string{"web", "allow"}
	for i := range 6 {
		if e.draw.IntN(2) == 0 {
			pairs = append(pairs, fmt.Sprintf("stranger-%d", i), []string{"allow", "deny"}[e.draw.IntN(2)])
		}
	}
	if e.draw.IntN(3) == 0 {
		pairs = append(pairs, "*", []string{"allow", "deny"}[e.draw.IntN(2)])
	}
	e.Catalogue.Intentions(e.any(), pairs...)
	return true
}

func (e *editor) unrelated() bool {
	var ups []Upstream
	for n, name := range []string{"api", "users", "ledger", "noise-1", "noise-2"} {
		if e.draw.IntN(2) == 0 {
			ups = append(ups, Upstream{Service: name, Port: 9200 + n})
		}
	}
	e.batch.SetUpstreams(ups...)
	return true
}

// upstreams changes what web has beyond its own, and options of its own.
func (e *editor) upstreams() bool {
	switch e.draw.IntN(2) {
	case 0:
		e.webExtra = e.draw.IntN(4)
	default:
		e.webConfig[e.any()] = 1000 * e.draw.IntN(5)
	}
	e.web.SetUpstreams(e.webUpstreams()...)
	return true
}

func (e *editor) webUpstreams() []Upstream {
	ups := append(slices.Clone(webUpstreams), Upstream{Service: "vault", Port: vaultPort}, Upstream{Service: "chat", Port: chatPort})
	for n := range ups {
		if ms := e.webConfig[ups[n].Service]; ms > 0 {
			ups[n].Config = map[string]any{"connect_timeout_ms": ms}
		}
	}
	for n := range e.webExtra {
		ups = append(ups, Upstream{Service: fmt.Sprintf("noise-%d", n), Port: 9100 + n})
	}
	return ups
}

// services adds and removes services that nobody needs.
func (e *editor) services() bool {
	name := fmt.Sprintf("noise-%d", e.draw.IntN(8))
	node := discovery.Node{Name: "node-" + name, Address: "10.9.9.9", Datacenter: Datacenter}
	if e.noise[name] {
		e.Catalogue.Deregister(node.Name, name, name+"-sidecar-proxy")
		e.Catalogue.Delete("service-defaults", name)
	} else {
		e.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": []string{"http", "tcp", "grpc"}[e.draw.IntN(3)]})
		e.Catalogue.Define(node, map[string]any{"name": name, "port": 1234, "connect": map[string]any{"sidecar_service": map[string]any{}}}, discovery.Passing)
	}
	e.noise[name] = !e.noise[name]
	return true
}

// held keeps a connection or a stream and speaks on it until ctx ends.
func (e *editor) held(ctx context.Context, what string, say func(string) (string, error)) {
	e.Go(func() {
		for n := 0; rest(ctx, 100*time.Millisecond); n++ {
			if _, err := say(fmt.Sprint(n)); err != nil {
				e.T.Errorf("%s broke at line %d: %v", what, n, err)
				return
			}
		}
	})
}

// Other seeds find other orders of events: go test -run ThousandChanges -seed 7.
var (
	seed    = flag.Uint64("seed", 6, "seed of TestThousandChanges")
	latency = flag.Duration("latency", 200*time.Microsecond, "one-way latency between machines in TestThousandChanges")
)

// TestThousandChanges: 1,000 random changes of configuration fail no request
// and end no connection that may stay (DP4).
func TestThousandChanges(t *testing.T) {
	const n = 1000
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, Config{Seed: *seed, Latency: *latency}, 2)
		e := &editor{shop: s, draw: s.Fork("editor"), sick: map[*Instance]bool{}, noise: map[string]bool{}, webConfig: map[string]int{}, made: map[string]int{},
			pool: map[string][]*Instance{"api": s.api, "users": s.users, "ledger": s.ledger}}
		for _, name := range []string{"vault", "chat"} {
			s.Catalogue.Set(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": string(protocols[name])})
			s.Catalogue.Intentions(name, "web", "allow")
			s.Add(Spec{Service: name, Protocol: protocols[name]})
		}
		e.batch = s.Add(Spec{Service: "batch"})
		s.web.SetUpstreams(e.webUpstreams()...)
		s.Ready()
		time.Sleep(time.Second)

		loads := s.load(LoadConfig{RPS: 60, Workers: 6})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		vault, err := s.web.Line(vaultPort)
		if err != nil {
			t.Fatal(err)
		}
		defer vault.Close()
		e.held(ctx, "the connection to vault", vault.Say)
		channel := s.web.Channel(chatPort)
		defer channel.Close()
		chat, err := OpenTalk(ctx, channel)
		if err != nil {
			t.Fatal(err)
		}
		e.held(ctx, "the stream to chat", chat.Say)

		start := time.Now()
		for range n {
			e.step()
			time.Sleep(time.Duration(e.draw.IntN(60)) * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		cancel()
		clean(t, loads, 1000)
		for _, c := range changes {
			if e.made[c.name] == 0 {
				t.Errorf("no change of the kind %q was made", c.name)
			}
		}
		t.Logf("%d changes in %s: %v", n, time.Since(start), e.made)
		for _, l := range loads {
			t.Logf("port %d: %s", l.cfg.Port, l.Report())
		}
		s.Plane.InSync(8, 5*time.Second)
		for _, sc := range s.Plane.Status().Sidecars {
			for _, ty := range sc.Types {
				if ty.NACKs > 0 {
					t.Errorf("%s refused %s: %s", sc.Node, ty.Type, ty.LastNACK.Text)
				}
			}
		}
	})
}
