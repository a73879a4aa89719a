package filter

import (
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/xds/decide"
)

// Head shows a request's head to decisions. Authority is in the one spelling
// that decisions compare: lower case, without a trailing dot of the host.
type Head struct{ *stream.RequestHead }

var _ decide.Head = Head{}

func (h Head) Method() string { return h.RequestHead.Method }
func (h Head) Scheme() string { return h.RequestHead.Scheme }
func (h Head) Path() string   { return h.RequestHead.Path }

// Authority is the request's authority as decisions compare it.
func (h Head) Authority() string { return NormaliseAuthority(h.RequestHead.Authority) }

// Header returns the values of the field joined by ",".
func (h Head) Header(name string) (string, bool) { return h.RequestHead.Header.Values(name) }

// NormaliseAuthority gives the one spelling of an authority: lower case,
// without the trailing dot of an absolute domain name, port kept. It allocates
// only where something changes.
func NormaliseAuthority(a string) string {
	a = strings.ToLower(a)
	host, port := a, ""
	if i := strings.LastIndexByte(a, ':'); i >= 0 && strings.IndexByte(a[i:], ']') < 0 {
		host, port = a[:i], a[i:]
	}
	if n := len(host); n > 1 && host[n-1] == '.' {
		return host[:n-1] + port
	}
	return a
}
