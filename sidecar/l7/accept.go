package l7

import (
	"net/http"
	"strings"
	"unsafe"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// accept checks the request, brings its head into its one form and takes off
// what the sender may not say.
func (s *exchange) accept() error {
	x, h := s.x, &s.req.Head
	if h.Method == http.MethodConnect {
		return &filter.Abort{Status: http.StatusNotImplemented, Code: telemetry.DownstreamProtocolError, Detail: "CONNECT is not served here"}
	}
	if err := checkAuthority(h.Authority); err != nil {
		return err
	}
	if h.Upgrade != "" && !s.e.allows(h.Upgrade) {
		if h.Protocol == stream.HTTP2 {
			return &filter.Abort{Status: http.StatusNotImplemented, Code: telemetry.DownstreamProtocolError, Detail: "extended CONNECT for a protocol that is not allowed: " + h.Upgrade}
		}
		h.Upgrade = "" // a server may ignore an upgrade (RFC 9110, section 7.8)
	}
	if u := s.e.c.Manager.Underscores; u != resource.AllowUnderscores {
		if err := underscores(&h.Header, u); err != nil {
			return err
		}
	}
	h.Scheme = x.scheme()
	seen := x.sanitise(&h.Header)
	if seen.hasHost { // HTTP/2 only: the codecs take HTTP/1's off
		if h.Authority == "" { // a request that was HTTP/1.1 before (RFC 9113, section 8.3.1)
			if err := checkAuthority(seen.host); err != nil {
				return err
			}
			h.Authority, s.rec.Authority = seen.host, seen.host
		}
		if !filter.SameAuthority(seen.host, h.Authority) {
			return refuse("the fields host and :authority disagree")
		}
		h.Header.Del("host")
	}
	if h.Authority == "" && h.Protocol == stream.HTTP2 {
		return refuse("neither :authority nor a host field")
	}
	if x.sni != "" && hostOf(s.fx.Head(s.req).Authority()) != x.sni {
		return &filter.Abort{Code: telemetry.Misdirected, Detail: "the TLS connection was opened for " + x.sni}
	}
	s.describe(seen.contentType, seen.userAgent)
	s.requestID(seen.requestID)
	return nil
}

// underscores drops fields with an underscore in their name, or refuses the
// request: some applications take x_user for x-user.
func underscores(h *stream.Header, u resource.Underscores) error {
	kept := (*h)[:0]
	for _, f := range *h {
		if strings.IndexByte(f.Name, '_') < 0 {
			kept = append(kept, f)
			continue
		}
		if u == resource.RejectUnderscores {
			return refuse("a field's name has an underscore")
		}
	}
	*h = kept
	return nil
}

// hostOf is an authority, in the spelling that decisions compare, without its
// port.
func hostOf(a string) string {
	if i := strings.LastIndexByte(a, ':'); i >= 0 && strings.IndexByte(a[i:], ']') < 0 {
		return a[:i]
	}
	return a
}

// describe keeps what the fields say of the request's kind.
func (s *exchange) describe(contentType, userAgent string) {
	s.rec.UserAgent = userAgent
	if s.req.Head.Method == http.MethodPost && stream.GRPC(contentType) {
		s.grpc, s.rec.Protocol = true, "grpc"
	}
}

// requestID keeps a sane x-request-id and makes one where there is none
// (a UUID of version 4, RFC 9562, section 5.4). Its text lives in the exchange.
func (s *exchange) requestID(sent string) {
	if len(sent) > 0 && len(sent) <= 128 && visible(sent) {
		s.rec.RequestID = sent
		return
	}
	const digits = "0123456789abcdef"
	a, b := s.e.d.Rand(), s.e.d.Rand()
	a = a&^0xf000 | 0x4000
	b = b&^(3<<62) | 2<<62
	u, n := &s.id, 0
	for i := 0; i < 16; i++ {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			u[n] = '-'
			n++
		}
		v := byte(a >> 56)
		a <<= 8
		if i == 7 {
			a = b
		}
		u[n], u[n+1] = digits[v>>4], digits[v&15]
		n += 2
	}
	id := unsafe.String(&u[0], len(u))
	if sent != "" {
		s.req.Head.Header.Del(hRequestID)
	}
	s.req.Head.Header.Add(hRequestID, id)
	s.rec.RequestID = id
}

func visible(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
