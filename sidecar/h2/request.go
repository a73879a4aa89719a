package h2

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
)

// requestParse is what is known of a request beside its head.
type requestParse struct {
	length   int64 // declared; -1: not
	expect   bool  // 100-continue
	protocol string
	// What is wrong; "" for a sound request.
	refusal string
	status  int
	kind    stream.RefusalKind
}

// request decodes a header block into the stream's request. The error ends the
// connection; what ends the stream alone is the parse's refusal.
func (s *serverConn) request(st *strm, endStream bool, block []byte) (requestParse, *connError) {
	d := &s.in.dec
	m := &s.memos[memoOf(block)]
	if m.hit(block, d) {
		h := &st.server.req.Head
		*h = m.head
		st.lists = append(st.lists[:0], m.head.Header...)
		h.Header = st.lists
		return m.check.with(h, endStream), nil
	}
	before := d.changes
	fields, arena, over, err := s.conn.fields(block, st.arena[:0])
	st.arena = arena
	if err != nil {
		return requestParse{}, err
	}
	check := st.parseRequest(fields)
	if over && check.refusal == "" || over && check.status == 400 {
		check.refusal, check.status, check.kind = "a header list beyond the limit", 431, stream.TooLarge
	}
	if check.refusal == "" && m.note(block, d, before) {
		m.head, m.check = st.server.req.Head, check
		h := &m.head
		h.Header = own(h.Header, &h.Method, &h.Scheme, &h.Authority, &h.Path, &h.Upgrade, &m.check.protocol)
	}
	return check.with(&st.server.req.Head, endStream), nil
}

// with completes the head by what the frame says.
func (p requestParse) with(h *stream.RequestHead, endStream bool) requestParse {
	h.ContentLength = p.length
	switch {
	case p.protocol != "":
		h.ContentLength = -1
		if endStream && p.refusal == "" {
			p.refuse("an extended CONNECT that ends its stream (RFC 8441, section 5)")
		}
	case endStream && p.length > 0 && p.refusal == "":
		p.refuse("content-length without DATA (RFC 9113, section 8.1.1)")
	case endStream:
		h.ContentLength = 0
	}
	return p
}

func (p *requestParse) refuse(reason string) {
	if p.refusal == "" {
		p.refusal, p.status, p.kind = reason, 400, stream.Malformed
	}
}

// parseRequest makes a head of fields (RFC 9113, sections 8.2 and 8.3). Nothing
// is left in it that could mean something else in HTTP/1.1: no control
// character, no space in method, path or authority, no connection-specific
// field, no second length.
func (st *strm) parseRequest(fields []hfield) requestParse {
	p := requestParse{length: -1}
	h := &st.server.req.Head
	*h = stream.RequestHead{Protocol: stream.HTTP2}
	list := st.lists[:0]
	var have uint16 // pseudo-headers that came, by kind
	regular, cookies, trailers := false, 0, false
	for i := range fields {
		f := &fields[i]
		if f.kind >= kindMethod && f.kind <= kindStatus {
			switch bit := uint16(1) << f.kind; {
			case regular:
				p.refuse("a pseudo-header after a field (RFC 9113, section 8.3)")
			case have&bit != 0:
				p.refuse("a pseudo-header twice (RFC 9113, section 8.3)")
			default:
				have |= bit
			}
			switch f.kind {
			case kindMethod:
				h.Method = f.value
			case kindScheme:
				h.Scheme = f.value
			case kindAuthority:
				h.Authority = f.value
			case kindPath:
				h.Path = f.value
			case kindProtocol:
				p.protocol = f.value
			default:
				p.refuse("a request with :status (RFC 9113, section 8.3)")
			}
			continue
		}
		regular = true
		switch f.kind {
		case kindBad:
			p.refuse(badField(*f))
			continue
		case kindDropped:
			continue
		case kindTE:
			trailers = true
			continue
		case kindCookie:
			cookies++
		case kindContentLength:
			n, ok := parseLength(f.value)
			if !ok || p.length >= 0 && p.length != n {
				p.refuse("a content-length that is none, or two of them (RFC 9110, section 8.6)")
			}
			if p.length >= 0 {
				continue
			}
			p.length = n
		case kindExpect:
			p.expect = p.expect || strings.EqualFold(f.value, "100-continue")
		}
		list = append(list, stream.Field{Name: f.name, Value: f.value})
	}
	if cookies > 1 {
		list = st.joinCookies(list)
	}
	if trailers {
		list = append(list, stream.Field{Name: "te", Value: "trailers"})
	}
	st.lists, h.Header = list, list
	p.checkPseudo(h, have)
	return p
}

const (
	hasMethod    = 1 << kindMethod
	hasScheme    = 1 << kindScheme
	hasAuthority = 1 << kindAuthority
	hasPath      = 1 << kindPath
	hasProtocol  = 1 << kindProtocol
)

// checkPseudo checks the pseudo-headers (RFC 9113, sections 8.3.1 and 8.5; RFC
// 8441, section 4).
func (p *requestParse) checkPseudo(h *stream.RequestHead, have uint16) {
	if h.Method == "" || !all(h.Method, charToken) {
		p.refuse("no :method, or one that is no token (RFC 9113, section 8.3.1)")
	}
	if have&hasAuthority != 0 && (h.Authority == "" || !all(h.Authority, charHost)) {
		p.refuse("an :authority that is not host and port (RFC 9113, section 8.3.1)")
	}
	connect := h.Method == "CONNECT"
	if connect && have&hasProtocol == 0 {
		if have&(hasScheme|hasPath) != 0 || have&hasAuthority == 0 {
			p.refuse("CONNECT with :scheme or :path, or without :authority (RFC 9113, section 8.5)")
		}
		return
	}
	switch {
	case have&hasProtocol != 0 && (!connect || p.protocol == "" || !all(p.protocol, charToken)):
		p.refuse(":protocol without CONNECT, or one that is no token (RFC 8441, section 4)")
	case have&hasScheme == 0 || h.Scheme != "http" && h.Scheme != "https" && !all(h.Scheme, charToken) || h.Scheme == "":
		p.refuse("no :scheme, or one that is none (RFC 9113, section 8.3.1)")
	case have&hasPath == 0 || !validPath(h):
		p.refuse("no :path, or one that does not begin with a slash or holds what none may (RFC 9113, section 8.3.1)")
	}
	if have&hasAuthority == 0 {
		// Host then says it (RFC 9113, section 8.3.1).
		for _, f := range h.Header {
			if f.Name == "host" {
				if h.Authority = f.Value; h.Authority == "" || !all(h.Authority, charHost) {
					p.refuse("a host that is not host and port (RFC 9110, section 7.2)")
				}
				break
			}
		}
	}
	if connect { // a tunnel is asked for as HTTP/1.1 does, by GET (RFC 8441, section 5)
		h.Method, h.Upgrade = "GET", lower(p.protocol)
		h.Header.Del("content-length")
	}
}

func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

// validPath says whether the path is one in origin form, or "*" of an OPTIONS.
func validPath(h *stream.RequestHead) bool {
	s := h.Path
	if s == "*" {
		return h.Method == "OPTIONS"
	}
	if s == "" || s[0] != '/' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return true
}

// joinCookies makes one field of cookie crumbs (RFC 9113, section 8.2.3).
func (st *strm) joinCookies(list []stream.Field) []stream.Field {
	from := len(st.arena)
	for i := range list {
		if list[i].Name == "cookie" {
			if len(st.arena) > from {
				st.arena = append(st.arena, "; "...)
			}
			st.arena = append(st.arena, list[i].Value...)
		}
	}
	joined := borrow(st.arena[from:])
	out, first := list[:0], true
	for _, f := range list {
		if f.Name == "cookie" {
			if !first {
				continue
			}
			first = false
			f.Value = joined
		}
		out = append(out, f)
	}
	return out
}
