package l7

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/filter"
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

// seen is what one pass over a request's fields finds for the engine itself.
type seen struct {
	host, userAgent, contentType, requestID string

	hasHost bool
}

// sanitise takes off what the sender may not say, and says what the mesh knows.
//
// Fields about who asked are believed of our own application and of peers that
// proved an identity of the mesh; from anyone else they are dropped. A spelling
// with underscores is dropped from everybody: applications that read their
// headers from CGI-like variables cannot tell it from the real name.
// x-forwarded-client-cert is forwarded only where the configuration says so.
//
// It is one pass: the first byte of a name tells most fields from those that
// anything is to be done about.
func (x *connection) sanitise(h *stream.Header) (s seen) {
	fields := *h
	kept := 0 // fields[:kept] stay; equal to i until the first is dropped
	for i := range fields {
		f := &fields[i]
		if f.Name == "" {
			continue
		}
		switch f.Name[0] {
		case 'x', 'f':
			if f.Name == hRequestID {
				s.requestID = f.Value
			} else if x.drops(f.Name) {
				continue
			}
		case 'h':
			if f.Name == "host" {
				s.host, s.hasHost = f.Value, true
			}
		case 'u':
			if s.userAgent == "" && f.Name == "user-agent" {
				s.userAgent = f.Value
			}
		case 'c':
			if s.contentType == "" && f.Name == hContentType {
				s.contentType = f.Value
			}
		}
		if kept != i {
			fields[kept] = *f
		}
		kept++
	}
	*h = fields[:kept]
	if x.xfcc != "" {
		x.setXFCC(h)
	}
	if x.addr != "" {
		x.setXFF(h)
	}
	return s
}

// drops says whether a field goes. name is lower case.
func (x *connection) drops(name string) bool {
	switch kind := senderField(name); kind {
	case senderNone:
		return false
	case senderXFCC:
		return name != hXFCC || !x.keepXFCC
	default:
		return !x.trusted || strings.IndexByte(name, '_') >= 0
	}
}

// know works out once what is said of the client on every request.
func (x *connection) know() {
	m, c := x.e.c.Manager, x.c
	x.peer = c.PeerName()
	x.trusted = !x.e.c.Inbound && !x.e.c.Strangers || x.peer != ""
	x.src = x.e.c.Source
	if x.e.c.Inbound && x.peer != "" {
		fillService(&x.src, x.peer)
	}
	x.keepXFCC = m.XFCC == resource.AppendForwardXFCC && x.peer != ""
	if m.XFCC != resource.SanitizeXFCC && !c.Peer.IsZero() { // other names have no place in URI=
		x.xfcc = "URI=" + x.peer
		if by := x.e.c.Destination.Principal; by != "" {
			x.xfcc = "By=" + by + ";" + x.xfcc
		}
	}
	if c.TLS && x.peer == "" {
		x.sni = filter.NormaliseAuthority(c.ServerName)
	}
	if m.UseRemoteAddress && c.Source.IsValid() {
		x.addr = c.Source.Addr().Unmap().String()
	}
}

// setXFF adds the client's address, and the scheme where nobody said it.
func (x *connection) setXFF(h *stream.Header) {
	addr := x.addr
	if prior, ok := h.Values(hXFF); ok {
		if prior != "" {
			addr = prior + "," + addr
		}
		h.Del(hXFF)
	}
	h.Add(hXFF, addr)
	if _, ok := h.Lookup(hXFP); !ok {
		h.Add(hXFP, x.scheme())
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
	el := x.xfcc
	if prior, ok := h.Values(hXFCC); ok {
		if prior != "" {
			el = prior + "," + el
		}
		h.Del(hXFCC)
	}
	h.Add(hXFCC, el)
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
