package dns

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parrel-mesh/parrel/xds/resource"
)

const (
	defaultTTL = 300 * time.Second // Envoy's
	// negativeTTL is how long clients may remember that a name, or a type of it,
	// does not exist: what is registered next is seen soon.
	negativeTTL = 5 * time.Second
	// pointerZone is the zone whose names PTR queries get, where there are several.
	pointerZone = "mesh"
)

// virtual are the ranges of virtual IPs: only addresses of these have names of
// the mesh's in PTR. Consul's, and the twin for IPv6.
var virtual = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("fd70:6172:7265:6c::/96")}

// entry is a name that is answered.
type entry struct {
	v4, v6 []netip.Addr
	ttl    uint32 // seconds
	ptr    string // the name behind an address; "" in entries of names
}

// table is what is answered. Immutable.
type table struct {
	exact map[string]*entry // also NAME.in-addr.arpa of virtual addresses
	wild  map[string]*entry // by suffix
	zones map[string]bool   // wholly the mesh's own
	empty map[string]bool   // names without data in own zones that have names below them
}

// union makes the table of several filters. One name of two filters has the
// addresses of both, and the shorter TTL.
func union(filters []*resource.DNSFilter) *table {
	t := &table{exact: map[string]*entry{}, wild: map[string]*entry{}, zones: map[string]bool{}, empty: map[string]bool{}}
	for _, f := range filters {
		for _, z := range f.KnownSuffixes {
			t.zones[z] = true
		}
	}
	names := map[netip.Addr]string{}
	for _, f := range filters {
		for i := range f.Domains {
			t.add(&f.Domains[i], names)
		}
	}
	for a, name := range names {
		t.exact[reverse(a)] = &entry{ptr: name, ttl: t.exact[name].ttl}
	}
	return t
}

func (t *table) add(d *resource.DNSDomain, names map[netip.Addr]string) {
	m, key := t.exact, d.Name
	if suffix, ok := strings.CutPrefix(d.Name, "*."); ok {
		m, key = t.wild, suffix
	}
	ttl := uint32(cmp.Or(d.TTL, defaultTTL) / time.Second)
	e := m[key]
	if e == nil {
		e = &entry{ttl: ttl}
		m[key] = e
		t.between(key)
	}
	e.ttl = min(e.ttl, ttl)
	for _, a := range d.Addrs {
		to := &e.v6
		if a.Is4() {
			to = &e.v4
		}
		if !slices.Contains(*to, a) {
			*to = append(*to, a)
		}
		if key == d.Name && slices.ContainsFunc(virtual, func(p netip.Prefix) bool { return p.Contains(a) }) {
			if old, had := names[a]; !had || better(d.Name, old) {
				names[a] = d.Name
			}
		}
	}
}

// between notes the names between key and its zone: they exist (RFC 8020).
func (t *table) between(key string) {
	for name := parent(key); name != ""; name = parent(name) {
		if t.zoneOf(name) == "" {
			return
		}
		t.empty[name] = true
	}
}

// better says whether a is a better name for an address than b: one of
// pointerZone first, then the shorter, then the first in order.
func better(a, b string) bool {
	in := func(s string) int {
		if strings.HasSuffix(s, "."+pointerZone) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(in(a), in(b)), cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) < 0
}

func parent(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	return rest
}

// zoneOf is the own zone that name is in, or is; "" where it is in none.
func (t *table) zoneOf(name string) string {
	for ; name != ""; name = parent(name) {
		if t.zones[name] {
			return name
		}
	}
	return ""
}

// found is what a table says of a name.
type found struct {
	ours  bool
	entry *entry // nil: there is no such name, or it has no data
	// exists is false where there is no such name.
	exists bool
	// owner is how many bytes at the end of the name are the zone's, for SOA.
	owner int
}

// find looks a name up; in lower case. It allocates nothing.
func (t *table) find(name []byte) found {
	e := t.exact[string(name)]
	own := 0
	for at := 0; ; { // the longest wildcard and the longest zone come first
		rest := name[at:]
		if at > 0 && e == nil {
			e = t.wild[string(rest)]
		}
		if own == 0 && t.zones[string(rest)] {
			own = len(rest)
		}
		i := slices.Index(rest, '.')
		if i < 0 {
			break
		}
		at += i + 1
	}
	if e != nil {
		return found{ours: true, entry: e, exists: true, owner: cmp.Or(own, len(name))}
	}
	if own == 0 {
		return found{}
	}
	return found{ours: true, exists: own == len(name) || t.empty[string(name)], owner: own}
}

// reverse is the name of an address in the reverse zones.
func reverse(a netip.Addr) string {
	var b strings.Builder
	if a.Is4() {
		x := a.As4()
		for i := range slices.Backward(x[:]) {
			b.WriteString(strconv.Itoa(int(x[i])))
			b.WriteByte('.')
		}
		return b.String() + "in-addr.arpa"
	}
	const digits = "0123456789abcdef"
	x := a.As16()
	for i := range slices.Backward(x[:]) {
		b.Write([]byte{digits[x[i]&15], '.', digits[x[i]>>4], '.'})
	}
	return b.String() + "ip6.arpa"
}

// appendAnswer appends to buf the mesh's own answer to q, of at most limit bytes:
// what does not fit is left out, and the answer says so (TC). first rotates the
// addresses. f is what the table says of a name that is q's, or q's without a
// search domain.
func appendAnswer(buf []byte, q *query, f found, limit int, first uint64) ([]byte, rcode) {
	switch {
	case q.edns && q.version != 0:
		return appendReply(buf, q, badVersion, 0, ""), badVersion
	case q.qtype == typeANY:
		return appendReply(buf, q, refused, edeNotSupported, "ANY is refused here (RFC 8482): ask for A or AAAA"), refused
	case q.transfer():
		return appendReply(buf, q, refused, edeNotSupported, "zones of the mesh are not transferred"), refused
	case !f.exists:
		w := begin(buf, q, nameError)
		w.soa(2, f.owner)
		return w.end(limit), nameError
	}
	w := begin(buf, q, noError)
	e := f.entry
	switch {
	case e != nil && e.ptr != "" && q.qtype == typePTR:
		w.record(1, typePTR, e.ttl, func() { w.name(e.ptr) }, limit)
	case e != nil && q.qtype == typeA:
		w.addresses(e.v4, typeA, e.ttl, limit, first)
	case e != nil && q.qtype == typeAAAA:
		w.addresses(e.v6, typeAAAA, e.ttl, limit, first)
	case q.qtype == typeSOA && f.owner == q.nameLen && e == nil:
		w.soa(1, f.owner)
	}
	if w.counts[1] == 0 && w.flags&flagTC == 0 {
		w.soa(2, f.owner)
	}
	return w.end(limit), noError
}

// Extended errors, RFC 8914, section 4.
const (
	edeOther        = 0
	edeNotSupported = 21
	edeNoAuthority  = 22
)

// appendReply appends an answer without records that says code, and why where
// the client reads EDNS.
func appendReply(buf []byte, q *query, code rcode, ede uint16, why string) []byte {
	w := begin(buf, q, code)
	w.ede, w.why = ede, why
	if code == serverFailure || code == refused && ede == edeOther || code == formatError {
		w.flags &^= flagAA // not the mesh's word about the name
	}
	return w.end(maxMessage)
}

// appendTruncated appends an answer that says nothing but that the client is to
// ask again by TCP.
func appendTruncated(buf []byte, q *query) []byte {
	w := begin(buf, q, noError)
	w.flags |= flagTC
	return w.end(maxMessage)
}

// writer builds one answer.
type writer struct {
	q      *query
	buf    []byte
	start  int // of the message in buf
	flags  uint16
	counts [4]uint16
	code   rcode
	ede    uint16
	why    string
}

// ednsSize is the OPT record without options.
const ednsSize = 11

func begin(buf []byte, q *query, code rcode) *writer {
	w := &writer{q: q, buf: buf, start: len(buf), code: code}
	w.flags = flagQR | flagAA | flagRA | q.flags&(15<<11|flagRD|flagCD) | uint16(code&15)
	end := headerSize
	if q.count == 1 && q.end > headerSize {
		w.counts[0], end = 1, q.end
	}
	w.buf = append(w.buf, q.msg[:end]...)
	return w
}

// addresses appends one record each.
func (w *writer) addresses(all []netip.Addr, typ uint16, ttl uint32, limit int, first uint64) {
	for i := range all {
		a := all[(uint64(i)+first)%uint64(len(all))]
		ok := w.record(1, typ, ttl, func() {
			if a.Is4() {
				x := a.As4()
				w.buf = append(w.buf, x[:]...)
			} else {
				x := a.As16()
				w.buf = append(w.buf, x[:]...)
			}
		}, limit)
		if !ok {
			return
		}
	}
}

// record appends one record of the question's name to a section; where it does
// not fit, nothing, and the answer says so.
func (w *writer) record(section int, typ uint16, ttl uint32, data func(), limit int) bool {
	before := len(w.buf)
	w.head(headerSize, typ, ttl)
	at := len(w.buf)
	data()
	w.length(at)
	room := 0
	if w.q.edns {
		room = ednsSize
	}
	if len(w.buf)-w.start+room > limit {
		w.buf = w.buf[:before]
		w.flags |= flagTC
		return false
	}
	w.counts[section]++
	return true
}

// head appends a record's owner, which is written at offset already, and the
// rest up to its data.
func (w *writer) head(offset int, typ uint16, ttl uint32) {
	w.buf = binary.BigEndian.AppendUint16(w.buf, 0xc000|uint16(offset))
	w.buf = binary.BigEndian.AppendUint16(w.buf, typ)
	w.buf = binary.BigEndian.AppendUint16(w.buf, classIN)
	w.buf = binary.BigEndian.AppendUint32(w.buf, ttl)
	w.buf = append(w.buf, 0, 0)
}

// length writes the length of the data that began at.
func (w *writer) length(at int) { binary.BigEndian.PutUint16(w.buf[at-2:], uint16(len(w.buf)-at)) }

// name appends a name of the mesh's.
func (w *writer) name(s string) {
	for label := range strings.SplitSeq(s, ".") {
		w.buf = append(append(w.buf, byte(len(label))), label...)
	}
	w.buf = append(w.buf, 0)
}

// soa appends the SOA record of the zone, whose name is the last owner bytes of
// the question's. Its TTL is how long a negative answer may be remembered
// (RFC 2308, section 3).
func (w *writer) soa(section, owner int) {
	offset := headerSize + w.q.nameLen - owner
	w.head(offset, typeSOA, uint32(negativeTTL/time.Second))
	at := len(w.buf)
	for _, label := range []string{"ns", "hostmaster"} {
		w.buf = append(append(w.buf, byte(len(label))), label...)
		w.buf = binary.BigEndian.AppendUint16(w.buf, 0xc000|uint16(offset))
	}
	for _, n := range []uint32{1, 3600, 600, 86400, uint32(negativeTTL / time.Second)} { // serial, refresh, retry, expire, minimum
		w.buf = binary.BigEndian.AppendUint32(w.buf, n)
	}
	w.length(at)
	w.counts[section]++
}

// end writes what is known only now, and gives the buffer.
func (w *writer) end(limit int) []byte {
	if w.q.edns {
		w.buf = append(w.buf, 0, 0, typeOPT)
		w.buf = binary.BigEndian.AppendUint16(w.buf, ourSize)
		do := uint16(0)
		if w.q.do {
			do = ednsDO
		}
		w.buf = append(w.buf, byte(w.code>>4), 0)
		w.buf = binary.BigEndian.AppendUint16(w.buf, do)
		w.buf = append(w.buf, 0, 0)
		at := len(w.buf)
		if n := at - w.start + 6 + len(w.why); w.why != "" && n <= min(limit, w.q.size) {
			w.buf = binary.BigEndian.AppendUint16(w.buf, optionEDE)
			w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(2+len(w.why)))
			w.buf = binary.BigEndian.AppendUint16(w.buf, w.ede)
			w.buf = append(w.buf, w.why...)
			w.length(at)
		}
		w.counts[3]++
	}
	h := w.buf[w.start:]
	binary.BigEndian.PutUint16(h[2:], w.flags)
	for i, n := range w.counts {
		binary.BigEndian.PutUint16(h[4+2*i:], n)
	}
	return w.buf
}

// ourSize is the UDP size that the mesh's own answers announce (RFC 6891,
// section 6.2.5, as the DNS flag day of 2020 has it).
const ourSize = 1232
