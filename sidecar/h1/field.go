package h1

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// field takes one field. What belongs to the connection alone is understood
// here and does not cross the border (RFC 9110, section 7.6.1).
func (m *message) field(name string, v []byte) *fault {
	if m.count++; m.count > m.max {
		return faultFields
	}
	switch name {
	case "host":
		if m.kind == aRequest {
			m.host = str(v)
			m.hosts++
			return nil
		}
	case "content-length":
		if f := m.contentLength(v); f != nil {
			return f
		}
	case "transfer-encoding":
		return m.transferEncoding(v)
	case "connection":
		m.connection(v)
		return nil
	case "upgrade":
		lowerCase(v)
		m.upgrade = str(v)
		m.upgrades++
		return nil
	case "te":
		lowerCase(v)
		m.trailers = m.trailers || hasTrailers(str(v))
		return nil
	case "expect":
		if m.kind == aRequest {
			lowerCase(v)
			if str(v) != "100-continue" {
				return faultExpect
			}
			m.expect = true
			return nil
		}
	case "keep-alive", "proxy-connection", "http2-settings":
		return nil
	}
	m.fields = append(m.fields, stream.Field{Name: name, Value: str(v)})
	return nil
}

// lowerCase changes ASCII letters in place.
func lowerCase(v []byte) {
	for i, c := range v {
		if c-'A' < 26 {
			v[i] = c | 0x20
		}
	}
}

// contentLength takes exactly one field of digits: anything else, identical
// copies too, is read differently by different recipients.
func (m *message) contentLength(v []byte) *fault {
	if m.kind == aTrailer {
		return nil // taken off later
	}
	if m.length >= 0 {
		return faultLengthTwice
	}
	n := int64(0)
	for _, c := range v {
		if !digit(c) || n > (1<<63-1-9)/10 {
			return faultLength
		}
		n = n*10 + int64(c-'0')
	}
	if len(v) == 0 {
		return faultLength
	}
	m.length = n
	return nil
}

// transferEncoding takes chunked, once and alone (RFC 9112, section 6.1).
func (m *message) transferEncoding(v []byte) *fault {
	if m.kind == aTrailer {
		return nil
	}
	if m.coded {
		return faultCodingTwice
	}
	m.coded = true
	lowerCase(v)
	switch s := str(v); {
	case s == "chunked":
		return nil
	case s == "" || strings.Count(s, "chunked") > 1 || s[0] == ',' || s[len(s)-1] == ',':
		return faultCodingTwice
	}
	return faultCoding
}

// connection notes the options; those that are no own words of ours name
// fields to be taken off.
func (m *message) connection(v []byte) {
	lowerCase(v)
	for list := str(v); list != ""; {
		part := list
		if i := strings.IndexByte(list, ','); i >= 0 {
			part, list = list[:i], list[i+1:]
		} else {
			list = ""
		}
		switch part = strings.Trim(part, " \t"); part {
		case "close":
			m.close = true
		case "keep-alive":
			m.keep = true
		case "upgrade":
			m.upgrading = true
		case "", "te", "transfer-encoding", "proxy-connection", "http2-settings":
		default:
			m.named = append(m.named, part)
		}
	}
}

// hasTrailers says whether a TE field lists trailers.
func hasTrailers(list string) bool {
	for list != "" {
		part := list
		if i := strings.IndexByte(list, ','); i >= 0 {
			part, list = list[:i], list[i+1:]
		} else {
			list = ""
		}
		if strings.Trim(part, " \t") == "trailers" {
			return true
		}
	}
	return false
}

// end is called at the empty line.
func (m *message) end() *fault {
	if len(m.named) > 0 {
		m.fields.StripNamed(m.named)
	}
	if m.trailers && m.kind == aRequest {
		m.fields = append(m.fields, stream.Field{Name: "te", Value: "trailers"})
	}
	switch {
	case m.kind == aTrailer:
		m.fields.StripTrailers()
		return nil
	case m.coded && m.length >= 0:
		return faultBothLengths
	case m.coded && m.minor == 0:
		return faultCodingOld
	}
	return nil
}

// persistent says whether the sender means to keep the connection (RFC 9112,
// section 9.3).
func (m *message) persistent() bool {
	if m.close {
		return false
	}
	return m.minor == 1 || m.keep
}

// request brings the head of a request into the border's form.
func (m *message) request(h *stream.RequestHead) *fault {
	if m.hosts > 1 {
		return faultHostTwice
	}
	if m.hosts == 0 && m.minor == 1 {
		return faultHostMissing
	}
	*h = stream.RequestHead{
		Method: m.method, Scheme: "http", Authority: m.host, Path: m.target,
		Header: m.fields, ContentLength: m.length, Protocol: stream.HTTP1,
	}
	if f := m.form(h); f != nil {
		return f
	}
	switch {
	case m.coded:
	case m.length < 0:
		h.ContentLength = 0
	}
	if m.upgrading && m.upgrades == 1 && m.minor == 1 && !m.coded && h.ContentLength == 0 {
		// An upgrade together with a body is served as if it asked for none
		// (RFC 9110, section 7.8, allows to ignore it).
		h.Upgrade = m.upgrade
	}
	return nil
}

// form reads the request target (RFC 9112, section 3.2).
func (m *message) form(h *stream.RequestHead) *fault {
	t := m.target
	switch {
	case m.method == "CONNECT":
		if m.coded || m.length > 0 {
			return faultConnectBody
		}
		if t[0] == '/' || strings.IndexByte(t, ':') < 0 || strings.Contains(t, "://") {
			return faultForm
		}
		if m.hosts == 1 && !sameAuthority(m.host, t, "") {
			return faultHostDisagrees
		}
		h.Authority = t
		return nil
	case t[0] == '/':
		if m.method == "PRI" {
			return faultPreface
		}
		return nil
	case t == "*":
		if m.method != "OPTIONS" {
			return faultForm
		}
		return nil
	}
	return m.absolute(h)
}

// absolute reads a target in absolute form. Its authority replaces Host, with
// which it must agree.
func (m *message) absolute(h *stream.RequestHead) *fault {
	scheme, rest, ok := strings.Cut(m.target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return faultForm // nothing here speaks for another scheme (RFC 9110, section 7.4)
	}
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if authority == "" {
		return faultForm
	}
	if strings.IndexByte(authority, '@') >= 0 {
		return faultUserInfo
	}
	if m.hosts == 1 && !sameAuthority(m.host, authority, scheme) {
		return faultHostDisagrees
	}
	h.Authority = authority
	switch {
	case path == "" && m.method == "OPTIONS":
		h.Path = "*" // RFC 9112, section 3.2.4
	case path == "":
		h.Path = "/"
	case path[0] == '/':
		h.Path = path
	case path[0] == '?':
		h.Path = "/" + path
	default:
		return faultForm
	}
	return nil
}

// sameAuthority says whether two authorities name the same host and port:
// letter case, a trailing dot and the scheme's default port do not count.
func sameAuthority(a, b, scheme string) bool {
	ah, ap := splitAuthority(a, scheme)
	bh, bp := splitAuthority(b, scheme)
	return ap == bp && strings.EqualFold(ah, bh)
}

func splitAuthority(a, scheme string) (host, port string) {
	host = a
	if i := strings.LastIndexByte(a, ':'); i >= 0 && strings.IndexByte(a[i:], ']') < 0 {
		host, port = a[:i], a[i+1:]
	}
	if port == "80" && strings.EqualFold(scheme, "http") || port == "443" && strings.EqualFold(scheme, "https") {
		port = ""
	}
	if n := len(host); n > 1 && host[n-1] == '.' {
		host = host[:n-1]
	}
	return host, port
}
