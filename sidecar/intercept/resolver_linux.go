package intercept

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// LocalResolvers are the users as whom the host's own resolvers run: those that
// /etc/resolv.conf names by a loopback address and that listen on port 53 there,
// such as systemd-resolved at 127.0.0.53. Where everybody is the workload, the
// queries that such a resolver itself makes have to be excluded
// (Config.ExcludeDNSUIDs): the sidecar forwards to it, and it would ask the sidecar. Docker's
// resolver, at 127.0.0.11, is not a process of the namespace and needs nothing.
func LocalResolvers(netns string) ([]uint32, error) {
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("intercept: finding local resolvers: %w", err)
	}
	addrs := loopbackResolvers(string(conf))
	if len(addrs) == 0 {
		return nil, nil
	}
	return inNetNS(netns, func() ([]uint32, error) { return listenersOf(addrs) })
}

// loopbackResolvers are resolv.conf(5)'s nameservers that are loopback addresses.
func loopbackResolvers(conf string) (out []netip.Addr) {
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}

// listenersOf are the owners of what is bound to port 53 of one of the addresses, in
// the calling thread's network namespace.
func listenersOf(addrs []netip.Addr) (uids []uint32, err error) {
	for _, name := range []string{"udp", "udp6", "tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if os.IsNotExist(err) {
			continue // no IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("intercept: finding local resolvers: %w", err)
		}
		found, err := boundTo(f, addrs)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("intercept: finding local resolvers: %s: %w", name, err)
		}
		uids = append(uids, found...)
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}

// boundTo reads a table of sockets (proc_net(5)): sl local_address rem_address st
// queues timer retransmits uid ...
func boundTo(table io.Reader, addrs []netip.Addr) (uids []uint32, err error) {
	sc := bufio.NewScanner(table)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 8 {
			continue
		}
		local, port, ok := strings.Cut(f[1], ":")
		if !ok || port != "0035" || !strings.HasSuffix(f[2], ":0000") {
			continue
		}
		a, ok := procAddr(local)
		if !ok || !a.IsUnspecified() && !slices.Contains(addrs, a) {
			continue
		}
		if uid, err := strconv.ParseUint(f[7], 10, 32); err == nil {
			uids = append(uids, uint32(uid))
		}
	}
	return uids, sc.Err()
}

// procAddr reads an address as proc_net(5) prints it: words of four bytes in the
// host's order.
func procAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		if ne32(1)[0] == 1 {
			slices.Reverse(b[i : i+4])
		}
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
