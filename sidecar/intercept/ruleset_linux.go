package intercept

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleset is the table's content. It is written twice from one description: as
// text for people and nft(8), and as messages for the kernel.
type ruleset struct {
	sets   []set
	chains []chain
}

type set struct {
	name     string
	typ      setType
	interval bool
	timeout  bool // elements may lapse
	elems    []element
}

// setType is a data type of nft, as its users and its kernel messages name it.
type setType struct {
	name  string
	magic uint32 // enum datatypes of nftables' datatype.h: how nft(8) shows the set
	bytes uint32
	host  bool // byte order
}

var (
	typeIPv4    = setType{"ipv4_addr", 7, 4, false}
	typeIPv6    = setType{"ipv6_addr", 8, 16, false}
	typeProto   = setType{"inet_proto", 12, 1, false}
	typeService = setType{"inet_service", 13, 2, false}
	typeUID     = setType{"uid", 24, 4, true}
	typeGID     = setType{"gid", 25, 4, true}
)

// element is a value, or a range of them.
type element struct {
	text     string
	from     []byte
	end      []byte // of an interval: the first value that is not in it; nil: it ends with the last there is
	timeout  time.Duration
	interval bool
}

// chain is one with a hook, or one that others jump to.
type chain struct {
	name     string
	hook     string // "" without one
	kind     string // filter, nat, route
	priority int32
	rules    []rule
}

type rule struct {
	comment string
	stmts   []stmt
}

// stmt is a match or an action. needs is the protocol that has to be known
// before: nft(8) writes that match itself, so the text leaves it out.
type stmt struct {
	text  string
	needs protocol
	exprs []expr.Any
}

type protocol struct {
	key   expr.MetaKey
	value byte
}

var (
	tcp  = protocol{expr.MetaKeyL4PROTO, unix.IPPROTO_TCP}
	udp  = protocol{expr.MetaKeyL4PROTO, unix.IPPROTO_UDP}
	ipv4 = protocol{expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4}
	ipv6 = protocol{expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6}
)

// exprs are the rule's in the kernel's words.
func (r rule) exprs() []expr.Any {
	var known []protocol
	var out []expr.Any
	for _, s := range r.stmts {
		if s.needs != (protocol{}) && !slices.Contains(known, s.needs) {
			known = append(known, s.needs)
			out = append(out, &expr.Meta{Key: s.needs.key, Register: 1}, cmp(expr.CmpOpEq, []byte{s.needs.value}))
		}
		out = append(out, s.exprs...)
	}
	return out
}

// maxComment is what nft(8) takes of a comment (NFTNL_UDATA_COMMENT_MAXLEN,
// with the zero at its end).
const maxComment = 127

// comment cuts what is too long, and takes out what nft(8) could not read back.
func comment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == '"' || r == '\\' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxComment {
		s = strings.ToValidUTF8(s[:maxComment-len("…")], "") + "…"
	}
	return s
}

func (r rule) text() string {
	var b strings.Builder
	for i, s := range r.stmts {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s.text)
	}
	if r.comment != "" {
		fmt.Fprintf(&b, " comment %q", r.comment)
	}
	return b.String()
}

func (s set) text(b *strings.Builder) {
	fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n", s.name, s.typ.name)
	var flags []string
	if s.interval {
		flags = append(flags, "interval")
	}
	if s.timeout {
		flags = append(flags, "timeout")
	}
	if flags != nil {
		fmt.Fprintf(b, "\t\tflags %s\n", strings.Join(flags, ", "))
	}
	if len(s.elems) > 0 {
		texts := make([]string, len(s.elems))
		for i, e := range s.elems {
			texts[i] = e.text
			if e.timeout > 0 {
				texts[i] += fmt.Sprintf(" timeout %dms", e.timeout.Milliseconds())
			}
		}
		fmt.Fprintf(b, "\t\telements = { %s }\n", strings.Join(texts, ", "))
	}
	b.WriteString("\t}\n\n")
}

// text is the ruleset as a file for `nft -f`, which puts it in place of the table
// atomically.
func (r ruleset) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %[1]s\ndelete table inet %[1]s\ntable inet %[1]s {\n", tableName)
	for _, s := range r.sets {
		s.text(&b)
	}
	for i, c := range r.chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.kind, c.hook, c.priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r.text())
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// addrSet is a set of prefixes of one family.
func addrSet(name string, v6 bool, prefixes []netip.Prefix) (set, bool) {
	s := set{name: name, typ: typeIPv4, interval: true}
	if v6 {
		s.typ = typeIPv6
	}
	for _, p := range mergePrefixes(prefixes) {
		if p.Addr().Is6() != v6 {
			continue
		}
		e := element{text: p.String(), from: p.Addr().AsSlice(), interval: true}
		if p.IsSingleIP() {
			e.text = p.Addr().String()
		}
		if next := lastOf(p).Next(); next.IsValid() {
			e.end = next.AsSlice()
		}
		s.elems = append(s.elems, e)
	}
	return s, len(s.elems) > 0
}

func portSet(name string, ranges ...[]PortRange) set {
	s := set{name: name, typ: typeService, interval: true}
	for _, r := range mergePorts(ranges...) {
		e := element{text: r.String(), from: be16(r.From), interval: true}
		if r.To < 65535 {
			e.end = be16(r.To + 1)
		}
		s.elems = append(s.elems, e)
	}
	return s
}

func idSet(name string, typ setType, ids []uint32) set {
	s := set{name: name, typ: typ}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		s.elems = append(s.elems, element{text: fmt.Sprint(id), from: ne32(id)})
	}
	return s
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func ne32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
