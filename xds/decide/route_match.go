package decide

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/parrel-mesh/parrel/xds/resource"
)

// route is one compiled route.
type route struct {
	res          *resource.Route
	path         *regexp.Regexp // PathRegex
	headers      []header
	query        []query
	weights      uint64 // sum of the split
	rewrite      *regexp.Regexp
	substitution string // in Go's syntax
}

type query struct {
	res  *resource.QueryMatch
	text text
}

func (r *route) compile(res *resource.Route) error {
	r.res = res
	var err error
	m := &res.Match
	if m.PathKind == resource.PathRegex {
		if r.path, err = compileFull(m.Path); err != nil {
			return fmt.Errorf("match.safe_regex.regex: %w", err)
		}
	}
	r.headers = make([]header, len(m.Headers))
	for i := range m.Headers {
		if r.headers[i], err = compileHeader(&m.Headers[i]); err != nil {
			return fmt.Errorf("match.headers[%d].string_match.safe_regex: %w", i, err)
		}
	}
	r.query = make([]query, len(m.Query))
	for i := range m.Query {
		r.query[i].res = &m.Query[i]
		if s := m.Query[i].String; s != nil {
			if r.query[i].text, err = compileText(s); err != nil {
				return fmt.Errorf("match.query_parameters[%d].string_match.safe_regex: %w", i, err)
			}
		}
	}
	f := res.Forward
	if f == nil {
		return nil
	}
	for i := range f.Weighted {
		r.weights += uint64(f.Weighted[i].Weight)
	}
	if len(f.Weighted) > 0 && r.weights == 0 {
		return fmt.Errorf("route.weighted_clusters: %s", "the weights sum to zero")
	}
	if x := f.RegexRewrite; x != nil {
		if r.rewrite, err = regexp.Compile(x.Regex); err != nil {
			return fmt.Errorf("route.regex_rewrite.pattern.regex: %w", err)
		}
		r.substitution = goTemplate(x.Substitution)
	}
	return nil
}

// goTemplate turns RE2's substitution (\1, \\) into regexp.Expand's (${1}, $$).
func goTemplate(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c == '\\' && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			i++
			b.WriteString("${" + s[i:i+1] + "}")
		case c == '\\' && i+1 < len(s) && s[i+1] == '\\':
			i++
			b.WriteByte('\\')
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (r *route) matchPath(path string) bool {
	m := &r.res.Match
	switch m.PathKind {
	case resource.PathExact:
		return len(path) == len(m.Path) && hasPrefix(path, m.Path, m.IgnoreCase)
	case resource.PathSeparatedPrefix:
		return hasPrefix(path, m.Path, m.IgnoreCase) && (len(path) == len(m.Path) || path[len(m.Path)] == '/')
	case resource.PathRegex:
		return utf8.ValidString(path) && r.path.MatchString(path)
	}
	return hasPrefix(path, m.Path, m.IgnoreCase)
}

// matchRest matches everything but the path.
func (r *route) matchRest(h Head, f *Facts) bool {
	m := &r.res.Match
	if m.Fraction != nil && f.Draws[0] >= *m.Fraction {
		return false
	}
	for i := range r.headers {
		if r.headers[i].match(h) != yes {
			return false
		}
	}
	for i := range r.query {
		if !r.query[i].match(h.Path()) {
			return false
		}
	}
	return !m.GRPC || isGRPC(h)
}

func (q *query) match(target string) bool {
	v, ok := queryValue(target, q.res.Name)
	return ok && (q.res.String == nil || q.text.match(v) == yes)
}

func isGRPC(h Head) bool {
	ct, _ := h.Header("content-type")
	rest, ok := strings.CutPrefix(ct, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// pathIndex finds the first matching route without looking at all of them.
// Every route is in exactly one list; lists hold positions in ascending order.
type pathIndex struct {
	exact   map[string][]int32 // PathExact
	prefix  map[string][]int32 // PathPrefix and PathSeparatedPrefix
	lengths []int              // distinct lengths of the prefixes, longest first
	rest    []int32            // regexes, and whatever ignores case
}

func insertDesc(l []int, n int) []int {
	i, found := slices.BinarySearchFunc(l, n, func(e, t int) int { return t - e })
	if found {
		return l
	}
	return slices.Insert(l, i, n)
}

func (x *pathIndex) build(routes []route) {
	x.exact, x.prefix = map[string][]int32{}, map[string][]int32{}
	for i := range routes {
		m := &routes[i].res.Match
		switch {
		case m.IgnoreCase || m.PathKind == resource.PathRegex:
			x.rest = append(x.rest, int32(i))
		case m.PathKind == resource.PathExact:
			x.exact[m.Path] = append(x.exact[m.Path], int32(i))
		default:
			x.prefix[m.Path] = append(x.prefix[m.Path], int32(i))
			x.lengths = insertDesc(x.lengths, len(m.Path))
		}
	}
}

// find returns the position of the first route that matches, -1 if none does.
// Matching has no side effects, so the lists can be tried in any order as long
// as the lowest position wins.
func (x *pathIndex) find(routes []route, path string, h Head, f *Facts) int {
	best := int32(math.MaxInt32)
	try := func(list []int32, pathKnown bool) {
		for _, i := range list {
			if i >= best {
				return
			}
			r := &routes[i]
			if (pathKnown || r.matchPath(path)) && r.matchRest(h, f) {
				best = i
				return
			}
		}
	}
	try(x.exact[path], true)
	for _, n := range x.lengths {
		if n <= len(path) {
			try(x.prefix[path[:n]], false)
		}
	}
	try(x.rest, false)
	if best == math.MaxInt32 {
		return -1
	}
	return int(best)
}

func (r *route) subject(host string, i int) string {
	s := fmt.Sprintf("route %s/routes[%d]", host, i)
	if r.res.Name != "" {
		s += " " + strconv.Quote(r.res.Name)
	}
	return s
}

var pathWords = [...]string{
	resource.PathPrefix: "have the prefix", resource.PathExact: "equal", resource.PathRegex: "match the regex",
	resource.PathSeparatedPrefix: "have the whole segments",
}

// explain is match in words.
func (r *route) explain(path string, h Head, f *Facts) (string, bool) {
	m := &r.res.Match
	if !r.matchPath(path) {
		return fmt.Sprintf("path %q does not %s %q", path, pathWords[m.PathKind], m.Path), false
	}
	if m.Fraction != nil && f.Draws[0] >= *m.Fraction {
		return fmt.Sprintf("draw %d of 1000000 is outside the fraction of %d", f.Draws[0], *m.Fraction), false
	}
	for i := range r.headers {
		if r.headers[i].match(h) != yes {
			return fmt.Sprintf("it needs the %s, but %s", r.headers[i].String(), r.headers[i].found(h)), false
		}
	}
	for i := range r.query {
		q := &r.query[i]
		if q.match(h.Path()) {
			continue
		}
		v, ok := queryValue(h.Path(), q.res.Name)
		switch {
		case !ok:
			return fmt.Sprintf("query parameter %q is missing", q.res.Name), false
		default:
			return fmt.Sprintf("query parameter %q is %q, not %s", q.res.Name, v, q.text.String()), false
		}
	}
	if m.GRPC && !isGRPC(h) {
		return "it is not a gRPC request", false
	}
	return fmt.Sprintf("path %q and everything else match", path), true
}
