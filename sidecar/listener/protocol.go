package listener

import (
	"bytes"
	"slices"
	"sort"
)

// speech is what the first bytes of a client are.
type speech uint8

const (
	unclear speech = iota // not yet to be told: more bytes are needed
	opaque                // not HTTP
	http10
	http11
	h2c      // HTTP/2 with prior knowledge (RFC 9113, 3.3)
	tlsHello // TLS (RFC 8446, 5.1)
)

// inspectorNames are what Envoy's http_inspector gives chains to match on
// (application_protocols).
var inspectorNames = []string{"http/1.0", "http/1.1", "h2c"}

// protocols are the application protocols that chains are matched on; nil where
// s is none of HTTP's.
func (s speech) protocols() []string {
	if s < http10 || s > h2c {
		return nil
	}
	return inspectorNames[s-http10 : s-http10+1]
}

// preface is the first line of HTTP/2's connection preface (RFC 9113, 3.4). No
// HTTP/1.1 request begins so.
const preface = "PRI * HTTP/2.0\r\n"

// maxFirstLine bounds how far a request line is looked at. What has no end by
// then goes by what it looks like: a known method and a path.
const maxFirstLine = 4 << 10

// methods are those of IANA's registry that have an origin-form target, and
// PURGE, which caches use; sorted. CONNECT is not among them: who speaks so
// speaks to a proxy, as who sends an absolute URL does, and such bytes are not
// for this one to read.
var methods = []string{
	"ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "DELETE", "GET", "HEAD", "LABEL", "LINK", "LOCK",
	"MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "OPTIONS", "ORDERPATCH",
	"PATCH", "POST", "PROPFIND", "PROPPATCH", "PURGE", "PUT", "QUERY", "REBIND", "REPORT", "SEARCH", "TRACE", "UNBIND",
	"UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
}

// classify says what b, all that a client has sent so far, begins. It is right
// as soon as it can be: bytes that no request begins with are opaque at the
// first one that shows it.
func classify(b []byte) speech {
	if len(b) == 0 {
		return unclear
	}
	if b[0] == recordHandshake {
		return tlsHello
	}
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		if n == len(preface) {
			return h2c
		}
		if n > 2 { // "PR" may yet become PROPFIND
			return unclear
		}
	}
	word, rest, spaced := bytes.Cut(b, []byte{' '})
	if !spaced {
		if beginsMethod(word) {
			return unclear
		}
		return opaque
	}
	if !slices.Contains(methods, string(word)) {
		return opaque
	}
	return requestLine(rest, string(word) == "OPTIONS")
}

// beginsMethod says whether a method begins with word.
func beginsMethod(word []byte) bool {
	i := sort.SearchStrings(methods, string(word))
	return i < len(methods) && len(word) <= len(methods[i]) && methods[i][:len(word)] == string(word)
}

// requestLine looks at what follows a method: a target in origin form (or "*",
// for OPTIONS) and the version.
func requestLine(b []byte, asterisk bool) speech {
	if len(b) == 0 {
		return unclear
	}
	if b[0] != '/' && (!asterisk || b[0] != '*') {
		return opaque
	}
	for i, c := range b {
		switch {
		case c == ' ':
			return version(b[i+1:])
		case c < ' ' || c == 0x7f: // the line ends without a version, or is no text
			return opaque
		case i >= maxFirstLine:
			return http11
		}
	}
	return unclear
}

// version looks at what follows a target.
func version(b []byte) speech {
	const name = "HTTP/1."
	if n := min(len(b), len(name)); string(b[:n]) != name[:n] {
		return opaque
	}
	switch {
	case len(b) < len(name)+2:
		return unclear
	case b[len(name)+1] != '\r' && b[len(name)+1] != '\n':
		return opaque
	case b[len(name)] == '0':
		return http10
	case b[len(name)] == '1':
		return http11
	}
	return opaque
}
