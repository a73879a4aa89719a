package l7

import (
	"errors"
	"strings"

	"github.com/parrel-mesh/parrel/sidecar/filter"
	"github.com/parrel-mesh/parrel/sidecar/stream"
	"github.com/parrel-mesh/parrel/sidecar/telemetry"
	"github.com/parrel-mesh/parrel/xds/decide"
	"github.com/parrel-mesh/parrel/xds/resource"
)

func refuse(detail string) error {
	return &filter.Abort{Status: 400, Code: telemetry.DownstreamProtocolError, Detail: detail}
}

// normalise gives the request's path its one spelling, on which everything is
// decided, which is forwarded and which the log shows. Where the client is to ask
// again by another spelling, it gives that answer.
func (s *exchange) normalise() (*stream.Response, error) {
	h := &s.req.Head
	if h.Path == "*" && h.Method == "OPTIONS" {
		s.path = decide.Path{}
		return nil, nil
	}
	p, err := decide.NormalisePath(h.Path, s.e.paths)
	if err != nil {
		var pe *decide.PathError
		if errors.As(err, &pe) {
			return nil, refuse(pe.Reason)
		}
		return nil, err
	}
	s.path = p
	h.Path, s.rec.Path = p.Target, p.Target
	if !p.Redirect {
		return nil, nil
	}
	if s.grpc { // whose clients follow no redirect
		return nil, refuse(escapedSlash)
	}
	return &stream.Response{Head: stream.ResponseHead{Status: 307, ContentLength: 0, Header: stream.Header{
		{Name: "location", Value: s.x.scheme() + "://" + h.Authority + p.Target}}}}, nil
}

const escapedSlash = "the path has an encoded slash or backslash"

// permit holds the path against what the route takes.
func (s *exchange) permit(v *decide.RouteVerdict) error {
	if !s.path.EscapedSlash && s.path.Kept == "" {
		return nil
	}
	words := ""
	if v.Route != nil {
		words = v.Route.Metadata[resource.MetaPath]
	}
	if s.path.EscapedSlash && !hasWord(words, resource.PathTakesEscapedSlashes) {
		return refuse(escapedSlash)
	}
	// A rewritten path is the route's own.
	if s.path.Kept != "" && v.Path == s.path.Target && hasWord(words, resource.PathKeepsSlashes) {
		v.Path = s.path.Kept
		s.req.Head.Path = s.path.Kept
	}
	return nil
}

func hasWord(list, word string) bool {
	for w := range strings.FieldsSeq(list) {
		if w == word {
			return true
		}
	}
	return false
}

// checkAuthority refuses what is no host with an optional port (RFC 9110,
// section 7.2): user information, paths, spaces.
func checkAuthority(a string) error {
	odd := false // an address in brackets
	for i := 0; i < len(a); i++ {
		switch authorityClass[a[i]] {
		case 1:
			return refuse("the authority is not a host with an optional port")
		case 2:
			odd = true
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
	} else if odd {
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

// authorityClass: 1 is never part of an authority, 2 is a bracket.
var authorityClass = func() (c [256]uint8) {
	for i := range c {
		b := byte(i)
		switch {
		case b <= ' ' || b >= 0x7f, strings.IndexByte(`@/\?#"<>^{}|,`+"`", b) >= 0:
			c[i] = 1
		case b == '[' || b == ']':
			c[i] = 2
		}
	}
	return c
}()
