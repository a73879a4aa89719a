package sim

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/parrel-mesh/parrel/controlplane"
	"github.com/parrel-mesh/parrel/controlplane/api"
	"github.com/parrel-mesh/parrel/sidecar/netio"
	"github.com/parrel-mesh/parrel/xds/resource"
	"github.com/parrel-mesh/parrel/xds/wire"
)

// Plane is the control plane's machine and, while it runs, its process. A
// restarted one is a new process that shares nothing with the one before but
// the CA's directory and the catalogue.
type Plane struct {
	m    *Mesh
	host *netio.Host
	run  *planeRun // nil: not running

	mu     sync.Mutex
	poison map[string]func(proto.Message) // guarded by mu: by type and name
}

// Poison makes control planes serve a resource otherwise than it was generated,
// from the next time on that it is generated: change is given Envoy's proto of
// it. A nil change ends that.
func (p *Plane) Poison(t resource.Type, name string, change func(proto.Message)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.poison == nil {
		p.poison = map[string]func(proto.Message){}
	}
	p.poison[string(t)+" "+name] = change
}

func (p *Plane) encode(r resource.Resource) (*anypb.Any, error) {
	a, err := wire.Encode(r)
	p.mu.Lock()
	change := p.poison[string(r.ResourceType())+" "+r.ResourceName()]
	p.mu.Unlock()
	if err != nil || change == nil {
		return a, err
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	change(m)
	out := new(anypb.Any)
	return out, anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
}

type planeRun struct {
	*controlplane.ControlPlane
	proc   *process
	cancel context.CancelFunc
	done   chan error
}

func (p *Plane) machine() *netio.Host { return p.host }

// Start starts it and waits until it has read the catalogue.
func (p *Plane) Start() {
	t := p.m.T
	t.Helper()
	if p.run != nil {
		t.Fatal("sim: the control plane runs already")
	}
	ctx, cancel := context.WithCancel(p.m.ctx)
	proc := newProcess(p.host)
	ln, err := proc.Listen(ctx, "tcp", PlaneAddress)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := p.m.CA.ControlPlaneCert(ctx, []string{"localhost"}, []netip.Addr{p.host.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	c := controlplane.Config{Name: "control-plane", Datacenter: Datacenter, DefaultIntention: p.m.cfg.Default}
	d := controlplane.Deps{
		Source: p.m.Catalogue.source(), Issuer: p.m.CA, Identity: identity, Tokens: p.m.CA, XDS: ln,
		Background: []func(context.Context) error{identity.Run}, Encode: p.encode, Log: p.m.Log.For("control-plane"),
	}
	if p.m.cfg.Plane != nil {
		p.m.cfg.Plane(&c, &d)
	}
	cp, err := controlplane.New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	p.run = &planeRun{ControlPlane: cp, proc: proc, cancel: cancel, done: make(chan error, 1)}
	p.m.Go(func() { p.run.done <- cp.Run(ctx) })
	<-cp.Ready()
}

// Stop ends it as SIGTERM does; it is no error where it does not run.
func (p *Plane) Stop() {
	if p.run == nil {
		return
	}
	p.run.cancel()
	if err := <-p.run.done; err != nil {
		p.m.T.Errorf("the control plane ended with an error: %v", err)
	}
	p.run = nil
}

// Kill ends it as SIGKILL does.
func (p *Plane) Kill() {
	p.run.proc.kill()
	p.run.cancel()
	<-p.run.done
	p.run = nil
}

// Status is what /v1/status of its API says.
func (p *Plane) Status() (s api.Status) {
	p.m.T.Helper()
	if err := json.Unmarshal([]byte(p.Get("/v1/status")), &s); err != nil {
		p.m.T.Fatal(err)
	}
	return s
}

// Get asks the API.
func (p *Plane) Get(path string) string {
	p.m.T.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "localhost"
	rec := httptest.NewRecorder()
	p.run.API().ServeHTTP(rec, r)
	if rec.Code != http.StatusOK {
		p.m.T.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// Metric is the sum of all series of a metric of the API's /metrics whose
// labels contain every one of the given texts.
func (p *Plane) Metric(name string, labels ...string) float64 {
	p.m.T.Helper()
	return sumOf(p.Get("/metrics"), name, labels)
}

// sumOf reads Prometheus' text.
func sumOf(text, name string, labels []string) (sum float64) {
next:
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, l) {
				continue next
			}
		}
		if v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64); err == nil {
			sum += v
		}
	}
	return sum
}

// Type is what a workload wants and has of one type ("EDS"); the zero value
// where it has no stream.
func (p *Plane) Type(node, typ string) api.TypeStatus {
	p.m.T.Helper()
	for _, s := range p.Status().Sidecars {
		if s.Node != node || !s.Connected {
			continue
		}
		for _, t := range s.Types {
			if t.Type == typ {
				return t
			}
		}
	}
	return api.TypeStatus{}
}

// InSync waits until every open stream has acknowledged what it should have,
// and n of them are open.
func (p *Plane) InSync(n int, within time.Duration) {
	p.m.T.Helper()
	p.m.Within(within, "all streams are in sync", func() bool {
		in := 0
		for _, s := range p.Status().Sidecars {
			if s.Connected && s.InSync {
				in++
			}
		}
		return in >= n
	})
}
