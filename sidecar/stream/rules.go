package stream

import "strings"

// connectionSpecific are the fields that say something about one connection
// only (RFC 9110, section 7.6.1; RFC 9113, section 8.2.2). te is here too: its
// one value that travels, trailers, is put back by [Header.StripHopByHop].
var connectionSpecific = [...]string{
	"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "http2-settings",
}

// ConnectionSpecific says whether the field never crosses a hop. name is lower case.
func ConnectionSpecific(name string) bool {
	for _, s := range connectionSpecific {
		if name == s {
			return true
		}
	}
	return false
}

// endToEnd are fields that a Connection field cannot name away: message framing
// and identity stay what they are whatever the sender lists.
var endToEnd = [...]string{
	"host", "content-length", "content-type", "content-encoding", "authorization", "cookie", "set-cookie",
	"cache-control", "via", "date", "trailer", "traceparent", "tracestate", "x-request-id", "grpc-timeout", "grpc-status",
}

// StripHopByHop takes off every connection-specific field and every field that
// a Connection field names (RFC 9110, section 7.6.1), except those that no
// sender may declare connection-specific. `te: trailers` stays.
func (h *Header) StripHopByHop() {
	named, trailers := "", false
	for _, f := range *h {
		switch f.Name {
		case "connection":
			if named != "" {
				named += ","
			}
			named += strings.ToLower(f.Value)
		case "te":
			trailers = trailers || hasToken(strings.ToLower(f.Value), "trailers")
		}
	}
	out := (*h)[:0]
	for _, f := range *h {
		if ConnectionSpecific(f.Name) || named != "" && hasToken(named, f.Name) && !protected(f.Name) {
			continue
		}
		out = append(out, f)
	}
	if trailers {
		out = append(out, Field{"te", "trailers"})
	}
	*h = out
}

// StripNamed takes off every field that a Connection field names (RFC 9110,
// section 7.6.1), except those that no sender may declare connection-specific.
// names are lower case.
func (h *Header) StripNamed(names []string) {
	out := (*h)[:0]
next:
	for _, f := range *h {
		for _, n := range names {
			if f.Name == n && !protected(n) {
				continue next
			}
		}
		out = append(out, f)
	}
	*h = out
}

// protected says that Connection cannot name the field away: the fields above,
// and all that tell who the client is (they are kept or dropped by trust alone).
func protected(name string) bool {
	for _, s := range endToEnd {
		if name == s {
			return true
		}
	}
	return strings.HasPrefix(name, "x-forwarded") || name == "forwarded"
}

// hasToken says whether the comma-separated lower-case list has the token.
func hasToken(list, token string) bool {
	for len(list) > 0 {
		part := list
		if i := strings.IndexByte(list, ','); i >= 0 {
			part, list = list[:i], list[i+1:]
		} else {
			list = ""
		}
		if strings.Trim(part, " \t") == token {
			return true
		}
	}
	return false
}

// HasToken says whether any field of that name lists the token, without regard
// to case. Both arguments are lower case.
func (h Header) HasToken(name, token string) bool {
	for _, f := range h {
		if f.Name == name && hasToken(strings.ToLower(f.Value), token) {
			return true
		}
	}
	return false
}

// Values returns the field's values joined by "," (RFC 9110, section 5.3) and
// whether there is any. It allocates only where there are several.
func (h Header) Values(name string) (string, bool) {
	first, n := "", 0
	for i := range h {
		if h[i].Name == name {
			if n == 0 {
				first = h[i].Value
			}
			n++
		}
	}
	if n < 2 {
		return first, n == 1
	}
	parts := make([]string, 0, n)
	for i := range h {
		if h[i].Name == name {
			parts = append(parts, h[i].Value)
		}
	}
	return strings.Join(parts, ","), true
}

// forbiddenTrailers may not stand in a trailer section (RFC 9110, section
// 6.5.1): framing, routing, authentication and what the head alone decides.
var forbiddenTrailers = [...]string{
	"content-length", "host", "trailer", "content-encoding", "content-type", "content-range",
	"authorization", "cookie", "set-cookie", "cache-control", "expect", "max-forwards", "range", "te",
}

// StripTrailers takes off what a trailer section may not hold.
func (h *Header) StripTrailers() {
	out := (*h)[:0]
next:
	for _, f := range *h {
		if ConnectionSpecific(f.Name) || protected(f.Name) && f.Name != "grpc-status" {
			continue
		}
		for _, s := range forbiddenTrailers {
			if f.Name == s {
				continue next
			}
		}
		out = append(out, f)
	}
	*h = out
}

// GRPC says whether a content type is gRPC's (not gRPC-Web's, which speaks
// plain HTTP).
func GRPC(contentType string) bool {
	const p = "application/grpc"
	if len(contentType) < len(p) || !strings.EqualFold(contentType[:len(p)], p) {
		return false
	}
	rest := contentType[len(p):]
	return rest == "" || rest[0] == '+' || rest[0] == ';' || rest[0] == ' '
}
