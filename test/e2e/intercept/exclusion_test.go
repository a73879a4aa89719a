//go:build linux

package intercept

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/sidecar/intercept"
)

// attempt is a connection and what becomes of it.
type attempt struct {
	inbound bool
	from    user
	network string
	addr    string
	want    string
}

// TestExclusions: each kind leaves alone what it names, in and out where that makes
// sense, and nothing else.
func TestExclusions(t *testing.T) {
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	for _, tt := range []struct {
		name string
		set  func(*intercept.Config)
		try  func(host, peer, virtual string) []attempt
	}{
		{"inbound ports", func(c *intercept.Config) {
			c.ExcludeInboundPorts = []intercept.PortRange{{From: 8080, To: 8081}}
			c.ProxyPorts = intercept.Ports(21000)
		}, func(host, peer, _ string) []attempt {
			return []attempt{
				{true, app, "tcp", at(host, 8080), "host " + at(host, 8080)},
				{true, app, "tcp", at(host, 21000), "host " + at(host, 21000)},
				{true, app, "tcp", at(host, 9000), "inbound " + at(host, 9000)},
				{false, app, "tcp", at(peer, 8080), "outbound " + at(peer, 8080)},
			}
		}},
		{"service ports only", func(c *intercept.Config) {
			c.InboundScope, c.ServicePorts = intercept.ScopeServices, []uint16{8080}
		}, func(host, _, _ string) []attempt {
			return []attempt{
				{true, app, "tcp", at(host, 8080), "inbound " + at(host, 8080)},
				{true, app, "tcp", at(host, 9000), "host " + at(host, 9000)},
			}
		}},
		{"outbound ports", func(c *intercept.Config) { c.ExcludeOutboundPorts = []intercept.PortRange{{From: 9000, To: 9010}} },
			func(host, peer, virtual string) []attempt {
				return []attempt{
					{false, app, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{false, app, "tcp", at(peer, 8080), "outbound " + at(peer, 8080)},
					{false, app, "udp", at(peer, 53), "dns hello"},
					{true, app, "tcp", at(host, 9000), "inbound " + at(host, 9000)},
				}
			}},
		{"outbound port 53", func(c *intercept.Config) { c.ExcludeOutboundPorts = intercept.Ports(53) },
			func(_, peer, _ string) []attempt {
				return []attempt{
					{false, app, "udp", at(peer, 53), "peer hello"},
					{false, app, "tcp", at(peer, 53), "peer " + at(peer, 53)},
					{false, app, "tcp", at(peer, 8080), "outbound " + at(peer, 8080)},
				}
			}},
		{"outbound CIDRs", func(c *intercept.Config) {
			c.ExcludeOutboundCIDRs = prefixes("10.213.0.0/24", "fd00::/8", "192.0.2.7/32")
		}, func(host, peer, virtual string) []attempt {
			return []attempt{
				{false, app, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
				{false, app, "udp", at(peer, 53), "dns hello"},                      // whatever resolver
				{false, app, "tcp", at(virtual, 80), "outbound " + at(virtual, 80)}, // though fd00::/8 holds it
				{true, app, "tcp", at(host, 9000), "inbound " + at(host, 9000)},
			}
		}},
		{"inbound CIDRs", func(c *intercept.Config) { c.ExcludeInboundCIDRs = prefixes("10.213.0.0/24", "fd00:213::/64") },
			func(host, peer, _ string) []attempt {
				return []attempt{
					{true, app, "tcp", at(host, 9000), "host " + at(host, 9000)},
					{false, app, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
				}
			}},
		{"users", func(c *intercept.Config) { c.ExcludeUIDs = []uint32{app.uid} },
			func(host, peer, virtual string) []attempt {
				return []attempt{
					{false, app, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{false, app, "udp", at(peer, 53), "peer hello"},
					{false, app, "tcp", at(virtual, 80), "refused"},
					{false, other, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
					{true, app, "tcp", at(host, 9000), "inbound " + at(host, 9000)},
				}
			}},
		{"groups", func(c *intercept.Config) { c.ExcludeGIDs = []uint32{app.gid} },
			func(_, peer, _ string) []attempt {
				return []attempt{
					{false, user{other.uid, app.gid}, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{false, user{app.uid, other.gid}, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
				}
			}},
		{"the sidecar by its group", func(c *intercept.Config) { c.ProxyUID, c.ProxyGID = nil, &sidecar.gid },
			func(_, peer, _ string) []attempt {
				return []attempt{
					{false, user{app.uid, sidecar.gid}, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{false, user{sidecar.uid, app.gid}, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
				}
			}},
		{"users' DNS", func(c *intercept.Config) { c.ExcludeDNSUIDs = []uint32{app.uid} },
			func(_, peer, _ string) []attempt {
				return []attempt{
					{false, app, "udp", at(peer, 53), "peer hello"},
					{false, app, "tcp", at(peer, 53), "peer " + at(peer, 53)},
					{false, app, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
					{false, other, "udp", at(peer, 53), "dns hello"},
				}
			}},
		{"interfaces", func(c *intercept.Config) { c.ExcludeInterfaces = []string{"v0"} },
			func(host, peer, virtual string) []attempt {
				return []attempt{
					{false, app, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{true, app, "tcp", at(host, 9000), "host " + at(host, 9000)},
					{false, app, "tcp", at(virtual, 80), "outbound " + at(virtual, 80)}, // by lo
				}
			}},
		{"interfaces by prefix", func(c *intercept.Config) { c.ExcludeInterfaces = []string{"v*"} },
			func(host, peer, _ string) []attempt {
				return []attempt{
					{false, app, "tcp", at(peer, 9000), "peer " + at(peer, 9000)},
					{true, app, "tcp", at(host, 9000), "host " + at(host, 9000)},
				}
			}},
		{"interfaces of another name", func(c *intercept.Config) { c.ExcludeInterfaces = []string{"v", "v00", "docker*"} },
			func(host, peer, _ string) []attempt {
				return []attempt{
					{false, app, "tcp", at(peer, 9000), "outbound " + at(peer, 9000)},
					{true, app, "tcp", at(host, 9000), "inbound " + at(host, 9000)},
				}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, dual)
			w.fakeSidecar()
			w.serve(w.peer, "peer", w.any(9000), w.any(8080), w.any(53))
			w.serve(w.host, "host", w.any(9000), w.any(8080), w.any(21000))
			c := w.config()
			tt.set(&c)
			w.apply(c)
			w.each(func(t *testing.T, host, peer, virtual, _ string) {
				for _, a := range tt.try(host, peer, virtual) {
					ns := w.host
					if a.inbound {
						ns = w.peer
					}
					w.want(t, ns, a.from, a.network, a.addr, a.want)
				}
			})
		})
	}
}

// TestIPv6LeftAlone: with IPv6 false nothing of it is touched.
func TestIPv6LeftAlone(t *testing.T) {
	w := newWorld(t, dual)
	w.fakeSidecar()
	w.serve(w.peer, "peer", w.any(9000), w.any(53))
	w.serve(w.host, "host", w.any(9000))
	c := w.config()
	c.IPv6 = false
	w.apply(c)
	w.want(t, w.host, app, "tcp", at(peer4, 9000), "outbound "+at(peer4, 9000))
	w.want(t, w.peer, app, "tcp", at(host4, 9000), "inbound "+at(host4, 9000))
	w.want(t, w.host, app, "tcp", at(peer6, 9000), "peer "+at(peer6, 9000))
	w.want(t, w.host, app, "udp", at(peer6, 53), "peer hello")
	w.want(t, w.peer, app, "tcp", at(host6, 9000), "host "+at(host6, 9000))
}

// group makes a cgroup of its own below the v2 hierarchy and returns the folder.
func group(t *testing.T, name string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		top := filepath.Join(f[4], "parrel-test-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(int(worlds.Add(1))))
		dir := filepath.Join(top, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skipf("this process may not make cgroups: %v", err)
		}
		t.Cleanup(func() {
			for d := dir; d != filepath.Dir(top); d = filepath.Dir(d) {
				if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
					t.Errorf("removing the cgroup: %v", err)
				}
			}
		})
		return dir
	}
	t.Skip("no cgroup v2 hierarchy is mounted on this host: telling workloads by cgroup cannot be tried")
	return ""
}

// dialIn dials from a process in the cgroup.
func (w *world) dialIn(t *testing.T, dir, addr string) string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, _ := spawn(t, child{NetNS: w.host, Dial: addr}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	})
	out, _, _ = strings.Cut(out, " from ")
	return out
}

// applyCgroups applies, or skips where the kernel cannot tell cgroups.
func (w *world) applyCgroups(t *testing.T, c intercept.Config) intercept.Manager {
	t.Helper()
	m := w.manager()
	if err := m.Apply(t.Context(), c); err != nil {
		if strings.Contains(err.Error(), "cannot tell processes by cgroup") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	return m
}

// TestExcludedCgroup: a group is left alone with all below it.
func TestExcludedCgroup(t *testing.T) {
	dir := group(t, "backup.service/worker")
	w := newWorld(t, dual)
	w.fakeSidecar()
	w.serve(w.peer, "peer", w.any(9000))
	c := w.config()
	c.ExcludeCgroups = []string{filepath.Dir(dir)} // by its full path
	w.applyCgroups(t, c)
	w.each(func(t *testing.T, _, peer, _, _ string) {
		if got := w.dialIn(t, dir, at(peer, 9000)); got != "peer "+at(peer, 9000) {
			t.Errorf("from the excluded group: %s", got)
		}
		if got := w.dialIn(t, filepath.Dir(filepath.Dir(dir)), at(peer, 9000)); got != "outbound "+at(peer, 9000) {
			t.Errorf("from the group above: %s", got)
		}
	})
}

// TestWorkloads: of several workloads each comes out at its own port; nobody else
// is captured, and nobody can take another's port.
func TestWorkloads(t *testing.T) {
	dir := group(t, "api.service")
	w := newWorld(t, dual)
	w.serve(w.host, "web", "127.0.0.1:15001", "[::1]:15001")
	w.serve(w.host, "api", "127.0.0.1:15002", "[::1]:15002")
	w.serve(w.host, "dns", "127.0.0.1:15053", "[::1]:15053")
	w.serve(w.host, "inbound", w.any(15006))
	w.serve(w.host, "host", w.any(8500))
	w.serve(w.peer, "peer", w.any(9000), w.any(53))
	c := w.config()
	c.Outbound = []intercept.Workload{
		{Name: "web", UID: &app.uid, OutboundPort: 15001},
		{Name: "api", Cgroup: strings.TrimPrefix(dir, filepath.Dir(filepath.Dir(dir))), OutboundPort: 15002},
	}
	c.ServicePorts, c.InboundScope = []uint16{8080}, intercept.ScopeServices
	m := w.applyCgroups(t, c)
	w.each(func(t *testing.T, host, peer, virtual, loopback string) {
		w.want(t, w.host, app, "tcp", at(peer, 9000), "web "+at(peer, 9000))
		w.want(t, w.host, app, "tcp", at(virtual, 80), "web "+at(virtual, 80))
		if got := w.dialIn(t, dir, at(peer, 9000)); got != "api "+at(peer, 9000) {
			t.Errorf("from api's group: %s", got)
		}
		w.want(t, w.host, other, "tcp", at(peer, 9000), "peer "+at(peer, 9000))
		w.want(t, w.host, other, "udp", at(peer, 53), "peer hello")
		w.want(t, w.host, app, "udp", at(peer, 53), "dns hello")
		w.want(t, w.host, other, "tcp", at(virtual, 80), "refused")
		for _, u := range []user{other, app, root, sidecar} {
			for _, port := range []int{15001, 15002, 15006} {
				w.want(t, w.host, u, "tcp", at(loopback, port), "refused")
				w.want(t, w.host, u, "tcp", at(host, port), "refused")
			}
		}
		w.want(t, w.peer, app, "tcp", at(host, 8080), "inbound "+at(host, 8080))
		w.want(t, w.peer, app, "tcp", at(host, 8500), "host "+at(host, 8500))
	})
	st, err := m.Show(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Workloads) != 2 || st.Workloads[0].Name != "api" || !strings.HasSuffix(st.Workloads[0].Cgroup, "/api.service") || st.Workloads[0].Connections != 2 ||
		st.Workloads[1].Name != "web" || *st.Workloads[1].UID != app.uid || st.Workloads[1].Connections != 4 || st.Workloads[1].Queries != 2 || st.InboundConnections != 2 {
		t.Errorf("show says %+v", st)
	}
}

// TestCgroupMadeAnew: a unit that starts again has a new group of the same path; who
// holds the rules finds it.
func TestCgroupMadeAnew(t *testing.T) {
	dir := group(t, "web.service")
	w := newWorld(t, v4only)
	w.fakeSidecar()
	w.serve(w.peer, "peer", w.any(9000))
	c := w.config()
	c.Outbound = []intercept.Workload{{Name: "web", Cgroup: strings.TrimPrefix(dir, filepath.Dir(filepath.Dir(dir))), OutboundPort: outPort}}
	c.HoldFor = 1e9
	m := w.applyCgroups(t, c)
	hold(t, m, intercept.Holding{})
	if err := unix.Rmdir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new group is captured", func() bool { return w.dialIn(t, dir, at(peer4, 9000)) == "outbound "+at(peer4, 9000) })
}

// TestPrintOfCgroups: nft makes of the text with cgroups what Apply makes. nft(8) looks
// for the v2 hierarchy at /sys/fs/cgroup alone, so it gets a view in which it is there.
func TestPrintOfCgroups(t *testing.T) {
	dir := group(t, "web.service/worker")
	top := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
	w := newWorld(t, dual)
	c := w.config()
	c.Outbound = []intercept.Workload{
		{Name: "web", Cgroup: filepath.Dir(dir), OutboundPort: 15001},
		{Name: "worker", Cgroup: dir, OutboundPort: 15002},
	}
	w.applyCgroups(t, c)
	text, err := intercept.Print(c)
	if err != nil {
		t.Fatal(err)
	}
	nft := func(input string, args ...string) string { // not by ip netns exec, which hides cgroups
		t.Helper()
		args = append([]string{"-m", "sh", "-c", `[ "$0" = /sys/fs/cgroup ] || mount --bind "$0" /sys/fs/cgroup || exit; exec nft "$@"`, top}, args...)
		return enter(w.host, root, func() string {
			cmd := exec.Command("unshare", args...)
			cmd.Stdin = strings.NewReader(input)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("nft %v: %v: %s", args, err, out)
			}
			return string(out)
		})
	}
	byApply := nft("", "-s", "list", "ruleset")
	if !strings.Contains(byApply, `web.service/worker"`) {
		t.Fatalf("nft does not see the groups: %s", byApply)
	}
	nft(text, "-f", "-")
	if byNFT := nft("", "-s", "list", "ruleset"); byNFT != byApply {
		t.Errorf("nft makes of the text\n%s\nApply makes\n%s", byNFT, byApply)
	}
}

// TestManyWorkloads: five hundred are one transaction too, and the last of them is as
// captured as the first.
func TestManyWorkloads(t *testing.T) {
	w := newWorld(t, v4only)
	w.serve(w.host, "last", "127.0.0.1:16499")
	w.serve(w.peer, "peer", w.any(9000))
	c := w.config()
	c.Outbound = nil
	for i := range 500 {
		uid := uint32(30000 + i)
		c.Outbound = append(c.Outbound, intercept.Workload{Name: "service-" + strconv.Itoa(i), UID: &uid, OutboundPort: uint16(16000 + i)})
	}
	w.apply(c)
	m := w.apply(c) // in place of as many
	w.want(t, w.host, user{30499, 30499}, "tcp", at(peer4, 9000), "last "+at(peer4, 9000))
	w.want(t, w.host, user{30500, 30500}, "tcp", at(peer4, 9000), "peer "+at(peer4, 9000))
	st, err := m.Show(t.Context())
	if err != nil || len(st.Workloads) != 500 || st.Workloads[499].Name != "service-499" || st.Workloads[499].Connections != 1 || st.Workloads[0].Connections != 0 {
		t.Errorf("show says %d workloads, %v", len(st.Workloads), err)
	}
}
