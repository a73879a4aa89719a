package sim

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/parrel-mesh/parrel/discovery"
	"github.com/parrel-mesh/parrel/mtls/ca"
	"github.com/parrel-mesh/parrel/sidecar"
	"github.com/parrel-mesh/parrel/sidecar/netio"
)

// Spec says what [Mesh.Add] makes.
type Spec struct {
	Service string
	// ID of the instance, and the name of its machine; "": SERVICE-N.
	ID string
	// Protocol of the application; "": it only calls others.
	Protocol  Protocol
	Upstreams []Upstream
	Meta      map[string]string
	// Transparent captures what the machine's applications open to other machines
	// and to virtual addresses, and makes the proxy a transparent one.
	Transparent bool
	// SelfRegister leaves the proxy's registration to the sidecar.
	SelfRegister bool
	// Checked registers the instance as critical and calls it passing when its
	// sidecar is ready, as the checks of a careful operator do. Without it the
	// catalogue knows a passing instance before anything of it listens.
	Checked bool
}

// Upstream is an explicit upstream on 127.0.0.1:Port.
type Upstream struct {
	Service string
	Port    int
	Config  map[string]any
}

// Instance is one machine with one application behind a sidecar.
type Instance struct {
	ID, Service string
	App         *App     // nil: none
	Sidecar     *Sidecar // the process that runs, or ran last

	m       *Mesh
	spec    Spec
	host    *netio.Host
	starts  int // of sidecars
	passing atomic.Bool
}

// Proxy is the id of the proxy's registration: the xDS node id.
func (i *Instance) Proxy() string { return i.ID + "-sidecar-proxy" }

func (i *Instance) machine() *netio.Host { return i.host }

// Host is the machine, for what a test wants to run there itself.
func (i *Instance) Host() *netio.Host { return i.host }

// Mesh is the mesh that it is part of.
func (i *Instance) Mesh() *Mesh { return i.m }

// appPort is where applications listen, on loopback.
const appPort = 8080

// Add makes a machine with application and sidecar, registers both and starts
// both. It does not wait; see [Mesh.Ready].
func (m *Mesh) Add(s Spec) *Instance {
	m.T.Helper()
	n := 1
	for _, other := range m.instances {
		if other.Service == s.Service {
			n++
		}
	}
	s.ID = cmp.Or(s.ID, fmt.Sprintf("%s-%d", s.Service, n))
	i := &Instance{ID: s.ID, Service: s.Service, m: m, spec: s, host: m.Net.Host(s.ID, m.address())}
	if s.Protocol != "" {
		i.App = m.app(i, s.Protocol)
	}
	if s.Transparent {
		i.host.Redirect(func(dst netip.AddrPort) (netip.AddrPort, bool) {
			return captureAddress, !dst.Addr().IsLoopback()
		})
	}
	m.Catalogue.Define(i.node(), i.definition(), health(!s.Checked))
	m.instances = append(m.instances, i)
	i.StartSidecar()
	if s.Checked {
		m.Go(i.passWhenReady)
	}
	return i
}

func health(passing bool) discovery.Health {
	if passing {
		return discovery.Passing
	}
	return discovery.Critical
}

// passWhenReady is the instance's check.
func (i *Instance) passWhenReady() {
	for i.Sidecar.Running() {
		if ok, _ := i.Sidecar.Ready(); ok {
			i.SetHealth(discovery.Passing)
			i.passing.Store(true)
			return
		}
		if !rest(i.m.ctx, 100*time.Millisecond) {
			return
		}
	}
}

// Passing says whether the check of an instance that was added Checked has
// passed.
func (i *Instance) Passing() bool { return i.passing.Load() }

func (i *Instance) node() discovery.Node {
	return discovery.Node{Name: i.ID, Address: i.host.Addr().String(), Datacenter: Datacenter}
}

func (i *Instance) definition() map[string]any {
	d := map[string]any{"name": i.Service, "id": i.ID, "port": appPort, "meta": map[string]any{}}
	for k, v := range i.spec.Meta {
		d["meta"].(map[string]any)[k] = v
	}
	if i.spec.SelfRegister {
		return d
	}
	var ups []any
	for _, u := range i.spec.Upstreams {
		up := map[string]any{"destination_name": u.Service, "local_bind_port": u.Port}
		if u.Config != nil {
			up["config"] = u.Config
		}
		ups = append(ups, up)
	}
	proxy := map[string]any{"upstreams": ups}
	if i.spec.Transparent {
		proxy["mode"] = "transparent"
	}
	d["connect"] = map[string]any{"sidecar_service": map[string]any{"proxy": proxy}}
	return d
}

// captureAddress is where a machine's captured connections go.
var captureAddress = netip.MustParseAddrPort("127.0.0.1:15001")

// SetUpstreams changes the upstreams of the registration.
func (i *Instance) SetUpstreams(ups ...Upstream) {
	i.spec.Upstreams = ups
	i.m.Catalogue.Edit(i.ID, func(in *discovery.Instance) {
		in.Proxy.Upstreams = nil
		for _, u := range ups {
			in.Proxy.Upstreams = append(in.Proxy.Upstreams, discovery.Upstream{DestinationType: "service", DestinationName: u.Service,
				LocalBindAddress: "127.0.0.1", LocalBindPort: u.Port, Config: u.Config})
		}
	}, i.Proxy())
}

// SetHealth is what the catalogue's checks say of the instance and of its
// proxy, which has an alias check.
func (i *Instance) SetHealth(h discovery.Health) {
	i.m.Catalogue.Edit(i.ID, func(in *discovery.Instance) { in.Health = h }, i.ID, i.Proxy())
}

// SetWeights changes the weights of the instance and of its proxy.
func (i *Instance) SetWeights(w discovery.Weights) {
	i.m.Catalogue.Edit(i.ID, func(in *discovery.Instance) { in.Weights = w }, i.ID, i.Proxy())
}

// Deregister takes the instance and its proxy out of the catalogue; both go on
// running.
func (i *Instance) Deregister() { i.m.Catalogue.Deregister(i.ID, i.ID, i.Proxy()) }

// Register puts it back as it was defined.
func (i *Instance) Register() { i.m.Catalogue.Define(i.node(), i.definition(), discovery.Passing) }

// Retire takes the instance out of service as an operator does: deregistered
// first, then, after drain, the sidecar is stopped, and the application after
// it. It returns at once.
func (i *Instance) Retire(drain time.Duration) {
	i.Deregister()
	i.m.Go(func() {
		select {
		case <-time.After(drain):
		case <-i.m.ctx.Done():
		}
		i.Sidecar.Stop()
		if i.App != nil {
			i.App.Stop()
		}
	})
}

// Sidecar is one sidecar process.
type Sidecar struct {
	i      *Instance
	proc   *process
	dir    string
	run    *sidecar.Sidecar
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run; read after done
}

// StartSidecar starts a sidecar with the data directory of the one before, or
// with an empty one and a token.
func (i *Instance) StartSidecar() *Sidecar {
	t := i.m.T
	t.Helper()
	if i.Sidecar != nil && i.Sidecar.Running() {
		t.Fatalf("sim: the sidecar of %s runs already", i.ID)
	}
	s := &Sidecar{i: i, proc: newProcess(i.host), done: make(chan struct{})}
	w := sidecar.Workload{ServiceID: i.ID, Service: i.Service}
	if i.Sidecar == nil {
		s.dir = filepath.Join(i.m.dir, i.ID)
		token, err := i.m.CA.Mint(ca.TokenSpec{Services: []string{i.Service}, Datacenter: Datacenter})
		if err != nil {
			t.Fatal(err)
		}
		w.Token = token
	} else {
		s.dir = i.Sidecar.dir
	}
	i.starts++
	c := sidecar.Config{Workloads: []sidecar.Workload{w}, ControlPlane: PlaneAddress, DataDir: s.dir,
		Admin: "127.0.0.1:15000", Version: "sim"}
	d := sidecar.Deps{Net: s.proc, Log: i.m.Log.For(i.ID), Rand: i.m.draws(fmt.Sprintf("%s/%d", i.ID, i.starts)),
		Registrar: registrar{i.m.Catalogue, i.ID, s.proc}}
	if i.m.cfg.Sidecar != nil {
		i.m.cfg.Sidecar(&c, &d)
	}
	run, err := sidecar.New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.run = cancel, run
	i.Sidecar = s
	i.m.Go(func() {
		defer close(s.done)
		s.err = run.Run(ctx)
	})
	return s
}

// Running says whether the process has not ended.
func (s *Sidecar) Running() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// Stop ends it as SIGTERM does and waits.
func (s *Sidecar) Stop() {
	s.cancel()
	<-s.done
	if s.err != nil && !s.proc.killed() {
		s.i.m.T.Errorf("the sidecar of %s ended with an error: %v", s.i.ID, s.err)
	}
}

// Kill ends it as SIGKILL does: what it had not written by now is lost. A
// sidecar started next finds the directory as it was at this moment.
func (s *Sidecar) Kill() {
	s.i.m.T.Helper()
	kept := fmt.Sprintf("%s.%d", s.dir, s.i.starts)
	if err := os.CopyFS(kept, os.DirFS(s.dir)); err != nil {
		s.i.m.T.Fatal(err)
	}
	if err := keepModes(s.dir, kept); err != nil {
		s.i.m.T.Fatal(err)
	}
	s.proc.kill()
	s.cancel()
	<-s.done
	s.dir = kept
}

// keepModes gives the files of a copy the modes of the originals.
func keepModes(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return os.Chmod(filepath.Join(to, rel), info.Mode().Perm())
	})
}

// Dir is its data directory.
func (s *Sidecar) Dir() string { return s.dir }

// Open is the number of connections that the process holds, admin's included.
func (s *Sidecar) Open() int { return s.proc.open() }

// Ready asks /ready of the admin API; the text says what is missing.
func (s *Sidecar) Ready() (bool, string) {
	status, body := s.Admin("/ready")
	return status == http.StatusOK, body
}

// Admin asks the admin API; 0 and the error's text where nobody answers.
func (s *Sidecar) Admin(path string) (int, string) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer(s.i.host)}}
	resp, err := c.Get("http://127.0.0.1:15000" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// Metric is the sum of all series of a Prometheus metric whose labels contain
// every one of the given texts.
func (s *Sidecar) Metric(name string, labels ...string) float64 {
	s.i.m.T.Helper()
	status, body := s.Admin("/stats/prometheus")
	if status != http.StatusOK {
		s.i.m.T.Fatalf("%s: /stats/prometheus: %d %s", s.i.ID, status, body)
	}
	return sumOf(body, name, labels)
}

func dialer(h *netio.Host) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return h.Dial(ctx, network, address)
	}
}
