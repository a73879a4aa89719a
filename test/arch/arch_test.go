package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/parrel-mesh/parrel"

// pkg is what `go list -json` says of one package.
type pkg struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	Deps         []string
}

func (p pkg) rel() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,Deps", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// within says whether the module-relative path lies in one of the folders.
func within(path string, folders ...string) bool {
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, f+"/") {
			return true
		}
	}
	return false
}

// rule forbids packages below From to reach packages below To through any
// number of imports inside the module.
type rule struct {
	from, to []string
	except   []string // of from
	why      string
}

var transitive = []rule{
	{[]string{"sidecar"}, []string{"controlplane"}, nil, "the planes meet only in xDS: a sidecar must run under any control plane"},
	{[]string{"controlplane"}, []string{"sidecar"}, nil, "the planes meet only in xDS: the control plane serves any data plane"},
	{[]string{"sidecar"}, []string{"discovery"}, nil, "a sidecar learns of services by xDS; what it needs of Consul is an interface of its own"},
	{[]string{"xds"}, []string{"sidecar", "controlplane", "discovery"}, nil, "xDS is the language between the planes and knows neither"},
	{[]string{"discovery"}, []string{"xds", "sidecar", "controlplane"}, nil, "a catalogue knows services, not how they are configured"},
	{[]string{"mtls"}, []string{"xds", "sidecar", "controlplane"}, nil, "identity is below configuration"},
	{[]string{"sidecar/l7"}, []string{"sidecar/l4"}, nil, "the engines are independent"},
	{[]string{"sidecar/l4"}, []string{"sidecar/l7"}, nil, "the engines are independent"},
	{[]string{"controlplane/vip"}, []string{"controlplane/mesh", "controlplane/generate", "xds"}, nil, "addresses depend on the names of services alone"},
	{[]string{"xds/resource"}, []string{"xds/wire", "xds/decide", "xds/client", "xds/server", "xds/envoyapi"}, nil, "resources are the lowest layer of xDS"},
	{[]string{"xds/decide"}, []string{"xds/wire", "xds/client", "xds/server", "xds/envoyapi"}, nil, "decisions are about resources, not protos"},
	{[]string{"sidecar/dns"}, []string{"sidecar/listener", "sidecar/l4", "sidecar/l7", "sidecar/cluster", "xds/wire", "xds/client", "xds/decide"}, nil, "DNS answers by a table and forwards: it knows neither connections' engines nor where names come from"},
	{[]string{"sidecar/intercept"}, []string{"xds", "sidecar/listener", "sidecar/l4", "sidecar/l7", "sidecar/cluster", "mtls"}, nil, "redirection knows ports and users, not who listens or what for"},
	{[]string{"sidecar/lb"}, []string{"sidecar/netio", "sidecar/pool", "sidecar/cluster"}, nil, "a picker has no sockets"},
	{[]string{"sidecar/cluster", "sidecar/pool"}, []string{"sidecar/listener", "sidecar/l7", "sidecar/l4"}, nil, "an upstream does not know who calls it"},
	{[]string{"sidecar", "controlplane", "xds", "discovery", "mtls"}, []string{"cmd", "deploy", "test", "examples"}, nil, "the product does not depend on its demo, its tests or its command line"},
	{[]string{"deploy/run", "deploy/notify"}, []string{"sidecar", "controlplane", "xds", "discovery", "mtls"}, nil, "who minds a process knows processes: a sidecar is an interface of its own"},
	{[]string{"cmd", "deploy", "examples"}, []string{"test"}, nil, "what runs does not link what tests it, nor its flags: only test files import test/golden"},
}

// direct forbids direct imports outside of the packages named.
type directRule struct {
	imports *regexp.Regexp
	only    []string
	why     string
}

var direct = []directRule{
	{regexp.MustCompile(`^github\.com/envoyproxy/go-control-plane/`), []string{"xds/wire", "xds/client", "xds/server", "xds/envoyapi", "test"}, "Envoy's protos stay at the edge: everybody else speaks xds/resource"},
	{regexp.MustCompile(`^github\.com/google/nftables`), []string{"sidecar/intercept"}, "the kernel's rules are made in one place"},
	{regexp.MustCompile(`^github\.com/hashicorp/consul/api`), []string{"discovery/consul", "mtls/consulca", "test"}, "Consul's client stays behind discovery and mtls"},
	{regexp.MustCompile(`^github\.com/hashicorp/consul($|/(acl|agent|command|internal|ipaddr|lib|logging|proto|sdk|tlsutil|types|version)\b)`), nil, "Consul's server is run as a tool and never linked: its licence is BUSL"},
}

func TestBorders(t *testing.T) {
	for _, p := range list(t) {
		for _, r := range transitive {
			if !within(p.rel(), r.from...) || within(p.rel(), r.except...) {
				continue
			}
			for _, d := range p.Deps {
				if rel, ok := strings.CutPrefix(d, module+"/"); ok && within(rel, r.to...) {
					t.Errorf("%s reaches %s: %s", p.rel(), rel, r.why)
				}
			}
		}
		for _, r := range direct {
			for _, i := range p.Imports {
				if r.imports.MatchString(i) && !within(p.rel(), r.only...) {
					t.Errorf("%s imports %s: %s", p.rel(), i, r.why)
				}
			}
		}
	}
}

// TestFiltersAreIndependent: no filter imports another, none imports clusters.
func TestFiltersAreIndependent(t *testing.T) {
	const folder = "sidecar/filter/"
	for _, p := range list(t) {
		name, ok := strings.CutPrefix(p.rel(), folder)
		if !ok {
			continue
		}
		for _, d := range p.Deps {
			rel, ok := strings.CutPrefix(d, module+"/")
			if !ok {
				continue
			}
			if other, ok := strings.CutPrefix(rel, folder); ok && other != name && !strings.HasPrefix(name, other) && !strings.HasPrefix(other, name) {
				t.Errorf("filter %s imports filter %s: filters meet only in the chain", name, other)
			}
			if rel == "sidecar/cluster" {
				t.Errorf("filter %s imports %s: a filter asks the chain, not clusters", name, rel)
			}
		}
	}
}

// TestBothPlanes: only the binary, the demo and the tests see both planes.
func TestBothPlanes(t *testing.T) {
	for _, p := range list(t) {
		var planes []string
		for _, plane := range []string{"sidecar", "controlplane"} {
			if slices.ContainsFunc(p.Deps, func(d string) bool {
				rel, ok := strings.CutPrefix(d, module+"/")
				return ok && within(rel, plane)
			}) {
				planes = append(planes, plane)
			}
		}
		if len(planes) == 2 && !within(p.rel(), "cmd/parrel", "deploy/demo", "test") {
			t.Errorf("%s imports both planes; only cmd/parrel, deploy/demo and test may", p.rel())
		}
	}
}

// TestTopLevel: the top level is fixed.
func TestTopLevel(t *testing.T) {
	allowed := []string{"sidecar", "controlplane", "xds", "discovery", "mtls", "examples", "deploy", "test", "cmd", "docs", "bin", ".git", ".ci", ".cache"}
	entries, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(allowed, e.Name()) {
			t.Errorf("folder %s at the top level: it is fixed to %s", e.Name(), strings.Join(allowed[:9], " "))
		}
	}
}

// netCalls are calls that open sockets. Within sidecar only netio may.
var netCalls = regexp.MustCompile(`\bnet\.(Dial|DialTimeout|DialTCP|DialUDP|DialUnix|Listen|ListenTCP|ListenUDP|ListenUnix|ListenPacket|Dialer|ListenConfig)\b`)

var initFunc = regexp.MustCompile(`(?m)^func init\(\)`)

func TestSource(t *testing.T) {
	for _, p := range list(t) {
		for _, f := range p.GoFiles {
			path := filepath.Join(p.Dir, f)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			rel := p.rel() + "/" + f
			if within(p.rel(), "sidecar") && !within(p.rel(), "sidecar/netio") {
				if m := netCalls.Find(b); m != nil {
					t.Errorf("%s uses %s: within sidecar only netio opens sockets", rel, m)
				}
			}
			if initFunc.Match(b) {
				t.Errorf("%s has an init function: registration is an explicit list", rel)
			}
			if n := strings.Count(string(b), "\n"); n > 800 && !strings.HasSuffix(f, "_gen.go") {
				t.Errorf("%s has %d lines, 800 at the very most", rel, n)
			}
			if regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`).Match(b) {
				t.Errorf("%s has a note of something missing: it belongs into the documents", rel)
			}
		}
	}
}

// TestDoc: each package of the product says what it owns.
func TestDoc(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) == 0 || within(p.rel(), "test", "examples", "cmd") {
			continue
		}
		if !hasPackageDoc(t, p) {
			t.Errorf("%s has no package documentation: add doc.go (owns, does not know, entry point, invariants, the test to read first)", p.rel())
		}
	}
}

func hasPackageDoc(t *testing.T, p pkg) bool {
	t.Helper()
	for _, f := range p.GoFiles {
		b, err := os.ReadFile(filepath.Join(p.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(b), "// Package ") || strings.Contains(string(b), "\n// Package ") {
			return true
		}
	}
	return false
}

// TestSleep: below test/e2e, the demo and the runner, which start processes, no
// test waits for real time.
func TestSleep(t *testing.T) {
	sleep := regexp.MustCompile(`\btime\.Sleep\(`)
	for _, p := range list(t) {
		if within(p.rel(), "test/e2e", "test/attack", "test/conformance", "test/bench", "test/consultest", "test/demo", "test/run", "discovery/consul", "deploy/demo", "deploy/run") {
			continue
		}
		var sleeping []string
		bubble := false // often in a helper that the package's tests share
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			bubble = bubble || strings.Contains(string(b), "synctest.Test(")
			if sleep.Match(b) {
				sleeping = append(sleeping, f)
			}
		}
		if !bubble && len(sleeping) > 0 {
			t.Errorf("%s: %s sleep, and no test of the package has a synctest bubble", p.rel(), strings.Join(sleeping, ", "))
		}
	}
}
