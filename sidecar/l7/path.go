package l7

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
)

// NormalisePath gives a request target of the origin form its one spelling,
// which is decided on and forwarded:
//
//   - percent-encoded unreserved characters are decoded, other encodings have
//     upper-case digits (RFC 3986, section 6.2.2); bytes outside ASCII are encoded
//   - dot segments are resolved (section 5.2.4), also encoded ones
//   - adjacent slashes become one
//
// The query stays as it is. What cannot be read in one way only is an error:
// control characters, a broken or null encoding, a backslash, an encoded slash
// or backslash, a dot segment with parameters, a fragment, too many `..`.
// Nothing is allocated where nothing changes.
func NormalisePath(target string) (string, error) {
	if target == "" || target[0] != '/' {
		return "", refuse("the request target does not begin with a slash")
	}
	path, query := target, ""
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c == 0x7f || c == '#' {
			return "", refuse("the query has a control character, a space or a fragment")
		}
	}
	plain, err := checkPath(path)
	if err != nil {
		return "", err
	}
	if plain {
		return target, nil
	}
	p, err := resolve(decodeUnreserved(path))
	if err != nil {
		return "", err
	}
	return p + query, nil
}

func refuse(detail string) error {
	return &filter.Abort{Status: 400, Code: telemetry.DownstreamProtocolError, Detail: detail}
}

// checkPath refuses what is ambiguous and says whether the path is in its one
// spelling already.
func checkPath(p string) (plain bool, err error) {
	plain = true
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c <= ' ' || c == 0x7f:
			return false, refuse("the path has a control character or a space")
		case c == '\\':
			return false, refuse("the path has a backslash")
		case c == '#':
			return false, refuse("the request target has a fragment")
		case c >= 0x80:
			plain = false
		case c == '/':
			if i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.') {
				plain = false
			}
		case c == '%':
			if i+2 >= len(p) || !isHex(p[i+1]) || !isHex(p[i+2]) {
				return false, refuse("the path has an invalid percent encoding")
			}
			v := unhex(p[i+1])<<4 | unhex(p[i+2])
			switch {
			case v == 0:
				return false, refuse("the path has an encoded NUL")
			case v == '/' || v == '\\':
				return false, refuse("the path has an encoded slash or backslash")
			case v < ' ' || v == 0x7f:
				return false, refuse("the path has an encoded control character")
			case unreserved(v) || isLowerHex(p[i+1]) || isLowerHex(p[i+2]):
				plain = false
			}
			i += 2
		}
	}
	return plain, nil
}

func decodeUnreserved(p string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(p) + 8)
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' {
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
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	return b.String()
}

// resolve removes empty and dot segments.
func resolve(p string) (string, error) {
	var out []string
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		name, _, params := strings.Cut(s, ";")
		if params && (name == "." || name == "..") {
			return "", refuse("the path has a dot segment with parameters")
		}
		switch s {
		case "":
			if last {
				out = append(out, "")
			}
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) == 0 {
				return "", refuse("the path leads above the root")
			}
			out = out[:len(out)-1]
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/"), nil
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

// checkAuthority refuses what is no host with an optional port (RFC 9110,
// section 7.2): user information, paths, spaces.
func checkAuthority(a string) error {
	for i := 0; i < len(a); i++ {
		switch c := a[i]; {
		case c <= ' ' || c >= 0x7f, strings.IndexByte(`@/\?#"<>^{}|,`+"`", c) >= 0:
			return refuse("the authority is not a host with an optional port")
		}
	}
	rest := a
	if strings.HasPrefix(a, "[") {
		i := strings.IndexByte(a, ']')
		if i < 0 {
			return refuse("the authority has an unfinished IPv6 address")
		}
		rest = a[i+1:]
		if rest != "" && rest[0] != ':' {
			return refuse("the authority has characters after its IPv6 address")
		}
	} else if strings.ContainsAny(a, "[]") {
		return refuse("the authority is not a host with an optional port")
	}
	if i := strings.IndexByte(rest, ':'); i >= 0 {
		for _, c := range []byte(rest[i+1:]) {
			if c < '0' || c > '9' {
				return refuse("the authority's port is not a number")
			}
		}
	}
	return nil
}
