package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/examples/shop"
)

// Config of a demo. Read-only after Run was called.
type Config struct {
	Binary       string // parrel itself, started again for every process
	Dir          string // "" = a temporary folder, removed at the end
	PortBase     int    // the first port tried
	Once         bool   // check the mesh and end
	Netns        bool   // hosts are network namespaces, connections are captured
	Consul       bool   // a real Consul agent instead of the file catalogue
	ConsulBinary string // with Consul: its binary
	Out          io.Writer
	Err          io.Writer
	Started      time.Time // of the process, for "first request"
}

// world is one running demo.
type world struct {
	cfg   Config
	l     *layout
	procs *processes
	cat   catalogue

	controlPlane *process
	sidecars     map[string]*process // by host
	apps         map[string]*process // by instance id
}

// layOut decides where everything is and writes it down.
func (w *world) layOut(dir string) (err error) {
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o700); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if w.cfg.Netns {
		if err := w.newSpacedLayout(dir); err != nil {
			return err
		}
	} else if w.l, err = newLayout(dir, &portPicker{next: w.cfg.PortBase}); err != nil {
		return err
	}
	return w.l.write()
}

// Run runs the demo until ctx ends, or, with Once, until its checks are done.
// It returns how many checks passed and failed.
func Run(ctx context.Context, cfg Config) (passed, failed int, err error) {
	dir, remove, err := folder(cfg.Dir)
	if err != nil {
		return 0, 0, err
	}
	defer remove()
	w := &world{
		cfg:      cfg,
		procs:    newProcesses(filepath.Join(dir, "log"), childEnv()),
		sidecars: map[string]*process{}, apps: map[string]*process{},
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		w.procs.stopAll(end, 5*time.Second)
	}()
	if err := w.layOut(dir); err != nil {
		return 0, 0, err
	}
	if err := w.start(ctx); err != nil {
		return 0, 0, w.explainFailure(err)
	}
	took, err := w.firstRequest(ctx)
	if err != nil {
		return 0, 0, w.explainFailure(err)
	}
	fmt.Fprintf(cfg.Out, "demo: first request %d ms\n", took.Milliseconds())
	if cfg.Once {
		return w.checkAll(ctx)
	}
	w.guide()
	return 0, 0, w.serve(ctx)
}

// folder makes the demo's folder and says how to remove it. A folder that the
// user named must be empty or new, and is left in place.
func folder(dir string) (string, func(), error) {
	if dir == "" {
		d, err := os.MkdirTemp("", "parrel-demo-")
		if err != nil {
			return "", nil, fmt.Errorf("demo: no temporary folder: %w", err)
		}
		return d, func() { os.RemoveAll(d) }, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("demo: --dir: %w", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		return "", nil, fmt.Errorf("demo: --dir %s is not an empty folder: name another one", dir)
	}
	abs, err := filepath.Abs(dir)
	return abs, func() {}, err
}

// StaySmall is the variable that tells parrel's processes that they are part of a
// demo and have to do with little memory.
const StaySmall = "PARREL_DEMO_STAY_SMALL"

// childEnv is the environment of every child: the supervisor's, without what
// would lead a child to somebody else's Consul, and with a tighter heap, since
// a demo runs a whole mesh on one small machine.
func childEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CONSUL_") && !strings.HasPrefix(e, "PARREL_") {
			env = append(env, e)
		}
	}
	return append(env, "GOGC=50", StaySmall+"=1")
}

// start brings every process up. The control plane goes first only because its
// root key has to exist before a token can name it.
func (w *world) start(ctx context.Context) error {
	cat, err := w.newCatalogue(ctx)
	if err != nil {
		return err
	}
	w.cat = cat
	if err := w.mintTokens(ctx); err != nil {
		return err
	}
	if err := w.startControlPlane(); err != nil {
		return err
	}
	for _, h := range w.l.hosts {
		for _, i := range h.instances {
			if err := w.startApp(i); err != nil {
				return err
			}
		}
		if err := w.startSidecar(h); err != nil {
			return err
		}
	}
	if err := cat.publish(ctx); err != nil || w.l.center == nil {
		return err
	}
	return w.redirectAll(ctx)
}

func (w *world) startControlPlane() error {
	args := []string{"controlplane",
		"--ca-dir", w.l.caDir(), "--trust-domain", w.l.trustDomain, "--datacenter", w.l.datacenter,
		"--grpc-bind", w.l.xdsAddr(), "--http-bind", fmt.Sprintf("127.0.0.1:%d", w.l.api),
		"--default-intention", "deny"}
	p, err := w.launch(nil, 0, "controlplane", w.cfg.Binary, append(args, w.cat.flags()...)...)
	w.controlPlane = p
	return err
}

func (w *world) startSidecar(h *host) error {
	args := []string{"sidecar", "--grpc-addr", w.l.xdsAddr(), "--data-dir", w.l.dataDir(h.name),
		"--token-file", w.l.tokenFile(h.name), "--admin-bind", fmt.Sprintf("127.0.0.1:%d", h.admin), "--drain-time", "2s"}
	for _, i := range h.instances {
		args = append(args, "--sidecar-for", i.id+"="+i.role)
	}
	p, err := w.launch(h, 0, "sidecar-"+h.name, w.cfg.Binary, args...)
	w.sidecars[h.name] = p
	return err
}

func (w *world) startApp(i *instance) error {
	args := []string{"shop", "--role", i.role, "--instance", i.id, "--version", i.version, "--listen", i.listen()}
	for _, name := range calls[i.role] {
		args = append(args, "--upstream", name+"="+i.upstream(name))
	}
	p, err := w.launch(w.l.hostOf(i.id), i.uid, i.id, w.cfg.Binary, args...)
	w.apps[i.id] = p
	return err
}

// ask sends one request to web and returns its answer; an answer with an error
// anywhere in its tree is an error.
func (w *world) ask(ctx context.Context) (*shop.Answer, error) {
	return w.askURL(ctx, w.visitor(), "http://"+w.l.find("web-1").addr()+"/")
}

// client is an HTTP client that connects anew for each request.
func client(f from) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: f.dial}}
}

func (w *world) askURL(ctx context.Context, f from, url string) (*shop.Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client(f).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var a shop.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, fmt.Errorf("%s answered %s: %.200s", url, resp.Status, body)
	}
	if resp.StatusCode != http.StatusOK {
		return &a, fmt.Errorf("%s answered %s: %s", url, resp.Status, a.FirstError())
	}
	return &a, nil
}

// startTimeout is how long the mesh may take until its first good answer.
const startTimeout = 60 * time.Second

// firstRequest asks until the whole tree answers, and says how long that took
// from the start of the process.
func (w *world) firstRequest(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var last error
	for {
		if _, last = w.ask(ctx); last == nil {
			return time.Since(w.cfg.Started), nil
		}
		for _, p := range append([]*process{w.controlPlane}, values(w.sidecars)...) {
			if !p.alive() {
				return 0, fmt.Errorf("demo: %s ended while starting: %v", p.name, p.err)
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("demo: no good answer from web within %s: %w", startTimeout, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// explainFailure adds the end of every log to an error of starting, since the
// folder is about to be removed.
func (w *world) explainFailure(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	names, readErr := filepath.Glob(filepath.Join(w.l.dir, "log", "*.log"))
	if readErr != nil {
		return err
	}
	for _, n := range names {
		b, readErr := os.ReadFile(n)
		if readErr != nil || len(b) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		lines = lines[max(0, len(lines)-15):]
		fmt.Fprintf(w.cfg.Err, "--- end of %s\n%s\n", filepath.Base(n), strings.Join(lines, "\n"))
	}
	return err
}
