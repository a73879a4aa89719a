package h2

import (
	"bytes"
	"errors"
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// tableSize is the size of both dynamic tables: HPACK's default (RFC 9113,
// section 6.5.2), which costs a connection no more than 8 kB.
const tableSize = 4096

// entry is a field of a table.
type entry struct{ name, value string }

func entrySize(name, value string) int { return len(name) + len(value) + 32 }

// ring is the decoder's dynamic table. Index 0 is the newest.
type ring struct {
	fields []hfield // its length is a power of two; grows up to what the size allows
	newest int
	n      int
	size   int
	max    int
}

func (t *ring) at(i int) *hfield { return &t.fields[(t.newest-i)&(len(t.fields)-1)] }

// evict makes the size at most max.
func (t *ring) evict(max int) {
	for t.size > max {
		f := t.at(t.n - 1)
		t.size -= entrySize(f.name, f.value)
		*f = hfield{}
		t.n--
	}
}

func (t *ring) add(f hfield) {
	size := entrySize(f.name, f.value)
	if size > t.max { // RFC 7541, section 4.4: an empty table, no error
		t.evict(0)
		return
	}
	t.evict(t.max - size)
	if t.n == len(t.fields) {
		t.grow()
	}
	t.newest = (t.newest + 1) & (len(t.fields) - 1)
	t.fields[t.newest] = f
	t.n++
	t.size += size
}

func (t *ring) grow() {
	fields := make([]hfield, max(16, 2*len(t.fields)))
	for i := range t.n {
		fields[t.n-1-i] = *t.at(i)
	}
	t.fields, t.newest = fields, t.n-1
}

// decoder is one direction's HPACK state (RFC 7541). Strings that it gives are
// either the table's own, which stay what they are for ever, or stand in the
// caller's arena.
type decoder struct {
	table ring
	// changes counts what the table went through: with the same number the same
	// block says the same.
	changes uint64
	scratch []byte // of Huffman strings on their way into the table
}

var errCompression = errors.New("h2: a header block that HPACK cannot read (RFC 7541)")

// limits bound one header list.
type limits struct {
	size   int // by RFC 9113, section 6.5.2: name + value + 32 each
	fields int
}

// decode reads a block. Fields beyond the limits are read for the table's sake
// and dropped; over says so. An error ends the connection.
func (d *decoder) decode(block []byte, fields []hfield, arena []byte, lim limits) (_ []hfield, _ []byte, over bool, err error) {
	size, head := 0, true
	for len(block) > 0 {
		b := block[0]
		var f hfield
		switch {
		case b&0x80 != 0: // indexed
			var i uint64
			var ok bool
			if i = uint64(b & 0x7f); i < 0x7f {
				block = block[1:]
			} else if i, block, ok = readInt(block, 7); !ok {
				return fields, arena, over, errCompression
			}
			if f, ok = d.lookup(i); !ok {
				return fields, arena, over, errCompression
			}
		case b&0xe0 == 0x20: // size update: only at a block's beginning (section 4.2)
			n, rest, ok := readInt(block, 5)
			if !ok || !head || n > tableSize {
				return fields, arena, over, errCompression
			}
			block = rest
			d.table.max = int(n)
			d.table.evict(int(n))
			d.changes++
			continue
		default:
			index := b&0x40 != 0
			prefix := 4
			if index {
				prefix = 6
			}
			i, rest, ok := readInt(block, prefix)
			if !ok {
				return fields, arena, over, errCompression
			}
			if block = rest; i != 0 {
				if f, ok = d.lookup(i); !ok {
					return fields, arena, over, errCompression
				}
			}
			if index {
				f, block, ok = d.insert(f, i == 0, block)
			} else {
				f, block, arena, ok = d.literal(f, i == 0, block, arena, over || lim.size < size)
			}
			if !ok {
				return fields, arena, over, errCompression
			}
		}
		head = false
		if size += entrySize(f.name, f.value); size > lim.size || len(fields) >= lim.fields {
			over = true
			continue
		}
		fields = append(fields, f)
	}
	return fields, arena, over, nil
}

func (d *decoder) lookup(i uint64) (hfield, bool) {
	if i == 0 {
		return hfield{}, false
	}
	if i <= uint64(staticLen) {
		return staticFields[i], true
	}
	if i -= uint64(staticLen) + 1; i < uint64(d.table.n) {
		return *d.table.at(int(i)), true
	}
	return hfield{}, false
}

// insert reads a literal that enters the table: its strings are made anew.
func (d *decoder) insert(f hfield, withName bool, block []byte) (_ hfield, rest []byte, ok bool) {
	buf := d.scratch[:0]
	if withName {
		if buf, block, ok = appendString(buf, block); !ok {
			return f, block, false
		}
	}
	n := len(buf)
	if buf, block, ok = appendString(buf, block); !ok {
		return f, block, false
	}
	d.scratch = buf
	s := string(buf)
	if withName {
		f.name = s[:n]
	}
	f.value = s[n:]
	f.kind = classify(f.name, f.value)
	d.table.add(f)
	d.changes++
	if cap(d.scratch) > 2*tableSize {
		d.scratch = nil
	}
	return f, block, true
}

// literal reads one that does not; drop leaves its strings out of the arena.
func (d *decoder) literal(f hfield, withName bool, block, arena []byte, drop bool) (_ hfield, rest, out []byte, ok bool) {
	from := len(arena)
	if withName {
		if arena, block, ok = appendString(arena, block); !ok {
			return f, block, arena, false
		}
		f.name = borrow(arena[from:])
	}
	mid := len(arena)
	if arena, block, ok = appendString(arena, block); !ok {
		return f, block, arena, false
	}
	if withName { // arena may have moved
		f.name = borrow(arena[from:mid])
	}
	f.value = borrow(arena[mid:])
	if drop {
		return f, block, arena[:from], true
	}
	f.kind = classify(f.name, f.value)
	return f, block, arena, true
}

// borrow makes a string of bytes that stay where they are.
func borrow(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// appendString reads a string literal (RFC 7541, section 5.2).
func appendString(dst, block []byte) (out, rest []byte, ok bool) {
	if len(block) == 0 {
		return dst, block, false
	}
	coded := block[0]&0x80 != 0
	n, rest, ok := readInt(block, 7)
	if !ok || n > uint64(len(rest)) {
		return dst, rest, false
	}
	if coded {
		dst, ok = huffmanDecode(dst, rest[:n])
		return dst, rest[n:], ok
	}
	return append(dst, rest[:n]...), rest[n:], true
}

// readInt reads an integer with a prefix of so many bits (RFC 7541, section
// 5.1); more than four further bytes are refused: no table, string or block is
// that large.
func readInt(b []byte, prefix int) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, b, false
	}
	mask := byte(1)<<prefix - 1
	if n = uint64(b[0] & mask); n < uint64(mask) {
		return n, b[1:], true
	}
	for i := 1; i < len(b) && i <= 4; i++ {
		n += uint64(b[i]&0x7f) << (7 * (i - 1))
		if b[i]&0x80 == 0 {
			return n, b[i+1:], true
		}
	}
	return 0, b, false
}

// memo remembers a header block that came twice, so that what was made of it can
// be used again: the usual peer says the same again and again. Its owner keeps
// that, with strings of its own.
type memo struct {
	block   []byte
	changes uint64
	twice   bool
}

const (
	memos   = 4   // of a connection: a few kinds of message take turns
	memoMax = 256 // bytes of a block
)

// memoOf is the place for the block among the memos.
func memoOf(block []byte) int {
	n := len(block)
	if n == 0 {
		return 0
	}
	return (n ^ int(block[n-1]) ^ int(block[n/2])) % memos
}

// hit says whether what is remembered holds.
func (m *memo) hit(block []byte, d *decoder) bool {
	return m.twice && m.changes == d.changes && bytes.Equal(block, m.block)
}

// note remembers the block that was just decoded. It says whether what was made
// of it is to be kept; before is the decoder's changes before the block.
func (m *memo) note(block []byte, d *decoder, before uint64) bool {
	if d.changes != before || len(block) > memoMax || len(block) == 0 {
		return false
	}
	if m.twice = m.changes == d.changes && bytes.Equal(block, m.block); m.twice {
		return true
	}
	m.block, m.changes = append(m.block[:0], block...), d.changes
	return false
}

// own gives a copy of the fields, and makes the other strings copies, too.
func own(h stream.Header, more ...*string) stream.Header {
	n := 0
	for _, f := range h {
		n += len(f.Name) + len(f.Value)
	}
	for _, s := range more {
		n += len(*s)
	}
	b := make([]byte, 0, n)
	take := func(s string) string {
		from := len(b)
		b = append(b, s...)
		return borrow(b[from:])
	}
	out := make(stream.Header, len(h))
	for i, f := range h {
		out[i] = stream.Field{Name: take(f.Name), Value: take(f.Value)}
	}
	for _, s := range more {
		*s = take(*s)
	}
	return out
}
