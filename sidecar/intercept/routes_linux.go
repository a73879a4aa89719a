package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// routeProtocol marks routes and policy rules as ours (rtm_protocol, as in
// /etc/iproute2/rt_protos): 'p'.
const routeProtocol = 112

// route is a local one by way of lo: what it covers is this host's.
type route struct {
	dst   netip.Prefix
	table uint32
}

// policy sends marked packets to a routing table.
type policy struct {
	v6          bool
	mark, table uint32
}

func (r route) String() string {
	ip, dst := "ip", r.dst.String()
	if r.dst.Addr().Is6() {
		ip = "ip -6"
	}
	if r.dst.Bits() == 0 {
		dst = "default"
	}
	s := fmt.Sprintf("%s route add local %s dev lo proto %d", ip, dst, routeProtocol)
	if r.table != unix.RT_TABLE_LOCAL {
		return s + fmt.Sprintf(" table %d", r.table)
	}
	return s + " src " + r.source().String()
}

// source is the address that a connection to a virtual one comes from, unless the
// application chose another: otherwise the kernel would take the virtual address
// itself.
func (r route) source() netip.Addr {
	if r.dst.Addr().Is6() {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (p policy) String() string {
	ip := "ip"
	if p.v6 {
		ip = "ip -6"
	}
	return fmt.Sprintf("%s rule add fwmark 0x%x lookup %d protocol %d", ip, p.mark, p.table, routeProtocol)
}

// wanted are the routes and policy rules of c.
func wanted(c Config) (routes []route, policies []policy) {
	for _, p := range c.virtual() {
		routes = append(routes, route{p, unix.RT_TABLE_LOCAL})
	}
	if c.InboundPort == 0 || c.InboundMode != TProxy {
		return routes, nil
	}
	mark, table := c.marks()
	routes = append(routes, route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), table})
	policies = append(policies, policy{false, mark, table})
	if c.IPv6 {
		routes = append(routes, route{netip.PrefixFrom(netip.IPv6Unspecified(), 0), table})
		policies = append(policies, policy{true, mark, table})
	}
	return routes, policies
}

func family(v6 bool) uint8 {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// routeMessage adds or removes one of ours.
func (r route) message(typ, flags uint16, lo uint32) message {
	v6 := r.dst.Addr().Is6()
	// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
	table := uint8(unix.RT_TABLE_UNSPEC)
	if r.table < 256 {
		table = uint8(r.table)
	}
	b := []byte{family(v6), uint8(r.dst.Bits()), 0, 0, table, routeProtocol, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
	if r.dst.Bits() > 0 {
		b = attr(b, unix.RTA_DST, r.dst.Addr().AsSlice())
	}
	b = attr(b, unix.RTA_OIF, ne32(lo))
	b = attr(b, unix.RTA_TABLE, ne32(r.table))
	if r.table == unix.RT_TABLE_LOCAL {
		b = attr(b, unix.RTA_PREFSRC, r.source().AsSlice())
	}
	return message{r.String(), typ, flags, b}
}

func (p policy) message(typ, flags uint16) message {
	// struct fib_rule_hdr: family, dst_len, src_len, tos, table, res1, res2, action, flags
	table := uint8(unix.RT_TABLE_UNSPEC)
	if p.table < 256 {
		table = uint8(p.table)
	}
	b := []byte{family(p.v6), 0, 0, 0, table, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
	b = attr(b, unix.FRA_FWMARK, ne32(p.mark))
	b = attr(b, unix.FRA_TABLE, ne32(p.table))
	b = attr(b, unix.FRA_PROTOCOL, []byte{routeProtocol})
	return message{p.String(), typ, flags, b}
}

// ours are the routes and policy rules that carry our mark.
func (k *kernel) ours(lo uint32) (routes []route, policies []policy, err error) {
	for _, v6 := range []bool{false, true} {
		rs, err := k.dump(message{"reading routes", unix.RTM_GETROUTE, 0, []byte{family(v6), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}})
		if err != nil {
			return nil, nil, err
		}
		for _, m := range rs {
			if len(m.Data) < unix.SizeofRtMsg || m.Data[0] != family(v6) || m.Data[5] != routeProtocol || m.Data[7] != unix.RTN_LOCAL {
				continue
			}
			a := readAttrs(m.Data[unix.SizeofRtMsg:])
			if u32(a[unix.RTA_OIF]) != lo {
				continue
			}
			addr, ok := netip.AddrFromSlice(a[unix.RTA_DST])
			if !ok {
				addr = netip.IPv4Unspecified()
				if v6 {
					addr = netip.IPv6Unspecified()
				}
			}
			routes = append(routes, route{netip.PrefixFrom(addr, int(m.Data[1])), u32(a[unix.RTA_TABLE])})
		}
		ps, err := k.dump(message{"reading policy rules", unix.RTM_GETRULE, 0, []byte{family(v6), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}})
		if errnoOf(err) == unix.EAFNOSUPPORT || errnoOf(err) == unix.EOPNOTSUPP {
			continue // a kernel without policy routing, or without IPv6
		}
		if err != nil {
			return nil, nil, err
		}
		for _, m := range ps {
			if len(m.Data) < 12 || m.Data[0] != family(v6) {
				continue
			}
			a := readAttrs(m.Data[12:])
			if p := a[unix.FRA_PROTOCOL]; len(p) == 1 && p[0] == routeProtocol {
				policies = append(policies, policy{v6, u32(a[unix.FRA_FWMARK]), u32(a[unix.FRA_TABLE])})
			}
		}
	}
	return routes, policies, nil
}

func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// loopback is lo's index. An error when it is down: nothing can be redirected to it.
func (k *kernel) loopback() (uint32, error) {
	links, err := k.dump(message{"reading interfaces", unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg)})
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		if len(l.Data) < unix.SizeofIfInfomsg {
			continue
		}
		flags := u32(l.Data[8:12])
		if flags&unix.IFF_LOOPBACK == 0 {
			continue
		}
		if flags&unix.IFF_UP == 0 {
			return u32(l.Data[4:8]), errLoopbackDown
		}
		return u32(l.Data[4:8]), nil
	}
	return 0, errLoopbackDown
}

var errLoopbackDown = errors.New("intercept: the interface lo is down in this network namespace, and redirection leads to it: bring it up first (ip link set lo up)")

// hasIPv6 says whether the namespace has IPv6 at all: lo has an address of it.
func (k *kernel) hasIPv6(lo uint32) bool {
	as, err := k.dump(message{"reading addresses", unix.RTM_GETADDR, 0, []byte{unix.AF_INET6, 0, 0, 0, 0, 0, 0, 0}})
	return err == nil && slices.ContainsFunc(as, func(m syscall.NetlinkMessage) bool {
		return len(m.Data) >= 8 && m.Data[0] == unix.AF_INET6 && u32(m.Data[4:8]) == lo
	})
}

// change is a step from what there is to what is wanted, and the way back.
type change struct{ do, undo message }

// changes are the steps that add what is missing and those that remove what is
// too much. Without IPv6 in the namespace its routes are left out: nothing could
// use them.
func (k *kernel) changes(c Config, lo uint32) (add, remove []change, err error) {
	wantR, wantP := wanted(c)
	if !k.hasIPv6(lo) {
		wantR = slices.DeleteFunc(wantR, func(r route) bool { return r.dst.Addr().Is6() })
		wantP = slices.DeleteFunc(wantP, func(p policy) bool { return p.v6 })
	}
	haveR, haveP, err := k.ours(lo)
	if err != nil {
		return nil, nil, err
	}
	const flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	of := func(r route) change {
		return change{r.message(unix.RTM_NEWROUTE, flags, lo), r.message(unix.RTM_DELROUTE, 0, lo)}
	}
	ofPolicy := func(p policy) change {
		return change{p.message(unix.RTM_NEWRULE, flags), p.message(unix.RTM_DELRULE, 0)}
	}
	for _, r := range wantR {
		if !slices.Contains(haveR, r) {
			add = append(add, of(r))
		}
	}
	for _, p := range wantP {
		if !slices.Contains(haveP, p) {
			add = append(add, ofPolicy(p))
		}
	}
	for _, p := range haveP {
		if !slices.Contains(wantP, p) {
			remove = append(remove, ofPolicy(p))
		}
	}
	for _, r := range haveR {
		if !slices.Contains(wantR, r) {
			remove = append(remove, of(r))
		}
	}
	for i, c := range remove {
		remove[i] = change{c.undo, c.do}
	}
	return add, remove, nil
}
