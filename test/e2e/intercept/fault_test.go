//go:build linux

package intercept

import (
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
