package h2

// huffmanBits are the lengths of the codes of RFC 7541, appendix B. The code is
// canonical (codes of one length are consecutive, in the order of the symbols),
// so that the lengths say everything. The end-of-string symbol is the last of
// the codes of 30 bits.
var huffmanBits = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

const (
	huffmanMax  = 30 // longest code, bits
	huffmanFast = 10 // codes up to so many bits are found by one look
)

// huffmanTable decodes: by one look for short codes, by the canonical order for
// the others.
type huffmanTable struct {
	fast   [1 << huffmanFast]uint16 // length << 8 | symbol; 0: a longer code
	first  [huffmanMax + 1]uint32   // first code of the length
	count  [huffmanMax + 1]uint32
	offset [huffmanMax + 1]uint32 // of the length's first symbol in sorted
	sorted [256]uint8
}

var huffman = makeHuffman()

func makeHuffman() *huffmanTable {
	t := new(huffmanTable)
	code, n := uint32(0), 0
	for l := 1; l <= huffmanMax; l++ {
		code <<= 1
		t.first[l], t.offset[l] = code, uint32(n)
		for s, bits := range huffmanBits {
			if int(bits) != l {
				continue
			}
			t.sorted[n] = uint8(s)
			n++
			if l <= huffmanFast {
				from := code << (huffmanFast - l)
				for i := range uint32(1) << (huffmanFast - l) {
					t.fast[from+i] = uint16(l)<<8 | uint16(s)
				}
			}
			code++
		}
		t.count[l] = code - t.first[l]
	}
	return t
}

// huffmanDecode appends what src says. ok is false for a code that does not
// exist, the end-of-string symbol, and padding that is longer than seven bits or
// not all ones (RFC 7541, section 5.2).
func huffmanDecode(dst, src []byte) (out []byte, ok bool) {
	t := huffman
	var acc uint64 // the next bits, from the top
	bits := 0
	for i := 0; ; {
		for bits <= 56 && i < len(src) {
			acc |= uint64(src[i]) << (56 - bits)
			bits += 8
			i++
		}
		if e := t.fast[acc>>(64-huffmanFast)]; e != 0 {
			l := int(e >> 8)
			if l > bits {
				break
			}
			dst = append(dst, uint8(e))
			acc <<= l
			bits -= l
			continue
		}
		l, found := huffmanFast+1, false
		for ; l <= huffmanMax && l <= bits; l++ {
			if d := uint32(acc>>(64-l)) - t.first[l]; d < t.count[l] {
				dst = append(dst, t.sorted[t.offset[l]+d])
				found = true
				break
			}
		}
		if !found {
			break
		}
		acc <<= l
		bits -= l
	}
	return dst, bits < 8 && acc == ^uint64(0)<<(64-bits) // a shift by 64 gives 0
}
