//go:build linux

package intercept

import (
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// TestRefusals: what stands in the way is said in a sentence with the remedy, and
// nothing is changed.
func TestRefusals(t *testing.T) {
	w := newWorld(t, dual)
	with := func(set func(*intercept.Config)) intercept.Config { c := w.config(); set(&c); return c }
	apply := func(u user, netns string, c intercept.Config) error {
		return enter(w.host, u, func() error {
			m, err := intercept.New(intercept.Options{NetNS: netns})
			if err != nil {
				return err
			}
			return m.Apply(t.Context(), c)
		})
	}
	before := w.state()
	for _, tt := range []struct {
		name string
		err  error
		want []string
	}{
		{"no CAP_NET_ADMIN", apply(nobody, "", w.config()), []string{"needs CAP_NET_ADMIN", "run it as root", "cap_add"}},
		{"no such namespace", apply(root, "parrel-nowhere", w.config()), []string{"network namespace parrel-nowhere", "ip netns list"}},
		{"no namespace's file", apply(root, "/proc/self/status", w.config()), []string{"is no network namespace"}},
		{"no such cgroup", apply(root, "", with(func(c *intercept.Config) { c.ExcludeCgroups = []string{"no/such.service"} })), []string{"cgroup", "no/such.service", "uid"}},
		{"a service port that is excluded", apply(root, "", with(func(c *intercept.Config) {
			c.ServicePorts, c.ExcludeInboundPorts = []uint16{8080}, []intercept.PortRange{{From: 8000, To: 9000}}
		})), []string{"service port 8080 is excluded (8000-9000", "take it out"}},
		{"no sidecar's user", apply(root, "", with(func(c *intercept.Config) { c.ProxyUID = nil })), []string{"--proxy-uid"}},
	} {
		if tt.err == nil {
			t.Errorf("%s: nothing was said", tt.name)
			continue
		}
		for _, s := range tt.want {
			if !strings.Contains(tt.err.Error(), s) {
				t.Errorf("%s: %q is not in: %v", tt.name, s, tt.err)
			}
		}
	}
	if after := w.state(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
	enter(w.host, root, func() error { write("/proc/sys/net/ipv4/tcp_fwmark_accept", "0"); return nil })
	for name, netns := range map[string]string{"the thread's": "", "by name": w.host} {
		if err := apply(root, netns, with(func(c *intercept.Config) { c.InboundMode = intercept.TProxy })); err == nil || !strings.Contains(err.Error(), "sysctl -w net.ipv4.tcp_fwmark_accept=1") {
			t.Errorf("answers find no way back, %s: %v", name, err)
		}
	}
	w.in("ip", "link", "set", "lo", "down")
	before = w.state()
	if err := apply(root, "", w.config()); err == nil || !strings.Contains(err.Error(), "ip link set lo up") {
		t.Errorf("lo down: %v", err)
	}
	if after := w.state(); after != before {
		t.Errorf("lo down: after:\n%s\nbefore:\n%s", after, before)
	}
}

// TestRouteInTheWay: a route of somebody else's to the virtual addresses stays, and one
// step that fails takes back those before it.
func TestRouteInTheWay(t *testing.T) {
	w := newWorld(t, dual)
	w.in("ip", "route", "add", "local", "240.0.0.0/4", "dev", "lo", "proto", "static", "src", "127.0.0.1")
	before := w.state()
	m := w.apply(w.config())
	if err := m.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := w.state(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
	c := w.config()
	c.VirtualCIDRs = append(intercept.DefaultVirtualCIDRs(), mustPrefix("198.51.100.0/24"))
	c.ExcludeInterfaces = []string{"eth1"}
	if err := m.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(w.in("ip", "route", "show", "table", "all"), "198.51.100.0/24") {
		t.Error("a range of one's own has no route")
	}
}

// TestCommand: the binary does it, in a folder that holds nothing else, as in an
// image FROM scratch.
func TestCommand(t *testing.T) {
	w := newWorld(t, dual)
	w.fakeSidecar()
	w.serve(w.peer, "peer", w.any(9000))
	dir := t.TempDir()
	data, err := os.ReadFile(parrel(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "parrel"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if !d.IsDir() && d.Name() != "parrel" {
			t.Errorf("%s is there too", path)
		}
		return nil
	})
	run := func(args ...string) (string, error) {
		type result struct {
			out []byte
			err error
		}
		r := enter(w.host, root, func() result {
			cmd := exec.Command("/parrel", args...)
			cmd.Path, cmd.Err, cmd.Env, cmd.Dir = "/parrel", nil, []string{}, "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
			out, err := cmd.CombinedOutput()
			return result{out, err}
		})
		return string(r.out), r.err
	}
	before := w.state()
	apply := []string{"redirect", "apply", "-proxy-uid", "5005", "-consul-dns-port", "15053", "-exclude-outbound-port", "3306", "--ready-timeout", "0s"}
	printed, err := run(append(apply, "--print")...)
	if err != nil || !strings.Contains(printed, "redirect to :15001") {
		t.Fatalf("%v: %s", err, printed)
	}
	if w.state() != before {
		t.Error("--print changed something")
	}
	if out, err := run(apply...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.want(t, w.host, app, "tcp", at(peer4, 9000), "outbound "+at(peer4, 9000))
	byApply := w.in("nft", "-s", "list", "ruleset")
	w.feed(w.host, printed, "nft", "-f", "-")
	if byNFT := w.in("nft", "-s", "list", "ruleset"); strings.ReplaceAll(byNFT, "packets 0 bytes 0", "") != strings.ReplaceAll(byApply, "packets 0 bytes 0", "") {
		t.Errorf("--print is\n%s\napply made\n%s", byNFT, byApply)
	}
	for format, want := range map[string]string{"table": "redirection: in force", "json": `"capture": "stands"`, "yaml": "capture: stands"} {
		if out, err := run("redirect", "show", "-o", format); err != nil || !strings.Contains(out, want) || !strings.Contains(out, "3306") || !strings.Contains(out, "15053") {
			t.Errorf("show -o %s: %v\n%s", format, err, out)
		}
	}
	if out, err := run("redirect", "clean"); err != nil || out != "" {
		t.Errorf("clean: %v: %s", err, out)
	}
	if after := w.state(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
	if out, err := run("redirect", "apply", "-proxy-uid", "5005", "--ready-timeout", "1s"); err == nil || !strings.Contains(out, "not ready within 1s") {
		t.Errorf("no sidecar: %v: %s", err, out)
	}
	if after := w.state(); after != before {
		t.Errorf("not ready: after:\n%s\nbefore:\n%s", after, before)
	}
}

// TestFromSidecar: the command does what the sidecar says of itself, once it is ready
// for it, and says what of it cannot be done and who is captured no longer.
func TestFromSidecar(t *testing.T) {
	w := newWorld(t, dual)
	binary := parrel(t)
	admin := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", admin)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	plan := intercept.Plan{
		Proxies: []intercept.PlanProxy{
			{ProxyID: "web-proxy", Service: "web", UID: &app.uid, OutboundPort: 15001, ServicePorts: []uint16{8080}, Ready: true},
			{ProxyID: "api-proxy", Service: "api", Error: "nothing tells its processes"},
		},
		ProxyUID: &sidecar.uid, InboundPort: 15006, DNSPort: 15053, PublicPorts: []uint16{21000},
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/redirect" {
			http.NotFound(rw, r)
			return
		}
		switch p := plan; asked.Add(1) {
		case 1:
			_ = json.NewEncoder(rw).Encode(intercept.Plan{})
		case 2:
			p.Proxies = []intercept.PlanProxy{{ProxyID: "web-proxy"}}
			_ = json.NewEncoder(rw).Encode(p)
		default:
			_ = json.NewEncoder(rw).Encode(p)
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	run := func(args ...string) (string, error) {
		cmd := exec.Command("ip", append([]string{"netns", "exec", w.host, binary, "redirect", "apply", "--from-sidecar", "unix:" + admin}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	old := w.config()
	old.Outbound[0].Name = "old-proxy"
	m := w.apply(old)
	out, err := run()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"api-proxy is not captured: nothing tells its processes", "no longer captured, since this replaces what was applied before: old-proxy (everybody else)", "redirection is in force"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in: %s", want, out)
		}
	}
	if n := asked.Load(); n < 4 {
		t.Errorf("the sidecar was asked %d times: it was not waited for", n)
	}
	st, err := m.Show(t.Context())
	if err != nil || len(st.Workloads) != 1 || st.Workloads[0].Name != "web-proxy" || *st.Workloads[0].UID != app.uid ||
		strings.Join(st.InboundPorts, ",") != "8080" || st.DNSPort != 15053 || strings.Join(st.ExcludeInboundPorts, ",") != "22,21000" || st.Capture != intercept.CaptureStands {
		t.Errorf("show says %+v, %v", st, err)
	}
	for want, args := range map[string][]string{
		"does not carry --proxy-id x":   {"--proxy-id", "x"},
		"and the sidecar says it":       {"--proxy-inbound-port", "1"},
		"service port 8080 is excluded": {"--exclude-inbound-port", "8080"},
		`no user "nobody-has-this"`:     {"--exclude-uid", "nobody-has-this"},
	} {
		if out, err := run(args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
