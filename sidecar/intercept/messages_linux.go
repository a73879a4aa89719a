package intercept

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The table's messages, after linux/netfilter/nf_tables.h. The expressions within
// rules are encoded by google/nftables.

func nft(typ, flags uint16, what string, attrs []byte) message {
	return message{what, unix.NFNL_SUBSYS_NFTABLES<<8 | typ, flags, append(nfgen(unix.NFPROTO_INET, 0), attrs...)}
}

func addTable() message {
	b := text(nil, unix.NFTA_TABLE_NAME, tableName)
	return nft(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "table inet "+tableName, attr(b, unix.NFTA_TABLE_FLAGS, be32(0)))
}

func deleteTable() message {
	return nft(unix.NFT_MSG_DELTABLE, 0, "removing table inet "+tableName, text(nil, unix.NFTA_TABLE_NAME, tableName))
}

// messages are the transaction that puts r in place of the table.
func (r ruleset) messages() ([]message, error) {
	out := []message{addTable(), deleteTable(), addTable()} // made, so that it can be removed where it was not
	for i, s := range r.sets {
		out = append(out, s.message(uint32(i+1)))
		if len(s.elems) > 0 {
			out = append(out, s.elements())
		}
	}
	for _, c := range r.chains { // before the rules, which jump from one to another
		out = append(out, c.message())
	}
	for _, c := range r.chains {
		for _, r := range c.rules {
			m, err := r.message(c.name)
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		}
	}
	return out, nil
}

func (s set) message(id uint32) message {
	var flags uint32
	if s.interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.timeout {
		flags |= unix.NFT_SET_TIMEOUT
	}
	b := text(nil, unix.NFTA_SET_TABLE, tableName)
	b = text(b, unix.NFTA_SET_NAME, s.name)
	b = attr(b, unix.NFTA_SET_FLAGS, be32(flags))
	b = attr(b, unix.NFTA_SET_KEY_TYPE, be32(s.typ.magic))
	b = attr(b, unix.NFTA_SET_KEY_LEN, be32(s.typ.bytes))
	b = attr(b, unix.NFTA_SET_ID, be32(id))
	order := uint32(2) // big endian; for nft(8), which shows the elements
	if s.typ.host {
		order = 1
	}
	b = attr(b, unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, order))
	return nft(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "set "+s.name, b)
}

func (s set) elements() message {
	var list []byte
	add := func(key []byte, flags uint32, timeout time.Duration) {
		var e []byte
		if flags != 0 {
			e = attr(e, unix.NFTA_SET_ELEM_FLAGS, be32(flags))
		}
		e = nested(e, unix.NFTA_SET_ELEM_KEY, attr(nil, unix.NFTA_DATA_VALUE, key))
		if timeout > 0 {
			e = attr(e, unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(timeout.Milliseconds())))
		}
		list = nested(list, unix.NFTA_LIST_ELEM, e)
	}
	for _, e := range s.elems {
		add(e.from, 0, e.timeout)
		if e.interval && e.end != nil {
			add(e.end, unix.NFT_SET_ELEM_INTERVAL_END, 0)
		}
	}
	b := text(nil, unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b = text(b, unix.NFTA_SET_ELEM_LIST_SET, s.name)
	b = nested(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
	return nft(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, "elements of set "+s.name, b)
}

// empty takes all elements out of the set.
func (s set) empty() message {
	b := text(nil, unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b = text(b, unix.NFTA_SET_ELEM_LIST_SET, s.name)
	return nft(unix.NFT_MSG_DELSETELEM, 0, "emptying set "+s.name, b)
}

var hooks = map[string]uint32{
	"prerouting": unix.NF_INET_PRE_ROUTING,
	"output":     unix.NF_INET_LOCAL_OUT,
}

func (c chain) message() message {
	b := text(nil, unix.NFTA_CHAIN_TABLE, tableName)
	b = text(b, unix.NFTA_CHAIN_NAME, c.name)
	what := "chain " + c.name
	if c.hook != "" {
		h := attr(nil, unix.NFTA_HOOK_HOOKNUM, be32(hooks[c.hook]))
		h = attr(h, unix.NFTA_HOOK_PRIORITY, be32(uint32(c.priority)))
		b = nested(b, unix.NFTA_CHAIN_HOOK, h)
		b = attr(b, unix.NFTA_CHAIN_POLICY, be32(1)) // NF_ACCEPT
		b = text(b, unix.NFTA_CHAIN_TYPE, c.kind)
		what += fmt.Sprintf(" (type %s hook %s)", c.kind, c.hook)
	}
	return nft(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, what, b)
}

func (r rule) message(chain string) (message, error) {
	what := fmt.Sprintf("rule %q in chain %s", r.text(), chain)
	var list []byte
	for _, e := range r.exprs() {
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return message{}, fmt.Errorf("intercept: %s: %w", what, err)
		}
		list = nested(list, unix.NFTA_LIST_ELEM, data)
	}
	b := text(nil, unix.NFTA_RULE_TABLE, tableName)
	b = text(b, unix.NFTA_RULE_CHAIN, chain)
	b = nested(b, unix.NFTA_RULE_EXPRESSIONS, list)
	if r.comment != "" {
		b = attr(b, unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, r.comment))
	}
	return nft(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, what, b), nil
}

// The following read what the kernel has.

// tables are the names of the inet tables.
func (k *kernel) tables() (names []string, err error) {
	err = k.list(unix.NFT_MSG_GETTABLE, nil, func(a attrs) { names = append(names, a.str(unix.NFTA_TABLE_NAME)) })
	return names, err
}

// chains are the names of our table's.
func (k *kernel) chains() (names []string, err error) {
	err = k.list(unix.NFT_MSG_GETCHAIN, text(nil, unix.NFTA_CHAIN_TABLE, tableName), func(a attrs) {
		if a.str(unix.NFTA_CHAIN_TABLE) == tableName {
			names = append(names, a.str(unix.NFTA_CHAIN_NAME))
		}
	})
	return names, err
}

// kernelRule is a rule as the kernel has it: what Show reads of it.
type kernelRule struct {
	chain, comment string
	packets        uint64 // of its counter
	jump           uint16 // the capture port whose chain it leads to, 0 without one
}

func (k *kernel) rules() (out []kernelRule, err error) {
	err = k.list(unix.NFT_MSG_GETRULE, text(nil, unix.NFTA_RULE_TABLE, tableName), func(a attrs) {
		if a.str(unix.NFTA_RULE_TABLE) != tableName {
			return
		}
		r := kernelRule{chain: a.str(unix.NFTA_RULE_CHAIN)}
		r.comment, _ = userdata.GetString(a[unix.NFTA_RULE_USERDATA], userdata.TypeComment)
		eachAttr(a[unix.NFTA_RULE_EXPRESSIONS], func(_ uint16, e []byte) {
			parts := readAttrs(e)
			data := readAttrs(parts[unix.NFTA_EXPR_DATA])
			switch parts.str(unix.NFTA_EXPR_NAME) {
			case "counter":
				if p := data[unix.NFTA_COUNTER_PACKETS]; len(p) == 8 {
					r.packets = binary.BigEndian.Uint64(p)
				}
			case "immediate":
				v := readAttrs(readAttrs(data[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
				if port, ok := strings.CutPrefix(v.str(unix.NFTA_VERDICT_CHAIN), outPrefix); ok {
					n, _ := strconv.ParseUint(port, 10, 16)
					r.jump = uint16(n)
				}
			}
		})
		out = append(out, r)
	})
	return out, err
}

// kernelElement is an element as the kernel has it.
type kernelElement struct {
	key     []byte
	end     bool          // of an interval
	expires time.Duration // 0: never
}

// elementsOf are those of our table's set. ok is false where there is no such set.
func (k *kernel) elementsOf(name string) (out []kernelElement, ok bool, err error) {
	b := text(nil, unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b = text(b, unix.NFTA_SET_ELEM_LIST_SET, name)
	err = k.list(unix.NFT_MSG_GETSETELEM, b, func(a attrs) {
		eachAttr(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, data []byte) {
			parts := readAttrs(data)
			e := kernelElement{key: readAttrs(parts[unix.NFTA_SET_ELEM_KEY])[unix.NFTA_DATA_VALUE]}
			if f := parts[unix.NFTA_SET_ELEM_FLAGS]; len(f) == 4 {
				e.end = binary.BigEndian.Uint32(f)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
			if x := parts[unix.NFTA_SET_ELEM_EXPIRATION]; len(x) == 8 {
				e.expires = time.Duration(binary.BigEndian.Uint64(x)) * time.Millisecond
			}
			out = append(out, e)
		})
	})
	if errnoOf(err) == unix.ENOENT {
		return nil, false, nil
	}
	return out, err == nil, err
}

// readingNFT is the first thing asked of nftables; a kernel without it says so then.
const readingNFT = "reading nftables"

// list dumps objects of the inet family.
func (k *kernel) list(typ uint16, filter []byte, each func(attrs)) error {
	answers, err := k.dump(nft(typ, 0, readingNFT, filter))
	if err != nil {
		return err
	}
	for _, a := range answers {
		if len(a.Data) >= 4 {
			each(readAttrs(a.Data[4:]))
		}
	}
	return nil
}

type attrs map[uint16][]byte

func readAttrs(b []byte) attrs {
	a := attrs{}
	eachAttr(b, func(typ uint16, data []byte) { a[typ] = data })
	return a
}

func (a attrs) str(typ uint16) string { return strings.TrimRight(string(a[typ]), "\x00") }
