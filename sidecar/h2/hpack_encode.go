package h2

import (
	"encoding/binary"
	"unsafe"
)

// encoder is one direction's HPACK state. It uses no Huffman code: between
// sidecars bytes are cheap and what repeats is in the table. Strings that enter
// the table are copied, since those of heads are borrowed.
//
// A field enters the table when it is seen for the second time: what never
// repeats (ids, dates, paths with numbers) then neither drives out what does nor
// costs a copy. Credentials never enter, for the connection's table is shared by
// all who use it, and a guess that shortens a message would show (RFC 7541,
// section 7.1).
type encoder struct {
	entries []encEntry  // by sequence number; its length is a power of two
	buckets [64]uint64  // newest entry's sequence number, by hash; may be evicted
	seen    [128]uint32 // hashes of fields met once
	newest  uint64      // sequence number; the first is 1
	oldest  uint64      // of those that are there; newest+1: none
	size    int
	max     int  // in force
	peerMax int  // what the peer allows, at most tableSize
	low     int  // the lowest max since the last block; to be said first
	resized bool // low and max must be said

	// usual holds where the field at each place of a block was found last: blocks
	// resemble each other. A sequence number, or 0.
	usual [16]uint64
	place uint8 // of the next field in its block
}

type encEntry struct {
	name, value string
	hash        uint32
	next        uint64 // of the bucket, older
}

func (e *encoder) init() { e.oldest, e.max, e.peerMax = 1, tableSize, tableSize }

// allow takes the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) allow(n uint32) {
	size := int(min(n, tableSize))
	if size == e.max && !e.resized {
		return
	}
	if !e.resized || size < e.low {
		e.low = size
	}
	e.max, e.resized = size, true
	e.evict(size)
}

// begin starts a block.
func (e *encoder) begin(dst []byte) []byte {
	e.place = 0
	if !e.resized {
		return dst
	}
	e.resized = false
	if e.low < e.max {
		dst = appendInt(dst, 0x20, 5, uint64(e.low))
	}
	return appendInt(dst, 0x20, 5, uint64(e.max))
}

func (e *encoder) evict(max int) {
	for e.size > max {
		f := &e.entries[e.oldest%uint64(len(e.entries))]
		e.size -= entrySize(f.name, f.value)
		f.name, f.value = "", ""
		e.oldest++
	}
}

// hashField mixes lengths and ends: enough to tell a connection's few fields
// apart; equality is always checked.
func hashField(name, value string) uint32 {
	h := uint64(len(name))<<32 | uint64(len(value))
	h = (h ^ ends(name)) * 0x9E3779B97F4A7C15
	h = (h ^ h>>29 ^ ends(value)) * 0xBF58476D1CE4E5B9
	if n := len(value); n > 16 {
		p := unsafe.Slice(unsafe.StringData(value), n)
		h = (h ^ h>>32 ^ binary.LittleEndian.Uint64(p[n/2-4:])) * 0x9E3779B97F4A7C15
	}
	if h ^= h >> 32; uint32(h) == 0 {
		return 1
	}
	return uint32(h)
}

// ends gives the first and the last bytes as one number.
func ends(s string) uint64 {
	n := len(s)
	p := unsafe.Slice(unsafe.StringData(s), n)
	switch {
	case n >= 8:
		return binary.LittleEndian.Uint64(p) ^ binary.LittleEndian.Uint64(p[n-8:])*0x9E3779B97F4A7C15
	case n >= 4:
		return uint64(binary.LittleEndian.Uint32(p)) | uint64(binary.LittleEndian.Uint32(p[n-4:]))<<32
	case n > 0:
		return uint64(p[0]) | uint64(p[n/2])<<8 | uint64(p[n-1])<<16
	}
	return 0
}

// secret says that a field must not enter any table on its way.
func secret(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie":
		return true
	}
	return false
}

// field appends a field. Name and value may be borrowed. What is not a field of
// HTTP/2 is left out.
func (e *encoder) field(dst []byte, name, value string) []byte {
	u := &e.usual[e.place%uint8(len(e.usual))]
	e.place++
	if s := *u; s >= e.oldest && s <= e.newest {
		if f := e.entry(s); f.value == value && f.name == name {
			return e.indexed(dst, s)
		}
	}
	h := hashField(name, value)
	for s := e.buckets[h%uint32(len(e.buckets))]; s >= e.oldest && s <= e.newest; {
		f := e.entry(s)
		if f.hash == h && f.value == value && f.name == name {
			*u = s
			return e.indexed(dst, s)
		}
		s = f.next
	}
	return e.literal(dst, h, name, value)
}

// entry is the one with that sequence number, which is there.
func (e *encoder) entry(s uint64) *encEntry { return &e.entries[s&uint64(len(e.entries)-1)] }

// indexed appends the entry's index.
func (e *encoder) indexed(dst []byte, s uint64) []byte {
	i := uint64(staticLen) + 1 + e.newest - s
	if i < 0x7f {
		return append(dst, 0x80|byte(i))
	}
	return appendInt(dst, 0x80, 7, i)
}

func (e *encoder) literal(dst []byte, h uint32, name, value string) []byte {
	if classify(name, value) == kindBad {
		return dst
	}
	i := staticName(name)
	first, prefix := byte(0), 4
	switch slot := &e.seen[h%uint32(len(e.seen))]; {
	case secret(name):
		first = 0x10
	case i != 0 && staticTable[i].value != "" && e.static(name, value) != 0:
		return append(dst, 0x80|e.static(name, value))
	case *slot != h:
		*slot = h
	case entrySize(name, value) <= e.max/2:
		e.insert(h, name, value)
		first, prefix = 0x40, 6
	}
	if i != 0 {
		dst = appendInt(dst, first, prefix, i)
	} else {
		dst = append(dst, first)
		dst = appendText(dst, name)
	}
	return appendText(dst, value)
}

// static finds a whole field among those that the static table has with values.
func (e *encoder) static(name, value string) byte {
	for i := 2; i <= 16; i++ {
		if s := &staticTable[i]; s.value == value && s.name == name {
			return byte(i)
		}
	}
	return 0
}

func (e *encoder) insert(h uint32, name, value string) {
	size := entrySize(name, value)
	e.evict(e.max - size)
	b := make([]byte, 0, len(name)+len(value))
	s := borrow(append(append(b, name...), value...))
	if n := uint64(len(e.entries)); e.newest+1-e.oldest == n {
		entries := make([]encEntry, max(16, 2*n))
		for s := e.oldest; s <= e.newest; s++ {
			entries[s%uint64(len(entries))] = e.entries[s%n]
		}
		e.entries = entries
	}
	e.newest++
	bucket := &e.buckets[h%uint32(len(e.buckets))]
	e.entries[e.newest%uint64(len(e.entries))] = encEntry{s[:len(name)], s[len(name):], h, *bucket}
	*bucket = e.newest
	e.size += size
}

// appendInt appends an integer with a prefix of so many bits (RFC 7541, section
// 5.1); first holds the bits before it.
func appendInt(dst []byte, first byte, prefix int, n uint64) []byte {
	mask := uint64(1)<<prefix - 1
	if n < mask {
		return append(dst, first|byte(n))
	}
	dst = append(dst, first|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

func appendText(dst []byte, s string) []byte {
	if len(s) < 0x7f {
		dst = append(dst, byte(len(s)))
	} else {
		dst = appendInt(dst, 0, 7, uint64(len(s)))
	}
	return append(dst, s...)
}
