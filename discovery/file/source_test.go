package file

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/parrel-mesh/parrel/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// view is a Sink that keeps what a control plane would know.
type view struct {
	mu         sync.Mutex
	deliveries int
	services   map[discovery.ServiceName]*discovery.Service
	entries    map[discovery.EntryKey]*discovery.ConfigEntry
	status     discovery.Status
	def        discovery.IntentionAction
}

func newView() *view {
	return &view{services: map[discovery.ServiceName]*discovery.Service{}, entries: map[discovery.EntryKey]*discovery.ConfigEntry{}}
}

func (v *view) Apply(d discovery.Delta) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deliveries++
	if d.Full {
		clear(v.services)
		clear(v.entries)
	}
	for n, s := range d.Services {
		if s == nil {
			delete(v.services, n)
		} else {
			v.services[n] = s
		}
	}
	for k, e := range d.Entries {
		if e == nil {
			delete(v.entries, k)
		} else {
			v.entries[k] = e
		}
	}
	if d.Status != nil {
		v.status = *d.Status
	}
	if d.DefaultIntention != "" {
		v.def = d.DefaultIntention
	}
}

// seen is a copy of a view, taken under its lock.
type seen struct {
	services map[discovery.ServiceName]*discovery.Service
	entries  map[discovery.EntryKey]*discovery.ConfigEntry
	status   discovery.Status
	def      discovery.IntentionAction
}

func (v *view) now() seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	return seen{maps.Clone(v.services), maps.Clone(v.entries), v.status, v.def}
}

func (v *view) service(name string) *discovery.Service {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.services[discovery.ServiceName{Partition: "default", Namespace: "default", Datacenter: "dc1", Name: name}]
}

func (v *view) problems() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for _, p := range v.status.Problems {
		out = append(out, filepath.Base(p.Origin.String())+": "+p.Reason)
	}
	return out
}

// network is a set of addresses that accept, for checks.
type network struct {
	mu sync.Mutex
	up map[string]func(net.Conn)
}

func (n *network) set(addr string, serve func(net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[addr] = serve
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	serve := n.up[addr]
	n.mu.Unlock()
	if serve == nil {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	go serve(b)
	return a, nil
}

func accept(c net.Conn) { c.Close() }

type fixture struct {
	t    *testing.T
	dir  string
	view *view
	net  *network
	stop func()
}

func start(t *testing.T, files map[string]string, change func(*Config)) *fixture {
	f := &fixture{t: t, dir: t.TempDir(), view: newView(), net: &network{up: map[string]func(net.Conn){}}}
	for name, text := range files {
		f.write(name, text)
	}
	cfg := Config{Dir: f.dir, Checks: true, Dial: f.net.dial, Watch: func(context.Context, string) (<-chan struct{}, error) { return nil, nil }}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, f.view) }()
	f.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}
	return f
}

func (f *fixture) write(name, text string) {
	f.t.Helper()
	tmp := filepath.Join(f.dir, "."+name)
	if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, filepath.Join(f.dir, name))); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

// wait lets virtual time pass.
func (f *fixture) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

const webHCL = `
service {
  name = "web"
  port = 8080
  tags = ["v1"]
  meta { owner = "shop" }
  check { tcp = "127.0.0.1:8080" interval = "5s" timeout = "1s" }
  connect { sidecar_service { proxy { upstreams = [{ destination_name = "api" local_bind_port = 9191 }] } } }
}
`

func TestSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, map[string]string{"web.hcl": webHCL}, nil)
		defer f.stop()
		synctest.Wait()

		web := f.view.service("web")
		if web == nil || len(web.Instances) != 1 || len(web.Proxies) != 1 {
			t.Fatalf("web = %+v", web)
		}
		if f.view.now().def != discovery.Deny {
			t.Errorf("default intention %q", f.view.now().def)
		}
		side := web.Proxies[0]
		if side.ID != "web-sidecar-proxy" || side.Port != 21000 || side.Proxy.LocalServicePort != 8080 || !slices.Equal(side.Tags, []string{"v1"}) || side.Meta["owner"] != "shop" {
			t.Errorf("sidecar %+v %+v", side, side.Proxy)
		}
		if side.Health != discovery.Critical || web.Instances[0].Health != discovery.Critical {
			t.Errorf("nothing listens, and health is %s, %s", web.Instances[0].Health, side.Health)
		}

		f.net.set("127.0.0.1:8080", accept)
		f.wait(5 * time.Second)
		web = f.view.service("web")
		if web.Instances[0].Health != discovery.Passing || web.Proxies[0].Health != discovery.Passing {
			t.Errorf("it listens, and health is %s, %s", web.Instances[0].Health, web.Proxies[0].Health)
		}

		f.write("api.json", `{"service": {"name": "api", "port": 9090}}`)
		f.write("defaults.hcl", `Kind = "service-defaults" Name = "api" Protocol = "http"`)
		f.wait(2 * time.Second)
		if api := f.view.service("api"); api == nil || api.Instances[0].Health != discovery.Passing {
			t.Errorf("api = %+v", api)
		}
		if e := f.view.now().entries[discovery.EntryKey{Kind: "service-defaults", Partition: "default", Namespace: "default", Name: "api"}]; e == nil || e.Body.(*discovery.ServiceDefaults).Protocol != "http" {
			t.Errorf("entry = %+v", e)
		}
	})
}
