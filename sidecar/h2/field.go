package h2

import (
	"encoding/binary"
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// kind is what the head's reader must know of a field; it is found once, when
// the field enters a table, and not again for each message.
type kind uint8

const (
	kindPlain kind = iota
	kindMethod
	kindScheme
	kindAuthority
	kindPath
	kindProtocol
	kindStatus
	kindCookie
	kindContentLength
	kindTE
	kindExpect
	kindTrailer
	kindDropped // says nothing to anybody
	kindBad     // not a field of HTTP/2: see [badField]
)

// hfield is a decoded field.
type hfield struct {
	name, value string
	kind        kind
}

// classify says what a field is. Everything that RFC 9113, section 8.2, calls
// malformed is kindBad, whatever it stands in.
func classify(name, value string) kind {
	if len(name) == 0 {
		return kindBad
	}
	if name[0] == ':' {
		if !validValue(value) {
			return kindBad
		}
		switch name {
		case ":method":
			return kindMethod
		case ":scheme":
			return kindScheme
		case ":authority":
			return kindAuthority
		case ":path":
			return kindPath
		case ":protocol":
			return kindProtocol
		case ":status":
			return kindStatus
		}
		return kindBad
	}
	for i := 0; i < len(name); i++ {
		if chars[name[i]]&charName == 0 {
			return kindBad
		}
	}
	if !validValue(value) {
		return kindBad
	}
	switch name {
	case "cookie":
		return kindCookie
	case "content-length":
		return kindContentLength
	case "expect":
		return kindExpect
	case "trailer":
		return kindTrailer
	case "te":
		// RFC 9113, section 8.2.2: nothing but "trailers".
		if value != "trailers" {
			return kindBad
		}
		return kindTE
	case "http2-settings": // of an h2c upgrade, which this connection is not
		return kindDropped
	}
	if stream.ConnectionSpecific(name) {
		return kindBad
	}
	return kindPlain
}

// badField says what is wrong with a field of kindBad.
func badField(f hfield) string {
	switch {
	case f.name == "":
		return "a field without a name (RFC 9113, section 8.2.1)"
	case !validValue(f.value):
		return "a field value with a control character or with space around it (RFC 9113, section 8.2.1)"
	case f.name[0] == ':':
		return "an unknown pseudo-header (RFC 9113, section 8.3)"
	case stream.ConnectionSpecific(f.name):
		return "the connection-specific field " + f.name + " (RFC 9113, section 8.2.2)"
	}
	return "a field name with a character that none may have (RFC 9113, section 8.2.1)"
}

const (
	charName  = 1 << iota // may stand in a field name of HTTP/2: a token in lower case
	charValue             // may stand in a field value (RFC 9110, section 5.5)
	charToken             // may stand in a token (RFC 9110, section 5.6.2)
	charHost              // may stand in an authority (RFC 3986, section 3.2.2), "@" not
)

var chars = func() (t [256]uint8) {
	for c := range 256 {
		if c >= 0x20 && c != 0x7f || c == '\t' {
			t[c] |= charValue
		}
	}
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyz"
	for _, c := range []byte(alnum + "!#$%&'*+-.^_`|~") {
		t[c] |= charName | charToken
	}
	for c := 'A'; c <= 'Z'; c++ {
		t[c] |= charToken | charHost
	}
	for _, c := range []byte(alnum + "-._~!$&'()*+,;=%[]:") {
		t[c] |= charHost
	}
	return t
}()

// validValue says whether s may be a field value: no control characters, and no
// space at either end (RFC 9113, section 8.2.1).
func validValue(s string) bool {
	if len(s) == 0 {
		return true
	}
	if c, d := s[0], s[len(s)-1]; c == ' ' || c == '\t' || d == ' ' || d == '\t' {
		return false
	}
	p := unsafe.Slice(unsafe.StringData(s), len(s))
	for len(p) >= 8 && plain(binary.LittleEndian.Uint64(p)) {
		p = p[8:]
	}
	for _, b := range p {
		if chars[b]&charValue == 0 {
			return false
		}
	}
	return true
}

// plain says that eight bytes are no control characters. It may say false of such
// that are none.
func plain(v uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	del := v ^ ones*0x7f
	return ((v-ones*0x20)&^v|(del-ones)&^del)&tops == 0
}

func all(s string, class uint8) bool {
	for i := 0; i < len(s); i++ {
		if chars[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// parseLength reads a content-length: digits alone (RFC 9110, section 8.6).
func parseLength(s string) (n int64, ok bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
