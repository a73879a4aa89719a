package intercept

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lacks are the sentences for what a kernel may be built without, by a word of the
// message that it refuses.
var lacks = []struct{ word, say string }{
	{"socket cgroupv2", "this kernel cannot tell processes by cgroup (nft_socket, Linux 5.13 or newer): tell workloads by uid"},
	{"tproxy to", "this kernel has no TPROXY for nftables (CONFIG_NFT_TPROXY): use the inbound mode redirect"},
	{"type nat", "this kernel has no address translation in tables of the family inet (CONFIG_NFT_NAT, Linux 5.2 or newer): transparent mode cannot be used here; declare upstreams with ports instead"},
	{"redirect to", "this kernel cannot redirect (CONFIG_NFT_REDIR): transparent mode cannot be used here; declare upstreams with ports instead"},
	{"fib ", "this kernel cannot tell its own addresses in nftables (CONFIG_NFT_FIB_INET): load or build nft_fib_inet"},
	{"reject", "this kernel cannot reject in nftables (CONFIG_NFT_REJECT_INET): load or build nft_reject_inet"},
	{"ct ", "this kernel has no connection tracking in nftables (CONFIG_NFT_CT): load or build nft_ct"},
	{"rule add", "this kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES), which TPROXY needs: use the inbound mode redirect"},
}

// explain makes of the kernel's refusal a sentence that says what to do.
func explain(err error) error {
	var k *kernelError
	if err == nil || !errors.As(err, &k) {
		return err
	}
	missing := slices.Contains([]syscall.Errno{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL}, k.errno)
	switch {
	case k.errno == unix.EPERM || k.errno == unix.EACCES:
		return fmt.Errorf("intercept: not permitted: changing or reading redirection needs CAP_NET_ADMIN in the network namespace; run it as root, or give it the capability (in a compose file `cap_add: [NET_ADMIN]`, in a unit `AmbientCapabilities=CAP_NET_ADMIN`): %w", err)
	case missing && (k.what == readingNFT || k.what == "netlink"):
		return fmt.Errorf("intercept: this kernel has no nftables (CONFIG_NF_TABLES with CONFIG_NF_TABLES_INET, Linux 5.2 or newer; module nf_tables): load the module, or declare upstreams with ports instead of using transparent mode: %w", err)
	case k.errno == unix.ENOBUFS || k.errno == unix.EMSGSIZE:
		return fmt.Errorf("intercept: the kernel has no room for the whole transaction: give fewer workloads or exclusions, or raise net.core.wmem_max and net.core.rmem_max: %w", err)
	}
	if missing {
		for _, l := range lacks {
			if strings.Contains(k.what, l.word) {
				return fmt.Errorf("intercept: %s: %w", l.say, err)
			}
		}
	}
	return fmt.Errorf("intercept: the kernel refuses; nothing was changed: %w", err)
}
