package filter

import (
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// View shows a request's head to decisions. Authority is in the one spelling
// that decisions compare, which is worked out once per spelling received. Get it
// by [Exchange.Head], or make one by [NewView].
type View struct {
	head *stream.RequestHead
	// authority is the one spelling of from.
	from, authority string
	buf             [96]byte // holds authority where it differs from from
}

var _ decide.Head = (*View)(nil)

// NewView shows h, which must outlive it.
func NewView(h *stream.RequestHead) *View { return &View{head: h} }

func (v *View) Method() string { return v.head.Method }
func (v *View) Scheme() string { return v.head.Scheme }

// Path is the request target as it is decided on and forwarded.
func (v *View) Path() string { return v.head.Path }

// Authority is the request's authority as decisions compare it: lower case,
// without the trailing dot of the host, port kept.
func (v *View) Authority() string {
	a := v.head.Authority
	if len(a) != len(v.from) || unsafe.StringData(a) != unsafe.StringData(v.from) {
		v.from, v.authority = a, normaliseAuthority(a, v.buf[:])
	}
	return v.authority
}

// Header returns the values of the field joined by ",".
func (v *View) Header(name string) (string, bool) { return v.head.Header.Values(name) }

// NormaliseAuthority gives the one spelling of an authority: lower case,
// without the trailing dot of an absolute domain name, port kept. It allocates
// only where something changes.
func NormaliseAuthority(a string) string { return normaliseAuthority(a, nil) }

// normaliseAuthority writes what differs from a into buf where there is room;
// the result then lives as long as buf's content.
func normaliseAuthority(a string, buf []byte) string {
	end := len(a) // of the host
	upper := false
	for i := 0; i < len(a); i++ {
		switch c := a[i]; {
		case 'A' <= c && c <= 'Z':
			upper = true
		case c == ':':
			end = i
		case c == ']': // an IPv6 address's colons are the host's own
			end = len(a)
		}
	}
	dot := end > 1 && a[end-1] == '.'
	if !upper {
		switch {
		case !dot:
			return a
		case end == len(a):
			return a[:end-1]
		}
	}
	if len(a) > len(buf) {
		buf = make([]byte, len(a))
	}
	n := 0
	for i := 0; i < len(a); i++ {
		c := a[i]
		if dot && i == end-1 {
			continue
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[n] = c
		n++
	}
	return unsafe.String(unsafe.SliceData(buf), n)
}

// SameAuthority compares two authorities as decisions do, without allocation.
func SameAuthority(a, b string) bool {
	if a == b {
		return true
	}
	var x, y [96]byte
	return normaliseAuthority(a, x[:]) == normaliseAuthority(b, y[:])
}
