package l7

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/resource"
)

// Names of fields that the engine reads or writes.
const (
	hXFCC        = "x-forwarded-client-cert"
	hXFF         = "x-forwarded-for"
	hXFP         = "x-forwarded-proto"
	hRequestID   = "x-request-id"
	hExpected    = "x-envoy-expected-rq-timeout-ms"
	hOriginal    = "x-envoy-original-path"
	hGRPCTimeout = "grpc-timeout"
	hGRPCStatus  = "grpc-status"
	hGRPCMessage = "grpc-message"
	hContentType = "content-type"
	hProxyStatus = "proxy-status"
)

// sanitise takes off what the sender may not say, and says what the mesh knows.
//
// Fields about who asked are believed of our own application and of peers that
// proved an identity of the mesh; from anyone else they are dropped. A spelling
// with underscores is dropped from everybody: applications that read their
// headers from CGI-like variables cannot tell it from the real name.
// x-forwarded-client-cert is forwarded only where the configuration says so.
func (x *connection) sanitise(h *stream.Header) {
	m := x.e.c.Manager
	keepXFCC := m.XFCC == resource.AppendForwardXFCC && x.peer != ""
	out := (*h)[:0]
	for _, f := range *h {
		switch kind := senderField(f.Name); {
		case kind == senderNone:
		case kind == senderXFCC && !(keepXFCC && f.Name == hXFCC):
			continue
		case strings.IndexByte(f.Name, '_') >= 0, !x.trusted:
			continue
		}
		out = append(out, f)
	}
	*h = out
	if m.XFCC != resource.SanitizeXFCC && x.peer != "" {
		x.setXFCC(h)
	}
	if m.UseRemoteAddress && x.c.Source.IsValid() {
		addr := x.c.Source.Addr().Unmap().String()
		if prior, ok := h.Values(hXFF); ok && prior != "" {
			addr = prior + "," + addr
		}
		h.Set(hXFF, addr)
		if _, ok := h.Lookup(hXFP); !ok {
			h.Add(hXFP, x.scheme())
		}
	}
}

// scheme is what the client spoke: mTLS of the mesh is below what the
// applications speak.
func (x *connection) scheme() string {
	if x.c.TLS && x.peer == "" {
		return "https"
	}
	return "http"
}

// setXFCC adds this hop's element in Envoy's form.
func (x *connection) setXFCC(h *stream.Header) {
	el := "URI=" + x.peer
	if by := x.e.c.Destination.Principal; by != "" {
		el = "By=" + by + ";" + el
	}
	if prior, ok := h.Values(hXFCC); ok && prior != "" {
		el = prior + "," + el
	}
	h.Set(hXFCC, el)
}

type senderKind uint8

const (
	senderNone senderKind = iota
	senderXFCC
	senderOther
)

// senderField says whether a field tells who the client is or is one of the
// mesh's own, in any spelling. name is lower case.
func senderField(name string) senderKind {
	switch {
	case spelled(name, hXFCC):
		return senderXFCC
	case spelled(name, "forwarded"), spelledPrefix(name, "x-forwarded-"),
		spelledPrefix(name, "x-envoy-"), spelledPrefix(name, "x-parrel-"):
		return senderOther
	}
	return senderNone
}

// spelled compares names with `_` and `-` equal.
func spelled(name, canonical string) bool {
	return len(name) == len(canonical) && spelledPrefix(name, canonical)
}

func spelledPrefix(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := 0; i < len(prefix); i++ {
		c := name[i]
		if c == '_' {
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// requestID keeps a sane x-request-id and makes one where there is none
// (a UUID of version 4, RFC 9562, section 5.4).
func (x *connection) requestID(h *stream.Header) string {
	if id, ok := h.Lookup(hRequestID); ok && len(id) > 0 && len(id) <= 128 && visible(id) {
		return id
	}
	const digits = "0123456789abcdef"
	a, b := x.e.d.Rand(), x.e.d.Rand()
	a = a&^0xf000 | 0x4000
	b = b&^(3<<62) | 2<<62
	var u [36]byte
	n := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			u[n] = '-'
			n++
		}
		v := a
		if i >= 16 {
			v = b
		}
		u[n] = digits[v>>(60-4*(i%16))&15]
		n++
	}
	id := string(u[:])
	h.Set(hRequestID, id)
	return id
}

func visible(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
