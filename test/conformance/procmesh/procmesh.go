// Package procmesh runs a small mesh of real processes on loopback for tests
// with outside clients: the control plane on a folder of definitions, sidecars,
// and whatever programs a test brings.
//
// Owns: building the binaries from the present code, free ports, processes that
// end with their test, certificates by `parrel svid`. Does not know: any client.
// Entry points: [Main], [New]. Read the tests of package conformance first.
package procmesh

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parrel-mesh/parrel/test/consultest"
)

// Names that every mesh of this package has.
const (
	TrustDomain = "conformance.parrel"
	Datacenter  = "dc1"
)

// SPIFFEID is the identity of a service.
func SPIFFEID(service string) string {
	return "spiffe://" + TrustDomain + "/ns/default/dc/" + Datacenter + "/svc/" + service
}

// Main is the whole of a TestMain: it compiles commands of the module, given as
// ./cmd/parrel, says in bins by their names where they are, runs the tests and
// removes the commands. The tests only read bins.
func Main(m *testing.M, bins *map[string]string, commands ...string) {
	built, remove, err := build(commands...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	*bins = built
	code := m.Run()
	remove()
	os.Exit(code)
}

func build(commands ...string) (bins map[string]string, remove func(), err error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "parrel-conformance-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	bins = map[string]string{}
	for _, c := range commands {
		cmd := exec.Command("go", "build", "-o", dir+"/", c) // as go test builds, whose cache it finds
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			remove()
			return nil, nil, fmt.Errorf("procmesh: go build %s: %w\n%s", c, err, out)
		}
		bins[filepath.Base(c)] = filepath.Join(dir, filepath.Base(c))
	}
	return bins, remove, nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("procmesh: no go.mod above the test's folder")
		}
		dir = filepath.Dir(dir)
	}
}

// Options of a mesh.
type Options struct {
	Bin     string // parrel
	Catalog string // folder of definitions; "": a new one
	Flags   []string
}

// Mesh is one control plane and what a test started beside it.
type Mesh struct {
	Dir     string // the working directory of every process
	Catalog string
	XDS     string // host:port
	API     string // URL
	// ControlPlane is its process.
	ControlPlane *Proc

	t   testing.TB
	bin string
}

// New starts a control plane and waits until it has read the catalogue.
func New(t testing.TB, o Options) *Mesh {
	t.Helper()
	m := &Mesh{Dir: t.TempDir(), Catalog: o.Catalog, XDS: Addr(t), t: t, bin: o.Bin}
	if m.Catalog == "" {
		m.Catalog = filepath.Join(m.Dir, "catalog")
	}
	if err := os.MkdirAll(m.Catalog, 0o700); err != nil {
		t.Fatal(err)
	}
	api := Addr(t)
	m.API = "http://" + api
	m.ControlPlane = m.Parrel("controlplane", append([]string{"controlplane", "--ca-dir", m.caDir(), "--trust-domain", TrustDomain,
		"--datacenter", Datacenter, "--grpc-bind", m.XDS, "--http-bind", api, "--catalog-dir", m.Catalog,
		"--default-intention", "deny"}, o.Flags...)...)
	Eventually(t, func() error {
		var s struct {
			ControlPlane struct{ Ready bool } `json:"control_plane"`
		}
		if err := m.Get("/v1/status", &s); err != nil {
			return err
		}
		if !s.ControlPlane.Ready {
			return fmt.Errorf("the control plane has not read its catalogue")
		}
		return nil
	})
	return m
}

func (m *Mesh) caDir() string { return filepath.Join(m.Dir, "ca") }

// Get asks the control plane's API.
func (m *Mesh) Get(path string, v any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.API+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// Write puts a file into the catalogue, in one step.
func (m *Mesh) Write(name, text string) {
	m.t.Helper()
	tmp := filepath.Join(m.Dir, "next")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(m.Catalog, name)); err != nil {
		m.t.Fatal(err)
	}
}

// Remove takes a file out of the catalogue.
func (m *Mesh) Remove(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.Catalog, name)); err != nil {
		m.t.Fatal(err)
	}
}

// Protocol writes the service-defaults of a service.
func (m *Mesh) Protocol(service, protocol string) {
	m.t.Helper()
	m.Write("defaults-"+service+".hcl", fmt.Sprintf("Kind = \"service-defaults\"\nName = %q\nProtocol = %q\n", service, protocol))
}

// Intentions writes whom a service accepts; no source is nobody.
func (m *Mesh) Intentions(to string, sources ...string) {
	m.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "Kind = \"service-intentions\"\nName = %q\nSources = [\n", to)
	for _, s := range sources {
		fmt.Fprintf(&b, "  { Name = %q, Action = \"allow\" },\n", s)
	}
	b.WriteString("  { Name = \"nobody\", Action = \"deny\" },\n]\n")
	m.Write("intentions-"+to+".hcl", b.String())
}

// Token makes a join token with `parrel token create`.
func (m *Mesh) Token(services ...string) string {
	m.t.Helper()
	args := []string{"token", "create", "--ca-dir", m.caDir(), "--datacenter", Datacenter}
	for _, s := range services {
		args = append(args, "--service", s)
	}
	out, err := exec.Command(m.bin, args...).Output()
	if err != nil {
		m.t.Fatalf("parrel %s: %v%s", strings.Join(args, " "), err, stderr(err))
	}
	return strings.TrimSpace(string(out))
}

func stderr(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return "\n" + string(e.Stderr)
	}
	return ""
}

// SVID makes certificate files of a service with `parrel svid --once` in
// DIR/tls/SERVICE, which it returns.
func (m *Mesh) SVID(service string) string {
	m.t.Helper()
	dir := filepath.Join(m.Dir, "tls", service)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(m.bin, "svid", "--once", "--service", service, "--token", m.Token(service), "--grpc-addr", m.XDS, "--out", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("parrel svid: %v\n%s", err, out)
	}
	return dir
}

// Parrel starts parrel in the background.
func (m *Mesh) Parrel(name string, args ...string) *Proc {
	m.t.Helper()
	return m.Start(name, nil, m.bin, args...)
}

// Sidecar starts the sidecar of one instance and waits until it is ready. No
// Consul is involved: the definition has to have a sidecar_service.
func (m *Mesh) Sidecar(id, service string, flags ...string) *Proc {
	m.t.Helper()
	admin := Addr(m.t)
	p := m.Parrel("sidecar-"+id, append([]string{"sidecar", "--sidecar-for", id + "=" + service, "--grpc-addr", m.XDS,
		"--token", m.Token(service), "--data-dir", filepath.Join(m.Dir, "data", id), "--admin-bind", admin, "--drain-time", "1s"}, flags...)...)
	Eventually(m.t, func() error {
		if !p.Alive() {
			return fmt.Errorf("sidecar %s has ended", id)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/ready", nil)
		if err != nil {
			return err
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("sidecar %s: /ready: %s", id, resp.Status)
		}
		return nil
	})
	return p
}

// Addr is a loopback address that nobody listens on, of those of this process
// alone ([consultest.Port]).
func Addr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", consultest.Port(t))
}

// Port is the port of an address.
func Port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// patience is what a machine may need that has other things to do.
const patience = 40 * time.Second

// Eventually tries until f returns nil, for at most 40 s; it fails the test with
// f's last error.
func Eventually(t testing.TB, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("not within %s: %v", patience, err)
}
