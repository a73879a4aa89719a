package h1

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// lower maps the characters of a token (RFC 9110, section 5.6.2) to their lower
// case and everything else to 0.
var lower = func() (t [256]byte) {
	for c := byte('0'); c <= '9'; c++ {
		t[c] = c
	}
	for c := byte('a'); c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = c, c
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] = c
	}
	return t
}()

// kind is what a message's first line is.
type kind uint8

const (
	aRequest kind = iota
	aResponse
	aTrailer // a trailer section: no first line
)

// phase is what the scanner expects next.
type phase uint8

const (
	atStart phase = iota
	inMethod
	inTarget
	inVersion
	inStatus
	inReason
	atField
	inName
	inValue
)

// message is one head, or one trailer section, while it is scanned and after.
// The scanner looks at each byte once, in place, wherever the bytes stop coming;
// its strings point into the buffer. A buffer that moves makes it begin anew.
type message struct {
	kind   kind
	phase  phase
	pos    int // next byte to look at, from the message's first
	mark   int // first byte of the token in hand
	colon  int // end of the field name in hand
	line   int // length of the request line, 0 before its end
	blank  bool
	max    int // fields
	count  int // fields seen, those taken off included
	minor  byte
	fields stream.Header // those that cross the border

	method, target string
	status         int

	host      string
	hosts     int
	length    int64 // of Content-Length; -1: none
	coded     bool  // there is a Transfer-Encoding
	close     bool  // Connection: close
	keep      bool  // Connection: keep-alive
	upgrading bool  // Connection: upgrade
	upgrade   string
	upgrades  int
	trailers  bool // TE: trailers
	expect    bool // Expect: 100-continue
	named     []string
	namedRoom [4]string
}

// begin makes m ready for the next message. fields is used for the result.
func (m *message) begin(k kind, max int, fields stream.Header) {
	*m = message{kind: k, max: max, fields: fields[:0], length: -1}
	m.named = m.namedRoom[:0]
	if k == aTrailer {
		m.phase = atField
	}
}

// str lends bytes of the buffer as a string.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// scan goes on where it stopped. b is the message from its first byte to the
// last that has come. done: the head is complete and ends at m.pos.
func (m *message) scan(b []byte) (done bool, f *fault) {
	pos := m.pos
	for {
		switch m.phase {
		case atStart:
			if pos == len(b) {
				m.pos = pos
				return false, nil
			}
			if b[pos] == '\r' && m.kind == aRequest && !m.blank {
				// RFC 9112, section 2.2: an empty line before the request line, once.
				if pos+1 == len(b) {
					m.pos = pos
					return false, nil
				}
				if b[pos+1] != '\n' {
					return false, faultBareCR
				}
				pos += 2
				m.blank = true
				continue
			}
			m.mark, m.phase = pos, inMethod
			if m.kind == aResponse {
				m.phase = inStatus
			}

		case inMethod:
			for pos < len(b) && lower[b[pos]] != 0 {
				pos++
			}
			if pos == len(b) {
				m.pos = pos
				return false, nil
			}
			if b[pos] != ' ' || pos == m.mark {
				return false, faultMethod
			}
			m.method = method(b[m.mark:pos])
			pos++
			m.mark, m.phase = pos, inTarget

		case inTarget:
			pos = targetEnd(b, pos)
			if pos == len(b) {
				m.pos = pos
				return false, nil
			}
			if b[pos] != ' ' || pos == m.mark {
				return false, faultTarget
			}
			m.target = str(b[m.mark:pos])
			pos++
			m.mark, m.phase = pos, inVersion

		case inVersion:
			const line = "HTTP/1.1\r\n"
			if len(b)-m.mark < len(line) {
				m.pos = pos
				return false, versionPrefix(b[m.mark:])
			}
			v := b[m.mark : m.mark+len(line)]
			if string(v) != line {
				if f := version(v); f != nil {
					return false, f
				}
			}
			m.minor = v[7] - '0'
			pos = m.mark + len(line)
			m.line, m.phase = pos, atField

		case inStatus:
			const line = "HTTP/1.1 200 "
			if len(b)-m.mark < len(line) {
				m.pos = pos
				return false, statusPrefix(b[m.mark:])
			}
			v := b[m.mark : m.mark+len(line)]
			if f := m.statusLine(v); f != nil {
				return false, f
			}
			pos = m.mark + len(line)
			m.phase = inReason
			if v[12] == '\r' { // the space before an empty reason left out
				pos--
			}

		case inReason:
			pos = valueEnd(b, pos)
			n, f := lineEnd(b, pos)
			if n == 0 {
				m.pos = pos
				return false, f
			}
			pos += n
			m.phase = atField

		case atField:
			if pos == len(b) {
				m.pos = pos
				return false, nil
			}
			switch c := b[pos]; c {
			case '\r':
				n, f := lineEnd(b, pos)
				if n == 0 {
					m.pos = pos
					return false, f
				}
				m.pos = pos + n
				return true, m.end()
			case ' ', '\t':
				return false, faultFold
			case ':':
				return false, faultNoName
			}
			m.mark, m.phase = pos, inName

		case inName:
			for pos < len(b) {
				l := lower[b[pos]]
				if l == 0 {
					break
				}
				b[pos] = l
				pos++
			}
			if pos == len(b) {
				m.pos = pos
				return false, nil
			}
			if b[pos] != ':' {
				return false, nameFault(b[pos])
			}
			m.colon = pos
			pos++
			m.phase = inValue

		case inValue:
			pos = valueEnd(b, pos)
			n, f := lineEnd(b, pos)
			if n == 0 {
				m.pos = pos
				return false, f
			}
			if f := m.field(str(b[m.mark:m.colon]), trim(b[m.colon+1:pos])); f != nil {
				return false, f
			}
			pos += n
			m.phase = atField
		}
	}
}

// restart makes the scanner look at the message anew: its bytes have moved.
func (m *message) restart() {
	fields := m.fields
	m.begin(m.kind, m.max, fields)
}

// lineEnd is the length of the line end at pos: 2, or 0 where it is not
// complete or, with a fault, none.
func lineEnd(b []byte, pos int) (int, *fault) {
	switch {
	case pos == len(b):
		return 0, nil
	case b[pos] == '\n':
		return 0, faultBareLF
	case b[pos] != '\r':
		return 0, faultControl
	case pos+1 == len(b):
		return 0, nil
	case b[pos+1] != '\n':
		return 0, faultBareCR
	}
	return 2, nil
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// valueEnd is the first byte from pos on that no field value may have: a
// control character other than HTAB (RFC 9110, section 5.5).
func valueEnd(b []byte, pos int) int {
	for {
		for len(b)-pos >= 8 {
			x := binary.LittleEndian.Uint64(b[pos:])
			del := x ^ 0x7f*ones
			if t := ((x-0x20*ones)&^x | (del-ones)&^del) & highs; t != 0 {
				pos += bits.TrailingZeros64(t) >> 3
				goto found
			}
			pos += 8
		}
		for pos < len(b) && b[pos] >= 0x20 && b[pos] != 0x7f {
			pos++
		}
		if pos == len(b) {
			return pos
		}
	found:
		if b[pos] != '\t' {
			return pos
		}
		pos++
	}
}

// targetEnd is the first byte from pos on that no request target may have:
// a control character or a space.
func targetEnd(b []byte, pos int) int {
	for len(b)-pos >= 8 {
		x := binary.LittleEndian.Uint64(b[pos:])
		del := x ^ 0x7f*ones
		if t := ((x-0x21*ones)&^x | (del-ones)&^del) & highs; t != 0 {
			return pos + bits.TrailingZeros64(t)>>3
		}
		pos += 8
	}
	for pos < len(b) && b[pos] > 0x20 && b[pos] != 0x7f {
		pos++
	}
	return pos
}

// trim takes the optional white space off a field value.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// method lends the method; the usual ones are constants, which may be kept.
func method(b []byte) string {
	switch string(b) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "HEAD":
		return "HEAD"
	case "PUT":
		return "PUT"
	case "DELETE":
		return "DELETE"
	case "OPTIONS":
		return "OPTIONS"
	case "PATCH":
		return "PATCH"
	case "CONNECT":
		return "CONNECT"
	}
	return str(b)
}

// digit says whether c is one of 0 to 9.
func digit(c byte) bool { return c-'0' <= 9 }

// version says why the end of a request line is not that of HTTP/1.0 or 1.1.
func version(v []byte) *fault {
	if f := versionPrefix(v); f != nil {
		return f
	}
	if v[5] != '1' || v[7] > '1' {
		return faultUnknownVersion
	}
	return nil
}

// versionPrefix refuses what cannot become a version, without waiting for more.
func versionPrefix(b []byte) *fault {
	const like = "HTTP/0.0\r\n"
	for i, c := range b {
		if l := like[i]; c != l && (l != '0' || !digit(c)) {
			if c == '\n' {
				return faultBareLF
			}
			return faultVersion
		}
	}
	return nil
}

// foreign says of a first line whose version is none that its target is none
// either: whoever sends that does not speak HTTP/1, a damaged HTTP/2 preface for
// example.
func (m *message) foreign() bool {
	t := m.target
	return t != "" && t[0] != '/' && t != "*" && !strings.Contains(t, "://")
}

// statusPrefix is versionPrefix for a status line.
func statusPrefix(b []byte) *fault {
	const like = "HTTP/1.0 000"
	for i, c := range b {
		if l := like[i]; c != l && (l != '0' || !digit(c)) {
			return faultStatus
		}
	}
	return nil
}

// statusLine reads "HTTP/1.x NNN" and the character after it (RFC 9112, section
// 4). The space before an empty reason may be missing: that is not ambiguous,
// and servers do it.
func (m *message) statusLine(v []byte) *fault {
	if f := statusPrefix(v[:12]); f != nil {
		return f
	}
	if v[12] != ' ' && v[12] != '\r' || v[9] == '0' {
		return faultStatus
	}
	if v[7] > '1' {
		return faultUnknownVersion
	}
	m.minor = v[7] - '0'
	m.status = int(v[9]-'0')*100 + int(v[10]-'0')*10 + int(v[11]-'0')
	return nil
}

// nameFault is what a character that no field name may have says.
func nameFault(c byte) *fault {
	switch c {
	case ' ', '\t':
		return faultNameSpace
	case '\n':
		return faultBareLF
	case '\r':
		return faultNoColon
	}
	return faultName
}
