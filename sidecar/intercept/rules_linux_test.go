package intercept

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parrel-mesh/parrel/test/golden"
)

// TestPrint: the rules, as people read them in review. That the kernel's are the
// same is TestPrintIsWhatApplyDoes of test/e2e/intercept.
func TestPrint(t *testing.T) {
	full := base()
	full.Outbound = []Workload{
		{Name: "web", UID: id(1001), OutboundPort: 15001},
		{Name: "api", Cgroup: "system.slice/api.service", OutboundPort: 15002},
		{Name: "job", Cgroup: "system.slice/api.service/job", OutboundPort: 15003},
	}
	full.ProxyGID, full.FailOpen, full.InboundMode = id(5005), true, TProxy
	full.ServicePorts, full.InboundScope = []uint16{8080, 9090}, ScopeServices
	full.ProxyPorts, full.ExcludeInboundPorts, full.ExcludeOutboundPorts = Ports(21000, 21001), Ports(9100), []PortRange{{8300, 8302}}
	full.ExcludeInboundCIDRs, full.ExcludeOutboundCIDRs = prefixes("192.0.2.0/24"), prefixes("10.0.0.0/8", "fd00::/8")
	full.ExcludeUIDs, full.ExcludeGIDs, full.ExcludeDNSUIDs = []uint32{7}, []uint32{8}, []uint32{101}
	full.ExcludeCgroups, full.ExcludeInterfaces = []string{"system.slice/backup.service"}, []string{"docker*"}
	groups := map[string]cgroup{
		"system.slice/api.service":     {"system.slice/api.service", 2, 11},
		"system.slice/api.service/job": {"system.slice/api.service/job", 3, 12},
		"system.slice/backup.service":  {"system.slice/backup.service", 2, 13},
	}
	for name, c := range map[string]Config{"one": base(), "full": full} {
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		golden.Check(t, "testdata/"+name+".nft", header(c)+compose(c, groups, c.lapse()).text())
		if _, err := compose(c, groups, c.lapse()).messages(); err != nil {
			t.Error(err)
		}
	}
}

// TestExplain: what the kernel refuses becomes a sentence that says what to do.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		what  string
		errno syscall.Errno
		want  string
	}{
		{readingNFT, unix.EPERM, "needs CAP_NET_ADMIN"},
		{"ip route add local 240.0.0.0/4 dev lo", unix.EPERM, "needs CAP_NET_ADMIN"},
		{readingNFT, unix.EOPNOTSUPP, "this kernel has no nftables"},
		{"netlink", unix.EPROTONOSUPPORT, "this kernel has no nftables"},
		{"chain outbound (type nat hook output)", unix.ENOENT, "no address translation in tables of the family inet"},
		{`rule "socket cgroupv2 level 2 \"a/b\" return" in chain workloads`, unix.EOPNOTSUPP, "cannot tell processes by cgroup"},
		{`rule "meta l4proto tcp tproxy to :15006" in chain x`, unix.ENOENT, "use the inbound mode redirect"},
		{`rule "tcp flags syn redirect to :15001" in chain x`, unix.ENOENT, "cannot redirect"},
		{"nftables", unix.ENOBUFS, "no room for the whole transaction"},
		{"set x", unix.ERANGE, "the kernel refuses; nothing was changed"},
	} {
		err := explain(&kernelError{what: tt.what, errno: tt.errno})
		if !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.errno) || !strings.HasPrefix(err.Error(), "intercept: ") {
			t.Errorf("%s, %v: %v, want %q in it", tt.what, tt.errno, err, tt.want)
		}
	}
	if err := explain(errLoopbackDown); err != errLoopbackDown {
		t.Errorf("what is no refusal is changed: %v", err)
	}
}

// TestComment: what people name their services does not break the rules' text.
func TestComment(t *testing.T) {
	if got := comment("workload a\"b\\c\nd"); got != "workload a?b?c?d" {
		t.Error(got)
	}
	long := comment("workload " + strings.Repeat("ä", 200))
	if len(long) > maxComment || !strings.HasSuffix(long, "…") {
		t.Errorf("%d bytes: %s", len(long), long)
	}
}

// TestLocalResolvers: a resolver on a loopback address is found by what is bound to
// its port.
func TestLocalResolvers(t *testing.T) {
	conf := "# nameserver 127.0.0.1\nsearch lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n"
	addrs := loopbackResolvers(conf)
	if want := []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.IPv6Loopback()}; !slices.Equal(addrs, want) {
		t.Fatalf("%v, want %v", addrs, want)
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the table's example is of a little-endian machine")
	}
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   1: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1 2 0 0
   2: 3500007F:0050 00000000:0000 07 00000000:00000000 00:00000000 00000000   102        0 1 2 0 0
   3: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   103        0 1 2 0 0
   4: 00000000:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   104        0 1 2 0 0
   5: 3500007F:0035 0100007F:8000 01 00000000:00000000 00:00000000 00000000   105        0 1 2 0 0
   6: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   106        0 1
   7: short
`
	uids, err := boundTo(strings.NewReader(table), addrs)
	if want := []uint32{101, 104, 106}; err != nil || !slices.Equal(uids, want) {
		t.Errorf("%v, %v, want %v", uids, err, want)
	}
}

// FuzzAttributes: whatever the kernel answers, nothing panics.
func FuzzAttributes(f *testing.F) {
	f.Add(nested(text(nil, 1, "x"), 2, attr(nil, 3, []byte{1, 2, 3})))
	f.Add([]byte{4, 0, 1, 0, 255, 255, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, v := range readAttrs(b) {
			readAttrs(v)
		}
		_ = ackError(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Flags: unix.NLM_F_ACK_TLVS}, Data: b}, "x")
	})
}
