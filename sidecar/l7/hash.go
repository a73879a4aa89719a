package l7

import (
	"math/bits"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// hash is the request's hash for balancers that use one. As in Envoy, several
// policies are combined by rotating and xor, a policy that finds nothing has no
// part, and a terminal one that found something is the last.
func (s *exchange) hash(policies []resource.HashPolicy) (sum uint64, ok bool) {
	for i := range policies {
		p := &policies[i]
		if v, found := s.hashInput(p); found {
			h := xxhash.Sum64String(v)
			if ok {
				h ^= bits.RotateLeft64(sum, 1)
			}
			sum, ok = h, true
		}
		if ok && p.Terminal {
			break
		}
	}
	return sum, ok
}

func (s *exchange) hashInput(p *resource.HashPolicy) (string, bool) {
	h := &s.req.Head
	switch {
	case p.Header != "":
		return h.Header.Values(strings.ToLower(p.Header))
	case p.Cookie != "":
		if v, ok := cookie(h.Header.Get("cookie"), p.Cookie); ok {
			return v, true
		}
		if p.CookieTTL == nil {
			return "", false
		}
		v := strconv.FormatUint(s.e.d.Rand(), 16)
		s.cookie = p.Cookie + "=" + v
		if *p.CookieTTL > 0 {
			s.cookie += "; Max-Age=" + strconv.FormatInt(int64(p.CookieTTL.Seconds()), 10)
		}
		if p.CookiePath != "" {
			s.cookie += "; Path=" + p.CookiePath
		}
		s.cookie += "; HttpOnly"
		return v, true
	case p.SourceIP:
		a := s.x.c.Source.Addr()
		return a.String(), a.IsValid()
	case p.Query != "":
		return query(h.Path, p.Query)
	}
	return "", false
}

func cookie(list, name string) (string, bool) {
	for part := range strings.SplitSeq(list, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

func query(path, name string) (string, bool) {
	_, q, _ := strings.Cut(path, "?")
	for part := range strings.SplitSeq(q, "&") {
		if k, v, _ := strings.Cut(part, "="); k == name {
			return v, true
		}
	}
	return "", false
}
