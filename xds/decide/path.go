package decide

import (
	"strings"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// Path is a request target in the one spelling that routing, authorisation, logs
// and forwarding use.
type Path struct {
	// Target is that spelling, with the query as received.
	Target string
	// Kept is Target with its adjacent slashes left as received, for routes that
	// say so; "" where that is the same.
	Kept string
	// EscapedSlash says that an encoded slash or backslash stands in Target,
	// which only a route that says so may take.
	EscapedSlash bool
	// Redirect says that the client is to ask again, for Target.
	Redirect bool
}

// PathRules say how far paths depart from the strict reading, which is the zero
// value.
type PathRules struct {
	Raw            bool // paths stay as they are received, but for bytes outside ASCII, which are encoded
	EscapedSlashes resource.EscapedSlashes
	MergeSlashes   bool // in raw paths too; others have theirs merged in any case
}

// PathError is why a request target is refused.
type PathError struct{ Reason string }

func (e *PathError) Error() string { return e.Reason }

func badPath(reason string) error { return &PathError{reason} }

// NormalisePath gives a request target of the origin form its one spelling:
//
//   - percent-encoded unreserved characters are decoded, other encodings have
//     upper-case digits (RFC 3986, section 6.2.2); bytes outside ASCII are encoded
//   - dot segments are resolved (section 5.2.4), also encoded ones
//   - adjacent slashes become one
//
// The query stays as it is. What cannot be read in one way only is an error:
// control characters, a broken or null encoding, a backslash, a dot segment with
// parameters, a fragment, an overlong encoding of UTF-8, too many `..`, and `..`
// after a segment that some read as none or as several. An encoded
// slash or backslash is as rules say; by default it is left, and told by
// EscapedSlash. Nothing is allocated where nothing changes. The error is a
// [*PathError].
func NormalisePath(target string, rules PathRules) (Path, error) {
	if target == "" || target[0] != '/' {
		return Path{}, badPath("the request target does not begin with a slash")
	}
	path, query := target, ""
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
		for i := 1; i < len(query); i++ {
			if pathClass[query[i]]&notInQuery != 0 {
				return Path{}, badPath("the query has a control character, a space or a fragment")
			}
		}
	}
	if rules.Raw {
		return rawTarget(path, query, rules)
	}
	found, err := checkPath(path)
	if err != nil {
		return Path{}, err
	}
	if found == 0 {
		return Path{Target: target}, nil
	}
	out := Path{}
	if found&foundSlash != 0 {
		switch rules.EscapedSlashes {
		case resource.ForwardEscapedSlashes:
			path = unescapeSlashes(path)
		case resource.RedirectEscapedSlashes:
			path, out.Redirect = unescapeSlashes(path), true
		default:
			out.EscapedSlash = rules.EscapedSlashes != resource.KeepEscapedSlashes
		}
	}
	path = decodeUnreserved(path)
	merged, kept, err := resolve(path)
	if err != nil {
		return Path{}, err
	}
	out.Target = merged + query
	if kept != merged {
		out.Kept = kept + query
	}
	return out, nil
}

// rawTarget does to a path that is to stay as it is what the rules say expressly.
func rawTarget(path, query string, rules PathRules) (Path, error) {
	p, slash, err := rawPath(path)
	if err != nil {
		return Path{}, err
	}
	out := Path{}
	if slash {
		switch rules.EscapedSlashes {
		case resource.RejectEscapedSlashes:
			out.EscapedSlash = true
		case resource.ForwardEscapedSlashes:
			p = unescapeSlashes(p)
		case resource.RedirectEscapedSlashes:
			p, out.Redirect = unescapeSlashes(p), true
		}
	}
	for rules.MergeSlashes && strings.Contains(p, "//") {
		p = strings.ReplaceAll(p, "//", "/")
	}
	out.Target = p + query
	return out, nil
}

// rawPath refuses of a path that is to stay as it is what no reader can be meant
// to get: control characters, an encoded NUL, an overlong encoding. It says
// whether a slash or a backslash is encoded.
func rawPath(p string) (raw string, slash bool, err error) {
	before, encode := byte(0), false
	for i := 0; i < len(p); i++ {
		c := p[i]
		if pathClass[c]&notInQuery != 0 {
			return "", false, badPath(wrong(c))
		}
		encode = encode || c >= 0x80
		if c == '%' && i+2 < len(p) && isHex(p[i+1]) && isHex(p[i+2]) {
			if c = unhex(p[i+1])<<4 | unhex(p[i+2]); c == 0 {
				return "", false, badPath("the path has an encoded NUL")
			}
			slash = slash || c == '/' || c == '\\'
			i += 2
		}
		if overlong(before, c) {
			return "", false, badPath("the path has an overlong encoding of UTF-8")
		}
		before = c
	}
	if !encode {
		return p, slash, nil
	}
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if c := p[i]; c < 0x80 {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String(), slash, nil
}

// Classes of a path's bytes.
const (
	plain      = 0
	notInPath  = 1 << iota // control characters, space, backslash, fragment
	notInQuery             // the same without the backslash
	special                // slash, percent sign, what is outside ASCII
)

var pathClass = func() (c [256]uint8) {
	for i := range c {
		switch b := byte(i); {
		case b <= ' ' || b == 0x7f || b == '#':
			c[i] = notInPath | notInQuery
		case b == '\\':
			c[i] = notInPath
		case b == '/' || b == '%' || b >= 0x80:
			c[i] = special
		}
	}
	return c
}()

// What checkPath found that has to be done.
const (
	foundMore  = 1 << iota // another spelling than the one
	foundSlash             // an encoded slash or backslash
)

// checkPath refuses what is ambiguous and says what is not in its one spelling.
func checkPath(p string) (found uint8, err error) {
	before := byte(0) // the byte before, decoded
	for i := 0; i < len(p); i++ {
		c := p[i]
		if pathClass[c] == plain {
			before = c
			continue
		}
		switch {
		case pathClass[c]&notInPath != 0:
			return 0, badPath(wrong(c))
		case c == '/':
			if i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.') {
				found |= foundMore
			}
		case c == '%':
			if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
				return 0, badPath("the path has an invalid percent encoding")
			}
			c = unhex(p[i+1])<<4 | unhex(p[i+2])
			switch {
			case c == 0:
				return 0, badPath("the path has an encoded NUL")
			case c == '/' || c == '\\':
				found |= foundMore | foundSlash
			case c < ' ' || c == 0x7f:
				return 0, badPath("the path has an encoded control character")
			case unreserved(c) || isLowerHex(p[i+1]) || isLowerHex(p[i+2]):
				found |= foundMore
			}
			i += 2
		default:
			found |= foundMore
		}
		if overlong(before, c) {
			return 0, badPath("the path has an overlong encoding of UTF-8")
		}
		before = c
	}
	return found, nil
}

func wrong(c byte) string {
	switch c {
	case '\\':
		return "the path has a backslash"
	case '#':
		return "the request target has a fragment"
	}
	return "the path has a control character or a space"
}

// overlong says that two bytes begin a form of UTF-8 that is longer than it need
// be, which some decoders read as the short one (RFC 3629, section 10).
func overlong(a, b byte) bool {
	switch a {
	case 0xc0, 0xc1:
		return b >= 0x80 && b < 0xc0
	case 0xe0:
		return b >= 0x80 && b < 0xa0
	case 0xf0:
		return b >= 0x80 && b < 0x90
	}
	return false
}

const upperHex = "0123456789ABCDEF"

// decodeUnreserved gives percent encodings their one form; what is no encoding
// stays.
func decodeUnreserved(p string) string {
	changes := false
	for i := 0; i < len(p) && !changes; i++ {
		changes = p[i] == '%' || p[i] >= 0x80
	}
	if !changes {
		return p
	}
	var b strings.Builder
	b.Grow(len(p) + 8)
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' {
			if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
				b.WriteByte(c)
				continue
			}
			c = unhex(p[i+1])<<4 | unhex(p[i+2])
			i += 2
			if unreserved(c) {
				b.WriteByte(c)
				continue
			}
		} else if c < 0x80 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	return b.String()
}

// unescapeSlashes makes slashes of encoded slashes and backslashes.
func unescapeSlashes(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] == '%' && i+2 < len(p) && isHex(p[i+1]) && isHex(p[i+2]) {
			if c := unhex(p[i+1])<<4 | unhex(p[i+2]); c == '/' || c == '\\' {
				b.WriteByte('/')
				i += 2
				continue
			}
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// resolve removes dot segments, and in merged empty segments too.
func resolve(p string) (merged, kept string, err error) {
	var out []string
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		if len(s) > 1 && s[0] == '.' && dotWithParams(s) {
			return "", "", badPath("the path has a dot segment with parameters")
		}
		switch s {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			// Empty segments do not count: the way up is that of the merged form.
			for len(out) > 0 && out[len(out)-1] == "" {
				out = out[:len(out)-1]
			}
			if len(out) == 0 {
				return "", "", badPath("the path leads above the root")
			}
			if !oneSegment(out[len(out)-1]) {
				return "", "", badPath("the path leads up from what some read as none or as several segments")
			}
			out = out[:len(out)-1]
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	kept = "/" + strings.Join(out, "/")
	full := out[:0:0]
	for i, s := range out {
		if s != "" || i == len(out)-1 {
			full = append(full, s)
		}
	}
	return "/" + strings.Join(full, "/"), kept, nil
}

// oneSegment says whether the loosest reader reads a segment as one too, so that
// the way up from it is the same to everybody.
func oneSegment(s string) bool {
	if strings.IndexByte(s, ';') < 0 && strings.IndexByte(s, '%') < 0 {
		return true
	}
	p := loosest("/" + s)
	return p != "/" && strings.LastIndexByte(p, '/') == 0
}

// dotWithParams says whether a segment is a dot segment to those who take
// parameters off, or decode their mark, first.
func dotWithParams(s string) bool {
	name, _, cut := strings.Cut(s, ";")
	if n, _, enc := strings.Cut(s, "%3B"); enc && len(n) < len(name) {
		name, cut = n, true
	}
	return cut && (name == "." || name == "..")
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || isLowerHex(c) || 'A' <= c && c <= 'F'
}

func isLowerHex(c byte) bool { return 'a' <= c && c <= 'f' }

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}

// PathOf is the part of a request target on which paths are matched, in routing
// and authorisation alike: without query and fragment. Path parameters (";v=1")
// are part of it in both.
func PathOf(target string) string {
	if i := strings.IndexByte(target, '?'); i >= 0 {
		target = target[:i]
	}
	if i := strings.IndexByte(target, '#'); i >= 0 {
		target = target[:i]
	}
	return target
}

// readings are the other ways in which an application may read a path: without
// parameters; decoded once more, an encoded slash as a slash. An authorisation rule that holds for one and not for another is not known
// to hold. Where there is one reading only, n is 0 and nothing is allocated.
func readings(p string) (other [2]string, n int) {
	params := strings.IndexByte(p, ';') >= 0
	odd := strings.IndexByte(p, '\\') >= 0 || strings.Contains(p, "//") || strings.Contains(p, "/.")
	for i := strings.IndexByte(p, '%'); i >= 0 && i+2 < len(p) && !odd; {
		if odd = !isHex(p[i+1]) || !isHex(p[i+2]) || isLowerHex(p[i+1]) || isLowerHex(p[i+2]); !odd {
			switch c := unhex(p[i+1])<<4 | unhex(p[i+2]); c {
			case '%', '/', '\\', ';':
				odd = true
			default:
				odd = unreserved(c)
			}
		}
		next := strings.IndexByte(p[i+1:], '%')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	if params {
		other[n] = withoutParams(p)
		n++
	}
	if odd {
		other[n] = loosest(p)
		n++
	}
	return other, n
}

// withoutParams takes ";..." off every segment.
func withoutParams(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return settle(segments)
}

// loosest is a path as the most obliging application reads it.
func loosest(p string) string {
	for range 8 { // deeper than anybody decodes
		next := decodeUnreserved(unescapePercent(p))
		if next == p {
			break
		}
		p = next
	}
	p = strings.ReplaceAll(unescapeSlashes(p), "\\", "/")
	return withoutParams(strings.ReplaceAll(p, "%3B", ";"))
}

// settle resolves empty and dot segments; the way up ends at the root.
func settle(segments []string) string {
	var out []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case "", ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

// unescapePercent decodes "%25" where an encoding follows from it.
func unescapePercent(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		b.WriteByte(p[i])
		if strings.HasPrefix(p[i:], "%25") && i+4 < len(p) && isHex(p[i+3]) && isHex(p[i+4]) {
			i += 2
		}
	}
	return b.String()
}

// matchPath matches an authorisation rule against all readings of a path.
func (t *text) matchPath(p string) truth {
	m := t.match(p)
	other, n := readings(p)
	for i := range n {
		if t.match(other[i]) != m {
			return unknown
		}
	}
	return m
}

// matchTarget is matchPath for a rule about the whole target, query included.
func (t *text) matchTarget(target string) truth {
	m := t.match(target)
	path := PathOf(target)
	other, n := readings(path)
	for i := range n {
		if t.match(other[i]+target[len(path):]) != m {
			return unknown
		}
	}
	return m
}

// spelled gives the value of a path's match the spelling that paths have, as far
// as a part of a path can have it.
func spelled(m *resource.StringMatch) *resource.StringMatch {
	if m.Kind == resource.StringRegex {
		return m
	}
	if v := decodeUnreserved(m.Value); v != m.Value {
		c := *m
		c.Value = v
		return &c
	}
	return m
}
