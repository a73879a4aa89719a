package intercept

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The matches and actions that the rules are made of. Each gives its text as
// nft(8) writes it and its expressions as nft(8) would make them, so that both
// ways lead to the same state of the kernel.

func cmp(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func lookup(name string, invert bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: 1, SetName: name, Invert: invert}
}

func not(invert bool) string {
	if invert {
		return "!= "
	}
	return ""
}

func eq(invert bool) expr.CmpOp {
	if invert {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

// metaIn matches a packet's attribute against a named set.
func metaIn(key expr.MetaKey, name string, invert bool) stmt {
	word := map[expr.MetaKey]string{expr.MetaKeyL4PROTO: "l4proto", expr.MetaKeySKUID: "skuid", expr.MetaKeySKGID: "skgid"}[key]
	return stmt{fmt.Sprintf("meta %s %s@%s", word, not(invert), name), protocol{},
		[]expr.Any{&expr.Meta{Key: key, Register: 1}, lookup(name, invert)}}
}

func uidIs(uid uint32) stmt {
	return stmt{fmt.Sprintf("meta skuid %d", uid), protocol{},
		[]expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, cmp(expr.CmpOpEq, ne32(uid))}}
}

func isTCP() stmt {
	return stmt{"meta l4proto tcp", tcp, nil}
}

func familyIs(p protocol) stmt {
	text := "meta nfproto ipv4"
	if p == ipv6 {
		text = "meta nfproto ipv6"
	}
	return stmt{text, protocol{}, []expr.Any{&expr.Meta{Key: p.key, Register: 1}, cmp(expr.CmpOpEq, []byte{p.value})}}
}

// interfaceIs matches the interface's name; "docker*" matches every name that begins so.
func interfaceIs(key expr.MetaKey, name string, invert bool) stmt {
	word := "iifname"
	if key == expr.MetaKeyOIFNAME {
		word = "oifname"
	}
	data := make([]byte, unix.IFNAMSIZ)
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		data = []byte(prefix)
	} else {
		copy(data, name)
	}
	return stmt{fmt.Sprintf("%s %s%q", word, not(invert), name), protocol{},
		[]expr.Any{&expr.Meta{Key: key, Register: 1}, cmp(eq(invert), data)}}
}

func portLoad() *expr.Payload {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func l4word(p protocol) string {
	if p == udp {
		return "udp"
	}
	return "tcp"
}

func portIs(p protocol, port uint16, invert bool) stmt {
	return stmt{fmt.Sprintf("%s dport %s%d", l4word(p), not(invert), port), p, []expr.Any{portLoad(), cmp(eq(invert), be16(port))}}
}

func portIn(p protocol, name string) stmt {
	return stmt{fmt.Sprintf("%s dport @%s", l4word(p), name), p, []expr.Any{portLoad(), lookup(name, false)}}
}

// opens matches the segment that opens a connection. What was open before there
// were rules, and that connection tracking may take for new, is left alone so.
func opens() stmt {
	const mask, syn = 0x17, 0x02 // FIN, SYN, RST, ACK
	return stmt{"tcp flags syn / fin,syn,rst,ack", tcp, []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		cmp(expr.CmpOpEq, []byte{syn}),
	}}
}

// addrIn matches the destination, or the source, against a set of addresses.
func addrIn(p protocol, source bool, name string) stmt { return addrMatch(p, source, name, false) }

func addrNotIn(p protocol, source bool, name string) stmt { return addrMatch(p, source, name, true) }

func addrMatch(p protocol, source bool, name string, invert bool) stmt {
	word, load := addrLoad(p, source)
	return stmt{fmt.Sprintf("%s %s@%s", word, not(invert), name), p, []expr.Any{load, lookup(name, invert)}}
}

func addrLoad(p protocol, source bool) (string, *expr.Payload) {
	word, load := "ip", &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	switch {
	case p == ipv4 && source:
		load.Offset = 12
	case p == ipv6 && source:
		word, load.Offset, load.Len = "ip6", 8, 16
	case p == ipv6:
		word, load.Offset, load.Len = "ip6", 24, 16
	}
	if source {
		return word + " saddr", load
	}
	return word + " daddr", load
}

func toLoopback4() stmt {
	return stmt{"ip daddr 127.0.0.0/8", ipv4, []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1}, // nft(8) loads whole bytes of a prefix
		cmp(expr.CmpOpEq, []byte{127}),
	}}
}

func toLoopback6() stmt {
	_, load := addrLoad(ipv6, false)
	return stmt{"ip6 daddr ::1", ipv6, []expr.Any{load, cmp(expr.CmpOpEq, append(make([]byte, 15), 1))}}
}

// toLocal matches what is addressed to this host, or with invert what is not.
func toLocal(invert bool) stmt {
	return stmt{"fib daddr type " + not(invert) + "local", protocol{}, []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		cmp(eq(invert), ne32(unix.RTN_LOCAL)),
	}}
}

// cgroupIs matches sockets by the control group of the process that made them, or
// the one above it at that level.
func cgroupIs(g cgroup) stmt {
	return stmt{fmt.Sprintf("socket cgroupv2 level %d %q", g.level, g.path), protocol{}, []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: g.level, Register: 1},
		cmp(expr.CmpOpEq, binary.NativeEndian.AppendUint64(nil, g.id)),
	}}
}

func isNew() stmt {
	const bit = 1 << 3 // NF_CT_STATE_BIT(IP_CT_NEW)
	return stmt{"ct state new", protocol{}, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: ne32(bit), Xor: ne32(0)},
		cmp(expr.CmpOpNeq, ne32(0)),
	}}
}

func isReply() stmt {
	return stmt{"ct direction reply", protocol{}, []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, cmp(expr.CmpOpEq, []byte{1}),
	}}
}

func markIs(mark uint32) stmt {
	return stmt{fmt.Sprintf("meta mark 0x%08x", mark), protocol{},
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, cmp(expr.CmpOpEq, ne32(mark))}}
}

func connMarkIs(mark uint32) stmt {
	return stmt{fmt.Sprintf("ct mark 0x%08x", mark), protocol{},
		[]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, cmp(expr.CmpOpEq, ne32(mark))}}
}

func load(data []byte) *expr.Immediate { return &expr.Immediate{Register: 1, Data: data} }

func setMark(mark uint32) stmt {
	return stmt{fmt.Sprintf("meta mark set 0x%08x", mark), protocol{},
		[]expr.Any{load(ne32(mark)), &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}}
}

func setConnMark(mark uint32) stmt {
	return stmt{fmt.Sprintf("ct mark set 0x%08x", mark), protocol{},
		[]expr.Any{load(ne32(mark)), &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}}
}

func counter() stmt { return stmt{"counter", protocol{}, []expr.Any{&expr.Counter{}}} }

func redirect(port uint16) stmt {
	const specified = 2 // NF_NAT_RANGE_PROTO_SPECIFIED
	return stmt{fmt.Sprintf("redirect to :%d", port), protocol{},
		[]expr.Any{load(be16(port)), &expr.Redir{RegisterProtoMin: 1, Flags: specified}}}
}

func tproxy(port uint16) stmt {
	return stmt{fmt.Sprintf("meta l4proto tcp tproxy to :%d", port), tcp, []expr.Any{load(be16(port)), &expr.TProxy{RegPort: 1}}}
}

func verdict(kind expr.VerdictKind, chain string) stmt {
	word := map[expr.VerdictKind]string{
		expr.VerdictReturn: "return", expr.VerdictJump: "jump ", expr.VerdictGoto: "goto ",
		expr.VerdictDrop: "drop", expr.VerdictAccept: "accept",
	}[kind]
	return stmt{word + chain, protocol{}, []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

func reset() stmt {
	return stmt{"reject with tcp reset", tcp, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

func noRoute() stmt {
	return stmt{"reject with icmpx no-route", protocol{}, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE}}}
}
